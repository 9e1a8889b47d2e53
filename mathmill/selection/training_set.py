"""Solutions become a training set, in three passes over disk: memory does not grow with rows."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from mathmill.errors import UserError
from mathmill.files import sync_folder, unique_name, write_whole
from mathmill.parent import end_with_starter
from mathmill.prompts import Prompt, load_prompt
from mathmill.selection.card import card
from mathmill.selection.choose import Limits, choose
from mathmill.selection.formats import check_prompt
from mathmill.selection.gather import Bucket, Kinds, Writing, gather, part_of
from mathmill.selection.options import Choice, Filters, Output, as_data
from mathmill.selection.rows import COLUMNS, TrainingRow
from mathmill.selection.sift import MOST_BAD_LINES, Sieve, Sifted, problem_key, sift
from mathmill.selection.sources import (
    Piece,
    Unit,
    cut_units,
    find_pieces,
    fingerprint,
    numbered,
    progress_of,
    text_bytes,
)
from mathmill.selection.spill import INDEX, Buckets, Place, Spilled

BUCKET_BYTES = 32 << 20
MOST_ORDER_BITS, MOST_PROBLEM_BITS = 12, 10
LEAST_ROW_BYTES = 300
ROWS_PER_GROUP = 20_000
"""Of a Parquet file: a row group is held in memory."""


@dataclass
class Report:
    """What became of every row: `num_rows` are those read, `reasons` those left out, `kinds` those kept."""

    num_rows: int = 0
    num_kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    bad_lines: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line a reason, in the order of the pipeline, and what was kept."""
        told = [f"{'read':<20}{self.num_rows:>14,}"]
        told += [f"  {reason:<18}{-self.reasons[reason]:>14,}" for reason in ordered(self.reasons)]
        told += [f"{'kept':<20}{self.num_kept:>14,}"]
        told += [
            f"  {dataset or '(no name)'}, {kind}, {'with' if code else 'without'} code: {count:,}"
            for (dataset, kind, code), count in sorted(self.kinds.items())
        ]
        return told + [f"bad line {line}" for line in self.bad_lines]

    def as_data(self) -> dict[str, Any]:
        kinds = [
            {"dataset": dataset, "generation_type": kind, "code": code, "rows": count}
            for (dataset, kind, code), count in sorted(self.kinds.items())
        ]
        return {
            "read": self.num_rows,
            "dropped": {reason: self.reasons[reason] for reason in ordered(self.reasons)},
            "kept": self.num_kept,
            "kinds": kinds,
            "bad_lines": self.bad_lines,
        }


IN_ORDER = (
    "bad_line",
    "not_graded",
    "could_not_tell",
    "incorrect",
    "correct",
    "generation_type",
    "no_box",
    "multi_boxed",
    "broken_code",
    "useless_code",
    "short_solution",
    "wrong_arithmetic",
    "long_problem",
    "long_solution",
    "duplicate",
    "code_preference",
    "coverage",
    "downsampled",
)
"""Every reason, as the rows meet them."""


def ordered(reasons: Iterable[str]) -> list[str]:
    """The reasons in the order in which rows meet them."""
    return sorted(reasons, key=IN_ORDER.index)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A training set that is to be made."""

    inputs: tuple[str, ...]
    output: Path
    filters: Filters = field(default_factory=Filters)
    choice: Choice = field(default_factory=Choice)
    written: Output = field(default_factory=Output)
    verdicts: str | None = None
    allow_partial: bool = False
    match_coverage: Path | None = None
    """A training set: no problem gets more rows here than it has there."""
    licence: str = "other"
    processes: int = 1
    prompt: Prompt | None = None
    """That of `written.sft_prompt`, where its file may not be there."""

    def sft_prompt(self) -> Prompt:
        return self.prompt or load_prompt(self.written.sft_prompt)

    def identity(self, pieces: list[Piece]) -> dict[str, Any]:
        """All that decides about the set's bytes, as selection.json keeps it."""
        return {
            "inputs": list(self.inputs),
            "files": fingerprint(pieces),
            "filters": as_data(self.filters),
            "choice": as_data(self.choice),
            "written": as_data(self.written),
            "sft_prompt_sha": self.sft_prompt().sha,
            "verdicts": self.verdicts,
            "match_coverage": str(self.match_coverage) if self.match_coverage else None,
            "licence": self.licence,
        }


