"""The answer in a solution's text: what the last box holds, or what stands behind words that announce an answer."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*")
_UNBRACED = re.compile(r"[^\s$]+")
_ANNOUNCED = re.compile(r"(?:\banswer(?:\s+is|\s*:)|^[ \t]*####)(?:\s*:)?[\s*_]*", re.IGNORECASE | re.MULTILINE)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)(?<!\\)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE = re.compile(r"[^\n]*?(?=\.?[*_]*(?:\s*$|\.\s))", re.MULTILINE)
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?")


def extract_answer(text: str, last_number: bool = False) -> str | None:
    r"""The answer that a solution's text gives, or None.

    In this order: the last box (`last_box`; where there is one, nothing else is looked at); what follows the last
    `The answer is …`, `Answer: …` or `#### …`, to the end of its formula or sentence; with `last_number`, the last
    number of the text.
    """
    if _BOX.search(text):
        return last_box(text)
    announced = [found.end() for found in _ANNOUNCED.finditer(text)]
    if announced:
        return _said(text, announced[-1])
    numbers = _NUMBER.findall(text) if last_number else []
    return numbers[-1] if numbers else None


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{}` or `\fbox{}`, also written `\boxed 5`.

    None where there is no box, where the last one never closes (a text cut in the middle) and where it is empty.
    """
    starts = [box.end() for box in _BOX.finditer(text)]
    if not starts:
        return None
    if text[starts[-1] : starts[-1] + 1] == "{":
        content = _braced(text, starts[-1])
    else:
        bare = _UNBRACED.match(text, starts[-1])
        content = bare.group().rstrip(".,;") if bare else None
    return (content or "").strip() or None


def _said(text: str, start: int) -> str | None:
    """What is said from `start` on: a formula, or the rest of the sentence."""
    formula = _MATH.match(text, start)
    if formula:
        return next(filter(None, formula.groups())).strip() or None
    sentence = _SENTENCE.match(text, start)
    return sentence.group().strip("*_ \t") or None if sentence else None


def _braced(text: str, start: int) -> str | None:
    r"""What lies between the brace at `start` and its partner; `\{` and `\}` are letters, not braces."""
    depth, position = 0, start
    while position < len(text):
        letter = text[position]
        if letter == "\\":
            position += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
        position += 1
    return None
