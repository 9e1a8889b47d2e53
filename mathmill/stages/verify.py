"""Whether a run is what it says: every row once, whole, and made as its set says."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from mathmill.options import script

if TYPE_CHECKING:
    from mathmill.run import Run


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Prove a run by its files: exit code 0 when every row that was asked for is there once and as its set says, else 1."""

    run: tyro.conf.Positional[str | None] = None
    """Name of a run in runs/, or its folder (default: the newest)."""


def main() -> None:
    script(VerifyOptions, verify)


def verify(options: VerifyOptions) -> int:
    """Print a line a set and what is wrong with it. 0: all holds; 1: something is wrong, or rows are still to come."""
    from mathmill.errors import UserError
    from mathmill.generation.sets import set_folders
    from mathmill.generation.verify import verify_set
    from mathmill.run import find_run

    run = find_run(options.run)
    print(f"run {run.name}  ({run.folder})")
    folders = set_folders(run)
    if not folders:
        raise UserError(f"{run.folder} has no sample sets yet")
    codes, altered = codes_of(run)
    for line in altered:
        print(f"  {line}")
    holds = not altered
    for folder in folders:
        proof = verify_set(folder, codes)
        holds = holds and proof.holds
        for line in proof.lines():
            print(f"  {line}")
        sys.stdout.flush()
    return 0 if holds else 1


def codes_of(run: "Run") -> tuple[set[str], list[str]]:
    """The hashes of the run's code, and what is to be said of code that was changed since."""
    from mathmill.launch.snapshot import sha_of

    codes, altered = set[str](), []
    for folder in sorted(run.code.glob("[!.]*")):
        if sha_of(folder / "mathmill") == folder.name:
            codes.add(folder.name)
        else:
            altered.append(f"{folder}: this code was changed after the launch")
    return codes, altered