def make_training_set(selection: Selection, say: Callable[[str], None] = lambda text: None) -> Report | None:
    """Make the set, whole or not at all; None where it is there already, made of the same in the same way.

    UserError where the inputs are not whole, a line is bad, or another set lies at the output.
    """
    prompt = selection.sft_prompt()
    check_prompt(prompt)
    pieces = find_pieces(selection.inputs, selection.verdicts, selection.allow_partial)
    identity = json.loads(json.dumps(selection.identity(pieces)))
    if _is_made(selection.output, identity):
        return None
    limits = None if selection.match_coverage is None else coverage_of(selection.match_coverage)
    units = cut_units(pieces)
    with _folder_beside(selection.output) as folder, _pool(selection.processes) as run:
        keep_drops = selection.written.keep_drops
        if keep_drops:
            say("counting lines")
            units = numbered(units, run)
        buckets = _buckets(sum(map(text_bytes, pieces)))
        sieve = Sieve(selection.filters, selection.choice.seed, folder, buckets, keep_drops)
        report, spilled = _sift_all(units, sieve, run, say)
        say("choosing")
        chosen = choose(spilled, buckets, folder, selection.choice, limits, keep_drops)
        report.reasons.update(chosen.reasons)
        formats = tuple(dict.fromkeys(selection.written.formats))
        writing = Writing(folder, prompt, formats, keep_drops)
        work = [Bucket(number, _placed(spilled, number), chosen.places(number)) for number in range(1 << buckets.order)]
        for number, kinds in enumerate(run(partial(_gather_one, writing), work), 1):
            report.kinds.update(kinds)
            report.num_kept += sum(kinds.values())
            say(f"writing {number / len(work):.0%}, {report.num_kept:,} rows")
        _assert_whole(report)
        finished = folder / "finished"
        finished.mkdir()
        _join_parts(writing, len(work), finished)
        if selection.written.parquet:
            say("writing train.parquet")
            write_parquet(finished / "train.jsonl", finished / "train.parquet")
        write_whole(finished / "README.md", card(selection, report.as_data(), pieces))
        content = {**identity, "counts": report.as_data()}
        write_whole(finished / "selection.json", json.dumps(content, indent=1) + "\n")
        _publish(finished, selection.output)
    return report


def _is_made(output: Path, identity: dict[str, Any]) -> bool:
    if not output.exists():
        return False
    config = output / "selection.json"
    try:
        made = json.loads(config.read_text())
    except (OSError, ValueError):
        raise UserError(f"{output} is there, and no training set; name another --output") from None
    for key, value in identity.items():
        if made.get(key) != value:
            raise UserError(f"{output} was made with other {key}; name another --output, or remove it")
    return True


@contextlib.contextmanager
def _folder_beside(output: Path) -> Iterator[Path]:
    """A folder for what is not finished, on the output's file system, gone at the end. Those of the dead go too."""
    output.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for old in output.parent.glob(f".{output.name}.{host}-*"):
        pid = old.name.removeprefix(f".{output.name}.{host}-").partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = output.parent / f".{output.name}.{unique_name()}"
    folder.mkdir()
    handler = signal.signal(signal.SIGTERM, _end)
    try:
        yield folder
    finally:
        signal.signal(signal.SIGTERM, handler)
        shutil.rmtree(folder, ignore_errors=True)


