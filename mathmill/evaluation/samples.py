"""The solutions of a sample set as arrays: problems x samples, in the order of the set and of the sample indices."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mathmill.errors import UserError
from mathmill.evaluation.metrics import Booleans, Places, class_numbers
from mathmill.generation.progress import num_set_aside
from mathmill.generation.sets import SampleSet, SetFolder
from mathmill.generation.shards import left, published, quarantined
from mathmill.grading.vote import AnswerClass, Equal, answer_classes
from mathmill.records import Problem, read_records

CORRECT, WRONG, UNKNOWN = 1, 0, -1
Verdicts = NDArray[np.int8]
"""CORRECT, WRONG or UNKNOWN (could not tell)."""


class _Block(msgspec.Struct):
    status: str


class _Row(msgspec.Struct):
    """What the metrics need of a Solution; the rest of a line is passed over."""

    problem_id: str
    sample_index: int
    predicted_answer: str | None
    is_correct: bool | None
    num_tokens: int
    finish_reason: str
    code_blocks: list[_Block]


class _Verdict(msgspec.Struct):
    problem_id: str
    sample_index: int
    is_correct: bool | None


@dataclass
class Samples:
    """A finished set. All arrays are problems x samples; a sample that could not be made is wrong and has no answer."""

    folder: SetFolder
    sample_set: SampleSet
    problems: list[Problem]
    answers: list[list[str | None]]
    verdicts: Verdicts
    made: Booleans
    """False where the sample is in quarantine."""
    num_tokens: NDArray[np.int32]
    num_blocks: NDArray[np.int16]
    num_failed_blocks: NDArray[np.int16]
    is_cut: Booleans
    """Ended by its tokens, its context or its number of executions."""
    classes: list[list[AnswerClass]] | None = None
    """Of equal answers, most votes first, once `vote` has made them."""

    @property
    def num_problems(self) -> int:
        return len(self.problems)

    @property
    def num_samples(self) -> int:
        return self.verdicts.shape[1]

    @property
    def is_greedy(self) -> bool:
        return self.sample_set.sampling.temperature == 0

    @cached_property
    def is_correct(self) -> Booleans:
        return self.verdicts == CORRECT

    @cached_property
    def has_answer(self) -> Booleans:
        return np.array([[answer is not None for answer in answers] for answers in self.answers], bool)

    @cached_property
    def class_numbers(self) -> Places:
        """For `metrics.leaders`."""
        assert self.classes is not None
        return class_numbers([[one.members for one in found] for found in self.classes], self.num_samples)

    def vote(self, equal: Equal) -> None:
        """Make the classes of equal answers."""
        if self.classes is None:
            self.classes = answer_classes(self.answers, equal)


def load_samples(folder: SetFolder) -> Samples:
    """All published solutions of a set. UserError while some are still to come."""
    sample_set, problems = folder.load(), folder.load_problems()
    num_samples = max(folder.extents(), default=0)
    missing = sum(shard.num_rows for shard in left(folder, sample_set))
    if missing or not num_samples:
        raise UserError(
            f"{folder.folder.parents[1]} is unfinished: {missing:,} of {num_samples * len(problems):,} solutions of "
            f"{sample_set.name} are missing; give its command again, or look: python pipeline/status.py"
        )
    shape = len(problems), num_samples
    samples = Samples(
        folder=folder,
        sample_set=sample_set,
        problems=problems,
        answers=[[None] * num_samples for _ in problems],
        verdicts=np.zeros(shape, np.int8),
        made=np.zeros(shape, bool),
        num_tokens=np.zeros(shape, np.int32),
        num_blocks=np.zeros(shape, np.int16),
        num_failed_blocks=np.zeros(shape, np.int16),
        is_cut=np.zeros(shape, bool),
    )
    places = {problem.problem_id: place for place, problem in enumerate(problems)}
    for path in shard_files(folder):
        for row in read_records(path, _Row):
            if row.problem_id not in places or not 0 <= row.sample_index < num_samples:
                raise UserError(
                    f"{path}: {row.problem_id}, sample {row.sample_index} is no row of this set; "
                    f"look: python pipeline/verify.py {folder.folder.parents[1].name}"
                )
            _put(samples, places[row.problem_id], row)
    num_settled = sum(num_set_aside(folder, shard) for shard in quarantined(folder, published(folder)))
    if (lost := int((~samples.made).sum()) - num_settled) > 0:
        raise UserError(
            f"{folder.folder}: {lost:,} rows are neither in its shards nor in quarantine; "
            f"look: python pipeline/verify.py {folder.folder.parents[1].name}"
        )
    return samples


def shard_files(folder: SetFolder) -> list[Path]:
    return [folder.folder / f"{name}.jsonl" for name in sorted(published(folder))]


def _put(samples: Samples, place: int, row: _Row) -> None:
    at = place, row.sample_index
    answer = row.predicted_answer
    samples.answers[place][row.sample_index] = answer if answer is not None and answer.strip() else None
    samples.verdicts[at] = _verdict(row.is_correct)
    samples.made[at] = True
    samples.num_tokens[at] = row.num_tokens
    samples.num_blocks[at] = len(row.code_blocks)
    samples.num_failed_blocks[at] = sum(block.status != "ok" for block in row.code_blocks)
    samples.is_cut[at] = row.finish_reason in ("length", "context", "max_code_executions")


def _verdict(is_correct: bool | None) -> int:
    return UNKNOWN if is_correct is None else CORRECT if is_correct else WRONG


def load_verdicts(samples: Samples, name: str) -> Verdicts:
    """The verdicts of that name that lie beside the shards: UNKNOWN where a solution has none. UserError if there are none."""
    folder = samples.folder.folder / "verdicts" / name
    if not folder.is_dir():
        known = sorted(path.name for path in folder.parent.glob("*"))
        raise UserError(
            f"{samples.folder.folder} has no verdicts '{name}'. Known: {', '.join(known) or 'none'}; "
            "they are made by pipeline/grade.py and pipeline/judge.py"
        )
    verdicts = np.full(samples.verdicts.shape, UNKNOWN, np.int8)
    places = {problem.problem_id: place for place, problem in enumerate(samples.problems)}
    for path in sorted(folder.glob("p*.jsonl")):
        for row in read_records(path, _Verdict):
            if row.problem_id not in places or not 0 <= row.sample_index < samples.num_samples:
                raise UserError(
                    f"{path}: {row.problem_id}, sample {row.sample_index} is no row of this set; remove this file, and "
                    "make its verdicts again"
                )
            verdicts[places[row.problem_id], row.sample_index] = _verdict(row.is_correct)
    return verdicts
