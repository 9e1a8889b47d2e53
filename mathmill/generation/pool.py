"""The client of a pool: all servers of the run that serve the worker's model, as they come and go.

The servers' address files are the list, their heartbeats say who lives. A request goes to the server with the fewest in flight
for its limit; when that server is lost it goes to another one, which gives the same text, since the seed is in the request.
"""

import asyncio
import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable

from mathmill.errors import UserError
from mathmill.generation.client import (
    Asked,
    Completion,
    CompletionClient,
    Failure,
    RequestRefusedError,
    ServerLostError,
    Source,
    asked_for,
    pause_s,
    seeds_are_honoured,
)
from mathmill.generation.times import Gauge
from mathmill.run import Run
from mathmill.serving.address import Address
from mathmill.serving.kinds import KINDS
from mathmill.serving.shared import LEASE_S, Gone, announced, gone_servers, launches_of, tell_to_end

LOOK_S = 1.0
SAY_S = 60.0
PROBE_PATIENCE_S = 3.0
LONGEST_REST_S = 5.0
FAILURES_TO_REST = 8
"""In a row: then a server is asked for nothing until it answers a probe."""
WITHDRAWN_S = 600.0
"""What is in flight at a server that withdrew may take so long: it is near its limit and finishes."""
GONE = "server gone"
FIRST_LIMIT = 16.0


class Member:
    """A server of the pool as this client sees it."""

    def __init__(self, job: str, address: Address, client: CompletionClient) -> None:
        self.job = job
        self.address = address
        self.client = client
        self.at_server = client.at_server
        self.ready = False
        self.out_since = time.monotonic()
        """When it was last ready, or joined."""
        self.left_out = False
        """It would fill the run with copies, or takes no request at all."""
        self.withdrawn_at: float | None = None
        self.prober: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._num_asked = 0
        self._failures_in_a_row = 0  # since the last answer

    @property
    def load(self) -> float:
        """Requests that are there or wait for a place there, for its limit."""
        return (self._num_asked + 1) / self.client.in_flight.limit

    async def attempt(self, asked: Asked) -> Completion | Failure:
        """One try here; a failure as soon as the server is lost."""
        begun = time.monotonic()
        self._num_asked += 1
        trial = asyncio.create_task(self.client.attempt(asked))
        try:
            waited: set[asyncio.Future] = {trial, self.lost}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self.lost.done() and not (trial.done() and trial.exception() is None):
                return Failure(GONE, begun)
            answer = trial.result()
        except ServerLostError:  # it refuses our token or name
            self.rest()
            return Failure("somebody else's server", begun)
        finally:
            self._num_asked -= 1
            trial.cancel()
        self._judge(answer)
        return answer

    def _judge(self, answer: Completion | Failure) -> None:
        if isinstance(answer, Completion):
            self._failures_in_a_row = 0
            return
        self._failures_in_a_row += 1
        if answer.name.startswith("connection") or self._failures_in_a_row >= FAILURES_TO_REST:
            self.rest()

    def rest(self) -> None:
        """Get nothing new until a probe is answered."""
        if self.ready:
            self.ready, self.out_since = False, time.monotonic()

    def lose(self) -> None:
        """What is in flight here goes elsewhere."""
        self.ready = False
        if not self.lost.done():
            self.lost.set_result(None)


class PoolInFlight:
    """How many requests the ready servers of a pool take together."""

    def __init__(self, members: dict[str, Member]) -> None:
        self._members = members

    @property
    def limit(self) -> float:
        return sum(one.client.in_flight.limit for one in self._members.values() if one.ready) or FIRST_LIMIT

    @property
    def now(self) -> int:
        return sum(one.client.in_flight.now for one in self._members.values())


def print_to_log(text: str) -> None:
    print(time.strftime("%H:%M:%S ") + text, file=sys.stderr, flush=True)


