"""Voting: answers that are the same answer vote together, whatever their spelling."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mathmill.grading.compare import read
from mathmill.grading.pool import GradingPool, grade_all

MOST_QUESTIONS = 16
"""About one problem's answers, those with most votes first; spellings that are left then vote for themselves.

So an answer that is spelled in very many ways may lose to one that is spelled in one.
"""
Equal = Callable[[list[tuple[str, str]]], list[bool]]
"""Which of these pairs are the same answer; asked for many problems' pairs at once."""


@dataclass(frozen=True)
class AnswerClass:
    """Answers that are equal: the first of them as it was spelled, and the places of all of them, ascending."""

    answer: str
    members: tuple[int, ...]

    @property
    def votes(self) -> int:
        return len(self.members)


def answer_classes(
    problems: Sequence[Sequence[str | None]], equal: Equal, winner_only: bool = False
) -> list[list[AnswerClass]]:
    """The classes of equal answers of every problem, most votes first; among equally many, the one seen first.

    Answers with the same cheap key (exact number, or text in one spelling) are one class at once. `equal` is asked only
    for the others, each spelling against the first spelling of every class so far, one round of questions for all
    problems together; with `winner_only`, only while the answers that have no class yet could change the first one.
    None has no vote.
    """
    counts = [_Count(answers, winner_only) for answers in problems]
    while asked := [(each, question) for each in counts if (question := each.question()) is not None]:
        for (each, _), is_same in zip(asked, equal([question for _, question in asked]), strict=True):
            each.tell(is_same)
    return [each.classes() for each in counts]


def majority(problems: Sequence[Sequence[str | None]], equal: Equal, k: int | None = None) -> list[str | None]:
    """majority@k: of every problem the answer with most votes among its first k samples (default: all).

    Ties go to the answer that was seen first. None where no sample has an answer. Equality as graded is not always
    transitive (`5 cm` and `5 m` both equal `5`): then spellings with more votes are joined first.
    """
    if k is not None and k < 1:
        raise ValueError(f"majority@k needs a k of at least 1, not {k}")
    classes = answer_classes([answers[:k] for answers in problems], equal, winner_only=True)
    return [found[0].answer if found else None for found in classes]


def equal_by(pool: GradingPool) -> Equal:
    """Equality as graded: a verdict that could not be told joins nothing."""
    return lambda pairs: [verdict.is_correct is True for verdict in grade_all(pairs, pool)]


@dataclass
class _Spelling:
    """Answers of one key, and later of all keys that were found equal to it: the places of all of them."""

    key: object
    places: list[int]


class _Count:
    """The count of one problem: spellings with most votes are joined first."""

    def __init__(self, answers: Sequence[str | None], winner_only: bool):
        found: dict[object, _Spelling] = {}
        for place, answer in enumerate(answers):
            if answer is not None and answer.strip():
                key = _key(answer)
                found.setdefault(key, _Spelling(key, [])).places.append(place)
        self._answers, self._winner_only = answers, winner_only
        self._left = deque(sorted(found.values(), key=lambda each: (-len(each.places), each.places[0])))
        self._votes_left = sum(len(each.places) for each in self._left)
        self._joined: list[_Spelling] = []
        self._to_ask: list[_Spelling] | None = None
        self._num_asked = 0

    def question(self) -> tuple[str, str] | None:
        """The next pair to ask about; None when every spelling has its class, or the first class is sure."""
        while self._left and not (self._winner_only and self._is_decided()):
            spelling = self._left[0]
            if self._to_ask is None:
                self._to_ask = [each for each in self._joined if not _differ(each.key, spelling.key)]
            if self._to_ask and self._num_asked < MOST_QUESTIONS:
                self._num_asked += 1
                return self._first_of(spelling), self._first_of(self._to_ask[0])
            self._joined.append(self._take())
        return None

    def tell(self, is_same: bool) -> None:
        """The answer to the last question."""
        assert self._to_ask
        asked = self._to_ask.pop(0)
        if is_same:
            asked.places += self._take().places

    def classes(self) -> list[AnswerClass]:
        found = [tuple(sorted(each.places)) for each in [*self._joined, *self._left]]
        ordered = sorted(found, key=lambda places: (-len(places), places[0]))
        return [AnswerClass(self._answers[places[0]] or "", places) for places in ordered]

    def _is_decided(self) -> bool:
        votes = sorted((len(each.places) for each in self._joined), reverse=True)[:2]
        return bool(votes) and votes[0] > sum(votes[1:]) + self._votes_left

    def _take(self) -> _Spelling:
        self._to_ask = None
        self._votes_left -= len(self._left[0].places)
        return self._left.popleft()

    def _first_of(self, spelling: _Spelling) -> str:
        return self._answers[min(spelling.places)] or ""


def _key(answer: str) -> object:
    """Equal for answers that are surely the same: the exact value of a plain number, else the text in one spelling."""
    reading = read(answer)
    if reading.number is None:
        return reading.key
    return reading.number.value if reading.number.is_exact else f"about {reading.key}"


def _differ(one: object, other: object) -> bool:
    """Whether the keys alone tell: two exact numbers."""
    return isinstance(one, Fraction) and isinstance(other, Fraction)
