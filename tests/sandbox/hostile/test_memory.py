"""Blocks that want more memory than they have."""

import pytest

from tests.sandbox.hostile.attempts import DONE, assert_goes_on, errno_of, value


def assert_memory_and_lives(session, code: str) -> None:
    """The block ends as `memory`, and the process with its names is still there."""
    session.run("kept = 7")
    told = session.run(code, timeout=20)
    assert (told.status, told.result) == ("memory", None), told
    after = session.run("kept")
    assert (after.status, after.result, after.state) == ("ok", "7", "live")


def test_one_object_beyond_the_limit_is_refused(session):
    assert_memory_and_lives(session, "bytearray(600 << 20)")


def test_half_the_limit_can_be_had(session):
    assert value(session.run("len(bytearray(256 << 20)) >> 20")) == 256


def test_many_objects_beyond_the_limit_are_refused(session):
    assert_memory_and_lives(session, "x = []\nwhile True: x.append(bytearray(20 << 20))")


def test_a_string_that_doubles_for_ever_is_refused(session):
    assert_memory_and_lives(session, "x = 'a' * (1 << 20)\nwhile True: x += x")


def test_a_list_of_small_objects_is_refused(session):
    assert_memory_and_lives(session, "x = [0]\nwhile True: x = x * 2")


def test_a_huge_integer_is_refused(session):
    assert_memory_and_lives(session, "1 << (8 << 30)")


def test_a_width_in_a_format_is_refused(session):
    assert_memory_and_lives(session, "'%1000000000d' % 1")


def test_a_range_made_a_list_is_refused(session):
    assert_memory_and_lives(session, "list(range(10 ** 9))")


def test_a_set_beyond_the_limit_is_refused(session):
    assert_memory_and_lives(session, "x = {bytes([n]) * (10 << 20) for n in range(256)}")


def test_a_numpy_array_beyond_the_limit_is_refused(session):
    assert_memory_and_lives(session, "import numpy\nnumpy.ones(1 << 28)")


def test_a_numpy_array_that_is_never_touched_is_refused_too(session):
    assert_memory_and_lives(session, "import numpy\nnumpy.empty(1 << 28)")


def test_a_display_beyond_the_limit_is_refused(session):
    assert_memory_and_lives(session, "class A:\n    def __repr__(self): return 'a' * (600 << 20)\nA()")


def test_a_mapping_beyond_the_limit_is_refused(session):
    assert errno_of(session, "mmap.mmap(-1, 600 << 20)", before="import mmap") == "ENOMEM"


def test_many_mappings_beyond_the_limit_are_refused(session):
    made = "made = []\nwhile len(made) < 100: made.append(mmap.mmap(-1, 20 << 20))"
    assert errno_of(session, made, before="import mmap") == "ENOMEM"
    assert 5 < value(session.run("len(made)")) < 30


def test_a_shared_mapping_counts_too(session):
    attempt = "mmap.mmap(-1, 600 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)"
    assert errno_of(session, attempt, before="import mmap") == "ENOMEM"


def test_memory_that_c_asks_for_is_refused(session):
    code = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.malloc.restype = ctypes.c_void_p\n"
    assert value(session.run(code + "libc.malloc(ctypes.c_size_t(1 << 20)) is None")) is False
    assert value(session.run("libc.malloc(ctypes.c_size_t(600 << 20)) is None")) is True


def test_the_break_cannot_grow_beyond_the_limit(session):
    code = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.sbrk.restype = ctypes.c_void_p\n"
    failed = (1 << 64) - 1
    assert value(session.run(code + "libc.sbrk(ctypes.c_ssize_t(1 << 20))")) != failed
    assert value(session.run("libc.sbrk(ctypes.c_ssize_t(600 << 20))")) == failed


def test_the_stack_of_a_thread_counts_too(session):
    code = """
import threading
threading.stack_size(600 << 20)
try:
    threading.Thread(target=int).start()
    told = 'started'
except (RuntimeError, MemoryError):
    told = 'refused'
threading.stack_size(0)
told
"""
    assert value(session.run(code)) == "refused"


def test_a_memory_error_in_a_thread_harms_that_thread_alone(session):
    code = "import threading\nt = threading.Thread(target=bytearray, args=(600 << 20,))\nt.start()\nt.join()\n'after'"
    told = session.run(code)
    assert value(told) == "after" and "MemoryError" in told.stderr
    assert_goes_on(session, state="live")


