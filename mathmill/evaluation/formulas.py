"""Text with LaTeX in it as HTML with MathML. A model's text is never trusted: what is no checked formula is escaped."""

import html
import re
from functools import lru_cache
from xml.etree import ElementTree

from markupsafe import Markup, escape

LONGEST = 1500
"""Characters: a longer formula is shown as it was typed."""
DEEPEST = 40
LONGEST_ANSWER = 200
_FORMULA = re.compile(
    r"\$\$(?P<dollars>.+?)\$\$"
    r"|\\\[(?P<brackets>.+?)\\\]"
    r"|\\\((?P<parens>.+?)\\\)"
    r"|(?P<environment>\\begin\{(?P<kind>(?:align|aligned|split|equation|gather|array|cases|[pbvBV]?matrix)\*?)\}.+?\\end\{(?P=kind)\})"
    # a dollar that begins a formula touches it; one that ends it too, and no digit follows: $5 and $7 are money
    r"|(?<!\\)\$(?=\S)(?P<dollar>[^$]{1,600}?)(?<=[^\s\\])\$(?!\d)"
    r"|(?P<box>\\(?:boxed|fbox)\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})",
    re.DOTALL,
)
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")
_TEXT_COMMAND = re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}")
_TEXT = re.compile(r"\\(?:text\w*|mbox)\s*\{[^{}]*\}")
_TAGS = frozenset(
    """
    math mrow mi mn mo mtext mspace ms mfrac msqrt mroot mstyle merror mpadded mphantom mfenced menclose msub
    msup msubsup munder mover munderover mmultiscripts mprescripts none mtable mtr mtd mlabeledtr maligngroup
    malignmark semantics
    """.split()  # noqa: SIM905  a list of fifty quoted words reads worse
)
_ATTRIBUTES = frozenset(
    """
    xmlns display mathvariant stretchy fence separator form lspace rspace minsize maxsize symmetric largeop
    movablelimits accent accentunder linethickness bevelled columnalign rowalign columnspacing rowspacing
    columnlines rowlines frame framespacing equalrows equalcolumns displaystyle scriptlevel width height depth
    voffset notation open close separators mathsize mathcolor mathbackground linebreak numalign denomalign
    columnspan rowspan
    """.split()  # noqa: SIM905  a list of fifty quoted words reads worse
)


SIGNS = {
    "sqrt": "√", "sum": "∑", "prod": "∏", "int": "∫", "pi": "π", "theta": "θ", "alpha": "α", "beta": "β", "angle": "∠",
    "triangle": "△", "cdot": "·", "times": "×", "div": "÷", "pm": "±", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠",
    "neq": "≠", "infty": "∞", "circ": "°", "ldots": "…", "dots": "…", "cdots": "…", "in": "∈", "to": "→", "log": "log ",
    "sin": "sin ", "cos": "cos ", "tan": "tan ", "gcd": "gcd ", "binom": "binom ",
}  # fmt: skip
"""Of LaTeX's commands, in a line of text."""
_BRACED = r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(r"\\[dt]?frac" + 2 * _BRACED)


def text_html(text: str) -> Markup:
    """The text, escaped, with its formulas as MathML and its line breaks kept (by the style's `white-space`)."""
    pieces, end = [], 0
    for found in _FORMULA.finditer(text):
        if found.start() < end or (found["dollar"] and _is_prose(found["dollar"])):
            continue
        pieces.append(escape(text[end : found.start()]))
        source = next(
            found[name] for name in ("dollars", "brackets", "parens", "environment", "dollar", "box") if found[name]
        )
        is_block = bool(found["dollars"] or found["brackets"] or found["environment"])
        if found["box"]:
            inner = source.partition("{")[2].rpartition("}")[0]
            pieces.append(Markup('<span class="boxed">{}</span>').format(answer_html(inner)))
        else:
            pieces.append(formula_html(source, is_block))
        end = found.end()
    pieces.append(escape(text[end:]))
    return Markup("").join(pieces)


def answer_html(answer: str | None) -> Markup:
    """An answer, which is a formula with or without its dollars; words stay words."""
    if answer is None:
        return Markup('<i class="none">none</i>')
    plain = answer.strip().strip("$").strip()
    if len(plain) > LONGEST_ANSWER or "\n" in plain or _is_prose(plain) or not re.search(r"[\\^_{}]", plain):
        return escape(plain if len(plain) <= LONGEST_ANSWER else f"{plain[:LONGEST_ANSWER]} …")
    return formula_html(plain, False)


def _is_prose(source: str) -> bool:
    """Whether what stands between two dollars is a sentence between two prices."""
    return len(_WORD.findall(_TEXT_COMMAND.sub("", source))) >= 3 or "\n\n" in source


def line_text(text: str) -> str:
    """The text in one line, its formulas as one would type them, as far as that goes."""

    def bare(found: re.Match[str]) -> str:
        return found[0] if found["dollar"] and _is_prose(found["dollar"]) else found[0].strip("$")

    plain = _FORMULA.sub(bare, " ".join(text.split()))
    plain = _FRACTION.sub(lambda found: "/".join(map(_bracketed, found.groups())), plain)
    plain = re.sub(r"\\([a-zA-Z]+) ?", lambda found: SIGNS.get(found[1], ""), plain)
    return re.sub(r"[\\{}]", "", plain)


def _bracketed(part: str) -> str:
    return part if re.fullmatch(r"\\?\w+", part) else f"({part})"


@lru_cache(maxsize=20_000)
def formula_html(source: str, is_block: bool) -> Markup:
    """MathML, or the escaped source where the library cannot read it or makes anything but MathML of it."""
    made = _mathml(source, is_block)
    return made if made is not None else Markup('<code class="tex">{}</code>').format(source.strip())


def _mathml(source: str, is_block: bool) -> Markup | None:
    if len(source) > LONGEST or _depth(source) > DEEPEST:
        return None
    from latex2mathml.converter import convert

    try:
        made = convert(_prepared(source), display="block" if is_block else "inline")
        root = ElementTree.fromstring(made)
    except Exception:  # whatever the library raises on a model's LaTeX: it is shown as typed
        return None
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        if tag not in _TAGS or not set(element.attrib) <= _ATTRIBUTES:
            return None
        if "\\" in (element.text or "") and tag in ("mi", "mo"):  # a command that the library does not know
            return None
        element.tag = tag
        element.attrib.pop("xmlns", None)
    # written anew from the tree, so that nothing but these elements and escaped text is left of it
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


_REPLACED = [
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])"), r"\\boxed"),
    (re.compile(r"\\\$"), r"\\text{$}"),
    (re.compile(r"\\!|\\allowbreak(?![A-Za-z])"), ""),
    (re.compile(r"\\arg(?![A-Za-z])"), r"\\operatorname{arg}"),
    (re.compile(r"\\(begin|end)\{(?:aligned|split|align)\*?\}"), r"\\\1{align*}"),
    (re.compile(r"\\begin\{(?:equation|gather)\*?\}|\\end\{(?:equation|gather)\*?\}"), ""),
]


def _prepared(source: str) -> str:
    for pattern, replacement in _REPLACED:
        source = pattern.sub(replacement, source)
    return _TEXT.sub(lambda found: html.escape(found[0], quote=False), source)  # the library leaves text as it is


def _depth(source: str) -> int:
    deepest = depth = 0
    for letter in source:
        depth += (letter == "{") - (letter == "}")
        deepest = max(deepest, depth)
    return deepest
