"""A benchmark's published form becomes typed problems in DATA/NAME/SPLIT.jsonl."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from mathmill.errors import UserError
from mathmill.files import write_whole
from mathmill.problems.benchmark import Benchmark, load_benchmark
from mathmill.problems.download import PUBLISHED, Published, fetch
from mathmill.problems.gsm8k import read_gsm8k
from mathmill.problems.hendrycks_math import read_math
from mathmill.problems.published_rows import read_published_rows
from mathmill.problems.source import SPLITS, correct, load_corrections
from mathmill.records import Problem, lines_of

READERS: dict[str, Callable[[Path], dict[str, list[Problem]]]] = {"gsm8k": read_gsm8k, "math": read_math}
SPLIT_SEED = 42
DOWNLOAD = "download"


@dataclass(frozen=True)
class Prepared:
    """The splits of a benchmark, the ids of the answers put right, and how many were right already of how many known."""

    splits: dict[str, list[Problem]]
    corrected: list[str]
    num_right: int
    num_corrections: int


def prepare(name: str, source: Path, validation_size: int) -> Prepared:
    """Read a benchmark's published form: test as it is, train as train, validation and train_full. Raises UserError.

    A benchmark without a reader of its own has one split, made by the templates of its yaml.
    """
    if name not in READERS:
        benchmark = with_source(name)
        rows = read_published_rows(benchmark, source)
        return Prepared(splits={benchmark.split: rows}, corrected=[], num_right=0, num_corrections=0)
    published = READERS[name](source)
    for split, problems in published.items():
        if not problems:
            raise UserError(f"{source}: the {split} split is empty")
    corrections = load_corrections(name)
    splits: dict[str, list[Problem]] = {}
    ids: list[str] = []
    num_right = 0
    for split in SPLITS:
        if split in published:
            problems, corrected, num_right_here = correct(published[split], corrections)
            splits |= training_splits(problems, validation_size) if split == "train" else {split: problems}
            ids += corrected
            num_right += num_right_here
    return Prepared(splits=splits, corrected=ids, num_right=num_right, num_corrections=len(corrections))


def with_source(name: str) -> Benchmark:
    """The benchmark of that name or file, which must say how it is prepared."""
    _, benchmark = load_benchmark(name)
    if benchmark.source is None:
        raise UserError(f"{benchmark.title} needs no preparation: its problems are {benchmark.problems}")
    return benchmark


def published_files(name: str) -> tuple[Published, ...]:
    """The published files of a benchmark."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    source = with_source(name).source
    assert source is not None
    return (Published(source.url, source.sha256),)


def training_splits(problems: list[Problem], validation_size: int) -> dict[str, list[Problem]]:
    """train, validation and train_full of the training problems, which keep their ids.

    They are shuffled by Python's generator with seed 42; validation is the head, and train_full is validation and train.
    """
    if not 0 < validation_size < len(problems):
        raise UserError(
            f"--validation_size {validation_size} does not fit {len(problems)} training problems; "
            f"choose 1 to {len(problems) - 1}"
        )
    shuffled = list(problems)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    parts = {"train": shuffled[validation_size:], "validation": shuffled[:validation_size], "train_full": shuffled}
    return {split: [replace(problem, split=split) for problem in part] for split, part in parts.items()}


def locate(name: str, source: str, folder: Path) -> Path:
    """The file or folder to read: `source` itself, or what was fetched from it or, for `download`, as published.

    Fetched files are kept in `folder`. An address of a file (.jsonl, .json, .txt, .gz, .tar, .tgz) is fetched; below any
    other the benchmark's files are looked for by their published names.
    """
    remote = source.startswith(("http://", "https://"))
    if source != DOWNLOAD and not remote:
        return Path(source)
    files = _below(source, published_files(name)) if remote else published_files(name)
    paths = [fetch(file, folder) for file in files]
    return paths[0] if len(paths) == 1 else folder


def _below(url: str, files: tuple[Published, ...]) -> tuple[Published, ...]:
    if url.endswith((".jsonl", ".json", ".txt", ".gz", ".tar", ".tgz")):
        return (Published(url),)
    return tuple(Published(f"{url.rstrip('/')}/{file.name}", file.sha256) for file in files)


def write(prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Write each split to folder/SPLIT.jsonl, whole or not at all, and return the paths."""
    paths = {split: folder / f"{split}.jsonl" for split in prepared.splits}
    for split, problems in prepared.splits.items():
        try:
            write_whole(paths[split], lines_of(problems))
        except OSError as problem:
            raise UserError(f"{paths[split]}: cannot be written: {problem.strerror}; choose another --output") from None
    return paths
