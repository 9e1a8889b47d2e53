"""The answer in a solution's text: what the last box holds."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*")
_UNBRACED = re.compile(r"[^\s$]+")


def extract_answer(text: str) -> str | None:
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
