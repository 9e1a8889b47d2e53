"""The problems of a result as one looks at them: question, votes, verdicts, a few solutions; the doubtful ones first."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from markupsafe import Markup, escape

from mathmill.evaluation.doubts import near_miss
from mathmill.evaluation.formulas import answer_html, line_text, text_html
from mathmill.evaluation.results import Evaluated
from mathmill.evaluation.samples import CORRECT, UNKNOWN, WRONG, Samples, Verdicts, shard_files
from mathmill.generation.outputs import CODE_BEGIN, CODE_END, OUTPUT_BEGIN, OUTPUT_END
from mathmill.generation.shards import Key
from mathmill.records import Problem, Solution, open_lines

LONGEST_TEXT = 6000
"""Characters of a solution's part that are shown."""
MOST_CLASSES = 8
MOST_OF_CLEAR = 2
"""Solutions that are shown of a problem that no filter but `all` shows."""
CLEAR_SHARE, CLEAR_VOTES = 0.75, 4
TAGS = {
    "doubt": "grading in doubt",
    "wrong": "wrong",
    "split": "disagreeing",
    "none": "no answer",
    "error": "code failed",
    "untold": "could not tell",
}
TAG_HELP = {
    "doubt": "the judge and the symbols differ, equal answers got different verdicts, nobody could tell, a clear "
    "majority is called wrong, or a wrong answer is close to the expected one: look here for wrongly graded solutions and "
    "wrong expected answers",
    "wrong": "the greedy answer or the majority's is not correct",
    "split": "the greedy answer is not the majority's, or no answer has more than half of the votes",
    "none": "a solution without an answer",
    "error": "a solution with a block of code that failed",
    "untold": "a solution whose answer could be called neither right nor wrong",
}


class _Key(msgspec.Struct):
    problem_id: str
    sample_index: int


@dataclass(frozen=True)
class Vote:
    """A class of equal answers."""

    answer: Markup
    count: int
    width: float
    """Of its bar: per cent of the samples."""
    verdict: str
    """`right`, `wrong`, `untold` or `mixed`."""


@dataclass(frozen=True)
class ShownSolution:
    """A solution with its parts in HTML."""

    title: str
    answer: Markup
    verdict: str
    rule: str
    judge: str | None
    facts: str
    body: Markup


@dataclass
class ShownProblem:
    """A problem with its solutions, ready for the page."""

    number: int
    problem_id: str
    facts: list[str]
    question: Markup
    opening: str
    """The first words of the question."""
    expected: Markup
    reference: Markup | None
    greedy: str | None
    majority: str | None
    majority_answer: Markup | None
    tags: list[str]
    votes: list[Vote]
    num_votes_left: int
    num_solutions: int
    doubts: list[str]
    solutions: list[ShownSolution] = field(default_factory=list)


def word(verdict: int) -> str:
    return {CORRECT: "right", UNKNOWN: "untold"}.get(int(verdict), "wrong")


