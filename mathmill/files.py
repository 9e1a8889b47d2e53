"""Files that appear whole or not at all, on local disks and on NFS. Standard library only."""

import os
import secrets
import socket
from pathlib import Path


def unique_name() -> str:
    """A name no other process makes: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def sync_folder(folder: Path) -> None:
    """Make the folder's entries survive the loss of this node."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(path: Path, content: bytes, mode: int) -> Path:
    beside = path.with_name(f".{path.name[:120]}.{unique_name()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException as problem:
        if isinstance(problem, OSError):
            problem.filename = str(path)  # a write or fsync that failed does not name its file
        beside.unlink(missing_ok=True)
        raise
    return beside


def write_whole(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; an older file is replaced."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _write_beside(path, content, mode)
    try:
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish_once(path: Path, content: bytes | str, mode: int = 0o644) -> bool:
    """Write a file that nobody replaces: true if and only if this call made it.

    The content is written under a unique name and `link()`ed to `path`. On NFS a link may succeed and report a failure,
    so the number of links of our own file decides, not link's answer.
    """
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _write_beside(path, content, mode)
    try:
        try:
            os.link(beside, path)
        except OSError as problem:
            if os.stat(beside).st_nlink != 2 and not isinstance(problem, FileExistsError):
                raise
        ours = os.stat(beside).st_nlink == 2
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)
    return ours
