"""The journal of a claimed shard: rows are appended as they are finished, and outlive the process from then on."""

import errno
import os
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mathmill.files import sync_folder
from mathmill.generation.sets import SetFolder
from mathmill.generation.shards import Key, SetAside, Shard
from mathmill.generation.solve import Solver
from mathmill.records import Problem, Solution, line_of


@dataclass
class OpenShard:
    """A claimed shard: its journal and the rows that are still to come."""

    folder: SetFolder
    shard: Shard
    solver: Solver
    problems: list[Problem]
    label: str
    """`SHARD.K.WORKER`: the name of this claimant's files."""
    left: set[Key]
    _files: dict[Path, int] = field(default_factory=dict)
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _failure: OSError | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.folder.folder.name, self.shard.name

    def journal(self, solution: Solution) -> None:
        """Append a row; it outlives this process once this returns, and this node after the next sync."""
        self._append(self._part, line_of(solution))
        self.left.discard((solution.problem_id, solution.sample_index))

    def set_aside(self, key: Key, reason: str) -> None:
        """Settle a row that cannot be made, with its reason."""
        line = line_of(SetAside(problem_id=key[0], sample_index=key[1], reason=reason))
        self._append(self.folder.quarantine / self._part.name, line)
        self.left.discard(key)

    @cached_property
    def _part(self) -> Path:
        return self.folder.parts / f"{self.label}.jsonl"

    def _append(self, path: Path, line: bytes) -> None:
        """One line at the file's end. After a failure there may be half a line there, so nothing may follow it."""
        if self._failure is not None:
            raise self._failure
        try:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
                sync_folder(path.parent)
            if os.write(self._files[path], line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as problem:
            self._fail(problem, path)

    def sync(self) -> None:
        """Make what was journaled survive the loss of this node."""
        with self._busy:
            for path, descriptor in list(self._files.items()):
                try:
                    os.fsync(descriptor)
                except OSError as problem:
                    self._fail(problem, path)

    def close(self) -> None:
        """Sync and close every file; the first failure is raised once all were tried."""
        failures: list[OSError] = []
        with self._busy:
            for path, descriptor in self._files.items():
                for step in (os.fsync, os.close):
                    try:
                        step(descriptor)
                    except OSError as problem:
                        try:
                            self._fail(problem, path)
                        except OSError as failure:
                            failures.append(failure)
            self._files.clear()
        if failures:
            raise failures[0]

    def _fail(self, problem: OSError, path: Path) -> None:
        """Raise the failure with its file, for good, unless the file only went because another published the shard."""
        if problem.errno == errno.ESTALE and (self.folder.folder / f"{self.shard.name}.jsonl").exists():
            return
        self._failure = OSError(problem.errno, problem.strerror, str(path))
        raise self._failure