class PoolClient:
    """Asks all servers of a pool. `wait_s`: how long none may be announced; `patience_s`: how long all of them may fail."""

    def __init__(
        self,
        run: Run,
        pool: str,
        *,
        at_server: Gauge,
        most_in_flight: int = 256,
        wait_s: float = 3600.0,
        patience_s: float = 300.0,
        attempts: int = 8,
        seeds_needed: bool = True,
        lease_s: float = LEASE_S,
        say: Callable[[str], None] = print_to_log,
    ) -> None:
        self.failures: Counter[str] = Counter()
        self.num_tokens = 0
        self.say = say
        self.members: dict[str, Member] = {}
        """Server's job -> its latest start."""
        self.in_flight = PoolInFlight(self.members)
        self._run, self._pool, self.at_server = run, pool, at_server
        self._most_in_flight, self._wait_s, self._patience_s = most_in_flight, wait_s, patience_s
        self._attempts, self._seeds_needed, self._lease_s = attempts, seeds_needed, lease_s
        self._changed = asyncio.Event()
        self._failed: UserError | None = None
        self._none_since = time.monotonic()
        self._said_at = 0.0
        self._busy_s: defaultdict[str, float] = defaultdict(float)
        self._follower: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "PoolClient":
        self._run.servers.mkdir(exist_ok=True)
        self._none_since = self._said_at = time.monotonic()
        self._follower = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._follower is not None
        self._follower.cancel()
        await asyncio.gather(self._follower, return_exceptions=True)
        for member in list(self.members.values()):
            await self._drop(member)

    async def first_server(self) -> None:
        """Wait until a server is ready. Raises ServerLostError at the deadline, or when all are gone for good."""
        await self._choose(set())

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float, top_p: float, stop: list[str], seed: int
    ) -> Completion:
        """One text. Raises RequestRefusedError for this request's own fault, ServerLostError when nobody is answered."""
        asked = asked_for(prompt, max_tokens, temperature=temperature, top_p=top_p, stop=stop, seed=seed)
        num_alone = num_tries = 0
        failed_at: set[Member] = set()
        while True:
            member = await self._choose(failed_at)
            answer = await member.attempt(asked)
            if isinstance(answer, Completion):
                self.num_tokens += answer.num_tokens
                return answer
            self.failures[answer.name] += 1
            self._note_members()
            if member in failed_at:
                await asyncio.sleep(pause_s(num_tries, num_alone))
                num_tries += 1
            failed_at.add(member)
            if sum(one.lost.done() for one in failed_at) >= self._attempts:
                raise RequestRefusedError(f"{self._attempts} servers were lost while it was in flight there")
            num_alone = await member.client.count_alone(num_alone, answer, self._attempts, may_ask=False)

    def busy_s(self) -> dict[str, float]:
        """Server's job -> seconds with anything of ours there."""
        now = {member.job: member.at_server.busy_s() for member in self.members.values()}
        return {job: self._busy_s[job] + now.get(job, 0.0) for job in {*self._busy_s, *now}}

    async def _choose(self, failed_at: set[Member]) -> Member:
        """The ready server with the least load, one where this request has not failed before others."""
        while True:
            if self._failed is not None:
                raise self._failed
            ready = [member for member in self.members.values() if member.ready]
            if ready:
                return min([member for member in ready if member not in failed_at] or ready, key=lambda one: one.load)
            self._changed.clear()
            await self._changed.wait()

    async def _follow(self) -> None:
        """Keep the members those that the run's folder announces."""
        try:
            while True:
                with contextlib.suppress(OSError):  # a file system that hiccups: the next look will tell
                    await self._look()
                await asyncio.sleep(LOOK_S)
        except Exception as problem:  # else all requests would wait for ever
            self._fail(ServerLostError(f"{self._run.servers} cannot be followed: {type(problem).__name__}: {problem}"))
            raise

    async def _look(self) -> None:
        await self._update(await asyncio.to_thread(announced, self._run.servers, self._pool))
        self._note_members()
        if any(member.ready for member in self.members.values()):
            self._none_since = time.monotonic()
        else:
            await self._wait_or_give_up()

    async def _update(self, seen: dict[str, tuple[Address, float]]) -> None:
        for job, (address, age) in seen.items():
            member = self.members.get(job)
            if member is not None and member.address != address:  # it was started again
                await self._drop(member)
                member = None
            if age > self._lease_s:
                if member is not None and not member.lost.done():
                    self.say(f"server {job} has not beaten for {age:.0f} s: what it had goes to others")
                    await self._drop(member)
            elif member is None:
                await self._join(job, address)
            else:
                member.withdrawn_at = None  # a folder's cache had missed it
        for job, member in list(self.members.items()):
            if job not in seen:
                await self._let_finish(member)

    async def _join(self, job: str, address: Address) -> None:
        client = CompletionClient(
            address.url,
            address.model,
            fields=KINDS[address.kind].fields,
            token=address.token,
            most_in_flight=self._most_in_flight,
            patience_s=PROBE_PATIENCE_S,
            at_server=Gauge(self.at_server),
        )
        await client.__aenter__()
        self.members[job] = Member(job, address, client)

    async def _let_finish(self, member: Member) -> None:
        """A server that took its announcement back gets nothing new; what is in flight there may finish."""
        if member.withdrawn_at is None:
            member.withdrawn_at = time.monotonic()
            member.ready = False
            self.say(f"server {member.job} has withdrawn")
        if not member.client.in_flight.now or time.monotonic() - member.withdrawn_at > WITHDRAWN_S:
            await self._drop(member)

    async def _drop(self, member: Member) -> None:
        member.lose()
        if self.members.get(member.job) is member:
            del self.members[member.job]
        self._busy_s[member.job] += member.at_server.busy_s()
        if member.prober is not None:
            member.prober.cancel()
            await asyncio.gather(member.prober, return_exceptions=True)
        await asyncio.sleep(0)  # its requests hear of it before their session closes
        await member.client.__aexit__(None, None, None)

    def _note_members(self) -> None:
        """Probe members that are not ready: new ones, and those that failed."""
        for member in self.members.values():
            stays_out = member.left_out or member.withdrawn_at is not None or member.lost.done()
            if not (member.ready or stays_out) and (member.prober is None or member.prober.done()):
                member.prober = asyncio.create_task(self._probe(member))

    async def _probe(self, member: Member) -> None:
        """Until it answers as a server of this pool should."""
        is_new, num_tries = member.client.source is None, 0
        while True:
            try:
                honoured = await seeds_are_honoured(member.client, self._seeds_needed)
                break
            except ServerLostError as problem:
                if num_tries == 0:
                    self.say(f"server {member.job} does not answer: {problem}")
                await asyncio.sleep(min(LONGEST_REST_S, pause_s(num_tries)))
                num_tries += 1
            except UserError as problem:
                member.left_out = True
                if not any(other.ready for other in self.members.values()):
                    self._fail(problem)
                self.say(f"server {member.job} is left out: {problem}")
                return
        member.client.source = Source(member.address.kind, honoured)
        if member.withdrawn_at is not None or member.lost.done():
            return
        member.ready = True
        self._changed.set()
        if is_new:
            self.say(f"server {member.job} joins: {member.address.model} at {member.address.url}")

    def _fail(self, problem: UserError) -> None:
        self._failed = problem
        self._changed.set()

    async def _wait_or_give_up(self) -> None:
        """No server is ready: say so now and then, and end the wait when it is in vain or too long."""
        now = time.monotonic()
        lasted = now - self._none_since
        servers = self._run.servers
        gone = list((await asyncio.to_thread(gone_servers, servers, self._pool)).values())
        told = f": {gone[-1].reason}; its log: {gone[-1].log}" if gone else ""
        here = [member for member in self.members.values() if member.withdrawn_at is None]
        if here and all(now - member.out_since > self._patience_s for member in here):
            names = ", ".join(member.job for member in here[:3])
            problem = f"{len(here)} servers ({names}) live and have answered nobody for {self._patience_s:.0f} s"
            self._fail(ServerLostError(f"{problem}; see their logs in {self._run.logs}"))
        elif not here and await asyncio.to_thread(all_gone, self._run, self._pool, gone):
            self._fail(ServerLostError(f"all servers are gone{told}. Finished rows are safe: the same command goes on"))
        elif not here and lasted > self._wait_s:
            problem = f"no server was there for {lasted / 60:.0f} minutes (server_wait_minutes){told}"
            self._fail(ServerLostError(f"{problem}. Look with: python pipeline/status.py {self._run.name}"))
        elif now - self._said_at > SAY_S:
            self._said_at = now
            last = f", {len(gone)} gone for good, the last{told}" if gone else ""
            self.say(f"no server is ready{last}; waiting {(self._wait_s - lasted) / 60:.0f} minutes more at most")


def all_gone(run: Run, pool: str, gone: list[Gone]) -> bool:
    """Whether every server that was ever launched for this pool has said that it does not come back."""
    count = Counter(one.launch for one in gone)
    sizes = dict(launches_of(run.jobs, pool))
    return bool(sizes) and all(
        count[name] >= size or (run.servers / f"{name}.ended").exists() for name, size in sizes.items()
    )


def end_pool_when_done(run: Run, pool: str, is_done: Callable[[], bool]) -> bool:
    """Tell all servers of a pool to end, once nothing is left. Launches are listed first: one that comes later has work."""
    launches = list(dict(launches_of(run.jobs, pool)))
    if done := is_done():
        tell_to_end(run.servers, launches)
    return done
