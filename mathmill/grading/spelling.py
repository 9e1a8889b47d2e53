"""One spelling for answers that differ only in how they are typed: marks around them, spaces, commands of LaTeX."""

import re

_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_COMMANDS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\geq": r"\ge", r"\leqslant": r"\le",
    r"\geqslant": r"\ge", r"\neq": r"\ne", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|",
    r"\vert": "|", r"\degree": r"^\circ", r"\displaystyle": "", r"\limits": "", r"\quad": " ", r"\qquad": " ",
    r"\left": "", r"\right": "", r"\big": "", r"\Big": "", r"\bigl": "", r"\bigr": "", r"\Bigl": "", r"\Bigr": "",
    r"\varnothing": r"\emptyset", r"\bigg": "", r"\Bigg": "", r"\bigcup": r"\cup", r"\bigcap": r"\cap",
    r"\R": r"\mathbb{R}", r"\textnormal": r"\text", r"\textrm": r"\text",
}  # fmt: skip
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTERS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "±": r"\pm ",
        "√": r"\sqrt ", "α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "λ": r"\lambda ",
        "φ": r"\phi ", "ω": r"\omega ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
        "’": "'", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    }
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED_NUMBER = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_ROOT_SIGN = re.compile(r"√\s*([0-9]+(?:\.[0-9]+)?|[A-Za-z])")
_ARGUMENT = r"\s*(\{[^{}]*\}|[0-9A-Za-z]|\\(?:pi|theta|alpha|beta|lambda|phi|omega)(?![A-Za-z]))"
_RETYPED = (
    (re.compile(rf"\\frac(?=\s*(?:\\|[0-9A-Za-z]\s*\\|\{{[^{{}}]*\}}\s*\\)){_ARGUMENT}{_ARGUMENT}"), r"\\frac{\1}{\2}"),
    (re.compile(rf"(\\sqrt|\^)\s*(\\frac){_ARGUMENT}{_ARGUMENT}"), r"\1{\2{\3}{\4}}"),
    (re.compile(r"\\sqrt\s*(\[[^][]*\])\s*([0-9A-Za-z])"), r"\\sqrt\1{\2}"),
    (re.compile(r"\\(?:text|mathrm)\s*\{\s*(\\?[$%]|\^\\circ)\s*\}"), r"\1"),
    (re.compile(r"\{\s*(\^\s*\\circ)?\s*\}(?=\^|$)"), r"\1"),
    (re.compile(r"(?<=[0-9])\^\s*(?:o(?![A-Za-z])|\{\s*o\s*\})"), r"^\\circ"),
    (
        re.compile(r"\\(?:text|mathrm)\s*\{[~ ]*([a-z]+)\s*\}\s*/\s*\\(?:text|mathrm)\s*\{\s*([a-z]+)\s*\}"),
        r"\\text{ \1/\2}",
    ),
    (
        re.compile(r"\^\s*\{?\s*\\circ\s*\}?(?:\\[ ,;]|\s)*(?:\\(?:text|mathrm)\s*\{\s*C\s*\}|C)$"),
        r"^\\circ",
    ),  # Celsius
    (re.compile(r"\\(?:mathbf|Bbb)\s*(?:\{\s*R\s*\}|R(?![A-Za-z]))"), r"\\mathbb{R}"),
    (re.compile(r"\{:\}"), ":"),
    (re.compile(r"\s*\\\\$"), ""),
)
"""What TeX sets alike: the pattern, and how it is typed here."""
_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(?P<inside>.*)\}", re.DOTALL)
_SPACING = re.compile(r"(?<!\\)\\[ ,;:!>]|~")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_BARE_FRACTION = re.compile(r"\\frac\s*(?:([0-9A-Za-z])|(\{[^{}]*\}))\s*(?:([0-9A-Za-z])|(\{[^{}]*\}))")
_BARE_ROOT = re.compile(r"\\sqrt\s*([0-9A-Za-z])")
_ONE_BRACED = re.compile(r"(?<=[\^_])\s*\{\s*([A-Za-z]|[0-9](?=\s*\}\s*(?![0-9]))|\\[A-Za-z]+)\s*\}")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_SPACE = re.compile(r"(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])|(?<=[A-Za-z]) +(?=[0-9])|(?<=[0-9]) +(?=[A-Za-z])")
_SPACE_BETWEEN_LETTERS = re.compile(r"(\\[A-Za-z]+)?(?<=[A-Za-z]) +(?=[A-Za-z])")


def trimmed(answer: str) -> str:
    r"""The answer without what changes nothing: space, dollars, a box and a full stop around it, `\left`, `\dfrac`."""
    answer = _without_stop(answer)
    box = _WHOLE_BOX.fullmatch(answer)
    if box and _is_balanced(box["inside"]):
        answer = _without_stop(box["inside"])
    for opening, closing in _PAIRS:
        if len(answer) > len(opening + closing) and answer.startswith(opening) and answer.endswith(closing):
            inner = answer[len(opening) : -len(closing)]
            if closing not in inner and not inner.endswith("\\"):
                answer = _without_stop(inner)
    if "\\" in answer:
        answer = _COMMAND.sub(lambda found: _COMMANDS.get(found[0], found[0]), answer)
    if not answer.isascii():
        answer = _RAISED_NUMBER.sub(lambda found: f"^{{{found[0].translate(_RAISED)}}}", answer)
        answer = _ROOT_SIGN.sub(r"\\sqrt{\1}", answer).translate(_LETTERS)
    if "\\" in answer or "^" in answer or "{:}" in answer:
        for pattern, typed in _RETYPED:
            answer = pattern.sub(typed, answer)
    return " ".join(answer.split())


def tight(answer: str) -> str:
    r"""A key: answers with the same key are the same answer. `answer` has been trimmed already.

    Spaces go where they say nothing (`1 2` keeps its own, `\pi r` too), text commands leave their text, and
    `\frac12`, `x^{2}`, `x**2` and `90^{\circ}` get one spelling each.
    """
    if answer.count("$") % 2 == 0 and "\\$" not in answer:
        answer = answer.replace("$", "")
    answer = answer.replace("**", "^")
    if "\\" in answer:
        answer = _TEXT.sub(r"\1", _SPACING.sub(" ", answer))
        answer = _DEGREES.sub(r"^\\circ ", answer)
        answer = _BARE_FRACTION.sub(_braced_fraction, answer)
        answer = _BARE_ROOT.sub(r"\\sqrt{\1}", answer)
    answer = _ONE_BRACED.sub(r"\1 ", answer)
    answer = _SPACE_BETWEEN_LETTERS.sub(lambda found: found[1] + " " if found[1] else "", answer)
    return _SPACE.sub("", answer)


def _braced_fraction(found: re.Match[str]) -> str:
    over = found[2] or "{" + found[1] + "}"
    under = found[4] or "{" + found[3] + "}"
    return rf"\frac{over}{under}"


def _without_stop(answer: str) -> str:
    answer = answer.strip()
    return answer[:-1].rstrip() if answer.endswith(".") and not answer.endswith("..") else answer


def _is_balanced(text: str) -> bool:
    """Whether no brace closes what was not opened in the text, so that the braces around it are partners."""
    depth = 0
    for letter in text.replace("\\{", "").replace("\\}", ""):
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            return False
    return depth == 0
