"""The process that sessions are forked from: behind walls, with the libraries imported. It holds no client's socket.

It hears `start` (with three descriptors for the session) and `signal`, and tells `layers`, `ready`, `started` (with a pidfd
where the kernel has them) and `ended`; a message is one packet of JSON. When the supervisor is gone it ends, and with it,
since it is process 1 of their namespace or their parent in death, all sessions.
"""

import itertools
import json
import os
import resource
import select
import signal
import socket
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mathmill.sandbox import blocks, kernel, landlock, libraries, probe, walls

MAX_DESCRIPTORS = 256
CONTROL = 4
LARGEST_MESSAGE = 65536
Isolation = Literal["namespaces", "bubblewrap", "reduced"]


@dataclass(frozen=True)
class Settings:
    """What the supervisor tells its forking process."""

    isolation: Isolation
    folders: list[str]
    """Where libraries are."""
    search: list[str]
    """Those of them that Python must look in, if it does not already."""
    imported: list[str]
    """Libraries to import ahead."""
    work: str
    """A folder for the sessions' folders, where they have no file system of their own."""
    limits: walls.Limits = field(default_factory=walls.Limits)
    insists: bool = True
    """Rather have no session than one without the system call filter."""
    only_probe: bool = False
    """Tell the layers and end."""

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Settings":
        fields = json.loads(text)
        return Settings(**fields | {"limits": walls.Limits(**fields["limits"])})


