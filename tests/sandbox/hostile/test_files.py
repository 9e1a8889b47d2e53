"""Files: those of others, and too many of one's own."""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.sandbox.hostile.attempts import DONE, REFUSED, UNREACHABLE, assert_goes_on, errno_of, lives, value

BY_NAMESPACE = ("namespaces", "apptainer")
"""Modes in which a session has a tree of its own."""
HIDES_OUTSIDE = ("namespaces", "apptainer", "bubblewrap")
"""Modes in which a file of the user is not even there."""


@pytest.fixture
def outside():
    """A file that its user lets everybody read and write, in a folder open to all; it has to be as before at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mathmill-hostile-"))
    folder.chmod(0o777)
    file = folder / "outside"
    file.write_text("a secret")
    file.chmod(0o666)
    os.utime(file, (1, 1))
    before = file.stat()
    yield file
    try:
        after = file.stat()
        assert file.read_text() == "a secret" and [path.name for path in folder.iterdir()] == ["outside"]
        for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_nlink", "st_mtime", "st_ino"):
            assert getattr(before, field) == getattr(after, field), field
    finally:
        shutil.rmtree(folder)


def assert_out_of_reach(session, attempt: str, before: str = "") -> None:
    assert errno_of(session, attempt, before) in UNREACHABLE
    assert lives(session)


def test_a_file_of_the_user_cannot_be_read(session, outside):
    assert_out_of_reach(session, f"open({str(outside)!r}).read()")


def test_a_file_of_the_user_cannot_be_written(session, outside):
    assert_out_of_reach(session, f"open({str(outside)!r}, 'a').write('x')")


def test_a_file_of_the_user_cannot_be_emptied(session, outside):
    assert_out_of_reach(session, f"os.truncate({str(outside)!r}, 0)")


def test_a_file_of_the_user_cannot_be_removed(session, outside):
    assert_out_of_reach(session, f"os.unlink({str(outside)!r})")


def test_a_file_of_the_user_cannot_be_renamed(session, outside):
    assert_out_of_reach(session, f"os.rename({str(outside)!r}, {str(outside) + '2'!r})")


def test_a_file_of_the_user_cannot_be_taken_over(session, outside):
    assert errno_of(session, f"os.rename({str(outside)!r}, 'mine')") in (*UNREACHABLE, "EXDEV")


def test_a_file_of_the_user_cannot_be_replaced(session, outside):
    before = "with open('mine', 'w') as file: _ = file.write('x')"
    assert errno_of(session, f"os.rename('mine', {str(outside)!r})", before) in (*UNREACHABLE, "EXDEV")


def test_a_file_of_the_user_cannot_be_linked(session, outside):
    assert errno_of(session, f"os.link({str(outside)!r}, 'mine')") in (*UNREACHABLE, "EXDEV")


def test_the_mode_of_a_file_of_the_user_cannot_be_changed(session, outside):
    """Landlock does not know chmod: where nothing hides the file, a filter has to refuse the call."""
    assert_out_of_reach(session, f"os.chmod({str(outside)!r}, 0o600)")


def test_the_times_of_a_file_of_the_user_cannot_be_changed(session, outside):
    assert_out_of_reach(session, f"os.utime({str(outside)!r}, (2, 2))")


def test_the_owner_of_a_file_of_the_user_cannot_be_changed(session, outside):
    assert_out_of_reach(session, f"os.chown({str(outside)!r}, os.getuid(), os.getgid())")


def test_the_attributes_of_a_file_of_the_user_cannot_be_changed(session, outside):
    assert errno_of(session, f"os.setxattr({str(outside)!r}, 'user.x', b'1')") in (
        *UNREACHABLE,
        "ENOTSUP",
        "EOPNOTSUPP",
    )
    assert "user.x" not in os.listxattr(outside)


def test_a_file_of_the_user_is_not_there_where_the_tree_is_ones_own(session, outside, mode):
    told = errno_of(session, f"os.stat({str(outside)!r})")
    if mode in HIDES_OUTSIDE:
        assert told == "ENOENT"
    else:
        assert told in (DONE, *REFUSED)  # Landlock does not know stat


def test_a_folder_of_the_user_cannot_be_listed(session, outside):
    assert_out_of_reach(session, f"os.listdir({str(outside.parent)!r})")


def test_no_file_can_be_made_in_a_folder_of_the_user(session, outside):
    assert_out_of_reach(session, f"open({str(outside) + '-new'!r}, 'x')")


def test_no_folder_can_be_made_in_a_folder_of_the_user(session, outside):
    assert_out_of_reach(session, f"os.mkdir({str(outside) + '-new'!r})")


def test_no_link_can_be_made_in_a_folder_of_the_user(session, outside):
    assert_out_of_reach(session, f"os.symlink('/', {str(outside) + '-new'!r})")


def test_no_pipe_can_be_made_in_a_folder_of_the_user(session, outside):
    assert_out_of_reach(session, f"os.mkfifo({str(outside) + '-new'!r})")


def test_a_file_without_a_name_cannot_be_made_in_a_folder_of_the_user(session, outside):
    assert_out_of_reach(session, f"os.open({str(outside.parent)!r}, os.O_TMPFILE | os.O_RDWR, 0o600)")


def test_a_link_of_ones_own_leads_nowhere_else(session, outside):
    assert_out_of_reach(session, "open('link').read()", before=f"os.symlink({str(outside)!r}, 'link')")


def test_climbing_out_of_the_own_folder_leads_nowhere_else(session, outside):
    climbing = "../" * 30 + str(outside).lstrip("/")
    assert_out_of_reach(session, f"open({climbing!r}).read()")


def test_a_descriptor_of_the_root_leads_nowhere_else(session, outside):
    """A descriptor made with O_PATH may be had; nothing may be opened beneath it."""
    below = str(outside).lstrip("/")
    attempt = f"os.open({below!r}, os.O_RDONLY, dir_fd=os.open('/', os.O_PATH))"
    assert_out_of_reach(session, attempt)


def test_the_root_of_the_process_leads_nowhere_else(session, outside):
    for process in ("self", "1", "thread-self"):
        assert_out_of_reach(session, f"open('/proc/{process}/root{outside}').read()")


def test_changing_the_folder_first_leads_nowhere_else(session, outside):
    assert_out_of_reach(session, f"os.chdir({str(outside.parent)!r})\nopen('outside').read()")


def test_a_folder_of_the_user_cannot_be_watched(session, outside):
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
watching = libc.inotify_init1(0o4000)
watched = libc.inotify_add_watch(watching, {str(outside.parent).encode()!r}, 0xfff) if watching >= 0 else -1
watched, ctypes.get_errno() > 0
"""
    assert value(session.run(code)) == (-1, True)


