"""Fixtures that all tests share: a real Slurm, a real Apptainer, the developers' data; and what counts as a failure in CI."""

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

REPO = Path(__file__).resolve().parents[1]
SLURM_UP = REPO / "tests" / "slurm" / "slurm-up"
APPTAINER_UP = REPO / "tests" / "apptainer" / "apptainer-up"
SLURM_ROOT = Path(os.path.realpath(os.environ.get("MATHMILL_SLURM_ROOT", "/var/tmp/mathmill-slurm")))
IN_CI = os.environ.get("CI") == "true"
NO_DEV_DATA = "no developers' data"
SKIPS_ALLOWED_IN_CI = (NO_DEV_DATA, "no GPU here")
OPEN = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "CONFIGURING"}

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if IN_CI else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden files anew instead of comparing with them")


def pytest_configure() -> None:
    """No test may meet a Slurm of this machine, or think that it runs inside a job: ours is the only one named."""
    clients = ("SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
    settings = ("MATHMILL_DEV_DATA", "MATHMILL_SLURM_ROOT", "MATHMILL_APPTAINER_", "MATHMILL_TRIALS_")
    for name in list(os.environ):
        ours = name.startswith("MATHMILL_") and not name.startswith(settings)
        if ours or name.startswith(clients):
            del os.environ[name]
    os.environ["SLURM_CONF"] = str(SLURM_ROOT / "etc" / "slurm.conf")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for a service is marked with it."""
    for item in items:
        for service in ("slurm", "apptainer"):
            if service in getattr(item, "fixturenames", ()):
                item.add_marker(service)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Tests of the one Slurm run one after another, whatever the number of workers: some need all its nodes, or fail one."""
    with SLURM_UP.open() as lock:
        if item.get_closest_marker("slurm"):
            fcntl.flock(lock, fcntl.LOCK_EX)
        return (yield)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (IN_CI and report.skipped and isinstance(report.longrepr, tuple)) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not reason.startswith(SKIPS_ALLOWED_IN_CI):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout."""
    return REPO


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> bool:
    """True when golden files are to be written, not compared."""
    return bool(request.config.getoption("--golden"))


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The folder of benchmarks and recorded solutions that developers have beside the checkout."""
    folder = Path(os.environ.get("MATHMILL_DEV_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{NO_DEV_DATA}: {folder} is absent")
    return folder


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _call(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _call_or_skip(script: Path, *arguments: str) -> str:
    """What the service's script prints; where the service is not to be had, skip with the script's own words."""
    done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip((done.stderr.strip() or f"{script.name} ended with {done.returncode}").splitlines()[-1])
    return done.stdout.strip()


@dataclass(frozen=True)
class RealSlurm:
    """A private Slurm with accounting: 4 nodes of 16 CPUs and 8 pretend GPUs on this machine."""

    env: dict[str, str]
    """What a process needs to reach it; already in this process's environment."""
    nodes: tuple[str, ...] = ("node1", "node2", "node3", "node4")
    partitions: tuple[str, ...] = ("batch", "short", "preempt")
    """batch: the default; short: jobs end after a minute; preempt: requeued when batch needs the nodes."""

    def call(self, *command: str | Path) -> str:
        """A command's stdout, e.g. `call("sbatch", "--parsable", script)`. RuntimeError when it fails."""
        return _call(*command)

    def states(self, job_id: str, timeout: float = 120.0) -> dict[str, str]:
        """State of each task (`12_0`; `12` for a lone job) from the accounting, once all are over.

        Args: timeout in seconds, after which a TimeoutError tells how far they are.
        """
        last = time.monotonic() + timeout
        while True:
            queue = self._table("squeue", "--noheader", "--array", "--states=all", f"--jobs={job_id}", "--format=%i|%T")
            accounting = self._table("sacct", "-nPX", f"--jobs={job_id}", "--format=JobID,State")
            # for a moment after the end the accounting has fewer tasks than the queue, and under other names
            if queue and queue.keys() == accounting.keys() and not OPEN & {*queue.values(), *accounting.values()}:
                return accounting
            if time.monotonic() > last:
                raise TimeoutError(f"after {timeout:.0f} s the queue has {queue}, the accounting {accounting}")
            time.sleep(0.3)

    def _table(self, *command: str) -> dict[str, str]:
        return dict(line.split("|") for line in self.call(*command).splitlines())

    def fail(self, node: str) -> None:
        """The node dies at once with all its processes; Slurm sees it as down within a minute."""
        _call(SLURM_UP, "nodefail", node)

    def resume(self, node: str) -> None:
        """The node that died comes back."""
        _call(SLURM_UP, "noderesume", node)


@pytest.fixture(scope="session")
def slurm() -> Iterator[RealSlurm]:
    """The private Slurm, started if need be; it is stopped by the last session that uses it."""
    _call_or_skip(SLURM_UP, "hold", str(os.getpid()))
    try:
        conf = SLURM_ROOT / "etc" / "slurm.conf"
        config = " ".join(_call("scontrol", "show", "config").split())
        assert f" SLURM_CONF = {conf} " in config, "another Slurm answers"
        yield RealSlurm(env={"SLURM_CONF": str(conf)})
    finally:
        _call(SLURM_UP, "release", str(os.getpid()))


@dataclass(frozen=True)
class RealApptainer:
    """A real `apptainer` command and the sandbox's image, built from the project's own definition."""

    bin: Path
    """The folder with `apptainer` and `singularity`, to be put first on PATH."""
    sif: Path
    env: dict[str, str]
    """PATH with the folder in front."""


@pytest.fixture(scope="session")
def apptainer() -> RealApptainer:
    """The real Apptainer, built into a folder of its own the first time (a few minutes) and kept there."""
    sif = Path(_call_or_skip(APPTAINER_UP, "image"))
    folder = _call_or_skip(APPTAINER_UP, "bin")
    return RealApptainer(bin=Path(folder), sif=sif, env={"PATH": f"{folder}:{os.environ['PATH']}"})
