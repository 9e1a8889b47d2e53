"""Whether prompts fit the model's context: counted before anything is submitted, by the model's own tokenizer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mathmill.errors import UserError
from mathmill.generation.solve import LEAST_ROOM

AT_ONCE = 256
"""Prompts tokenized in one call."""


@dataclass(frozen=True)
class Lengths:
    """Prompts of a set against the context, in tokens."""

    context_length: int
    longest: int
    """Tokens of the longest prompt; no more than its bytes where all fit by their bytes alone."""
    too_long: list[int]
    """Places of the prompts that leave less than LEAST_ROOM tokens for an answer."""


def lengths_of(texts: Sequence[str], model_folder: str, context_length: int | None) -> Lengths | None:
    """None where the model's folder, its tokenizer or its context length is not to be had here.

    A token is at least one byte, so only a prompt with more bytes than fit has to be tokenized.
    """
    path = Path(model_folder, "tokenizer.json")
    context_length = context_length or _context_length(Path(model_folder))
    if not model_folder or context_length is None or not path.is_file():
        return None
    room = context_length - LEAST_ROOM
    sizes = [
        len(text.encode()) + 2 for text in texts
    ]  # 2: a token before the text and one after, where the model has them
    doubtful = [place for place, size in enumerate(sizes) if size > room]
    if not doubtful:
        return Lengths(context_length, max(sizes, default=0), [])
    counts = dict(zip(doubtful, _count([texts[place] for place in doubtful], path), strict=True))
    too_long = [place for place, count in counts.items() if count > room]
    return Lengths(context_length, max(counts.values()), too_long)


def _count(texts: Sequence[str], tokenizer_file: Path) -> list[int]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as problem:  # the library raises Exception itself
        raise UserError(f"{tokenizer_file}: no tokenizer: {problem}") from None
    tokenizer.no_truncation()
    counts: list[int] = []
    for first in range(0, len(texts), AT_ONCE):
        counts += [len(one.ids) for one in tokenizer.encode_batch(list(texts[first : first + AT_ONCE]))]
    return counts


def _context_length(folder: Path) -> int | None:
    try:
        length = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return length if isinstance(length, int) and length > 0 else None
