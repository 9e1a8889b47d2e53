"""A language model's second opinion of answers: asked in both directions, stored keyed beside the shards, never in them."""

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from mathmill.chat_template import ChatTemplate
from mathmill.errors import UserError
from mathmill.files import publish_once
from mathmill.generation.client import CompletionClient, RequestRefusedError
from mathmill.generation.regrade import KeyedVerdict, verdict_folder
from mathmill.generation.sets import SetFolder, set_folders
from mathmill.generation.shards import published
from mathmill.prompts import Prompt, fill
from mathmill.records import Solution, lines_of, read_records
from mathmill.run import Run
from mathmill.serving.address import Address, read_address
from mathmill.serving.kinds import KINDS

VERDICT = re.compile(r"\b(?:judge?ment|verdict)\b\W*(yes|no)\b|^\W*(yes|no)\b\W*$", re.IGNORECASE | re.MULTILINE)
LONGEST_ANSWER = 1000
"""Characters: a longer answer is not asked about."""


SAY_EVERY_S = 10.0


class JudgeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `judge` of a job's JSON file."""

    name: str
    """Of the verdicts: RUN/solutions/SET/verdicts/NAME."""
    prompt: Prompt
    model: str
    model_path: str
    max_tokens: int = 512
    server_address: str | None = None
    server_token_env: str | None = None
    max_in_flight: int = 256


class JudgeRules(msgspec.Struct, frozen=True, kw_only=True):
    """What all verdicts of a name have in common: `judge.yaml`."""

    model: str
    prompt: str
    prompt_sha: str
    max_tokens: int


def open_judgement(folder: SetFolder, options: JudgeOptions) -> Path:
    """The folder of these verdicts, made if need be; it must have been begun by the same judge with the same prompt."""
    verdicts = verdict_folder(folder, options.name)
    rules = JudgeRules(
        model=options.model,
        prompt=options.prompt.name,
        prompt_sha=options.prompt.sha,
        max_tokens=options.max_tokens,
    )
    config = verdicts / "judge.yaml"
    if (verdicts / "verdicts.yaml").exists():
        raise UserError(f"{verdicts} holds verdicts of pipeline/grade.py; use another --name")
    publish_once(config, msgspec.yaml.encode(rules))
    begun = msgspec.yaml.decode(config.read_bytes(), type=JudgeRules)
    for name in JudgeRules.__struct_fields__:
        if getattr(begun, name) != getattr(rules, name):
            raise UserError(
                f"{verdicts} was begun with {name} {getattr(begun, name)}; use another --name, or that {name}"
            )
    return verdicts


def read_verdict(said: str) -> bool | None:
    """The last verdict in a judge's text, as `Judgement: Yes`, or a line that is only yes or no; None where there is none."""
    found = VERDICT.findall(said)
    return None if not found else "".join(found[-1]).lower() == "yes"


def shards_left(folder: SetFolder, name: str) -> list[str]:
    """Published shards of a set that have no verdicts of this name."""
    verdicts = verdict_folder(folder, name)
    return [shard for shard in sorted(published(folder)) if not (verdicts / f"{shard}.jsonl").exists()]


def num_questions(folder: SetFolder, shards: Iterable[str]) -> int:
    """Pairs of answers in these shards that are to be judged, each asked about twice."""
    return sum(len(_questions(list(read_records(folder.folder / f"{shard}.jsonl", Solution)))) for shard in shards)


Question = tuple[str, str, str]
"""Problem, expected and predicted answer."""


def _questions(solutions: list[Solution]) -> set[Question]:
    return {question for row in solutions if (question := _question(row)) is not None}


def _question(row: Solution) -> Question | None:
    answer, expected = row.predicted_answer, row.expected_answer
    if answer is None or expected is None or not answer.strip() or len(answer) > LONGEST_ANSWER:
        return None
    return row.problem, expected, answer


