"""Continuous batching: samples join and leave between the decode steps of a thread.

What is guaranteed: the random numbers of a sample are those of (seed, sample index) and nothing else, a prompt is
prefilled alone, and a decode step gives every slot, bit for bit, the logits it would get alone (see `llama.even_rows`).
So a text depends on the prompt, the options, the seed and the index, not on the batch. Another machine, another BLAS or
another number of BLAS threads rounds differently, and there a near-tie may fall the other way.
"""

import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable

import numpy as np

from mathmill.serving.bundled.llama import Cache, Llama, Prefill
from mathmill.serving.bundled.sampling import Sampling, TokenLogprob, choose, token_logprob
from mathmill.serving.bundled.text import TextStream

JOIN_TOKENS = 2048
"""Prompt tokens that may be prefilled between two steps; more would hold up the samples in flight."""
REMEMBERED_BYTES = 64 * 2**20
"""Keys and values of recent prompts that are kept: the samples of one problem come as requests of the same prompt."""


class Sample:
    """One text being generated. `changed` is called in the decode thread at its end, and after every step if `eager`."""

    def __init__(
        self, prompt: list[int], sampling: Sampling, generator: np.random.Generator, stream: TextStream,
        changed: Callable[["Sample"], None], eager: bool = False,
    ):  # fmt: skip
        self.prompt = prompt
        self.sampling = sampling
        self.generator = generator
        self.stream = stream
        self.changed = changed
        self.eager = eager
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self.cancelled = False

    def add(self, token: int, logits: np.ndarray, end_tokens: frozenset[int]) -> None:
        """Take the next token and see whether the text ends with it."""
        self.tokens.append(token)
        if self.sampling.logprobs is not None:
            self.logprobs.append(token_logprob(logits, token, self.sampling.logprobs))
        if token in end_tokens and not self.sampling.ignore_eos:
            self.stream.finish()
            self.finish_reason = "stop"
        elif self.stream.push(token):
            self.finish_reason = "stop"
        elif len(self.tokens) == self.sampling.max_tokens:
            self.finish_reason = "stop" if self.stream.finish() else "length"
        if self.eager or self.finish_reason:
            self.changed(self)


class Batch:
    """The samples in flight and those that wait; `run` decodes them in a thread of its own."""

    def __init__(self, model: Llama, max_running: int):
        self.model = model
        self.cache = Cache(model.config, max_running, model.context_length)
        self.max_running = max_running
        self.active: list[Sample] = []
        """Its order is the order of the cache's slots."""
        self.waiting: deque[Sample] = deque()
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.failed = False
        self._remembered: OrderedDict[tuple[int, ...], Prefill] = OrderedDict()
        self._stopping = False
        self._wake = threading.Condition()

    def submit(self, samples: list[Sample]) -> None:
        """Queue samples; any thread."""
        with self._wake:
            self.waiting.extend(samples)
            self._wake.notify()

    def cancel(self, samples: list[Sample]) -> None:
        """Drop samples that nobody waits for any more; any thread. Their slots are free at the next step."""
        with self._wake:
            for sample in samples:
                sample.cancelled = True
            self.waiting = deque(sample for sample in self.waiting if not sample.cancelled)
            self._wake.notify()

    def stop(self) -> None:
        """Let `run` return after the step it is in."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def run(self, on_failure: Callable[[], None]) -> None:
        """Decode until `stop`. An error ends it: nothing that is in flight could be trusted."""
        try:
            while self._wait_for_work():
                self._join()
                if self.active:
                    self._step()
        except Exception:
            if self._stopping:
                return  # nobody listens any more
            traceback.print_exc()
            self.failed = True
            on_failure()

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._stopping or self.waiting or self.active):
                self._wake.wait()
            return not self._stopping

    def _join(self) -> None:
        """Let waiting samples in, each with its prompt run and its first token drawn."""
        self._leave()
        room = JOIN_TOKENS
        while room > 0 and len(self.active) < self.max_running:
            with self._wake:
                if not self.waiting:
                    return
                sample = self.waiting.popleft()
                self.active.append(sample)
            prefill, computed = self._prefill(sample.prompt)
            room -= computed
            self.prompt_tokens += len(sample.prompt)
            self.cache.put(len(self.active) - 1, prefill)
            self._draw([sample], prefill.logits[None])
            self._leave()

    def _prefill(self, prompt: list[int]) -> tuple[Prefill, int]:
        """A prompt's prefill, and how many tokens had to be computed for it."""
        key = tuple(prompt)
        if key in self._remembered:
            self._remembered.move_to_end(key)
            return self._remembered[key], 0
        prefill = self._remembered[key] = self.model.prefill(prompt)
        while sum(kept.keys.nbytes + kept.values.nbytes for kept in self._remembered.values()) > REMEMBERED_BYTES:
            self._remembered.popitem(last=False)
        return prefill, len(prompt)

    def _step(self) -> None:
        last = np.array([sample.tokens[-1] for sample in self.active])
        self._draw(self.active, self.model.decode(last, self.cache))
        self._leave()

    def _draw(self, samples: list[Sample], logits: np.ndarray) -> None:
        tokens = choose(logits, [sample.sampling for sample in samples], [sample.generator for sample in samples])
        self.generated_tokens += len(tokens)
        for sample, token, row in zip(samples, tokens, logits, strict=True):
            sample.add(token, row, self.model.config.end_tokens)

    def _leave(self) -> None:
        """Drop what has ended; the last slot moves into a free one."""
        for slot in reversed(range(len(self.active))):
            if self.active[slot].finish_reason or self.active[slot].cancelled:
                last = self.active.pop()
                if slot < len(self.active):
                    self.cache.move(len(self.active), slot)
                    self.active[slot] = last
