"""One sample: generate, run the code that the model wrote, show it the output, continue, and grade the answer."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from mathmill.generation.client import Completion, RequestRefusedError, Source
from mathmill.generation.outputs import CODE_END, error_message, open_code, output_after, render_output
from mathmill.generation.sets import SampleSet, seed_of
from mathmill.generation.times import Times
from mathmill.grading import GradingPool, extract_answer
from mathmill.records import CodeBlock, ErrorMessage, FinishReason, Problem, Solution
from mathmill.sandbox import AsyncSandbox, AsyncSession

Show = Callable[[str], None]
SESSION_ATTEMPTS = 3
LEAST_ROOM = 16
"""Tokens: a smaller rest of the context is not worth a request."""


class SampleFailedError(Exception):
    """This sample cannot be made, for its own reasons: it goes to quarantine with them."""


class Completing(Protocol):
    """What a solver asks of a client."""

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float, top_p: float, stop: list[str], seed: int
    ) -> Completion: ...


def seed_of_round(seed: int, number: int) -> int:
    """A seed for each round of a solution, so that its rounds do not draw the same numbers; the first has the sample's."""
    return (seed + number * 0x9E3779B1) & 0x7FFFFFFF


@dataclass
class Draft:
    """A solution in the making."""

    prompt: str
    seed: int
    show: Show
    text: str = ""
    blocks: list[CodeBlock] = field(default_factory=list)
    message: ErrorMessage = "not_executed"
    num_tokens: int = 0
    stopped_by: str | None = None
    """The stop string of the last round, where the server tells."""
    sources: set[Source] = field(default_factory=set)

    def add(self, text: str) -> None:
        self.text += text
        self.show(text)

    @property
    def server_kind(self) -> str:
        """The kind of the server of all its rounds; several, joined, where a pool had several."""
        return "+".join(sorted({source.kind for source in self.sources}))

    @property
    def seed_honoured(self) -> bool | None:
        """The weakest claim of the servers of its rounds."""
        claims = {source.seed_honoured for source in self.sources}
        return False if False in claims else True if claims == {True} else None


@dataclass
class Solver:
    """Solves samples of one set with one server, one sandbox and one grading pool; any number at a time."""

    sample_set: SampleSet
    text_of: Callable[[Problem], str]
    code_sha: str
    client: Completing
    sandbox: AsyncSandbox | None
    """None where the prompt asks for no code."""
    grading: GradingPool
    suspects: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One for all solvers of a sandbox: samples whose session was lost run one at a time from then on, since one of those
    that were lost together may have been the cause."""
    times: Times = field(default_factory=Times)

    async def solve(self, problem: Problem, sample_index: int, show: Show = lambda text: None) -> Solution:
        """The finished solution. Raises SampleFailedError, and what ends a whole worker (server or sandbox lost)."""
        draft, reason = await self._draft(problem, seed_of(self.sample_set, problem.problem_id, sample_index), show)
        answer = extract_answer(draft.text)
        with self.times.grading:
            grade = await self.grading.grade(answer, problem.expected_answer)
        return Solution(
            problem_id=problem.problem_id,
            sample_index=sample_index,
            seed=draft.seed,
            problem=problem.problem,
            expected_answer=problem.expected_answer,
            generation=draft.text,
            code_blocks=draft.blocks,
            predicted_answer=answer,
            is_correct=grade.is_correct,
            grade_rule=grade.rule,
            error_message=draft.message,
            finish_reason=reason,
            num_tokens=draft.num_tokens,
            generation_type=self.sample_set.prompt.generation_type,
            prompt=self.sample_set.prompt.name,
            prompt_sha=self._prompt_sha,
            model=self.sample_set.model,
            server_kind=draft.server_kind,
            seed_honoured=draft.seed_honoured,
            dataset=problem.dataset,
            options_sha=self._options_sha,
            code_sha=self.code_sha,
        )

    async def _draft(self, problem: Problem, seed: int, show: Show) -> tuple[Draft, FinishReason]:
        """The text, its code run. A session that is lost is begun again while the sandbox itself is well."""
        prompt = self.text_of(problem)
        if self.sandbox is None:
            draft = Draft(prompt, seed, show)
            return draft, await self._generate(draft)
        for attempt in range(SESSION_ATTEMPTS):
            draft = Draft(prompt, seed, show)
            async with self.suspects if attempt else contextlib.nullcontext(), self.sandbox.session() as session:
                reason = await self._generate_and_run(draft, session)
            if reason is not None:
                return draft, reason
            await self.sandbox.stats()  # raises SandboxLost, which ends the worker: no row is to blame
        raise SampleFailedError(f"its session in the sandbox was lost {SESSION_ATTEMPTS} times")

    async def _generate_and_run(self, draft: Draft, session: AsyncSession) -> FinishReason | None:
        """Rounds of generation, each but the last ended by a block of code that was run. None: the session was lost.

        `max_code_executions` blocks are run; a model that ends one more block stops there. (The published pipeline also
        stops right after the output of the last block; here the model may still say its answer.)
        """
        sampling = self.sample_set.sampling
        while True:
            ended = await self._generate(draft)
            code = open_code(draft.text) if ended == "stop" and draft.stopped_by in (None, CODE_END) else None
            if code is None:
                return ended
            if len(draft.blocks) == sampling.max_code_executions:
                draft.message = "max_code_executions"
                return "max_code_executions"
            with self.times.code:
                block = await session.run(
                    code, timeout=sampling.code_timeout_s, max_output=sampling.max_output_characters
                )
            if block.status == "lost":
                return None
            draft.message = error_message(block, sampling.output_style)
            output = render_output(block, sampling.output_style, sampling.max_output_characters)
            draft.blocks.append(CodeBlock(code=code, output=output, status=block.status))
            draft.add(output_after(draft.text, output))
            if draft.message and sampling.stop_on_code_error:
                return "code_error"

    async def _generate(self, draft: Draft) -> FinishReason:
        """One round: the draft grows by what the model writes up to a stop string or a budget."""
        sampling = self.sample_set.sampling
        room = min(sampling.max_tokens_per_round, sampling.max_tokens - draft.num_tokens)
        if room <= 0:
            return "length"
        while True:
            try:
                with self.times.generation:
                    written = await self.client.complete(
                        draft.prompt + draft.text,
                        max_tokens=room,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        stop=self._stop,
                        seed=seed_of_round(draft.seed, len(draft.blocks)),
                    )
                break
            except RequestRefusedError as refusal:
                if not refusal.too_long:
                    raise SampleFailedError(f"the server refuses it: {refusal}") from None
                room //= 2  # prompt and room together are too long for the context: take what is left of it
                if room < LEAST_ROOM:
                    if draft.text:
                        return "context"
                    raise SampleFailedError(f"its prompt is too long: {refusal}") from None
        if written.source is not None:
            draft.sources.add(written.source)
        draft.num_tokens += written.num_tokens
        draft.stopped_by = written.stopped_by
        draft.add(written.text)
        return written.finish_reason

    @cached_property
    def _prompt_sha(self) -> str:
        return self.sample_set.prompt.sha

    @cached_property
    def _options_sha(self) -> str:
        return self.sample_set.options_sha

    @cached_property
    def _stop(self) -> list[str]:
        return [*self.sample_set.prompt.stop, *([CODE_END] if self.sandbox else [])]
