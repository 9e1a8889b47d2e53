"""Verdicts anew for the solutions of a run: beside the shards and keyed, never in them."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mathmill.errors import UserError
from mathmill.files import publish_once
from mathmill.generation.sets import SetFolder
from mathmill.generation.shards import published
from mathmill.grading import GradingPool
from mathmill.grading.pairs import Tally
from mathmill.grading.pool import grade_all
from mathmill.records import Grade, Solution, lines_of, read_records


class KeyedVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict of one solution: a line of `RUN/solutions/SET/verdicts/NAME/SHARD.jsonl`."""

    problem_id: str
    sample_index: int
    is_correct: bool | None
    """None: could not tell."""
    rule: str


class _Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What all verdicts of a name have in common: `verdicts/NAME/verdicts.yaml`."""

    policy: str


@dataclass
class Regrading:
    """The verdicts of a set, counted, and those that are other than in the shards, by what they say now."""

    tally: Tally = field(default_factory=Tally)
    changed: Counter[bool | None] = field(default_factory=Counter)

    def add(self, solution: Solution, verdict: KeyedVerdict) -> None:
        self.tally.add(Grade(is_correct=verdict.is_correct, rule=verdict.rule))
        if verdict.is_correct is not solution.is_correct:
            self.changed[verdict.is_correct] += 1

    def lines(self) -> list[str]:
        now = self.changed
        changed = f"{now[True]:,} correct, {now[False]:,} wrong, {now[None]:,} could not tell"
        return [*self.tally.lines(), f"other than in the shards: {changed}"]


def verdict_folder(folder: SetFolder, name: str) -> Path:
    return folder.folder / "verdicts" / name


def open_verdicts(folder: SetFolder, name: str, policy: str) -> Path:
    """The folder of these verdicts, made if need be; it must have been begun with the same policy."""
    verdicts = verdict_folder(folder, name)
    config = verdicts / "verdicts.yaml"
    publish_once(config, msgspec.yaml.encode(_Rules(policy=policy)))
    begun = msgspec.yaml.decode(config.read_bytes(), type=_Rules)
    if begun.policy != policy:
        raise UserError(f"{verdicts} was begun with policy {begun.policy}; use another --name, or that policy")
    return verdicts


def regrade(folder: SetFolder, name: str, pool: GradingPool, advance=lambda num_rows: None) -> Regrading:
    """Grade every published shard of a set that has no verdicts of this name yet; count all of them.

    A file of verdicts appears whole, under its shard's name, so that two at once or a kill do no harm.
    """
    verdicts = open_verdicts(folder, name, pool.policy)
    regrading = Regrading()
    for shard in sorted(published(folder)):
        solutions = list(read_records(folder.folder / f"{shard}.jsonl", Solution))
        path = verdicts / f"{shard}.jsonl"
        if not path.exists():
            publish_once(path, lines_of(_verdicts_of(solutions, pool)))
        found = list(read_records(path, KeyedVerdict))
        if [_key(verdict) for verdict in found] != [_key(solution) for solution in solutions]:
            raise UserError(f"{path}: its rows are not those of {shard}.jsonl; remove it, and it is made anew")
        for solution, verdict in zip(solutions, found, strict=True):
            regrading.add(solution, verdict)
        advance(len(solutions))
    return regrading


def _key(row: Solution | KeyedVerdict) -> tuple[str, int]:
    return row.problem_id, row.sample_index


def _verdicts_of(solutions: list[Solution], pool: GradingPool) -> list[KeyedVerdict]:
    grades = grade_all([(solution.predicted_answer, solution.expected_answer) for solution in solutions], pool)
    return [
        KeyedVerdict(
            problem_id=solution.problem_id,
            sample_index=solution.sample_index,
            is_correct=grade.is_correct,
            rule=grade.rule,
        )
        for solution, grade in zip(solutions, grades, strict=True)
    ]
