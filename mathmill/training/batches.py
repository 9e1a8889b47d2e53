"""Which rows make which step, in which order, and as which tensors: a function of seed and step alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mathmill.training.rows import Rows

OPEN_PACKS = 64
"""Packs that a row may still go into; more fill better and cost time."""


@dataclass(frozen=True)
class Batch:
    """A micro batch: tokens, labels [rows, length]; `counted` is 1 where the loss counts the label.

    `starts` are the positions where texts begin, of each row; None: one text a row.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    counted: torch.Tensor
    starts: list[list[int]] | None


class Units:
    """What a step is made of: rows, or packs of rows that share a length."""

    def __init__(self, rows: Rows, packing: bool, context_length: int, seed: int):
        self.rows = rows
        self.packing = packing
        lengths = rows.lengths - 1  # the last token is only predicted
        if packing:
            self._members: list[list[int]] | None = pack(lengths.tolist(), context_length, seed)
            self.lengths = torch.tensor([sum(int(lengths[row]) for row in pack) for pack in self._members])
        else:
            self._members = None
            self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def members(self, unit: int) -> list[int]:
        """The rows of a unit; -1 is a unit without any."""
        if unit < 0:
            return []
        return [unit] if self._members is None else self._members[unit]


def pack(lengths: list[int], context_length: int, seed: int) -> list[list[int]]:
    """Rows in packs of at most `context_length` tokens: each in seeded order into the first open pack that has room."""
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    packs: list[list[int]] = []
    open_packs: list[tuple[int, int]] = []  # room left, number
    for row in order:
        for place, (room, number) in enumerate(open_packs):
            if lengths[row] <= room:
                packs[number].append(row)
                open_packs[place] = (room - lengths[row], number)
                break
        else:
            packs.append([row])
            open_packs.append((context_length - lengths[row], len(packs) - 1))
            if len(open_packs) > OPEN_PACKS:
                open_packs.remove(min(open_packs))
    return packs


class Order:
    """Units in the order of training: every epoch its own permutation, one after the other without a gap."""

    def __init__(self, num_units: int, seed: int):
        self._num_units = num_units
        self._seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0)

    def at(self, position: int) -> int:
        """The unit at this place of the endless stream."""
        epoch, place = divmod(position, self._num_units)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self._seed * 1_000_003 + epoch + 1) % (1 << 63))
            self._permutation, self._epoch = torch.randperm(self._num_units, generator=generator), epoch
        return int(self._permutation[place])

    def step(self, step: int, size: int) -> list[int]:
        """The units of a step, counted from 0."""
        return [self.at(position) for position in range(step * size, (step + 1) * size)]


def micro_batches(
    units: Units, chosen: list[int], *, micro_batch: int, part: int, parts: int, multiple: int
) -> tuple[Iterator[Batch], int, int]:
    """A data-parallel rank's micro batches of a step, their number, and the length that all ranks pad to.

    The length is that of the longest chosen unit, rounded up to a multiple.
    """
    longest = max((int(units.lengths[unit]) for unit in chosen if unit >= 0), default=1)
    length = -(-longest // multiple) * multiple
    mine = [chosen[start : start + micro_batch] for start in range(0, len(chosen), micro_batch)][part::parts]
    return (collate(units, few, length) for few in mine), len(mine), length


def collate(units: Units, chosen: list[int], length: int) -> Batch:
    """Units as tensors of this length, the rest filled with token 0 that nothing counts."""
    tokens = torch.zeros(len(chosen), length, dtype=torch.long)
    labels = torch.zeros(len(chosen), length, dtype=torch.long)
    counted = torch.zeros(len(chosen), length)
    starts: list[list[int]] = []
    for line, unit in enumerate(chosen):
        at = 0
        starts.append([])
        for row in units.members(unit):
            signed = units.rows.read(row)
            plain = torch.where(signed < 0, -1 - signed, signed)
            end = at + len(signed) - 1
            tokens[line, at:end], labels[line, at:end] = plain[:-1], plain[1:]
            counted[line, at:end] = (signed[1:] >= 0).float()
            starts[-1].append(at)
            at = end
        if at < length:
            starts[-1].append(at)
    return Batch(tokens, labels, counted, starts if units.packing else None)


def block_mask(batch: Batch) -> torch.Tensor | None:
    """For packs: what each position must not see, [rows, 1, length, length]; None: causal alone says it."""
    if batch.starts is None:
        return None
    length = batch.tokens.shape[1]
    mask = torch.ones(len(batch.starts), 1, length, length, dtype=torch.bool).triu(1)
    for line, starts in enumerate(batch.starts):
        for start in starts:
            mask[line, 0, start:, :start] = True
    return mask
