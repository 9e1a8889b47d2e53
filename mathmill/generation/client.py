"""The client of `/v1/completions`: many requests in flight over one session, retried until the server answers properly.

What counts as an answer: status 200, whole JSON of the right shape, a text, a known finish reason and a positive number of
generated tokens. Everything else (an empty body with status 200, an error text, a truncated body) is a failure, never a text.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import Literal, NoReturn

import aiohttp
import msgspec

from mathmill.errors import UserError
from mathmill.generation.times import Gauge

RETRIED_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504}
CONGESTED = {"status 429", "status 503"}
LONGEST_PAUSE_S = 30.0
LARGEST_ANSWER = 64 << 20
"""Bytes."""


class RequestRefusedError(Exception):
    """The server answers others but not this request; `too_long` when the prompt does not fit its context."""

    def __init__(self, reason: str, too_long: bool = False) -> None:
        super().__init__(reason)
        self.too_long = too_long


class ServerLostError(UserError):
    """The server is gone, or it is somebody else's: nobody gets answers any more."""


class Source(msgspec.Struct, frozen=True):
    """What is known of the server that generated a text."""

    kind: str
    seed_honoured: bool | None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A text that the server generated, stop string removed."""

    text: str
    finish_reason: Literal["stop", "length"]
    stopped_by: str | None
    """The stop string, where the server tells; None where the model ended by itself or the server does not tell."""
    num_tokens: int
    source: Source | None = None


class Failure(msgspec.Struct, frozen=True):
    """One try that brought no text and is worth another one."""

    name: str
    begun: float
    """time.monotonic() when it was sent."""


Asked = dict[str, object]
"""A request's fields, without the model's name."""


class _Choice(msgspec.Struct):
    text: str
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage


class InFlight:
    """How many requests are under way: doubles while all goes well, grows slowly after the first congestion, which cuts it."""

    def __init__(self, most: int, first: int = 16) -> None:
        self.limit = float(min(first, most))
        self.most = most
        self.now = 0
        self._steady = False
        self._last_cut = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, hold it, give it back."""
        while self.now >= int(self.limit):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()
                raise
        self.now += 1
        try:
            yield
        finally:
            self.now -= 1
            self._wake()

    def _wake(self) -> None:
        free = int(self.limit) - self.now
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    def went_well(self) -> None:
        self.limit = min(self.most, self.limit + (1 / self.limit if self._steady else 1))

    def was_congested(self) -> None:
        if time.monotonic() - self._last_cut > 1:
            self.limit, self._steady, self._last_cut = max(1.0, self.limit * 0.7), True, time.monotonic()


class CompletionClient:
    """Asks one server. `patience_s`: how long all requests may fail before the server counts as lost."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        fields: frozenset[str],
        token: str | None = None,
        most_in_flight: int = 256,
        patience_s: float = 300.0,
        request_s: float = 1800.0,
        attempts: int = 8,
        at_server: Gauge | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.in_flight = InFlight(most_in_flight)
        self.failures: Counter[str] = Counter()
        self.num_tokens = 0
        self.at_server = at_server or Gauge()
        self.source: Source | None = None
        """Goes with every text, once it is known."""
        self._fields = fields
        self._patience_s = patience_s
        self._request_s = request_s
        self._attempts = attempts
        self._last_success = time.monotonic()
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._session: aiohttp.ClientSession | None = None
        self._decoder = msgspec.json.Decoder(_Answer)

    async def __aenter__(self) -> "CompletionClient":
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        # an answer may take as long as a long solution does; only the connection itself has a short limit
        timeout = aiohttp.ClientTimeout(total=self._request_s, sock_connect=20)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        self._last_success = time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float, top_p: float, stop: list[str], seed: int
    ) -> Completion:
        """One text. Raises RequestRefusedError for this request's own fault, ServerLostError when nobody is answered."""
        asked = asked_for(prompt, max_tokens, temperature=temperature, top_p=top_p, stop=stop, seed=seed)
        num_alone = num_tries = 0
        failing_since = float("inf")
        while True:
            answer = await self.attempt(asked)
            if isinstance(answer, Completion):
                return answer
            await asyncio.sleep(pause_s(num_tries, num_alone))
            num_tries += 1
            failing_since = min(failing_since, answer.begun)
            num_alone = await self.count_alone(num_alone, answer, self._attempts, num_tries > 1)
            if time.monotonic() - max(self._last_success, failing_since) > self._patience_s:
                await self._refuse_or_give_up(answer.name)

    async def attempt(self, asked: Asked) -> Completion | Failure:
        """One try, in a place of its own; counted. Raises RequestRefusedError and ServerLostError as `complete` does."""
        named = {"model": self.model, **asked}
        body = msgspec.json.encode({name: value for name, value in named.items() if name in self._fields})
        async with self.in_flight.place():
            begun = time.monotonic()
            with self.at_server:
                answer = await self._try(body)
        if isinstance(answer, Completion):
            self._last_success = time.monotonic()
            self.in_flight.went_well()
            self.num_tokens += answer.num_tokens
            return answer
        self.failures[answer] += 1
        return Failure(answer, begun)

    async def count_alone(self, num_alone: int, failure: Failure, most: int, may_ask: bool) -> int:
        """How often a request failed while others are answered here. Raises RequestRefusedError at `most`.

        `may_ask`: send a small request where none is under way that would tell.
        """
        if failure.name in CONGESTED:
            return 0
        if self._last_success > failure.begun or (
            may_ask and not self.in_flight.now and await self._answers_others()
        ):  # it may be this request's own fault
            num_alone += 1
            if num_alone == most:
                raise RequestRefusedError(f"{failure.name}, {num_alone} times while others were answered")
        return num_alone

    async def _answers_others(self) -> bool:
        """Whether the server answers a small request just now."""
        smallest = {"model": self.model, "prompt": "The", "max_tokens": 1}
        if not isinstance(await self._try(msgspec.json.encode(smallest)), Completion):
            return False
        self._last_success = time.monotonic()
        return True

    async def _refuse_or_give_up(self, failure: str) -> NoReturn:
        """After our patience: is it the server, or the only request that is left?"""
        if await self._answers_others():
            raise RequestRefusedError(f"{failure}, for {self._patience_s:.0f} s, while another request is answered")
        raise ServerLostError(f"{self.url} has answered nobody for {self._patience_s:.0f} s ({failure}); see its log")

    async def _try(self, body: bytes) -> Completion | str:
        """A completion, or the name of what went wrong and is worth another try."""
        assert self._session is not None
        try:
            url = f"{self.url}/v1/completions"
            async with self._session.post(url, data=body, allow_redirects=False) as response:
                content = await _content(response)
        except asyncio.TimeoutError:
            self.in_flight.was_congested()
            return "timeout"
        except (aiohttp.ClientError, OSError) as problem:
            return f"connection: {type(problem).__name__}"
        if response.status != 200:
            return self._refusal(response.status, content)
        try:
            answer = self._decoder.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "malformed answer" if content.strip() else "empty answer"
        if len(answer.choices) != 1 or answer.usage.completion_tokens <= 0:
            return "empty answer"
        choice = answer.choices[0]
        return Completion(
            text=choice.text,
            finish_reason=choice.finish_reason,
            stopped_by=choice.stop_reason if isinstance(choice.stop_reason, str) else None,
            num_tokens=answer.usage.completion_tokens,
            source=self.source,
        )

    def _refusal(self, status: int, content: bytes) -> str:
        said = content[:300].decode(errors="replace").strip()
        if status in RETRIED_STATUSES:
            failure = f"status {status}"
            if failure in CONGESTED:
                self.in_flight.was_congested()
            return failure
        if status in (401, 403):
            raise ServerLostError(f"{self.url} refuses our token (status {status}); is it another job's server?")
        if status == 404:
            raise ServerLostError(
                f"{self.url} does not serve the model '{self.model}' (status 404); is it another job's server?"
            )
        lowered = said.lower()
        too_long = status in (400, 413, 422) and (
            "context" in lowered or "too long" in lowered or "max_num_tokens" in lowered
        )
        raise RequestRefusedError(f"status {status}: {said}", too_long)


