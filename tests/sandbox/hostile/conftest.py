"""One sandbox a mode for all hostile tests, as an ordinary user; beside each test a neighbour that must not notice anything."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mathmill.sandbox import Sandbox
from tests.sandbox.hostile.attempts import pid_of

REPOSITORY = Path(__file__).resolve().parents[3]
MODES = ["namespaces", "reduced", "bubblewrap", pytest.param("apptainer", marks=pytest.mark.apptainer)]
FLAGS = ["--workers", "2", "--memory_mb", "512", "--grace_s", "0.5"]
ORDINARY_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
"""Root's processes lose all their privileges so, and can still read the interpreter in root's own folders."""
CONTAINER = ["exec", "--containall", "--no-home", "--cleanenv", "--net", "--network", "none", "--pwd", "/"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """None of these is part of the fast tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@contextmanager
def serving(mode: str, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A client of a sandbox of this mode, which serves in a folder of its own; a skip where the machine has none."""
    if mode == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("no bwrap on PATH")
    with tempfile.TemporaryDirectory(prefix="mathmill-hostile-") as folder:
        os.mkdir(f"{folder}/own", 0o700)
        serve = ["-m", "mathmill.sandbox", "serve", "--address", f"unix:{folder}/own/socket", *FLAGS]
        if mode == "apptainer":
            command = [*in_apptainer(request, f"{folder}/own"), *serve, "--policy", "strict"]
        else:
            command = [*(ORDINARY_USER if os.geteuid() == 0 else []), sys.executable, *serve, "--isolation", mode]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        with open(f"{folder}/log", "w+") as log:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
            assert process.stdout is not None
            with process.stdout:
                try:
                    assert process.stdout.readline().startswith("ready "), Path(log.name).read_text()
                    with Sandbox.connect(f"{folder}/own/socket") as sandbox:
                        sandbox.pid_outside = process.pid  # type: ignore[attr-defined]
                        yield sandbox
                finally:
                    process.terminate()
                    process.wait(timeout=20)


def in_apptainer(request: pytest.FixtureRequest, folder: str) -> list[str]:
    """What a job's sandbox step has before its module's name, with the same flags as slurm_templates/runtimes/apptainer.j2."""
    apptainer = request.getfixturevalue("apptainer")
    binds = ["--bind", f"{folder}:{folder}", "--bind", f"{REPOSITORY}/mathmill:{REPOSITORY}/mathmill:ro"]
    inside = [
        "env",
        "-i",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "HOME=/nonexistent",
        f"PYTHONPATH={REPOSITORY}",
        "python3",
    ]
    return [f"{apptainer.bin}/apptainer", *CONTAINER, *binds, str(apptainer.sif), *inside]


@pytest.fixture(scope="session", params=MODES)
def mode(request):
    """The name of the mode."""
    return request.param


@pytest.fixture(scope="session")
def sandbox(mode, request):
    with serving(mode, request) as sandbox:
        yield sandbox


@pytest.fixture
def own_sandbox(mode, request):
    """A sandbox that a test may break."""
    with serving(mode, request) as sandbox:
        yield sandbox


@pytest.fixture
def supervisor_pid(sandbox):
    return pid_of(sandbox)


@pytest.fixture(autouse=True)
def neighbour(sandbox):
    """A session beside the hostile one, in every test: it must not notice anything."""
    with sandbox.session() as neighbour:
        neighbour.run("mine = 41\nwith open('mine', 'w') as file: print('mine', file=file, end='')")
        yield neighbour
        told = neighbour.run("mine + 1, open('mine').read()")
        assert (told.status, told.result, told.state) == ("ok", "(42, 'mine')", "live")