@pytest.mark.parametrize("path", ["/etc/shadow", "/root/.ssh", "/home", "/var/log", "/boot", "/var/lib"])
def test_private_places_of_the_machine_are_out_of_reach(session, path):
    assert_out_of_reach(session, f"os.open({path!r}, os.O_RDONLY)")


def test_the_users_of_the_machine_are_not_told(session):
    users = Path("/etc/passwd").read_text().splitlines()
    told = session.run("open('/etc/passwd').read()")
    assert told.status == "error" or sum(line in told.result for line in users if not line.startswith("root")) < 3


def test_the_environment_of_the_user_is_not_seen(session, monkeypatch):
    names = set(value(session.run("import os\nsorted(os.environ)")))
    allowed = {
        "HOME",
        "TMPDIR",
        "LANG",
        "PATH",
        "PYTHONHASHSEED",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
    }
    assert {"HOME", "TMPDIR", "PYTHONHASHSEED"} <= names <= allowed | {"PYTHONSAFEPATH", "LD_LIBRARY_PATH"}


def test_the_environment_that_the_sandbox_was_started_with_is_not_left_in_memory(session):
    """What `environ` of C says, and what /proc would."""
    code = """
import ctypes
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')
seen, n = [], 0
while environ[n]:
    seen.append(environ[n].split(b'=')[0].decode())
    n += 1
sorted(seen)
"""
    names = set(value(session.run(code)))
    assert not {
        name for name in names if name.startswith(("PYTEST", "USER", "LOGNAME", "SSH", "SHELL", "PWD", "HOSTILE"))
    }


def test_processes_are_not_told(session, mode):
    expected = ("ENOENT",) if mode in BY_NAMESPACE else UNREACHABLE
    for path in ("/proc/self/status", "/proc/self/environ", "/proc/self/maps", "/proc/meminfo", "/proc/1/cmdline"):
        assert errno_of(session, f"open({path!r}).read()") in expected, path
    assert errno_of(session, "os.listdir('/proc')") in expected


def test_the_own_memory_is_not_a_file(session):
    assert_out_of_reach(session, "open('/proc/self/mem', 'r+b')")


def test_the_kernels_settings_are_out_of_reach(session, mode):
    expected = ("ENOENT",) if mode in BY_NAMESPACE else UNREACHABLE
    for path in ("/sys/kernel", "/proc/sys/kernel/core_pattern", "/sys/fs/cgroup", "/sys/class/net"):
        assert errno_of(session, f"os.open({path!r}, os.O_RDONLY)") in expected, path