def asked_for(prompt: str, max_tokens: int, *, temperature: float, top_p: float, stop: list[str], seed: int) -> Asked:
    """The fields of a request that every server is asked with."""
    return {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stop": stop,
        "seed": seed,
    }


def pause_s(num_tries: int, num_alone: int = 0) -> float:
    """How long to wait before the next try; not long where others are answered."""
    longest = 1.0 if num_alone else min(LONGEST_PAUSE_S, 0.1 * 2 ** min(num_tries, 10))
    return longest * random.uniform(0.5, 1)


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card]


async def _content(response: aiohttp.ClientResponse) -> bytes:
    """The body; what is more than any completion can be is cut, and so no JSON."""
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST_ANSWER:
            break
    return b"".join(pieces)


async def served_model(url: str, token: str | None) -> str:
    """The name of the one model that a server lists; a user's mistake when it cannot be reached or lists several."""
    url = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=20)) as session:
            async with session.get(f"{url}/v1/models", allow_redirects=False) as response:
                content = await _content(response)
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as problem:
        raise UserError(f"no server answers at {url} ({type(problem).__name__}); check --server_address") from None
    if response.status != 200:
        raise UserError(f"{url}/v1/models answers with status {response.status}; check --server_address and the token")
    try:
        listed = [card.id for card in msgspec.json.decode(content, type=_Models).data]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UserError(
            f"{url}/v1/models does not answer as an OpenAI-compatible server does; check --server_address"
        ) from None
    if len(listed) != 1:
        raise UserError(f"{url} serves {len(listed)} models ({', '.join(listed)}); name one with --model")
    return listed[0]


async def seeds_are_honoured(client: CompletionClient, needed: bool = True) -> bool:
    """Whether one seed gives one text. UserError when different seeds give equal texts at temperature 1, or none is given.

    Such a server would fill a run with copies, unless all of it is greedy: then seeds are not `needed`. An open prompt
    and 24 tokens leave any real model a choice.
    """

    async def text(seed: int) -> str:
        asked = await client.complete("The", max_tokens=24, temperature=1.0, top_p=1.0, stop=[], seed=seed)
        return asked.text

    try:
        first, again, *others = await asyncio.gather(*map(text, (11, 11, 12, 13, 14, 15)))
    except RequestRefusedError as refusal:
        raise UserError(f"{client.url} refuses a plain request: {refusal}") from None
    if needed and all(other == first for other in others):
        raise UserError(
            f"{client.url} gives the same text for five different seeds at temperature 1; "
            "samples of it would be copies. Turn its sampling on, or ask for one greedy sample with --temperature 0"
        )
    return first == again
