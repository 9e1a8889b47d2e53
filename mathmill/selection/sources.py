"""Where solutions come from: our runs, and others' files. Cut into units of work that depend on the inputs alone."""

import dataclasses
import glob
import gzip
import io
import itertools
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mathmill.errors import UserError
from mathmill.generation.regrade import KeyedVerdict, verdict_folder
from mathmill.generation.sets import SetFolder, set_folders
from mathmill.generation.shards import left, published, shard_of
from mathmill.records import read_records
from mathmill.run import Run
from mathmill.selection.rows import BadLine, SourceRow

UNIT_BYTES = 64 << 20
BATCH_ROWS = 1024
COMPRESSED = 6
"""How much larger than a compressed file its text is, roughly."""
BLOCK_BYTES = 1 << 17
"""So much is read at once: the processor's cache holds it while its rows are looked for."""


@dataclass(frozen=True)
class Piece:
    """Lines of a file: those that begin at `start` or later and before `end`; of Parquet, the row groups so numbered."""

    path: Path
    start: int
    end: int
    verdicts: Path | None = None
    """A file with other verdicts of these very rows."""
    lines_before: int | None = None
    """Lines of the file before this piece, where they were counted."""

    def place(self, number: int) -> str:
        """`FILE:LINE` of a line of this piece, or the row of a row group."""
        if self.path.suffix == ".parquet":
            return f"{self.path}: row {number} of row group {self.start}"
        if self.lines_before is not None:
            return f"{self.path}:{number + self.lines_before}"
        before = count_lines(dataclasses.replace(self, start=0, end=self.start)) if self.start else 0
        return f"{self.path}:{number + before}"


Unit = tuple[Piece, ...]


def find_pieces(inputs: tuple[str, ...], verdicts: str | None, allow_partial: bool) -> list[Piece]:
    """The files that the inputs name: a run (name or folder), a set's folder, a folder of files, a file, a pattern.

    UserError where there is nothing, and where a set is not whole and `allow_partial` is off.
    """
    pieces = [piece for name in inputs for piece in _pieces_of(name, verdicts, allow_partial)]
    if not pieces:
        raise UserError("no input: name a run, a folder or files with --input")
    seen: set[Path] = set()
    for piece in pieces:
        if piece.path.resolve() in seen:
            raise UserError(f"{piece.path} is among the inputs twice; name it once")
        seen.add(piece.path.resolve())
    return pieces


def _pieces_of(name: str, verdicts: str | None, allow_partial: bool) -> list[Piece]:
    for folder in (Path(name), Path("runs", name)):
        if (folder / "run.yaml").is_file():
            sets = set_folders(Run(folder))
            if not sets:
                raise UserError(f"{folder} has no solutions")
            return [piece for one in sets for piece in _of_set(one, verdicts, allow_partial)]
    folder = Path(name)
    if (folder / "set.yaml").is_file():
        return _of_set(SetFolder(folder), verdicts, allow_partial)
    if verdicts is not None:
        raise UserError(f"--verdicts {verdicts} are of runs and their sets; {name} is neither")
    if folder.is_dir():
        paths = sorted(folder.glob("output-rs*.jsonl")) or sorted(
            path for ending in ("jsonl", "jsonl.gz", "parquet") for path in folder.glob(f"*.{ending}")
        )
    else:
        paths = [folder] if folder.is_file() else sorted(map(Path, glob.glob(name)))
    if not paths:
        raise UserError(f"no input '{name}': no run in runs/, no set, no folder with solutions, no file")
    return [_of_file(path) for path in paths]


def _of_set(folder: SetFolder, verdicts: str | None, allow_partial: bool) -> list[Piece]:
    missing = left(folder, folder.load())
    if missing and not allow_partial:
        rows = sum(shard.num_rows for shard in missing)
        raise UserError(
            f"{folder.folder}: {rows:,} rows are still to come ({missing[0].name} is the first shard that is missing); "
            "finish its run, or take what is there with --allow_partial"
        )
    pieces = []
    for name in sorted(published(folder), key=shard_of):
        path = folder.folder / f"{name}.jsonl"
        other = None if verdicts is None else verdict_folder(folder, verdicts) / f"{name}.jsonl"
        if other is not None and not other.is_file():
            raise UserError(f"no verdicts {other}; make them with: python pipeline/grade.py --name {verdicts}")
        pieces.append(Piece(path, 0, path.stat().st_size, verdicts=other))
    return pieces