class Forkserver:
    """Forks sessions and tells of their ends."""

    def __init__(self, settings: Settings, control: socket.socket, proc: int):
        self._settings, self._control, self._proc = settings, control, proc
        self._in_namespaces = settings.isolation == "namespaces"
        self._binding = walls.Binding.of(settings.limits, self._in_namespaces)
        self._numbers: dict[int, int] = {}  # of sessions, by process
        self._landlock = landlock.version()
        self._readable = [] if self._in_namespaces else _opened(settings.folders)
        self._own_pids = -1
        if not self._in_namespaces:
            os.makedirs(settings.work, 0o700, exist_ok=True)
        else:
            self._own_pids = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)

    def serve(self) -> None:
        """Probe the walls, import, and fork until the supervisor hangs up."""
        waker, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        kernel.hear_only_deaths()
        self._tell({"layers": self._probe()})
        if self._settings.only_probe:
            return
        sys.path[:0] = [folder for folder in self._settings.search if folder not in sys.path]
        found = libraries.import_and_exercise(self._settings.imported)
        blocks.prepare()
        limits = replace(self._settings.limits, begins_with_bytes=libraries.settle(self._proc))
        self._binding = walls.Binding.of(limits, self._in_namespaces)
        self._tell({"ready": True, "libraries": found, "display": blocks.DISPLAY})
        while True:
            heard, _, _ = select.select([self._control.fileno(), waker], [], [])
            if waker in heard:
                os.read(waker, 4096)
                self._reap()
            if self._control.fileno() in heard and not self._listen():
                return

    def _tell(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)

    def _listen(self) -> bool:
        """Do what the supervisor says; False when it is gone."""
        data, descriptors, _, _ = socket.recv_fds(self._control, LARGEST_MESSAGE, 3)
        if not data:
            return False
        message = json.loads(data)
        if message["op"] == "start":
            self._start(message["number"], descriptors)
        else:
            self._signal(message["number"], message["signal"])
        return True

    def _start(self, number: int, descriptors: list[int]) -> None:
        try:
            pid = self._fork(number)
        except OSError as problem:
            self._tell({"failed": number, "why": str(problem)})
        else:
            if pid == 0:
                self._become_session(number, descriptors)
            self._numbers[pid] = number
            self._tell_started(number, pid)
        for descriptor in descriptors:
            os.close(descriptor)

    def _tell_started(self, number: int, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:  # Linux before 5.3
            return self._tell({"started": number})
        try:
            self._tell({"started": number}, (descriptor,))
        except OSError:  # this user has too many descriptors on their way in sockets, anywhere on the machine
            self._tell({"started": number})
        finally:
            os.close(descriptor)

    def _fork(self, number: int) -> int:
        """fork, in a new pid namespace where they are to be had; only `unshare` once is allowed, so we go back each time."""
        if not self._in_namespaces:
            os.mkdir(self._folder(number), 0o700)
            return os.fork()
        kernel.unshare(kernel.NEW_PIDS, "a session's pid namespace")
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                kernel.enter_pid_namespace(self._own_pids)
        return pid

    def _folder(self, number: int) -> str:
        return os.path.join(self._settings.work, str(number))

    def _become_session(self, number: int, descriptors: list[int]) -> None:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for target, descriptor in zip((blocks.CHANNEL, 1, 2), _moved_up(descriptors), strict=True):
                os.dup2(descriptor, target)
            self._bind(number)
            os.closerange(blocks.CHANNEL + 1, MAX_DESCRIPTORS)
            blocks.serve()
        except Exception as problem:
            os.write(2, f"{problem}\n".encode())
        finally:
            os._exit(127)

    def _bind(self, number: int) -> None:
        if self._in_namespaces:
            walls.bind_in_namespaces(self._binding)
            return
        folder = self._folder(number)
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
        walls.bind_by_landlock(self._binding, folder, self._readable, self._landlock, self._settings.insists)

    def _signal(self, number: int, signal_number: int) -> None:
        for pid, other in self._numbers.items():
            if other == number:
                os.kill(pid, signal_number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._numbers.pop(pid, None)
            if number is not None:
                cpu_s = usage.ru_utime + usage.ru_stime
                self._tell({"ended": number, "status": status, "cpu_s": cpu_s})
                if not self._in_namespaces:
                    self._remove(self._folder(number))

    def _remove(self, folder: str) -> None:
        """Remove a session's folder: at once where it is empty, or by a process of its own, as it may hold a great deal."""
        try:
            os.rmdir(folder)
        except OSError:
            try:
                pid = os.fork()
            except OSError:  # no process to be had: it goes when the sandbox ends
                return
            if pid == 0:
                try:
                    remove_tree(folder)
                finally:
                    os._exit(0)

    def _probe(self) -> dict[str, str]:
        """What holds a session here, found out by one that tries: the layer, and empty or why it does not hold."""
        answer, told = os.pipe()
        try:
            pid = self._fork(-1)
        except OSError as problem:
            return {"session": str(problem)}
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                os.dup2(told, blocks.CHANNEL)
                self._bind(-1)
                os.write(blocks.CHANNEL, json.dumps(probe.layers(self._settings.isolation, self._landlock)).encode())
            except Exception as problem:
                os.write(blocks.CHANNEL, json.dumps({"session": str(problem)}).encode())
            finally:
                os._exit(0)
        os.close(told)
        text = b"".join(iter(lambda: os.read(answer, 65536), b""))
        os.close(answer)
        os.waitpid(pid, 0)
        if not self._in_namespaces:
            remove_tree(self._folder(-1))
        return json.loads(text or '{"session": "it died at its start"}')


def remove_tree(folder: str) -> None:
    """Remove a folder, whatever it was made to hold and however it was closed. Deep ones are made flat, not walked down."""
    folders = [folder]
    for number in itertools.count():
        try:
            os.chmod(folders[-1], 0o700)
            entries = list(os.scandir(folders[-1]))
        except OSError:
            return
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
            elif folders[-1] == folder:
                folders.append(entry.path)
                break
            else:
                os.chmod(entry.path, 0o700)
                os.rename(entry.path, os.path.join(folder, f".{number}.{entry.inode()}"))
        else:
            os.rmdir(folders.pop())
            if not folders:
                return


def _opened(folders: list[str]) -> list[int]:
    """Descriptors of all that a session may read."""
    paths = [*walls.visible(folders), *walls.SYSTEM_FILES, *walls.DEVICES]
    return [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths if os.path.exists(path)]


def _moved_up(descriptors: list[int]) -> list[int]:
    """The same files under numbers above those that they are to have."""
    import fcntl

    return [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10) for descriptor in descriptors]


def _moved_down(descriptor: int) -> socket.socket:
    """The supervisor's socket under a number that no session can have inherited it by: they close all from 4 up to
    MAX_DESCRIPTORS, and beyond that this process opens none."""
    if descriptor != CONTROL:
        os.dup2(descriptor, CONTROL, inheritable=False)
        os.close(descriptor)
    return socket.socket(fileno=CONTROL)


def _prefer_for_oom() -> None:
    """When the node runs out of memory a session dies first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def main() -> None:
    """Go behind the walls, become process 1 there, and serve. Arguments: the settings as JSON, the number of the descriptor
    that leads to the supervisor."""
    settings = Settings.from_json(sys.argv[1])
    control = _moved_down(int(sys.argv[2]))
    supervisor = os.getppid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        return
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _prefer_for_oom()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS if hard < 0 else min(MAX_DESCRIPTORS, hard), hard))
    if settings.isolation == "namespaces":
        try:
            walls.enter_namespaces(settings.folders, proc)
        except OSError as problem:
            control.send(json.dumps({"layers": {"session": str(problem)}}).encode())
            return
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # changes of identity have cleared it
        pid = os.fork()
        if pid:
            control.close()
            os.waitpid(pid, 0)
            os._exit(0)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    Forkserver(settings, control, proc).serve()
    os._exit(0)  # an interpreter with all these libraries takes long to take down
