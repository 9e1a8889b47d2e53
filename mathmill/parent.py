"""What a process asks of Linux for itself: to end when its parent is gone, to hide its environment. Standard library only."""

import ctypes
import multiprocessing
import os
import signal
import threading
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # linux/prctl.h
TOLD = "MATHMILL_DIE_WITH_PARENT"
_LIBC = ctypes.CDLL(None, use_errno=True)  # looked up here: between fork and exec only little is safe


def die_with_parent(signal_number: int) -> None:
    """Have Linux send this signal to us when our parent is gone. Survives exec."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def end_with(parent: int) -> None:
    """End this process with its parent, also where that one is gone already."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_with_starter() -> None:
    """End this process of multiprocessing with the one that started it, whose child it is not where a fork server is between."""
    starter = multiprocessing.parent_process()
    assert starter is not None

    def wait() -> None:
        starter.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def die_with_parent_if_told() -> bool:
    """TERM when the parent is gone, now or later, where the environment says its number, as a local job does to its steps."""
    parent = os.environ.pop(TOLD, None)  # it is not meant for what we start
    if parent is None:
        return False
    die_with_parent(signal.SIGTERM)
    if str(os.getppid()) != parent and not Path(f"/proc/{parent}").exists():  # it was killed while we were started
        os.kill(os.getpid(), signal.SIGTERM)
    return True


def hide_environment() -> None:
    """Keep other processes of this user from reading our environment, memory and descriptors in /proc.

    Lasts until exec. Nothing is hidden from root, nor from whoever has CAP_SYS_PTRACE.
    """
    _LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
