"""The HTTP side of the bundled server: completions, models, health and metrics."""

import asyncio
import hmac
import json
import secrets
import signal
import threading
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

from aiohttp import web
from tokenizers import Tokenizer

from mathmill.errors import UserError
from mathmill.serving.bundled.completion import Completion, Refused, read_completion
from mathmill.serving.bundled.decode import Batch, Sample
from mathmill.serving.bundled.llama import Llama
from mathmill.serving.bundled.sampling import sample_generator
from mathmill.serving.bundled.text import TextStream

MAX_BODY_BYTES = 16 * 2**20


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json, with truncation and padding off."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{folder} has no tokenizer.json; save the tokenizer in the fast format")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Server:
    """One model behind HTTP."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, served_name: str, token: str | None, max_running: int):
        self.model = model
        self.tokenizer = tokenizer
        self.served_name = served_name
        self.token = token
        self.batch = Batch(model, max_running)
        self.started = int(time.time())

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._check])
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.completions)
        return app

    @web.middleware
    async def _check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            given = request.headers.get("Authorization", "")
            needed = f"Bearer {self.token}" if self.token and request.path.startswith("/v1/") else given
            if not hmac.compare_digest(given.encode(), needed.encode()):
                raise Refused("no such token; send Authorization: Bearer TOKEN", status=401, code="invalid_api_key")
            return await handler(request)  # the name is aiohttp's: it passes it by keyword
        except Refused as refusal:
            return web.json_response(refusal.body, status=refusal.status)

    async def health(self, request: web.Request) -> web.Response:
        """200 while completions can be had."""
        return web.Response(status=503 if self.batch.failed else 200)

    async def models(self, request: web.Request) -> web.Response:
        """The one model, its context length under vLLM's name for it."""
        card = {
            "id": self.served_name,
            "object": "model",
            "created": self.started,
            "owned_by": "mathmill",
            "max_model_len": self.model.context_length,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def metrics(self, request: web.Request) -> web.Response:
        """Counts in Prometheus' text format."""
        rows = [
            ("requests_running", "gauge", "Samples being decoded.", len(self.batch.active)),
            ("requests_waiting", "gauge", "Samples that wait for a slot.", len(self.batch.waiting)),
            ("prompt_tokens_total", "counter", "Tokens of the prompts begun.", self.batch.prompt_tokens),
            ("generated_tokens_total", "counter", "Tokens generated.", self.batch.generated_tokens),
        ]
        lines = [
            f"# HELP mathmill_{name} {meaning}\n# TYPE mathmill_{name} {kind}\nmathmill_{name} {value}\n"
            for name, kind, meaning, value in rows
        ]
        return web.Response(text="".join(lines), content_type="text/plain")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's completions. A client that goes away cancels this, and with it its samples."""
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError) as problem:
            raise Refused(f"the body is not JSON: {problem}") from None
        wanted = read_completion(body, self.tokenizer, self.served_name, self.model.context_length)
        choices: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        samples = self._samples(wanted, choices, asyncio.get_running_loop())
        self.batch.submit(samples)
        try:
            if wanted.stream:
                return await self._stream(request, wanted, samples, choices)
            ended = sorted([await choices.get() for _ in samples], key=lambda choice: choice["index"])
            return web.json_response(self._answer(ended) | {"usage": _usage(wanted, samples)})
        finally:
            self.batch.cancel([sample for sample in samples if sample.finish_reason is None])

    async def _stream(
        self, request: web.Request, wanted: Completion, samples: list[Sample], choices: asyncio.Queue[dict[str, Any]]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        chunk = self._answer([])
        going = len(samples)
        while going:
            choice = await choices.get()
            going -= choice["finish_reason"] is not None
            await response.write(_event(chunk | {"choices": [choice]}))
        if wanted.include_usage:
            await response.write(_event(chunk | {"usage": _usage(wanted, samples)}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _samples(
        self, wanted: Completion, choices: asyncio.Queue[dict[str, Any]], loop: asyncio.AbstractEventLoop
    ) -> list[Sample]:
        """A sample for every choice of the answer. What comes of it goes into `choices`, from the decode thread."""

        def reports(number: int) -> Callable[[Sample], None]:
            reported = 0

            def changed(sample: Sample) -> None:
                nonlocal reported
                text = sample.stream.take()
                if text or sample.finish_reason:
                    choice = self._choice(number, sample, text, reported)
                    loop.call_soon_threadsafe(choices.put_nowait, choice)
                    reported = len(sample.tokens)

            return changed

        return [
            Sample(
                prompt,
                wanted.sampling,
                sample_generator(wanted.seed, index),
                TextStream(self.tokenizer, prompt, wanted.sampling.stop),
                reports(position * wanted.num_samples + index),
                eager=wanted.stream,
            )
            for position, prompt in enumerate(wanted.prompts)
            for index in range(wanted.num_samples)
        ]

    def _choice(self, number: int, sample: Sample, text: str, start: int) -> dict[str, Any]:
        """What is new in a sample since its token `start`."""
        return {
            "index": number,
            "text": text,
            "logprobs": None if sample.sampling.logprobs is None else self._logprobs(sample, start),
            "finish_reason": sample.finish_reason,
            "stop_reason": sample.stream.stop_reason,
        }

    def _logprobs(self, sample: Sample, start: int) -> dict[str, Any]:
        """OpenAI's shape, for the tokens from start on; an offset counts the characters of the tokens before."""
        texts = [self._token_text(token) for token in sample.tokens]
        offsets = [0, *accumulate(map(len, texts))]
        found = sample.logprobs[start:]
        return {
            "tokens": texts[start:],
            "token_logprobs": [entry.logprob for entry in found],
            "top_logprobs": [
                {self._token_text(likely): value for likely, value in [*entry.top, (token, entry.logprob)]}
                for token, entry in zip(sample.tokens[start:], found, strict=True)
            ],
            "text_offset": offsets[start:-1],
        }

    def _token_text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def _answer(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.served_name,
            "choices": choices,
        }

    async def serve(self, host: str, port: int) -> int:
        """Serve until TERM or INT (0), or until decoding fails (1)."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        runner = web.AppRunner(self.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
        except OSError as problem:
            raise UserError(f"cannot listen on {host}:{port}: {problem.strerror}") from None
        decoding = threading.Thread(
            target=self.batch.run, args=(lambda: loop.call_soon_threadsafe(stopped.set),), daemon=True
        )
        decoding.start()
        print(f"{self.served_name} at http://{host}:{runner.addresses[0][1]}", flush=True)
        await stopped.wait()
        self.batch.stop()
        await runner.cleanup()
        decoding.join(timeout=1)
        return 1 if self.batch.failed else 0


def _usage(wanted: Completion, samples: list[Sample]) -> dict[str, int]:
    prompt_tokens, generated = sum(map(len, wanted.prompts)), sum(len(sample.tokens) for sample in samples)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
    }


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"
