"""A run: one folder that is the only state. Everything else is a view of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from mathmill.errors import UserError


@dataclass(frozen=True)
class Run:
    """The folder and the names of what lies in it."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> Path:
        """What the run is, written once: `run.yaml`."""
        return self.folder / "run.yaml"

    @property
    def jobs(self) -> Path:
        """Scripts as sbatch got them, the options of their steps, and `submitted.jsonl`."""
        return self.folder / "jobs"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def progress(self) -> Path:
        """A file a task: the number of its last start that finished anything."""
        return self.folder / "progress"

    @property
    def code(self) -> Path:
        """Snapshots of the package, by hash."""
        return self.folder / "code"

    @property
    def solutions(self) -> Path:
        """A folder a sample set."""
        return self.folder / "solutions"

    @property
    def servers(self) -> Path:
        """Address files of the servers that live."""
        return self.folder / "servers"

    @property
    def times(self) -> Path:
        """What each start of a server and of a worker did when."""
        return self.folder / "times"


def check_run_name(name: str) -> None:
    """UserError where a run's name cannot be a folder's, a job's and a word of a command everywhere."""
    check_folder_name("--run", name)


def check_folder_name(flag: str, name: str) -> None:
    """UserError, which names the flag, where a name cannot be a folder's and a word of a command everywhere."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise UserError(f"{flag} {name!r}: letters, digits, . _ - only")
    if name[0] in ".-":
        raise UserError(f"{flag} {name!r}: must not start with {name[0]}")
    if len(name) > 100:
        raise UserError(f"{flag}: a name has at most 100 characters, not {len(name)}")


def find_run(name: str | None, runs_folder: Path = Path("runs")) -> Run:
    """The run of this name or path; the newest when none is named."""
    if name is not None:
        for folder in (Path(name), runs_folder / name):
            if (folder / "run.yaml").exists():
                return Run(folder.resolve())
        known = sorted(path.parent.name for path in runs_folder.glob("*/run.yaml"))
        raise UserError(f"no run '{name}'. Known in {runs_folder}/: {', '.join(known) or 'none'}")
    folders = [path.parent for path in runs_folder.glob("*/run.yaml")]
    if not folders:
        raise UserError(f"no run in {runs_folder.resolve()}; start one with: python pipeline/run_generation.py")
    return Run(max(folders, key=lambda folder: (folder / "run.yaml").stat().st_mtime).resolve())
