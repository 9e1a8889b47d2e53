"""Inequalities and set builders, written as intervals."""

import re
from typing import NamedTuple

from mathmill.grading.spelling import tight

_VARIABLE = r"(?P<name>[A-Za-z]|\\(?:alpha|beta|theta|lambda|phi|omega|mu))"
_BOUND = r"[^<>≤≥≠]+?"
_BETWEEN = re.compile(rf"(?P<low>{_BOUND})(?P<first>[<≤]){_VARIABLE}(?P<second>[<≤])(?P<high>{_BOUND})")
_BETWEEN_DOWN = re.compile(rf"(?P<high>{_BOUND})(?P<second>[>≥]){_VARIABLE}(?P<first>[>≥])(?P<low>{_BOUND})")
_ONE_SIDED = re.compile(rf"{_VARIABLE}(?P<sign>[<>≤≥≠])(?P<bound>{_BOUND})")
_ONE_SIDED_BACK = re.compile(rf"(?P<bound>{_BOUND})(?P<sign>[<>≤≥≠]){_VARIABLE}")
_BACK = str.maketrans("<>≤≥", "><≥≤")
_MEMBER = re.compile(rf"{_VARIABLE}\\in(?P<set>[(\[\\ ].*)")
_BUILDER = re.compile(rf"\\\{{{_VARIABLE}(?:\\in ?\\mathbb\{{R\}})?(?::|\\mid ?|\|)(?P<condition>.*)\\\}}")
_OR = re.compile(r"\\text\s*\{\s*or\s*\}|\\(?:cup|lor|vee)(?![A-Za-z])|\bor\b")
_SIGNS = (
    (re.compile(r"\\leq?(?![A-Za-z])|<="), "≤"),
    (re.compile(r"\\geq?(?![A-Za-z])|>="), "≥"),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\neq?(?![A-Za-z])|!="), "≠"),
)
_REALS = (r"\mathbb{R}", r"(-\infty,\infty)")


class Written(NamedTuple):
    """An interval, or a union of some, as text; and the variable it is for, where one was named."""

    text: str
    name: str


def as_interval(answer: str) -> Written | None:
    r"""`1<x\le 2`, `x \in (1,2]` and `\{x : 1 < x \le 2\}` as `(1,2]`; parts joined by "or" as a union.

    None for what is no inequality in one variable; an interval or a union of intervals comes back as it is.
    """
    builder = _BUILDER.fullmatch(tight(answer))
    if builder:
        inside = as_interval(builder["condition"])
        return inside if inside and inside.name in ("", builder["name"]) else None
    parts = [_one_interval(_signs(tight(part.strip()))) for part in _OR.split(answer)]
    names = {part.name for part in parts if part and part.name}
    if len(names) > 1 or not all(parts):
        return None
    return Written(r"\cup ".join(part.text for part in parts if part), "".join(names))


def _signs(text: str) -> str:
    for pattern, sign in _SIGNS:
        text = pattern.sub(sign, text)
    return re.sub(r"\s*([<>≤≥≠])\s*", r"\1", text)


def _one_interval(text: str) -> Written | None:
    if found := _MEMBER.fullmatch(text):
        inside = _one_interval(found["set"].strip())
        return Written(inside.text, found["name"]) if inside else None
    if text in _REALS:
        return Written(_REALS[1], "")
    if re.fullmatch(r"[(\[][^<>≤≥≠=]+,[^<>≤≥≠=]+[)\]]", text):
        return Written(text, "")
    if found := _BETWEEN.fullmatch(text) or _BETWEEN_DOWN.fullmatch(text):
        low, high = ("(" if found["first"] in "<>" else "["), (")" if found["second"] in "<>" else "]")
        interval = f"{low}{found['low']},{found['high']}{high}"
    elif found := _ONE_SIDED.fullmatch(text):
        interval = _half(found["sign"], found["bound"])
    elif found := _ONE_SIDED_BACK.fullmatch(text):
        interval = _half(found["sign"].translate(_BACK), found["bound"])
    else:
        return None
    bounds = (found[group] for group in ("low", "high", "bound") if group in found.re.groupindex)
    return None if any(_holds(bound, found["name"]) for bound in bounds) else Written(interval, found["name"])


def _half(sign: str, bound: str) -> str:
    return {
        "<": rf"(-\infty,{bound})",
        "≤": rf"(-\infty,{bound}]",
        ">": rf"({bound},\infty)",
        "≥": rf"[{bound},\infty)",
        "≠": rf"(-\infty,{bound})\cup ({bound},\infty)",
    }[sign]


def _holds(bound: str, name: str) -> bool:
    """Whether the variable stands in the bound; the letters of commands do not count."""
    return name in (bound if name.startswith("\\") else re.sub(r"\\[A-Za-z]+", "", bound))
