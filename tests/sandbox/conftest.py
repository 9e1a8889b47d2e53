"""One sandbox for all tests of this folder, and what they look at around it."""

import os
import time
from pathlib import Path

import pytest

from mathmill.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox():
    with Sandbox.start(workers=4, memory_mb=512, grace_s=0.4) as sandbox:
        yield sandbox


@pytest.fixture
def session(sandbox):
    with sandbox.session() as session:
        yield session


@pytest.fixture
def supervisor_pid(sandbox):
    return sandbox._inner._started.process.pid


def processes_of(pid: int) -> list[int]:
    """Descendants of a process."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(child) for child in children.read_text().split()]
        except OSError:
            continue
        for child in direct:
            found += [child, *processes_of(child)]
    return found


def running(pid: int) -> bool:
    """Whether the process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def marked(mark: str) -> list[int]:
    """Processes whose command line holds the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def becomes_true(claim, within_s: float = 5.0) -> bool:
    """Wait for something to become true."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(0.02)
    return bool(claim())


@pytest.fixture(scope="session")
def look():
    """The functions above, for tests (a conftest is not imported by name)."""

    class Look:
        pass

    Look.processes_of, Look.running, Look.marked = map(staticmethod, (processes_of, running, marked))
    Look.becomes_true = staticmethod(becomes_true)
    return Look
