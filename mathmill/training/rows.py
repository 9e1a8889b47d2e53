"""The training set as tokens: made once in the training's folder, then read row by row.

A token that the loss counts is stored as its number, one that only stands before others as -1 - number.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mathmill.errors import UserError
from mathmill.files import unique_name, write_whole
from mathmill.training.options import TrainerOptions

CODE_OUTPUT = re.compile(r"<llm-code-output>.*?(?:</llm-code-output>|\Z)", re.DOTALL)
AT_ONCE = 4096
"""Rows given to the tokenizer in one call, which spreads them over the cores."""


def rows_sha(options: TrainerOptions, files: tuple[str, ...]) -> str:
    """Twelve digits over all that decides the tokens: the files by name, size and time, and how they are read."""
    digest = hashlib.sha256()
    for path in (*files, f"{options.model}/tokenizer.json"):
        try:
            found = os.stat(path)
        except OSError as problem:
            raise UserError(f"cannot read {path}: {problem.strerror}") from None
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    how = ("input_field", "output_field", "context_length", "too_long", "train_on_code_output", "add_bos", "end_text")
    digest.update(json.dumps([getattr(options, name) for name in how]).encode())
    return digest.hexdigest()[:12]


class Tokens:
    """Rows to token numbers, as a server that is given `input` alone would have met them."""

    def __init__(self, options: TrainerOptions, end_token: int | None):
        from tokenizers import Tokenizer

        path = Path(options.model) / "tokenizer.json"
        if not path.exists():
            raise UserError(f"{path} is not there; the trainer reads tokenizers in that form")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._options = options
        self._end = self._end_token(end_token)

    def _end_token(self, end_token: int | None) -> int:
        if (text := self._options.end_text) is not None:
            end_token = self._tokenizer.token_to_id(text)
            if end_token is None:
                raise UserError(f"--end_text '{text}' is no token of {self._options.model}")
        if end_token is None:
            raise UserError(f"{self._options.model}/config.json names no eos_token_id; say --end_text")
        return end_token

    def encode(self, rows: list[tuple[str, str]]) -> Iterator[array]:
        """Signed tokens of each (input, output): see the head of this file."""
        bos = self._options.add_bos
        prompts = self._tokenizer.encode_batch([before for before, _ in rows], add_special_tokens=bos)
        wholes = self._tokenizer.encode_batch([before + after for before, after in rows], add_special_tokens=bos)
        for (before, after), prompt, whole in zip(rows, prompts, wholes, strict=True):
            start = len(prompt.ids)
            ids, offsets, shift = whole.ids, whole.offsets, len(before)
            if ids[:start] != prompt.ids:  # the border is inside a token: a server would never see that one
                alone = self._tokenizer.encode(after, add_special_tokens=False)
                ids, offsets, shift = prompt.ids + alone.ids, [(0, 0)] * start + alone.offsets, 0
            yield self._signed(ids, offsets, start, after, shift)

    def _signed(self, ids: list[int], offsets: list[tuple[int, int]], start: int, after: str, shift: int) -> array:
        spans = [] if self._options.train_on_code_output else [m.span() for m in CODE_OUTPUT.finditer(after)]
        signed = array("i", (-1 - token for token in ids[:start]))
        if len(signed) > 1 and signed[0] == signed[1] and self._options.add_bos:
            signed.pop(0)  # the template writes the first token out, and the tokenizer adds it
        for token, (begin, _) in zip(ids[start:], offsets[start:], strict=True):
            inside = any(low <= begin - shift < high for low, high in spans)
            signed.append(-1 - token if inside else token)
        if signed[-1] != self._end:
            signed.append(self._end)
        return signed


def read_rows(files: Iterable[str], options: TrainerOptions) -> Iterator[tuple[str, str]]:
    """(input, output) of each line. UserError names the line that has no such fields."""
    for path in files:
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    pair = row[options.input_field], row[options.output_field]
                except (ValueError, KeyError, TypeError):
                    pair = (None, None)
                if not (isinstance(pair[0], str) and isinstance(pair[1], str)):
                    fields = f"'{options.input_field}' and '{options.output_field}'"
                    raise UserError(f"{path}, line {number}: no JSON object with the texts {fields}")
                yield pair


def make_rows(options: TrainerOptions, files: tuple[str, ...], end_token: int | None, folder: Path) -> dict[str, Any]:
    """Tokenise the files into the folder, whole or not at all, and say what was found; one process does this."""
    if (folder / "about.json").exists():
        return json.loads((folder / "about.json").read_text())
    tokens = Tokens(options, end_token)
    beside = folder.with_name(f".{folder.name}.{unique_name()}")
    beside.mkdir(parents=True)
    try:
        about = _write_rows(options, tokens, read_rows(files, options), beside)
        if not about["rows"]:
            raise UserError(f"no row of {', '.join(files)} fits into {options.context_length} tokens with a solution")
        write_whole(beside / "about.json", json.dumps(about, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return about


def _write_rows(
    options: TrainerOptions, tokens: Tokens, pairs: Iterator[tuple[str, str]], folder: Path
) -> dict[str, Any]:
    most = options.context_length + 1  # the last token is only predicted
    ends, total, counted, dropped, cut = array("q"), 0, 0, 0, 0
    with (folder / "tokens.bin").open("wb") as stream:
        while chunk := list(islice(pairs, AT_ONCE)):
            for signed in tokens.encode(chunk):
                if len(signed) > most and options.too_long == "truncate":
                    signed, cut = signed[:most], cut + 1
                learned = sum(token >= 0 for token in signed[1:])
                if len(signed) > most or not learned:
                    dropped += 1
                    continue
                signed.tofile(stream)
                total += len(signed)
                counted += learned
                ends.append(total)
        stream.flush()
        os.fsync(stream.fileno())
    (folder / "ends.bin").write_bytes(ends.tobytes())
    return {
        "rows": len(ends), "tokens": total, "learned_tokens": counted, "dropped": dropped, "truncated": cut,
        "byte_order": sys.byteorder,
    }  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """A set of tokenised rows."""

    descriptor: int
    ends: torch.Tensor

    @classmethod
    def open(cls, folder: Path) -> "Rows":
        ends = torch.frombuffer(bytearray((folder / "ends.bin").read_bytes()), dtype=torch.int64)
        return cls(os.open(folder / "tokens.bin", os.O_RDONLY), torch.cat([torch.zeros(1, dtype=torch.int64), ends]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each row."""
        return self.ends.diff()

    def read(self, row: int) -> torch.Tensor:
        """Signed tokens of a row."""
        start, end = int(self.ends[row]), int(self.ends[row + 1])
        content = os.pread(self.descriptor, 4 * (end - start), 4 * start)
        return torch.frombuffer(bytearray(content), dtype=torch.int32).long()
