"""Which files a process may open, by Landlock (Linux 5.13 and later): what holds files where no mount namespace is to be had.

Numbers: linux/landlock.h and the kernel's user space documentation on Landlock.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from mathmill.sandbox.kernel import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_DEVICES_AND_SOCKETS = 1 << 6 | 1 << 9 | 1 << 11
ALL_OF = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Kinds of access to files that a version knows; later ones know as many as 5."""
FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15
TCP = 3
SIGNALS_AND_ABSTRACT_SOCKETS = 3


def version() -> int:
    """The version of the kernel's Landlock; 0 where it has none or it is switched off."""
    try:
        return syscall("landlock", CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def restrict(read: Iterable[int], write: Iterable[int], landlock: int) -> None:
    """From now on this process opens nothing but what lies beneath these descriptors of files and folders.

    `read`: for reading; `write`: for everything but running programs. Also no TCP (version 4) and no signals to, no
    abstract sockets of, processes outside (version 6). `landlock`: what `version` says.
    """
    known = (1 << ALL_OF.get(landlock, 16)) - 1
    attributes = struct.pack("QQQ", known, TCP if landlock >= 4 else 0, SIGNALS_AND_ABSTRACT_SOCKETS)
    attributes = attributes[: 24 if landlock >= 6 else 16 if landlock >= 4 else 8]
    ruleset = syscall("landlock_create_ruleset", CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for descriptor in read:
            _allow(ruleset, descriptor, (READ_FILE | READ_DIR) & known)
        for descriptor in write:
            _allow(ruleset, descriptor, known & ~(EXECUTE | MAKE_DEVICES_AND_SOCKETS))
        syscall("landlock_restrict_self", RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, descriptor: int, access: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        access &= FOR_FILES
    rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor), 12)
    syscall("landlock_add_rule", ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