@dataclass
class Judge:
    """Asks a model whether two answers of a problem are the same, in both directions, each pair once."""

    options: JudgeOptions
    client: CompletionClient
    num_asked: int = 0
    _known: dict[Question, asyncio.Task[tuple[bool | None, str]]] = field(default_factory=dict)

    async def verdict(self, question: Question) -> tuple[bool | None, str]:
        """Whether the answers are the same, and by which rule: both directions must agree, or nobody could tell."""
        if question not in self._known:
            self._known[question] = asyncio.create_task(self._ask_both(question))
        return await self._known[question]

    def told(self) -> str:
        """What came of all that was asked, as a line."""
        said = [task.result()[0] for task in self._known.values()]
        text = (
            f"{len(said):,} different answers: {said.count(True):,} the same as expected, {said.count(False):,} not, "
        )
        text += f"{said.count(None):,} could not tell"
        if said and said.count(None) == len(said):
            text += f"; {self.options.model} never gave a verdict: it may be no chat model, or want more --max_tokens"
        return text

    async def _ask_both(self, question: Question) -> tuple[bool | None, str]:
        problem, expected, predicted = question
        one, other = await asyncio.gather(
            self._ask(problem, expected, predicted), self._ask(problem, predicted, expected)
        )
        rule = "judge:" + "/".join({True: "yes", False: "no", None: "unclear"}[each] for each in (one, other))
        return (one if one is other else None), rule

    async def _ask(self, problem: str, first: str, second: str) -> bool | None:
        self.num_asked += 1
        try:
            said = await self.client.complete(
                judge_text(self.options.prompt, self.options.model_path, problem, first, second),
                max_tokens=self.options.max_tokens,
                temperature=0.0,
                top_p=1.0,
                stop=self.options.prompt.stop,
                seed=0,
            )
        except RequestRefusedError:  # this question alone: too long, or the server's own fault with it
            return None
        return read_verdict(said.text)


_chat_template = lru_cache(ChatTemplate)
"""Of a model's folder: read once, asked for each question."""


def judge_text(prompt: Prompt, model_path: str, problem: str, first: str, second: str) -> str:
    """What the judge is asked; `first_answer` and `second_answer` are the two answers in the order of the direction."""
    fields = {"problem": problem, "first_answer": first, "second_answer": second}
    place = f"prompt '{prompt.name}'"
    if prompt.template == "raw":
        return fill(prompt.user, fields, place)
    parts = [("system", prompt.system), ("user", prompt.user)]
    messages = [{"role": role, "content": fill(text, fields, place)} for role, text in parts if text is not None]
    return _chat_template(model_path).text(messages)


async def judge_run(run: Run, options: JudgeOptions, say: Callable[[str], None]) -> int:
    """Judge every shard without verdicts; tasks begin at places of their own, and two that meet do no harm."""
    address = _server(run, options)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            CompletionClient(
                address.url,
                address.model,
                fields=KINDS[address.kind].fields,
                token=address.token,
                most_in_flight=options.max_in_flight,
            )
        )
        judge = Judge(options, client)
        for folder in set_folders(run):
            verdicts = open_judgement(folder, options)
            shards = shards_left(folder, options.name)
            task, tasks = int(os.environ.get("MATHMILL_TASK", 0)), int(os.environ.get("MATHMILL_TASKS", 1))
            first, said = len(shards) * task // max(tasks, 1), time.monotonic()
            for number, shard in enumerate(shards[first:] + shards[:first], 1):
                path = verdicts / f"{shard}.jsonl"
                if not path.exists():
                    publish_once(path, lines_of(await _judged(folder, shard, judge)))
                if number == len(shards) or time.monotonic() > said + SAY_EVERY_S:
                    said = time.monotonic()
                    say(f"{folder.folder.name}: {number} of {len(shards)} shards, {judge.num_asked:,} questions asked")
        say(judge.told())
    return 0


async def _judged(folder: SetFolder, shard: str, judge: Judge) -> list[KeyedVerdict]:
    solutions = list(read_records(folder.folder / f"{shard}.jsonl", Solution))
    questions = list(_questions(solutions))
    found = dict(zip(questions, await asyncio.gather(*map(judge.verdict, questions)), strict=True))

    def verdict(row: Solution) -> KeyedVerdict:
        question = _question(row)
        if question is not None:
            is_correct, rule = found[question]
        else:  # nothing to ask about
            is_correct, rule = (False if row.expected_answer is not None else None), "no answer"
        return KeyedVerdict(problem_id=row.problem_id, sample_index=row.sample_index, is_correct=is_correct, rule=rule)

    return [verdict(row) for row in solutions]


def _server(run: Run, options: JudgeOptions) -> Address:
    if options.server_address is None:
        return read_address(run.servers / f"{os.environ['MATHMILL_JOB']}.json")
    token = os.environ.get(options.server_token_env) if options.server_token_env else None
    return Address(url=options.server_address, kind="openai", model=options.model, token=token)


def print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
