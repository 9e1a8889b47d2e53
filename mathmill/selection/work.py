"""The data stages of a recipe: what a job without GPUs does once the samples are there. Each begins by checking its input."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mathmill.errors import UserError
from mathmill.files import publish_once, write_whole
from mathmill.generation.sets import SampleSet, Sampling, SetFolder, create_set
from mathmill.generation.shards import left
from mathmill.prompts import Prompt
from mathmill.records import Problem, lines_of, read_records, short_sha
from mathmill.run import Run
from mathmill.selection.coverage import CoverageWork, report_coverage, table_of
from mathmill.selection.options import Choice, Filters, Output

if TYPE_CHECKING:
    from mathmill.grading import GradingPool


class MaskedSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sample set that is made once its problems have their masked solutions."""

    name: str
    prompt: Prompt
    model: str
    sampling: Sampling
    seed: int
    num_samples: int
    problems_per_shard: int
    samples_per_shard: int


class MaskWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Masked solutions out of a set of candidates, and the sample sets that are to use them."""

    candidates: str
    sets: list[MaskedSet] = []
    fallback: str = "none"


class TrainingSetWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training set in RUN/data, out of sample sets and earlier training sets of the run."""

    name: str
    sample_sets: list[str]
    training_sets: list[str]
    filters: dict[str, Any]
    choice: dict[str, Any]
    written: dict[str, Any]
    licence: str
    prompt: Prompt
    """That of `written.sft_prompt`: a job has no files of prompts."""


class Work(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `selection` of a job's JSON file."""

    masks: list[MaskWork] = []
    training_sets: list[TrainingSetWork] = []
    coverage: list[CoverageWork] = []
    processes: int = 1


def masks_file(run: Run, candidates: str) -> Path:
    """A line a problem: what was selected, and why. It is there once the sample sets that need it are."""
    return run.folder / "masks" / f"{candidates}.jsonl"


def masked_problems_file(run: Run, candidates: str) -> Path:
    """The problems that have a masked solution, with it."""
    return run.folder / "masks" / f"{candidates}.problems.jsonl"


def training_set_folder(run: Run, name: str) -> Path:
    return run.folder / "data" / name


def whole_set(run: Run, name: str) -> SetFolder:
    """The folder of a set, all of whose rows are there. UserError, which says what is missing, where they are not."""
    folder = SetFolder(run.solutions / name)
    if not folder.config.exists():
        raise UserError(
            f"{run.folder} has no set {name}: the stage before did not end well; the same launch command goes on"
        )
    missing = sum(shard.num_rows for shard in left(folder, folder.load()))
    if missing:
        raise UserError(f"{folder.folder} is not whole, {missing:,} rows are to come; the same launch command goes on")
    return folder


def do(work: Work, run: Run) -> None:
    """All of the work that is not done yet, with a line for each part of it."""
    for masks in work.masks:
        whole_set(run, masks.candidates)
    for one in work.training_sets:
        for name in one.sample_sets:
            if not _is_empty(run, name):
                whole_set(run, name)
    if work.masks:
        from mathmill.grading import GradingPool

        pool = GradingPool(work.processes)
        try:
            for masks in work.masks:
                make_masks(masks, run, pool)
        finally:
            pool.close()
    for one in work.training_sets:
        make_set(one, run, work.processes)
    for each in work.coverage:
        table = table_of(report_coverage(each, run))
        print(f"coverage: {run.folder}/reports/{each.name}.md, .json and .png\n\n{table}", flush=True)


def make_masks(work: MaskWork, run: Run, pool: "GradingPool") -> None:
    """Select masked solutions and create the sets that use them."""
    from mathmill.generation.summary import solutions
    from mathmill.selection.masks import MaskOptions, kinds_of, select_masks

    explained = masks_file(run, work.candidates)
    if explained.exists():
        return
    folder = whole_set(run, work.candidates)
    texts: dict[str, dict[int, str]] = {}
    for row in solutions(folder):
        texts.setdefault(row.problem_id, {})[row.sample_index] = row.generation
    options = MaskOptions(fallback="published" if work.fallback == "published" else "none")
    found = select_masks(folder.load_problems(), texts, pool, options)
    masked = [problem for problem, _ in found if problem.masked_reference_solution]
    problems_path = masked_problems_file(run, work.candidates)
    publish_once(problems_path, lines_of(masked))
    problems = list(read_records(problems_path, Problem))  # an earlier attempt may have been first
    for one in work.sets if problems else []:
        create_masked_set(one, problems, run)
    write_whole(explained, lines_of(mask for _, mask in found))
    counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds_of(mask for _, mask in found).items())
    print(f"masks of {work.candidates}: {counts}", flush=True)


def create_masked_set(one: MaskedSet, problems: list[Problem], run: Run) -> None:
    sample_set = SampleSet(
        name=one.name,
        problems_sha=short_sha(lines_of(problems)),
        num_problems=len(problems),
        prompt=one.prompt,
        model=one.model,
        sampling=one.sampling,
        seed=one.seed,
        problems_per_shard=one.problems_per_shard,
        samples_per_shard=one.samples_per_shard,
    )
    create_set(run, sample_set, problems).grow(one.num_samples)


def _is_empty(run: Run, name: str) -> bool:
    """Whether a set was not made because no problem got a masked solution."""
    return not SetFolder(run.solutions / name).config.exists() and any(
        not path.stat().st_size for path in (run.folder / "masks").glob("*.problems.jsonl")
    )


def make_set(one: TrainingSetWork, run: Run, processes: int) -> None:
    """Make a training set of the run."""
    from mathmill.selection.training_set import Selection, make_training_set

    inputs = [str(run.solutions / name) for name in one.sample_sets if not _is_empty(run, name)]
    inputs += [str(training_set_folder(run, name) / "train.jsonl") for name in one.training_sets]
    selection = Selection(
        inputs=tuple(inputs),
        output=training_set_folder(run, one.name),
        filters=_options(one, "filters", Filters),
        choice=_options(one, "choice", Choice),
        written=_options(one, "written", Output),
        licence=one.licence,
        processes=processes,
        prompt=one.prompt,
    )
    report = make_training_set(selection)
    if report is not None:
        print("\n".join([f"training set {one.name}: {selection.output}", *report.lines()]), flush=True)


def _options(one: TrainingSetWork, name: str, kind: type) -> Any:
    try:
        return msgspec.convert(getattr(one, name), kind)
    except msgspec.ValidationError as problem:
        raise UserError(f"training set {one.name}, {name}: {problem}") from None


def check_options(one: TrainingSetWork) -> None:
    """UserError where the set's options cannot be read."""
    for name, kind in (("filters", Filters), ("choice", Choice), ("written", Output)):
        unknown = set(getattr(one, name)) - set(kind.__dataclass_fields__)
        if unknown:
            raise UserError(f"training set {one.name}, {name}: no option '{sorted(unknown)[0]}'")
        _options(one, name, kind)
