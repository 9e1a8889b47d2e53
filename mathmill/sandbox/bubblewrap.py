"""bubblewrap, where its binary may make the namespaces that we may not: one set of walls around all sessions.

Flags: `bwrap --help` of bubblewrap 0.8.0, which the tests run.
"""

import os
import shutil
import sys

from mathmill.sandbox.walls import DEVICES, SYSTEM_FILES, visible

DISK_BYTES = 1 << 30
"""All files of all sessions."""


def command(folders: list[str], package: str) -> list[str]:
    """What stands before the forking process's own command line. OSError where there is no bwrap."""
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError(2, "no bwrap on PATH")
    interpreter = os.path.dirname(os.path.realpath(sys.executable))
    words = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--proc", "/proc"]
    words += ["--size", str(DISK_BYTES), "--tmpfs", "/tmp"]  # before what may lie beneath it
    for folder in visible([*folders, interpreter, os.path.dirname(sys.executable), sys.prefix, package]):
        words += ["--ro-bind", os.path.realpath(folder), folder]
    for path in filter(os.path.exists, SYSTEM_FILES):
        words += ["--ro-bind", os.path.realpath(path), path]
    for device in DEVICES:
        words += ["--dev-bind", device, device]
    return [*words, "--chdir", "/", "--"]
