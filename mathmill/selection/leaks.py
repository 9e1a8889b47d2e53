"""Whether a text contains an answer, in any form that the grader takes for the same."""

import re
from collections.abc import Iterator, Sequence

from mathmill.grading import GradingPool, extract_answer
from mathmill.grading.pairs import grade_all

MOST_PARTS = 400
"""Parts of a text that are looked at; a text with more counts as a leak."""

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FORMS = re.compile(
    rf"\\[dt]?frac\s*(?:\{{[^{{}}]*\}}\s*\{{[^{{}}]*\}}|\d\s*\d)|-?\s?(?:{_NUMBER})(?:\s*/\s*(?:{_NUMBER})|\s*\\?%)?|"
    rf"(?:{_NUMBER})?\s*\\(?:sqrt|pi)(?:\s*\{{[^{{}}]*\}})?"
)
_BARE = re.compile(rf"(?:{_NUMBER})")
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\\begin\{(?:align|gather|equation)\*?\}(.+?)\\end",
    re.S,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_SIDES = re.compile(
    r"=|\\approx|\\equiv|\\Rightarrow|\\implies|\\to\b|\\leq?(?![a-z])|\\geq?(?![a-z])|<|>|&|\\\\|;|\\quad|\\text\{[^{}]*\}|\\cdots|\\ldots"
)
_PRODUCTS = re.compile(r"[-+]|\\cdot|\\times|,|\(|\)")
_IN_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}")
_PLAIN = str.maketrans("", "", " \t\n$!;")
_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred"
_WORDS = {word: str(number) for number, word in enumerate(_ONES.split())}
_WORDS |= {word: str(10 * number) for number, word in enumerate(_TENS.split(), 2)}
_WORD = re.compile(r"\b(?:" + "|".join(_WORDS) + r")\b", re.IGNORECASE)


def parts_of(text: str) -> list[str]:
    """Whatever in a text could be an answer, each once: what it announces, boxes, formulas, their sides, numbers."""
    return list(dict.fromkeys(part for each in _parts(text) if (part := each.strip(" \t\n.,:;"))))


def _parts(text: str) -> Iterator[str]:
    yield extract_answer(text) or ""
    yield from _BOXED.findall(text)
    yield from (_WORDS[word.lower()] for word in _WORD.findall(text))
    yield from _BARE.findall(text)
    yield from _FORMS.findall(text)
    for found in _FORMULA.finditer(text):
        formula = next(filter(None, found.groups()))
        yield formula
        sides = _SIDES.split(formula)
        yield from sides
        for side in sides:
            yield from _PRODUCTS.split(side)
    for line in text.split("\n"):
        yield from line.split("=")[1:]


def contains_text(text: str, answer: str) -> bool:
    """Whether the answer stands in the text as it is written, spaces apart, and not inside a longer number or word."""
    answer = _IN_WORDS.sub(r"\1", answer).strip()
    plain, wanted = (
        each.replace("\\left", "").replace("\\right", "").translate(_PLAIN).lower() for each in (text, answer)
    )
    if wanted and not wanted[0].isalpha():
        return re.search(rf"(?<![\d.]){re.escape(wanted)}(?!\.?\d)", plain) is not None
    return bool(wanted) and re.search(rf"(?<![a-z]){re.escape(answer.lower())}(?![a-z])", text.lower()) is not None


def leaks_quickly(text: str, answer: str, pool: GradingPool) -> tuple[str | None, list[str]]:
    """What of a text is the answer, if that is told in microseconds; else None, and the parts that need a longer look."""
    if contains_text(text, answer):
        return answer, []
    parts = parts_of(text)
    if len(parts) > MOST_PARTS:
        return "too long to be looked through", []
    slow = []
    for part in parts:
        verdict = pool.grade_now(part, answer)
        if verdict is None:
            slow.append(part)
        elif verdict.is_correct is not False:
            return part, []
    return None, slow


def leaks_of(questions: Sequence[tuple[list[str], str | None]], pool: GradingPool) -> list[str | None]:
    """Of each (parts, answer): the first part that is the answer, or of which nobody could tell; None where none is."""
    pairs: list[tuple[str | None, str | None]] = [(part, answer) for parts, answer in questions for part in parts]
    verdicts = iter(grade_all(pairs, pool))
    found = [[(part, next(verdicts)) for part in parts] for parts, _ in questions]
    return [next((part for part, verdict in each if verdict.is_correct is not False), None) for each in found]