@pytest.mark.parametrize("device", ["mem", "kmsg", "fuse", "tty", "ptmx", "full", "shm", "net/tun", "kvm"])
def test_devices_are_out_of_reach(session, device):
    assert_out_of_reach(session, f"os.open('/dev/{device}', os.O_RDONLY)")


def test_the_four_harmless_devices_are_there(session):
    assert value(session.run("open('/dev/null').read(), len(open('/dev/zero', 'rb').read(9))")) == ("", 9)
    assert value(session.run("len(open('/dev/urandom', 'rb').read(9)), len(open('/dev/random', 'rb').read(9))")) == (
        9,
        9,
    )


def test_a_device_cannot_be_made(session):
    assert_out_of_reach(session, "os.mknod('device', 0o20600, os.makedev(1, 1))")


def test_programs_cannot_be_read(session, mode):
    expected = ("ENOENT",) if mode in BY_NAMESPACE else UNREACHABLE
    for program in ("/bin/sh", "/usr/bin/env", "/usr/bin/su"):
        assert errno_of(session, f"open({program!r}, 'rb')") in expected, program


def test_the_libraries_can_be_read_and_not_written(session):
    before = "import numpy"
    assert value(session.run("import numpy\nlen(open(numpy.__file__).read()) > 100"))
    assert_out_of_reach(session, "open(numpy.__file__, 'a')", before)
    assert_out_of_reach(session, "open(numpy.__file__ + '2', 'x').close()\nos.unlink(numpy.__file__ + '2')", before)


def test_no_compiled_file_can_be_left_for_others_to_import(session):
    before = "import json\npoison = os.path.join(os.path.dirname(json.__file__), '__pycache__', 'poison.pyc')"
    assert_out_of_reach(session, "open(poison, 'x').close()\nos.unlink(poison)", before)


def test_the_root_cannot_be_written(session):
    assert_out_of_reach(session, "open('/hostile-file', 'x').close()\nos.unlink('/hostile-file')")
    assert_out_of_reach(session, "os.mkdir('/hostile-folder')\nos.rmdir('/hostile-folder')")


def test_the_private_folder_is_private_empty_and_home(session, mode):
    code = "import os\noct(os.stat('.').st_mode & 0o777), os.listdir(), os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']"
    told = value(session.run(code))
    assert told[1:] == ([], True)
    assert told[0] == "0o700" if mode not in BY_NAMESPACE else told[0] in ("0o700", "0o1777", "0o755")
    folder = value(session.run("os.getcwd()"))
    if mode in BY_NAMESPACE:
        assert folder == "/session"


def test_the_private_folder_can_be_used(session):
    code = "import os, tempfile\nos.makedirs('a/b')\n"
    code += "with open('a/b/c', 'w') as file: _ = file.write('x')\nos.rename('a/b/c', 'd')\n"
    code += "with tempfile.TemporaryFile('w+') as file:\n    _ = file.write('y')\n    _ = file.seek(0)\n    y = file.read()\n"
    assert value(session.run(code + "open('d').read() + y, sorted(os.listdir())")) == ("xy", ["a", "d"])


def gone(folder: str, mode: str, look) -> bool:
    """Whether a session's folder goes away; one in memory of its own was never there."""
    if mode in BY_NAMESPACE:
        return folder == "/session"
    return look.becomes_true(lambda: not Path(folder).exists())


def test_what_is_in_the_private_folder_is_not_seen_from_outside_afterwards(sandbox, mode, look):
    with sandbox.session() as session:
        name = f"hostile-{os.getpid()}-mark"
        folder = value(session.run(f"import os\nopen({name!r}, 'w').close()\nos.getcwd()"))
    assert look.becomes_true(lambda: not (Path(folder) / name).exists())
    assert gone(folder, mode, look)


def test_a_private_folder_that_resists_is_removed(sandbox, mode, look):
    """Where Landlock guards files, chmod of a path may be refused: nothing then resists."""
    with sandbox.session() as session:
        code = "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.symlink('/etc', 'a/link')\n"
        assert session.run(code).status == "ok"
        told = session.run("os.chmod('a/b', 0)\nos.chmod('a', 0)")
        assert told.status == "ok" or (mode in ("reduced", "bubblewrap") and "PermissionError" in told.stderr)
        folder = value(session.run("os.getcwd()"))
    assert gone(folder, mode, look)
    assert Path("/etc/passwd").exists()


def test_a_private_folder_deeper_than_any_path_is_removed(sandbox, mode, look):
    with sandbox.session() as session:
        folder = value(session.run("import os\nos.getcwd()"))
        code = "for _ in range(1500):\n    os.mkdir('d' * 100)\n    os.chdir('d' * 100)\n'deep'"
        assert value(session.run(code, timeout=20)) == "deep"
    try:
        assert gone(folder, mode, look)
    finally:
        if "/mathmill-sandbox-" in folder:  # what was left would fail the end of the sandbox, and tests with it
            subprocess.run(["rm", "-rf", "--", folder], check=False)


