"""The report of one or more runs: an HTML folder that needs nothing else, and the tables as Markdown, LaTeX and CSV."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mathmill import __version__
from mathmill.evaluation.browse import TAG_HELP, TAGS, Browser
from mathmill.evaluation.plots import curve_chart, group_chart
from mathmill.evaluation.results import ORDERS, Evaluated, compare_all
from mathmill.evaluation.tables import (
    Table,
    comparison_table,
    counts_table,
    curve_rows,
    group_tables,
    main_table,
    published_table,
    tidy_rows,
)
from mathmill.evaluation.writing import csv_text, latex, markdown
from mathmill.files import write_whole

MOST_NAMED = 4
"""Models that a title names."""
PAGE = Path(__file__).resolve().parent / "page"


@dataclass(frozen=True)
class Tables:
    """All tables of a report."""

    main: Table
    students: Table | None
    published: Table | None
    pairs: Table | None
    groups: list[Table]
    counts: Table

    @property
    def all(self) -> list[Table]:
        one_of_each = [self.students, self.main, self.published, self.pairs, *self.groups, self.counts]
        return [table for table in one_of_each if table is not None]


def tables_of(results: Sequence[Evaluated], published: str | None, students: Table | None = None) -> Tables:
    return Tables(
        main=main_table(results),
        students=students,
        published=published_table(results, published) if published else None,
        pairs=None if students else comparison_table(compare_all(results)),
        groups=group_tables(results),
        counts=counts_table(results),
    )


def write_report(
    results: Sequence[Evaluated],
    tables: Tables,
    folder: Path,
    *,
    most_solutions: int,
    page_bytes: int,
    advance: Callable[[str], None] = lambda what: None,
) -> Path:
    """Write index.html, a page or more of problems a result, results.md, .tex, .csv and curves.csv; the path of index.html."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "results.md", markdown(tables.all))
    write_whole(folder / "results.tex", latex(tables.all))
    write_whole(folder / "results.csv", csv_text(tidy_rows(results)))
    write_whole(folder / "curves.csv", csv_text(curve_rows(results)))
    for old in folder.glob("problems-*.html"):
        old.unlink()
    browsers = []
    for number, result in enumerate(results):
        advance(f"problems of {result.title}, {result.label}")
        browsers.append(_write_problems(result, number, folder, most_solutions, page_bytes))
    advance("charts")
    page = _environment().get_template("report.html.j2")
    _write_page(folder / "index.html", page.render(_head(_title(results)) | _content(results, tables, browsers)))
    return folder / "index.html"


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Signs that no HTML may hold: of models' texts, since our own pages have none of them."""


def _write_page(path: Path, text: str) -> None:
    write_whole(path, _CONTROL.sub(_picture, text))


def _picture(found: re.Match[str]) -> str:
    """A control sign as it can be seen: U+2400 and on are pictures of the first 32; U+FFFD stands for the others."""
    number = ord(found[0])
    return chr(0x2400 + number) if number < 32 else "\u2421" if number == 127 else "\ufffd"


def _title(results: Sequence[Evaluated]) -> str:
    labels = list(dict.fromkeys(result.label for result in results))
    if len(labels) > MOST_NAMED:
        return f"Evaluation of {len(labels)} models"
    return "Evaluation of " + (labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}")


def _content(results: Sequence[Evaluated], tables: Tables, browsers: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(result.name for result in results))
    by_name = {name: [result for result in results if result.name == name] for name in names}
    curves = [(mine[0].title, chart) for mine in by_name.values() if (chart := curve_chart(mine)) is not None]
    bars = []
    for mine in by_name.values():
        for table in tables.groups:
            head, _, kind = table.caption.rpartition(" by ")
            if head == mine[0].title and (chart := group_chart(mine, kind)) is not None:
                bars.append((table.caption, chart, table))
    runs = list(dict.fromkeys(result.run.name for result in results))
    settings = results[0].any_set.sample_set.sampling
    prompts = sorted({result.any_set.sample_set.prompt.name for result in results})
    subtitle = f"{', '.join(runs)} · prompt {', '.join(prompts)} · top_p {settings.top_p:g}"
    sampled = {result.sampled.sample_set.sampling.temperature for result in results if result.sampled is not None}
    if sampled:
        subtitle += f" · sampled at temperature {', '.join(f'{each:g}' for each in sorted(sampled))}"
    return {
        "subtitle": subtitle,
        "main": tables.main,
        "students": tables.students,
        "published": tables.published,
        "pairs": tables.pairs,
        "counts": tables.counts,
        "curves": curves,
        "bars": bars,
        "browsers": browsers,
        "orders": ORDERS,
        "version": __version__,
    }


def _write_problems(
    result: Evaluated, number: int, folder: Path, most_solutions: int, page_bytes: int
) -> dict[str, Any]:
    """The pages of a result's problems; what index.html says of them."""
    browser = Browser(result, most_solutions)
    totals = {"all": len(result.problems)} | browser.tag_counts()
    pages = list(_paged(browser, page_bytes))
    stem = f"problems-{number + 1}-{re.sub(r'[^A-Za-z0-9._-]+', '-', result.name)}"
    files = [f"{stem}{'' if place == 0 else f'-{place + 1}'}.html" for place in range(len(pages))]
    counts = [{"all": len(page)} | {tag: sum(tag in tags for tags, _ in page) for tag in TAGS} for page in pages]
    script = (PAGE / "browse.js").read_text()
    template = _environment().get_template("problems.html.j2")
    for place, page in enumerate(pages):
        known = {"files": files, "counts": counts, "here": place, "total": totals}
        content = {
            "heading": result.title,
            "label": result.label,
            "problems": [Markup(text) for _, text in page],
            "page_number": place + 1,
            "num_pages": len(pages),
            "files": files,
            "tags": TAGS,
            "help": TAG_HELP,
            "totals": totals,
            "most_solutions": most_solutions,
            "script": Markup(script),
            "pages_json": Markup(json.dumps(known).replace("<", "\\u003c")),
        }
        text = template.render(_head(f"{result.title}: {result.label}", script) | content)
        _write_page(folder / files[place], text)
    first = {tag: next((files[p] for p, each in enumerate(counts) if each[tag]), files[0]) for tag in TAGS}
    tags = [(tag, name, totals[tag], TAG_HELP[tag]) for tag, name in TAGS.items()]
    return {
        "title": result.title,
        "label": result.label,
        "file": files[0],
        "files": first,
        "total": totals["all"],
        "tags": tags,
    }


def _paged(browser: Browser, page_bytes: int) -> Iterator[list[tuple[list[str], str]]]:
    """Tags and HTML of the problems of each page."""
    template = _environment().get_template("problem.html.j2")
    page: list[tuple[list[str], str]] = []
    size = 0
    for problem in browser.shown():
        text = template.render(problem=problem)
        if page and size + len(text) > page_bytes:
            yield page
            page, size = [], 0
        page.append((problem.tags, text))
        size += len(text)
    yield page


def _head(title: str, script: str | None = None) -> dict[str, Any]:
    sha = None if script is None else base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"title": title, "style": Markup((PAGE / "style.css").read_text()), "script_sha": sha}


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False
    )
