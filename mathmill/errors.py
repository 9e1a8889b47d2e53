"""What a user can mend."""

import errno

DISK_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EIO, errno.EROFS}


class UserError(Exception):
    """One line that says what is wrong, where, and what to do. Scripts print it to stderr and end with exit code 2."""


def said_by_disk(problem: OSError) -> str:
    """What a failed call says of which file, and what helps where a file system is full or has failed."""
    where = f"{problem.filename}: " if problem.filename else ""
    helps = {
        errno.ENOSPC: "; make room on this file system",
        errno.EDQUOT: "; make room, or have your quota raised",
        errno.ESTALE: "; its file server lost it",
        errno.EIO: "; ask whoever runs this file system",
        errno.EROFS: "; it cannot be written here",
    }
    return f"{where}{problem.strerror or problem}{helps.get(problem.errno or 0, '')}"