def test_a_private_folder_with_names_that_are_no_text_is_removed(sandbox, mode, look):
    with sandbox.session() as session:
        folder = value(session.run("import os\nos.getcwd()"))
        names = [b"\xff\xfe", b"a\nb", b"-rf", b" ", b"\x1b[31m", b"*"]
        code = f"for name in {names!r}: open(name, 'w').close()\nlen(os.listdir())"
        assert value(session.run(code)) == 6
    assert gone(folder, mode, look)


def test_a_file_grows_to_a_limit(session):
    grow = "with open('f', 'wb', buffering=0) as file:\n    for _ in range(40): _ = file.write(bytes(1 << 20))"
    assert errno_of(session, grow) == "EFBIG"
    assert 8 << 20 <= value(session.run("os.path.getsize('f')")) <= 16 << 20
    assert lives(session)


def test_a_file_with_holes_grows_to_the_same_limit(session):
    assert errno_of(session, "os.ftruncate(os.open('f', os.O_WRONLY | os.O_CREAT), 1 << 30)") == "EFBIG"
    attempt = "os.pwrite(os.open('f', os.O_WRONLY), b'x', 1 << 30)"
    assert errno_of(session, attempt) == "EFBIG"


def test_space_cannot_be_reserved_beyond_the_limit(session):
    attempt = "os.posix_fallocate(os.open('f', os.O_WRONLY | os.O_CREAT), 0, 1 << 30)"
    assert errno_of(session, attempt) in ("EFBIG", "ENOSPC", *REFUSED)


def test_all_files_together_grow_to_a_limit_where_the_folder_is_in_memory(session, mode):
    fill = """
for n in range(6):
    with open(f'f{n}', 'wb', buffering=0) as file:
        for _ in range(15): _ = file.write(bytes(1 << 20))
"""
    expected = "ENOSPC" if mode in BY_NAMESPACE else DONE
    assert errno_of(session, fill) == expected
    if mode in BY_NAMESPACE:
        total = value(session.run("sum(os.path.getsize(name) for name in os.listdir())"))
        assert 40 << 20 < total <= 64 << 20
    assert lives(session)


def test_descriptors_come_to_an_end(session):
    opened = "files = []\nwhile len(files) < 1000: files.append(open('/dev/null'))"
    assert errno_of(session, opened) == "EMFILE"
    assert 20 < value(session.run("len(files)")) <= 64
    session.run("files.clear()")
    assert_goes_on(session, state="live")


def test_a_session_that_holds_every_descriptor_can_still_tell(session):
    told = session.run("kept = 7\nfiles = []\nwhile True: files.append(open('/dev/null'))")
    assert told.status == "error" and "OSError" in told.stderr
    assert session.run("kept").result == "7"


def test_a_crash_leaves_no_core(session):
    assert value(session.run("import resource\nresource.getrlimit(resource.RLIMIT_CORE)")) == (0, 0)
    assert session.run("import ctypes\nctypes.string_at(0)").status == "crash"
    assert value(session.run("import os\nos.listdir()")) == []


@pytest.mark.parametrize("limit", ["AS", "FSIZE", "NOFILE", "CORE", "CPU"])
def test_a_limit_cannot_be_raised(session, limit):
    code = f"""
import resource
kind = resource.RLIMIT_{limit}
before = resource.getrlimit(kind)
try:
    resource.setrlimit(kind, (before[1] + 1, before[1] + 1))
    told = 'raised'
except (ValueError, OSError):
    told = 'refused'
before[1] != resource.RLIM_INFINITY, told, resource.getrlimit(kind) == before
"""
    assert value(session.run(code)) == (True, "refused", True)


def test_the_clean_folder_of_a_replay_holds_what_replayed_blocks_made_alone(session):
    session.run("with open('first', 'w') as file: _ = file.write('1')")
    session.run("import os\nopen('second', 'w').close()\nos._exit(0)")
    told = session.run("import os\nos.listdir(), open('first').read()")
    assert told.state == "replayed" and value(told) == (["first"], "1")


def test_a_file_that_is_made_is_no_file_of_another_user(session, mode):
    code = "import os\nopen('f', 'w').close()\nos.stat('f').st_uid == os.getuid(), os.stat('f').st_mode & 0o077"
    owned, others = value(session.run(code))
    assert owned and (others == 0 or mode in BY_NAMESPACE)
    assert stat.S_ISREG(value(session.run("os.stat('f').st_mode")))
