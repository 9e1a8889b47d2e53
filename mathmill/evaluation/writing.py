"""Tables on a terminal, and as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

from mathmill.evaluation.tables import Table

PIPED_WIDTH = 200
"""Columns of text that a table may take where stdout is no terminal."""


def print_table(table: Table) -> None:
    """The table on stdout; on a narrow terminal its words are wrapped, never its numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=PIPED_WIDTH)
    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, head in enumerate(table.heads):
        is_words = table.is_words(number)
        drawn.add_column(head, justify="left" if is_words else "right", no_wrap=not is_words, overflow="fold")
    for number, row in enumerate(table.rows):
        drawn.add_row(*row, style="bold" if number in table.strong else None)
    console.print(table.caption, style="bold")
    console.print(drawn)
    if table.note:
        console.print(table.note, style="dim")
    console.print()


def markdown(tables: Sequence[Table]) -> str:
    """All tables, each with its caption and note."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    num_words = table.num_words
    lines = [table.heads, ["---" if number < num_words else "---:" for number in range(len(table.heads))]]
    for number, row in enumerate(table.rows):
        lines.append([f"**{cell}**" if number in table.strong else cell for cell in row])
    text = "".join("| " + " | ".join(map(_markdown_cell, line)) + " |\n" for line in lines)
    return f"## {table.caption}\n\n{text}" + (f"\n{table.note}\n" if table.note else "")


def _markdown_cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


_LATEX = {each: f"\\{each}" for each in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "[": "{[}",
}


def latex(tables: Sequence[Table]) -> str:
    """All tables for a paper: booktabs, and makecell for values above their intervals."""
    head = "% \\usepackage{booktabs,makecell}\n"
    return head + "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    num_words = table.num_words
    columns = "".join("l" if number < num_words else "r" for number in range(len(table.heads)))
    rows = [
        " & ".join(_latex_cell(cell, number in table.strong) for cell in row) + r" \\"
        for number, row in enumerate(table.rows)
    ]
    head = " & ".join(_latex_cell(cell) for cell in table.heads) + r" \\"
    caption = _latex_text(f"{table.caption}. {table.note}".strip())
    lines = [r"\begin{table}", r"\centering\small", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _latex_cell(text: str, strong: bool = False) -> str:
    lines = [_latex_text(line) for line in text.split("\n")]
    if strong:
        lines = [rf"\textbf{{{line}}}" for line in lines]
    return lines[0] if len(lines) == 1 else r"\makecell{" + r" \\ ".join(lines) + "}"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def csv_text(rows: Iterable[dict[str, object]]) -> str:
    """Rows of one shape, with their names in the first line."""
    stream = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(stream, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return stream.getvalue()
