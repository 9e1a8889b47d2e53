"""The dataset card of a training set, as the Hugging Face hub reads it."""

from typing import TYPE_CHECKING, Any

from mathmill.generation.sets import SetFolder
from mathmill.selection.rows import COLUMNS
from mathmill.selection.sources import Piece

if TYPE_CHECKING:
    from mathmill.selection.training_set import Selection

LICENCES = {"gsm8k": "MIT", "math": "MIT", "words": "Apache-2.0"}
"""Of the problems, by dataset."""
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
MEANING = {
    "question": "the problem",
    "generated_solution": "the solution; code between `<llm-code>` tags, its output between `<llm-code-output>` tags",
    "expected_answer": "the answer of the source dataset",
    "predicted_answer": "the answer of the solution",
    "error_message": "`<not_executed>` without code; empty when the last block ran; else how it failed",
    "is_correct": "whether the two answers are the same",
    "dataset": "where the problem is from",
    "generation_type": "`without_reference_solution`, or `masked_reference_solution`: the model saw a solution with its "
    "numbers masked",
    "problem_id": "the problem's id, or a hash of its text",
}


def card(selection: "Selection", counts: dict[str, Any], pieces: list[Piece]) -> str:
    """The text of README.md: a head for the hub, then counts, origin, filters and licences."""
    names = sorted({kind["dataset"] for kind in counts["kinds"]})
    files = "".join(
        f"\n  - config_name: {config}\n    data_files: {file}"
        for config, file in (("default", "train.jsonl"), ("sft", "sft.jsonl"))
    )
    head = f"license: {selection.licence}\ntask_categories:\n  - text-generation\nlanguage:\n  - en\ntags:\n  - math\n"
    head += f"size_categories:\n  - {_size(counts['kept'])}\nconfigs:{files}"
    parts = [f"---\n{head}\n---\n\n# {selection.output.name}\n", _about(counts), _columns(), _counts(counts)]
    parts += [_origin(selection, pieces), _filters(selection), _licences(names, selection.licence)]
    return "\n".join(parts)


def _size(rows: int) -> str:
    return next((name for edge, name in SIZES if rows < edge), "10M<n<100M")


def _about(counts: dict[str, Any]) -> str:
    return (
        f"{counts['kept']:,} solutions of mathematical problems, selected out of {counts['read']:,} by mathmill. "
        "`train.jsonl` (and `train.parquet`) has the columns of the published OpenMathInstruct-1; `sft.jsonl` the same rows "
        "in the same order as `problem_id`, `input` and `output`.\n"
    )


def _columns() -> str:
    return "| column | |\n|---|---|\n" + "".join(f"| `{name}` | {MEANING[name]} |\n" for name in COLUMNS)


def _counts(counts: dict[str, Any]) -> str:
    rows = "".join(f"| left out: {reason} | {count:,} |\n" for reason, count in counts["dropped"].items())
    kinds = "".join(
        f"| {one['dataset'] or '(no name)'} | {one['generation_type']} | {'yes' if one['code'] else 'no'} | {one['rows']:,} |\n"
        for one in counts["kinds"]
    )
    return (
        f"## Counts\n\n| rows | |\n|---|---:|\n| read | {counts['read']:,} |\n{rows}| kept | {counts['kept']:,} |\n\n"
        f"| dataset | generation type | code | rows |\n|---|---|---|---:|\n{kinds}"
    )


def _origin(selection: "Selection", pieces: list[Piece]) -> str:
    """Models and prompts of our own runs; the names of others' files."""
    folders = dict.fromkeys(piece.path.parent for piece in pieces)
    sets = [SetFolder(folder) for folder in folders if (folder / "set.yaml").is_file()]
    lines = [f"Inputs: {', '.join(f'`{name}`' for name in selection.inputs)}.\n"]
    if sets:
        lines.append(
            "| samples | model | prompt | examples | temperature | top p | samples a problem |\n|---|---|---|---|---|---|---|"
        )
    for folder in sets:
        one = folder.load()
        lines.append(
            f"| {one.name} | {one.model} | {one.prompt.name} ({one.prompt.sha}) | {one.prompt.num_shots} | "
            f"{one.sampling.temperature:g} | {one.sampling.top_p:g} | {max(folder.extents(), default=0)} |"
        )
    if selection.verdicts is not None:
        lines.append(f"\nVerdicts: `{selection.verdicts}`.")
    return "## Origin\n\n" + "\n".join(lines) + "\n"


def _filters(selection: "Selection") -> str:
    chosen = {**vars(selection.filters), **vars(selection.choice)}
    if selection.match_coverage is not None:
        chosen["match_coverage"] = selection.match_coverage
    rows = "".join(f"| `{name}` | {_shown(value)} |\n" for name, value in chosen.items())
    return f"## Filters\n\n| option | value |\n|---|---|\n{rows}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value)
    return "-" if value is None else str(value)


def _licences(names: list[str], licence: str) -> str:
    rows = "".join(f"| problems of {name} | {LICENCES.get(name, 'see their source')} |\n" for name in names if name)
    return (
        f"## Licences\n\n| part | licence |\n|---|---|\n{rows}| solutions | {licence}; the licence of the model that wrote "
        "them may say more |\n"
    )
