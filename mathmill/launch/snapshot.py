"""The code of a run: a copy of the package under its hash, so that editing a checkout never changes a queued job."""

import hashlib
import os
import shutil
from functools import cache
from pathlib import Path

from mathmill.files import unique_name
from mathmill.paths import PACKAGE
from mathmill.run import Run


def package_files(package: Path = PACKAGE) -> list[Path]:
    """What a step needs of the package, relative to it: all but caches, hidden files, and `shipped/`, which launches read."""
    return sorted(
        path.relative_to(package)
        for path in package.rglob("*")
        if path.is_file()
        and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(package).parts)
        and path.relative_to(package).parts[0] != "shipped"
    )


def sha_of(package: Path) -> str:
    """Twelve hexadecimal digits over the names and bytes of the package's files."""
    digest = hashlib.sha256()
    for path in package_files(package):
        content = (package / path).read_bytes()
        digest.update(f"{path.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


@cache
def code_sha() -> str:
    """The hash of the package that runs now."""
    return sha_of(PACKAGE)


def snapshot(run: Run, package: Path = PACKAGE) -> Path:
    """Copy the package to RUN/code/SHA/, whole or not at all, and give that folder. Nothing happens where it is already."""
    sha = code_sha() if package == PACKAGE else sha_of(package)
    target = run.code / sha
    if target.is_dir():
        return target
    beside = run.code / f".{sha}.{unique_name()}"
    for path in package_files(package):
        copy = beside / package.name / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / path, copy)
    try:
        os.rename(beside, target)
    except OSError:  # another launch was first: a folder with files in it is not replaced
        shutil.rmtree(beside)
        if not target.is_dir():
            raise
    return target