class Browser:
    """Makes the shown problems of one result."""

    def __init__(self, result: Evaluated, most_solutions: int):
        self.result = result
        self.most_solutions = most_solutions
        self.leaders = result.leaders[:, -1] if result.sampled is not None else None
        self._tags = [self._tags_of(place) for place in range(len(result.problems))]

    def tag_counts(self) -> dict[str, int]:
        return {tag: sum(tag in tags for tags, _ in self._tags) for tag in TAGS}

    def order(self) -> list[int]:
        """Places of the problems: those in doubt first, then the wrong ones, then those without agreement."""
        ranks = ("doubt", "wrong", "split", "none")
        return sorted(
            range(len(self._tags)),
            key=lambda place: next(
                (number for number, tag in enumerate(ranks) if tag in self._tags[place][0]), len(ranks)
            ),
        )

    def shown(self) -> Iterator[ShownProblem]:
        """All problems in their order, each with its chosen solutions, which are read from the shards once."""
        order = self.order()
        chosen = {place: self._chosen(place) for place in order}
        lines = self._read({(place, *each) for place, found in chosen.items() for each in found})
        decoder = msgspec.json.Decoder(Solution)
        for place in order:
            problem = self._problem(place)
            for decoding, index in chosen[place]:
                line = lines.get((place, decoding, index))
                if line is not None:
                    problem.solutions.append(self._solution(decoding, index, place, decoder.decode(line)))
            yield problem

    def _decodings(self) -> Iterator[tuple[str, Samples]]:
        for decoding in ("greedy", "sampled"):
            samples = getattr(self.result, decoding)
            if samples is not None:
                yield decoding, samples

    def _judge(self, decoding: str) -> Verdicts | None:
        return self.result.judged.get(decoding)

    def _tags_of(self, place: int) -> tuple[list[str], list[str]]:
        """Tags of a problem, and why its grading is in doubt."""
        tags, doubts = set(), []
        for decoding, samples in self._decodings():
            made = samples.made[place]
            if (made & ~samples.has_answer[place]).any():
                tags.add("none")
            if (samples.num_failed_blocks[place] > 0).any():
                tags.add("error")
            if (samples.verdicts[place] == UNKNOWN).any() and samples.problems[place].expected_answer is not None:
                tags.add("untold")
                doubts.append("nobody could tell")
            judge = self._judge(decoding)
            if judge is not None and ((judge[place] != samples.verdicts[place]) & (judge[place] != UNKNOWN)).any():
                doubts.append("the judge says otherwise")
        greedy, majority, share = self._ends(place)
        doubts += self._near_misses(place)
        if greedy not in (None, CORRECT) or majority not in (None, CORRECT):
            tags.add("wrong")
        if self.leaders is not None:
            tags |= self._vote_tags(place, share, doubts)
        if doubts:
            tags.add("doubt")
        return [tag for tag in TAGS if tag in tags], list(dict.fromkeys(doubts))

    def _near_misses(self, place: int) -> list[str]:
        """Of the greedy answer and the majority's."""
        leader = -1 if self.leaders is None else int(self.leaders[place])
        found = []
        for decoding, samples in self._decodings():
            index = 0 if decoding == "greedy" else leader
            if index >= 0 and samples.verdicts[place, index] == WRONG:
                found.append(near_miss(samples.answers[place][index], samples.problems[place].expected_answer))
        return [each for each in found if each is not None]

    def _vote_tags(self, place: int, share: float, doubts: list[str]) -> set[str]:
        samples = self.result.sampled
        assert samples is not None and samples.classes is not None and self.leaders is not None
        leader = self.leaders[place]
        for one in samples.classes[place]:
            if len({int(samples.verdicts[place, member]) for member in one.members}) > 1:
                doubts.append("equal answers with different verdicts")
        votes = samples.classes[place][0].votes if samples.classes[place] else 0
        if leader >= 0 and votes >= CLEAR_VOTES and share >= CLEAR_SHARE and samples.verdicts[place, leader] != CORRECT:
            doubts.append(f"{share:.0%} of the votes for an answer that is called wrong")
        tags = {"split"} if len(samples.answers[place]) > 1 and share <= 0.5 else set()
        if self.result.greedy is not None and leader >= 0:
            greedy_right = self.result.greedy.verdicts[place, 0] == CORRECT
            if greedy_right != (samples.verdicts[place, leader] == CORRECT):
                tags.add("split")
        return tags

    def _ends(self, place: int) -> tuple[int | None, int | None, float]:
        """Verdicts of the greedy answer and of the majority's, and the majority's share of the samples."""
        greedy = None if self.result.greedy is None else int(self.result.greedy.verdicts[place, 0])
        samples = self.result.sampled
        if samples is None or self.leaders is None:
            return greedy, None, 0.0
        assert samples.classes is not None
        leader = self.leaders[place]
        majority = 0 if leader < 0 else int(samples.verdicts[place, leader])
        votes = next((one.votes for one in samples.classes[place] if leader in one.members), 0)
        return greedy, majority, votes / samples.num_samples

    def _chosen(self, place: int) -> list[tuple[str, int]]:
        """The greedy solution, then one of every class of answers, doubtful ones first, then others until the cap."""
        chosen: list[tuple[str, int]] = []
        for decoding, samples in self._decodings():
            if decoding == "greedy":
                chosen.append((decoding, 0))
                continue
            assert samples.classes is not None
            judge = self._judge(decoding)
            verdicts = samples.verdicts[place]
            odd = verdicts == UNKNOWN
            if judge is not None:
                odd |= (judge[place] != verdicts) & (judge[place] != UNKNOWN)
            first = [one.members[0] for one in samples.classes[place]]
            mixed = [
                member
                for one in samples.classes[place]
                for member in one.members
                if verdicts[member] != verdicts[one.members[0]]
            ]
            odd_ones = [*mixed[:2], *np.flatnonzero(odd).tolist()[:3]]
            unanswered = np.flatnonzero(samples.made[place] & ~samples.has_answer[place]).tolist()
            failed = np.flatnonzero(samples.num_failed_blocks[place] > 0).tolist()
            rest = range(samples.num_samples)
            order = [*first[:1], *odd_ones, *first[1:], *unanswered[:1], *failed[:1], *rest]
            chosen += [("sampled", int(index)) for index in dict.fromkeys(order) if samples.made[place, index]]
        most = self.most_solutions if self._tags[place][0] else min(MOST_OF_CLEAR, self.most_solutions)
        return chosen[:most]

    def _read(self, wanted: set[tuple[int, str, int]]) -> dict[tuple[int, str, int], bytes]:
        """The lines of these solutions (place of the problem, decoding, sample)."""
        found = {}
        decoder = msgspec.json.Decoder(_Key)
        for decoding, samples in self._decodings():
            keys: dict[Key, tuple[int, str, int]] = {
                (samples.problems[place].problem_id, index): (place, kind, index)
                for place, kind, index in wanted
                if kind == decoding
            }
            for path in shard_files(samples.folder):
                for _, line in open_lines(path):
                    row = decoder.decode(line)
                    if (place := keys.get((row.problem_id, row.sample_index))) is not None:
                        found[place] = line
        return found

    def _problem(self, place: int) -> ShownProblem:
        problem = self.result.problems[place]
        tags, doubts = self._tags[place]
        greedy, majority, _ = self._ends(place)
        samples = self.result.sampled
        classes = samples.classes[place] if samples is not None and samples.classes is not None else []
        leader = -1 if self.leaders is None else int(self.leaders[place])
        return ShownProblem(
            number=place + 1,
            problem_id=problem.problem_id,
            facts=facts_of(problem),
            question=text_html(cut(problem.problem)),
            opening=opening(problem.problem),
            expected=answer_html(problem.expected_answer),
            reference=None if problem.reference_solution is None else solution_html(problem.reference_solution),
            greedy=None if greedy is None else word(greedy),
            majority=None if majority is None else "none" if leader < 0 else word(majority),
            majority_answer=None if samples is None or leader < 0 else answer_html(samples.answers[place][leader]),
            tags=tags,
            votes=[self._vote(place, number) for number in range(min(len(classes), MOST_CLASSES))],
            num_votes_left=max(0, len(classes) - MOST_CLASSES),
            num_solutions=sum(int(each.made[place].sum()) for _, each in self._decodings()),
            doubts=doubts,
        )

    def _vote(self, place: int, number: int) -> Vote:
        samples = self.result.sampled
        assert samples is not None and samples.classes is not None
        one = samples.classes[place][number]
        verdicts = {word(samples.verdicts[place, member]) for member in one.members}
        verdict = verdicts.pop() if len(verdicts) == 1 else "mixed"
        return Vote(answer_html(one.answer[:300]), one.votes, 100 * one.votes / samples.num_samples, verdict)

    def _solution(self, decoding: str, index: int, place: int, row: Solution) -> ShownSolution:
        samples = getattr(self.result, decoding)
        judge = self._judge(decoding)
        blocks = len(row.code_blocks)
        facts = [
            f"{row.num_tokens:,} tokens",
            f"{blocks} block{'s' * (blocks != 1)} of code",
            f"ended by: {row.finish_reason}",
        ]
        if row.error_message not in ("", "not_executed"):
            facts.append(f"code: {row.error_message}")
        return ShownSolution(
            title="greedy" if decoding == "greedy" else f"sample {index}",
            answer=answer_html(row.predicted_answer),
            verdict=word(samples.verdicts[place, index]),
            rule=row.grade_rule,
            judge=None if judge is None else word(judge[place, index]),
            facts=", ".join(facts),
            body=solution_html(row.generation),
        )


