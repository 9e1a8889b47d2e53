r"""What makes a single solution unfit, by its text alone, and where a solution is cut. Sources: spec of OpenMathInstruct-1,
1.4 and 1.9, and of OpenMathInstruct-2, 2.2 and 2.3."""

import re
from collections.abc import Callable

CODE_BEGIN, CODE_END = "<llm-code>", "</llm-code>"
OUTPUT_BEGIN, OUTPUT_END = "<llm-code-output>", "</llm-code-output>"
TAGS = (CODE_BEGIN, CODE_END, OUTPUT_BEGIN, OUTPUT_END)

_FROM_CODE_TO_OUTPUT = f"{CODE_END}\n{OUTPUT_BEGIN}"
_TAG = re.compile(r"</?llm-code(?:-output)?>")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*(\{)?")
_CLOSING = re.compile(r"\s*(?:\\end\{(?:align|aligned|equation|gather|eqnarray)\*?\}|\\\]|\$\$)\s*[.,]?\s*")
_MAY_CLOSE = ("\\", "$", " ", "\t")
_PREFIX = re.compile(r"\s*(?:#+[ \t]*|\*\*)?My [Ss]olution:?(?:\*\*)?:?[ \t]*\n+")


def has_code(text: str) -> bool:
    """Whether the solution has a block of code."""
    return CODE_BEGIN in text


def box_spans(text: str) -> list[tuple[int, int]]:
    r"""Start and end of every box that is not inside another one; a box that never closes reaches to the end of the text."""
    start = text.find("\\boxed{")
    if start >= 0 and text.find("boxed", start + 7) < 0 and "fbox" not in text:  # the usual case, without a pattern
        if text.find("boxed", 0, start) < 0:
            return [(start, _closing_brace(text, start + 7))]
    elif "boxed" not in text and "fbox" not in text:
        return []
    spans: list[tuple[int, int]] = []
    end = 0
    for box in _BOX.finditer(text):
        if box.start() >= end:
            end = _closing_brace(text, box.end()) if box[1] else box.end()
            spans.append((box.start(), end))
    return spans


def _closing_brace(text: str, position: int) -> int:
    r"""The place after the brace that closes one opened before `position`; `\{` and `\}` are letters."""
    first = text.find("}", position)
    if first >= 0 and "{" not in (inner := text[position:first]) and "\\" not in inner:
        return first + 1
    depth = 1
    while depth and position < len(text):
        letter = text[position]
        position += 1 + (letter == "\\")
        depth += (letter == "{") - (letter == "}")
    return min(position, len(text))


def is_broken(text: str) -> bool:
    """Whether code and output tags are anything else than blocks of code, each with its output, one after another."""
    pieces = text.split("llm-code")
    if len(pieces) == 1:
        return False
    if len(pieces) == 5 and "<llm-code>" in text:  # one block, the usual case, without a pattern
        before, code, between, output, after = pieces
        opens = before[-1:] == between[-1:] == "<" and code[:1] == between[:1] == ">"
        closes = code[-2:] == output[-2:] == "</" and output[:8] == after[:8] == "-output>"
        if opens and closes:
            return False
    found = _TAG.findall(text)
    return len(found) % 4 != 0 or found != list(TAGS) * (len(found) // 4)


def is_useless(text: str, boxes: list[tuple[int, int]]) -> bool:
    """Whether the answer was boxed before the first code began."""
    code = text.find(CODE_BEGIN)
    return code >= 0 and bool(boxes) and boxes[0][0] < code


def trimmed(text: str, boxes: list[tuple[int, int]]) -> str:
    r"""The text up to the end of the line in which its first box closes.

    One more line stays where it closes a formula (`\end{align}`, `\]`, `$$`). A box inside a block of code or its output
    keeps that whole block. (The published pipeline cuts a box that spans lines in two, and a block in the middle.)
    """
    if not boxes:
        return text
    end = boxes[0][1]
    if text.find("llm-code", end) >= 0 and text.rfind(CODE_BEGIN, 0, end) > text.rfind(OUTPUT_END, 0, end):
        block_end = text.find(OUTPUT_END, end)
        end = block_end + len(OUTPUT_END) if block_end >= 0 else len(text)
    end = text.find("\n", end)
    if end < 0:
        return text
    if text[end + 1 : end + 2] in _MAY_CLOSE:
        next_end = text.find("\n", end + 1)
        next_end = len(text) if next_end < 0 else next_end
        if _CLOSING.fullmatch(text, end + 1, next_end):
            end = next_end
    return text[:end]


def usual_text(text: str, trim: bool) -> str | None:
    r"""What becomes of a usual solution, which no filter of tags and boxes drops; of others None.

    Usual is one plain `\boxed{}`, with one whole block of code before it or none. It says what the filters say, sooner.
    """
    before, box, after = text.rpartition("\\boxed{")
    answer, closes, rest = after.partition("}")
    if not box or not closes or "{" in answer or "\\" in answer:
        return None
    if "llm-code" in after or "\\boxed" in rest or "\\fbox" in rest:
        return None
    if "\\" in before and ("\\boxed" in before or "\\fbox" in before):
        return None
    if num_tags := before.count("llm-code"):
        code = before.find(CODE_BEGIN)
        output = before.find(_FROM_CODE_TO_OUTPUT, code)
        if num_tags != 4 or not -1 < code < output < before.find(OUTPUT_END, output):
            return None
    _, ends, following = rest.partition("\n")
    if not ends or not trim:
        return text
    return None if following.startswith(_MAY_CLOSE) else text[: -len(following) - 1]


def without_prefix(text: str) -> str:
    """The text without a first line that only says "My solution:"."""
    found = _PREFIX.match(text)
    return text[found.end() :] if found else text


def token_counter(tokenizer: str) -> Callable[[str], int]:
    """A function that counts a text's tokens by the tokenizer of a Hugging Face folder, or a tokenizer.json."""
    from pathlib import Path

    from tokenizers import Tokenizer

    from mathmill.errors import UserError

    path = Path(tokenizer).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as problem:  # the library raises plain Exception
        raise UserError(f"--tokenizer {tokenizer}: no tokenizer.json that can be read there: {problem}") from None
    loaded.no_truncation()
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