def _end(*_: object) -> None:
    raise SystemExit(143)


Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[Run]:
    """A `map` over this many processes, its results in order."""
    if processes <= 1:
        yield map
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mathmill.selection.gather", "mathmill.selection.sift"])
    pool = ProcessPoolExecutor(processes, context, _prepare_worker)

    def run(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        waiting = iter(items)
        futures = [pool.submit(work, item) for item in islice(waiting, 2 * processes)]
        while futures:
            try:
                yield futures.pop(0).result()
            except BrokenProcessPool:
                raise UserError("a process of the selection was killed (out of memory?); nothing was written") from None
            futures += [pool.submit(work, item) for item in islice(waiting, 1)]

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    end_with_starter()  # the fork server ends when its last client has, and each worker is one
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _sift_all(units: list[Unit], sieve: Sieve, run: Run, say: Callable[[str], None]) -> tuple[Report, list[Spilled]]:
    """The first pass over all units: what became of the rows so far, and where the fit ones are."""
    share = progress_of(units)
    report, spilled = Report(), []
    for done, sifted in enumerate(run(partial(_sift_one, sieve), enumerate(units)), 1):
        report.num_rows += sifted.num_rows
        report.reasons.update(sifted.reasons + Counter(incorrect=sifted.num_incorrect))
        for piece, number, why in sifted.bad_lines[: MOST_BAD_LINES - len(report.bad_lines)]:
            report.bad_lines.append(f"{piece.place(number)}: {why}")
        spilled += sifted.spilled
        say(f"reading {share(done):.0%}, {report.num_rows:,} rows")
    return report, spilled


def _sift_one(sieve: Sieve, numbered: tuple[int, Unit]) -> Sifted:
    return sift(*numbered, sieve)


def _buckets(size: int) -> Buckets:
    """How finely so much text is spread, so that every bucket can be held at once."""
    index = size // LEAST_ROW_BYTES * INDEX.itemsize
    return Buckets(
        min(MOST_ORDER_BITS, (size // BUCKET_BYTES).bit_length()),
        min(MOST_PROBLEM_BITS, (index // BUCKET_BYTES).bit_length()),
    )


def _placed(spilled: list[Spilled], bucket: int) -> list[Place]:
    return [place for one in spilled if (place := one.place(bucket))]


def _gather_one(writing: Writing, bucket: Bucket) -> Kinds:
    return gather(bucket, writing)


def _assert_whole(report: Report) -> None:
    if report.num_rows != report.num_kept + sum(report.reasons.values()):
        raise AssertionError(f"rows were lost: {report}")


def _join_parts(writing: Writing, num_buckets: int, finished: Path) -> None:
    """Join the parts of every file in order; what the first pass dropped stands first in dropped.jsonl."""
    names = ["train.jsonl", "sft.jsonl", *(f"{name}.jsonl" for name in writing.formats)]
    names += ["dropped.jsonl"] if writing.keep_drops else []
    for name in names:
        with open(finished / name, "wb") as joined:
            first = sorted(writing.folder.glob("unit-*.dropped")) if "dropped" in name else []
            for part in [*first, *(part_of(writing.folder, each, name) for each in range(num_buckets))]:
                with open(part, "rb") as stream:
                    shutil.copyfileobj(stream, joined, 1 << 20)
                part.unlink()
            joined.flush()
            os.fsync(joined.fileno())


def _publish(finished: Path, output: Path) -> None:
    try:
        os.rename(finished, output)
    except OSError:
        if output.exists():
            raise UserError(f"{output} has appeared meanwhile; name another --output") from None
        raise
    sync_folder(output.parent)


def write_parquet(lines: Path, parquet: Path) -> None:
    """The rows of a train.jsonl as Parquet, some thousands at a time."""
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet

    kinds = {"is_correct": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    with (
        open(lines, "rb") as stream,
        pyarrow.parquet.ParquetWriter(
            parquet, schema, use_dictionary=[name for name in COLUMNS if name != "generated_solution"]
        ) as writer,
    ):
        while rows := list(islice(stream, ROWS_PER_GROUP)):
            content = b"".join(rows)
            reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1)
            table = pyarrow.json.read_json(pa.BufferReader(content), reading, parsing)
            writer.write_table(table.select(list(COLUMNS)), row_group_size=ROWS_PER_GROUP)


def coverage_of(training_set: Path) -> Limits:
    """How many rows every problem of a training set has, by the problem's key."""
    path = training_set / "train.jsonl" if training_set.is_dir() else training_set
    if not path.is_file():
        raise UserError(f"--match_coverage {training_set}: no train.jsonl there")
    decode = msgspec.json.Decoder(TrainingRow).decode
    counts: Counter[int] = Counter()
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                counts[int.from_bytes(problem_key(decode(line).question), "big")] += 1
            except msgspec.DecodeError as problem:
                raise UserError(f"{path}:{number}: not a row of a training set: {problem}") from None
    return dict(counts)