def facts_of(problem: Problem) -> list[str]:
    facts = [problem.subject, None if problem.level is None else f"level {problem.level}", problem.answer_type]
    return [fact for fact in facts if fact]


def opening(text: str) -> str:
    """The first words of a text."""
    plain = line_text(text)
    return plain if len(plain) <= 110 else plain[:108].rsplit(" ", 1)[0] + " …"


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}\n[cut here: {len(text):,} characters]"


_BLOCKS = re.compile(
    rf"{re.escape(CODE_BEGIN)}\n?(?P<code>.*?)(?:{re.escape(CODE_END)}|\Z)"
    rf"|{re.escape(OUTPUT_BEGIN)}\n?(?P<output>.*?)(?:{re.escape(OUTPUT_END)}|\Z)",
    re.DOTALL,
)


def solution_html(text: str) -> Markup:
    """A solution: prose with formulas, code in colours, outputs."""
    text = cut(text)
    pieces, end = [], 0
    for found in _BLOCKS.finditer(text):
        pieces.append(_prose(text[end : found.start()]))
        if found["code"] is not None:
            pieces.append(code_html(found["code"].strip("\n")))
        else:
            pieces.append(Markup('<pre class="output">{}</pre>').format(found["output"].strip("\n")))
        end = found.end()
    pieces.append(_prose(text[end:]))
    return Markup("").join(pieces)


def _prose(text: str) -> Markup:
    text = text.strip("\n")
    return Markup('<div class="prose">{}</div>').format(text_html(text)) if text.strip() else Markup("")


@lru_cache(maxsize=1)
def _lexer_and_formatter() -> tuple[Any, Any]:
    """Made once: a formatter lays out its style when it is made, which takes as long as two solutions."""
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return PythonLexer(), HtmlFormatter(nowrap=True)


def code_html(code: str) -> Markup:
    """Python in colours."""
    from pygments import highlight

    try:
        inner = Markup(highlight(code, *_lexer_and_formatter()).rstrip("\n"))
    except Exception:  # a lexer's trouble with a model's code: it is shown plain
        inner = escape(code)
    return Markup('<pre class="code">{}</pre>').format(inner)