def _of_file(path: Path) -> Piece:
    if path.suffix == ".parquet":
        return Piece(path, 0, _parquet(path).num_row_groups)
    if not path.name.endswith((".jsonl", ".json", ".jsonl.gz")):
        raise UserError(f"{path}: not a .jsonl, .jsonl.gz or .parquet file")
    return Piece(path, 0, path.stat().st_size)


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        # buffered: else a whole column of a row group, however large, is held at once
        return pyarrow.parquet.ParquetFile(path, memory_map=False, buffer_size=BLOCK_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as problem:
        raise UserError(f"{path}: not a Parquet file that can be read: {problem}") from None


def cut_units(pieces: list[Piece]) -> list[Unit]:
    """Units of about 16 MiB: large files cut at lines, small ones together, in the order of the inputs."""
    units: list[Unit] = []
    gathered: list[Piece] = []
    size = 0
    for piece in pieces:
        for part in _parts(piece):
            gathered.append(part)
            size += text_bytes(part)
            if size >= UNIT_BYTES:
                units.append(tuple(gathered))
                gathered, size = [], 0
    return [*units, tuple(gathered)] if gathered else units


def _parts(piece: Piece) -> list[Piece]:
    if piece.path.suffix == ".parquet":
        return [Piece(piece.path, group, group + 1) for group in range(piece.start, piece.end)]
    if piece.path.suffix == ".gz" or piece.verdicts is not None or piece.end <= 2 * UNIT_BYTES:
        return [piece]
    edges = [*range(0, piece.end, UNIT_BYTES), piece.end]
    return [Piece(piece.path, start, end) for start, end in itertools.pairwise(edges)]


def text_bytes(piece: Piece) -> int:
    """About how much text a piece holds."""
    if piece.path.suffix == ".parquet":
        return _parquet(piece.path).metadata.row_group(piece.start).total_byte_size
    return (piece.end - piece.start) * (COMPRESSED if piece.path.suffix == ".gz" else 1)


def numbered(units: list[Unit], run: Callable[[Callable[[Piece], int], list[Piece]], Iterable[int]]) -> list[Unit]:
    """The units with the number of lines before each piece of a file that was cut, counted by `run`, which is a `map`."""
    files = Counter(piece.path for unit in units for piece in unit)
    cut = [piece for unit in units for piece in unit if files[piece.path] > 1 and piece.path.suffix != ".parquet"]
    before: Counter[Path] = Counter()
    places: dict[Piece, int] = {}
    for piece, lines in zip(cut, run(count_lines, cut), strict=True):
        places[piece] = before[piece.path]
        before[piece.path] += lines
    return [tuple(dataclasses.replace(piece, lines_before=places.get(piece)) for piece in unit) for unit in units]


@dataclass(frozen=True)
class Read:
    """Rows that stand together in a piece, the first of them as its `first`, from 1 on."""

    first: int
    rows: list[SourceRow]


def read_piece(piece: Piece) -> Iterator[Read]:
    """Every row of a piece, some hundred at a time; in the place of one that cannot be read, a BadLine."""
    if piece.path.suffix == ".parquet":
        return _read_parquet(piece)
    if piece.verdicts is not None:
        return _with_verdicts(piece)
    return _read_lines(piece)


_decode = msgspec.json.Decoder(SourceRow).decode


def _read_lines(piece: Piece) -> Iterator[Read]:
    first = 1
    for block in _blocks(piece):
        rows = _rows_of(block)
        yield Read(first, rows)
        first += len(rows)


def _rows_of(block: bytes) -> list[SourceRow]:
    """A row a line. Line by line, for a decoder of many lines asks for no end of a line between two rows."""
    lines = io.BytesIO(block).readlines()
    try:
        block.decode()  # fields that nobody asked for are not looked into otherwise
        return list(map(_decode, lines))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return list(map(_row_of, lines))


def count_lines(piece: Piece) -> int:
    """How many lines begin in the piece."""
    return sum(len(io.BytesIO(block).readlines()) for block in _blocks(piece))


def _row_of(line: bytes) -> SourceRow:
    try:
        line.decode()
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        return BadLine(why=_what_is_wrong(line, problem))


def _blocks(piece: Piece) -> Iterator[bytes]:
    """The lines of a piece, some of them at a time."""
    try:
        if piece.path.suffix == ".gz":
            with gzip.open(piece.path, "rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    yield block + stream.readline()
            return
        place, end = _first_line(piece.path, piece.start), _first_line(piece.path, piece.end)
        with open(piece.path, "rb") as stream:
            stream.seek(place)
            while place < end and (block := stream.read(min(BLOCK_BYTES, end - place))):
                block += b"" if block.endswith(b"\n") else stream.readline()
                place += len(block)
                yield block
    except (OSError, EOFError, zlib.error) as problem:
        raise UserError(f"{piece.path}: cannot be read: {problem}") from None


def _first_line(path: Path, start: int) -> int:
    """Where the first line begins at `start` or later."""
    if not start:
        return 0
    with open(path, "rb") as stream:
        stream.seek(start - 1)
        stream.readline()
        return stream.tell()


def _what_is_wrong(line: bytes, problem: Exception) -> str:
    if not line.strip():
        return "an empty line"
    try:
        line.decode()
    except UnicodeDecodeError as found:
        return f"not UTF-8 (byte 0x{line[found.start]:02x} at place {found.start + 1})"
    torn = "" if line.endswith(b"\n") else "; the line has no end: was its writer killed?"
    return f"not a row of solutions: {problem}{torn}"


def _read_parquet(piece: Piece) -> Iterator[Read]:
    table = _parquet(piece.path)
    columns = [
        name for name in SourceRow.__struct_fields__ if name in table.schema_arrow.names and name != "code_blocks"
    ]
    first = 1
    try:
        for batch in table.iter_batches(BATCH_ROWS, range(piece.start, piece.end), columns):
            rows = batch.to_pylist()
            yield Read(first, [_converted(row) for row in rows])
            first += len(rows)
    except OSError as problem:
        raise UserError(f"{piece.path}: cannot be read: {problem}") from None


def _converted(row: dict[str, Any]) -> SourceRow:
    try:
        return msgspec.convert(row, SourceRow)
    except msgspec.ValidationError as problem:
        return BadLine(why=f"not a row of solutions: {problem}")


def _with_verdicts(piece: Piece) -> Iterator[Read]:
    """The rows of a shard with the verdicts that lie beside it."""
    assert piece.verdicts is not None
    verdicts = {(one.problem_id, one.sample_index): one for one in read_records(piece.verdicts, KeyedVerdict)}

    def judged(row: SourceRow) -> SourceRow:
        if isinstance(row, BadLine):
            return row
        found = verdicts.get((str(row.problem_id), row.sample_index))
        if found is None:
            return BadLine(why=f"no verdict of it in {piece.verdicts}")
        row.is_correct = found.is_correct
        return row

    for read in _read_lines(piece):
        yield Read(read.first, [judged(row) for row in read.rows])


def fingerprint(pieces: list[Piece]) -> list[dict[str, Any]]:
    """Which files these are: names and sizes, by which a finished selection is known again."""
    return [
        {"file": str(path), "bytes": os.path.getsize(path)} for path in dict.fromkeys(piece.path for piece in pieces)
    ]


def progress_of(units: list[Unit]) -> Callable[[int], float]:
    """The share of the input that the first so many units are."""
    sizes = [sum(map(text_bytes, unit)) for unit in units]
    total = sum(sizes) or 1
    return lambda done: sum(sizes[:done]) / total
