"""Masked solutions: of several candidates of each problem the one that helps most and tells least.

The published rule (spec of OpenMathInstruct-1, 1.2): set aside the candidates that tell the answer; of the others keep
those whose length is within half of the reference's; take the one with the fewest digits. Published fall-backs: the
candidate with the fewest digits among those that tell the answer, and at last the reference itself, unmasked. Here they
are off unless asked for, and a problem without a good candidate has no masked solution.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec.structs import replace

from mathmill.grading import GradingPool
from mathmill.records import Problem
from mathmill.selection.leaks import leaks_of, leaks_quickly

Kind = Literal["selected", "leaking", "reference", "none"]
LENGTH_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """How masked solutions are selected."""

    fallback: Literal["none", "published"] = "none"
    """Where every candidate tells the answer or has a wrong length. none: the problem gets no masked solution;
    published: a telling candidate, then the unmasked reference."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate and what was found of it: a line of masks.jsonl has all of its problem."""

    sample_index: int
    num_characters: int
    num_digits: int
    leak: str | None
    """What of it is the answer."""
    is_of_length: bool
    is_checked: bool
    """Whether all of it was looked through; only as many as are needed to select one are."""


class Mask(msgspec.Struct, frozen=True, kw_only=True):
    """A line of masks.jsonl: what was selected for a problem, and why."""

    problem_id: str
    kind: Kind
    sample_index: int | None
    reference_characters: int
    candidates: list[Candidate]


@dataclass
class _Case:
    """A problem with its candidates, those that may be selected in the order in which they are tried."""

    problem: Problem
    texts: dict[int, str]
    found: dict[int, Candidate] = field(default_factory=dict)
    slow: dict[int, list[str]] = field(default_factory=dict)
    selected: int | None = None

    def untried(self) -> list[int]:
        """Candidates that could be selected and need a longer look, the best first."""
        fit = [each for each in self.found.values() if each.leak is None and each.is_of_length and not each.is_checked]
        return [each.sample_index for each in sorted(fit, key=_goodness)]


def _goodness(candidate: Candidate) -> tuple[int, int, int]:
    return candidate.num_digits, candidate.num_characters, candidate.sample_index


def select_masks(
    problems: Iterable[Problem], texts: dict[str, dict[int, str]], pool: GradingPool, options: MaskOptions
) -> list[tuple[Problem, Mask]]:
    """For each problem, itself with its masked solution (where it has one), and the explanation.

    `texts`: problem id to sample index to candidate. A problem without a reference or an answer gets none.
    """
    cases = [_case(problem, texts.get(problem.problem_id, {}), pool) for problem in problems]
    waiting = cases
    while waiting := [case for case in waiting if case.selected is None and case.untried()]:
        tried = [(case, case.untried()[0]) for case in waiting]
        questions = [(case.slow[sample], case.problem.expected_answer or "") for case, sample in tried]
        for (case, sample), leak in zip(tried, leaks_of(questions, pool), strict=True):
            case.found[sample] = replace(case.found[sample], leak=leak, is_checked=True)
            case.selected = sample if leak is None else None
    return [_settled(case, options) for case in cases]


def _case(problem: Problem, texts: dict[int, str], pool: GradingPool) -> _Case:
    case = _Case(problem, texts)
    if problem.expected_answer is None or problem.reference_solution is None:
        return case
    length = len(problem.reference_solution)
    for sample, text in sorted(texts.items()):
        leak, case.slow[sample] = leaks_quickly(text, problem.expected_answer, pool)
        case.found[sample] = Candidate(
            sample_index=sample,
            num_characters=len(text),
            num_digits=sum(letter.isdigit() for letter in text),
            leak=leak,
            is_of_length=bool(text.strip()) and abs(len(text) - length) <= LENGTH_SHARE * length,
            is_checked=leak is not None,
        )
    return case


def _settled(case: _Case, options: MaskOptions) -> tuple[Problem, Mask]:
    kind: Kind = "selected" if case.selected is not None else "none"
    sample = case.selected
    text = case.texts[sample] if sample is not None else None
    if sample is None and options.fallback == "published" and case.problem.reference_solution is not None:
        telling = [each for each in case.found.values() if each.leak is not None]
        if telling:
            kind, sample = "leaking", min(telling, key=_goodness).sample_index
            text = case.texts[sample]
        else:
            kind, text = "reference", case.problem.reference_solution
    mask = Mask(
        problem_id=case.problem.problem_id,
        kind=kind,
        sample_index=sample,
        reference_characters=len(case.problem.reference_solution or ""),
        candidates=list(case.found.values()),
    )
    return replace(case.problem, masked_reference_solution=text.strip() if text else None), mask


def kinds_of(masks: Iterable[Mask]) -> dict[str, int]:
    """How many problems got which kind; and of the candidates, how many told the answer or had a wrong length."""
    counts: Counter[str] = Counter({"selected": 0, "leaking": 0, "reference": 0, "none": 0})
    for mask in masks:
        counts[mask.kind] += 1
        counts["candidates"] += len(mask.candidates)
        counts["candidates that tell the answer"] += sum(each.leak is not None for each in mask.candidates)
        counts["candidates of a wrong length"] += sum(not each.is_of_length for each in mask.candidates)
    return dict(counts)