def test_a_memory_error_that_the_block_catches_is_no_ending(session):
    assert value(session.run("try: bytearray(600 << 20)\nexcept MemoryError: x = 'caught'\nx")) == "caught"


def test_memory_that_a_block_let_go_can_be_had_again(session):
    for _ in range(2):
        assert value(session.run("x = bytearray(300 << 20)\nlen(x) >> 20")) == 300
        session.run("del x")
    assert_goes_on(session, state="live")


def test_memory_that_a_failed_block_held_can_be_had_again(session):
    assert session.run("def f():\n    x = []\n    while True: x.append(bytearray(20 << 20))\nf()").status == "memory"
    assert value(session.run("len(bytearray(300 << 20)) >> 20")) == 300


def test_names_that_fill_the_memory_leave_room_to_answer(session):
    assert session.run("kept = 7\nx = []\nwhile True: x.append(bytearray(10 << 20))").status == "memory"
    told = session.run("len(x) > 20, kept")
    assert (told.status, told.result, told.state) == ("ok", "(True, 7)", "live")


def test_memory_filled_to_the_last_byte_is_told_and_survived(session):
    code = """
def fill():
    held, size = [], 10 << 20
    while True:
        try: held.append(bytearray(size))
        except MemoryError:
            if size < 64: raise
            size //= 2
fill()
"""
    assert_memory_and_lives(session, code)


def test_the_limit_of_memory_cannot_be_raised(session):
    code = """
import resource
try:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
    told = 'raised'
except (ValueError, OSError):
    told = 'refused'
told, resource.getrlimit(resource.RLIMIT_AS)[0] < 1 << 40
"""
    assert value(session.run(code)) == ("refused", True)
    assert session.run("bytearray(600 << 20)").status == "memory"


def test_each_session_has_a_limit_of_its_own(session, neighbour):
    assert value(session.run("x = bytearray(300 << 20)\nlen(x) >> 20")) == 300
    assert value(neighbour.run("x = bytearray(300 << 20)\nlen(x) >> 20")) == 300
    assert value(session.run("len(x) >> 20")) == 300
    neighbour.run("del x")


def test_an_endless_recursion_is_an_error(session):
    told = session.run("def f(): return f()\nf()")
    assert told.status == "error" and "RecursionError" in told.stderr
    assert_goes_on(session, state="live")


def test_a_recursion_without_a_limit_ends_and_the_names_come_back(session):
    session.run("kept = 7")
    told = session.run(
        "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    def __repr__(self): return repr(A())\nrepr(A())",
        timeout=20,
    )
    assert told.status in ("crash", "memory", "error"), told
    assert session.run("kept", timeout=20).result == "7"


def test_an_object_too_deep_to_show_is_an_ending_and_the_names_come_back(session):
    session.run("kept = 7")
    told = session.run("x = []\nfor _ in range(10 ** 5): x = [x]\nx", timeout=20)
    assert told.status in ("ok", "error", "crash", "memory"), told
    assert session.run("kept", timeout=20).result == "7"


def test_objects_too_deep_to_be_freed_at_once_are_freed(session):
    session.run("kept = 7")
    told = session.run("x = None\nfor _ in range(300_000): x = (x,)\nx = None\n'freed'", timeout=20)
    assert told.result == "'freed'"
    assert_goes_on(session, state="live")


@pytest.mark.parametrize("where", ["/dev/shm/x", "/var/tmp/x", "/run/x"])
def test_memory_cannot_be_had_as_a_file_outside(session, where):
    assert errno_of(session, f"open({where!r}, 'xb').close()\nos.unlink({where!r})") != DONE


def test_memory_cannot_be_hidden_in_pipes(session):
    """A pipe holds up to 1 MiB of the kernel's memory, which no limit of address space counts."""
    code = """
import fcntl, os
pipes, held = [], 0
try:
    while len(pipes) < 1000:
        pipes.append(os.pipe())
        try: fcntl.fcntl(pipes[-1][1], 1031, 1 << 20)
        except OSError: pass
        os.set_blocking(pipes[-1][1], False)
        try:
            while True: held += os.write(pipes[-1][1], bytes(1 << 16))
        except BlockingIOError: pass
except OSError as problem:
    told = problem.errno
for pipe in pipes:
    for end in pipe: os.close(end)
told, len(pipes), held >> 20
"""
    told, pipes, held_mb = value(session.run(code, timeout=20))
    assert told == 24 and pipes <= 32 and held_mb <= 32  # EMFILE
