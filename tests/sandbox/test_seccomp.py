"""The system call filter: its numbers are libseccomp's, and its program answers as the table says."""

import errno
import struct

import pytest

from mathmill.sandbox import seccomp

MACHINES = ["x86_64", "aarch64"]
ERRNO, ALLOW = 0x00050000, 0x7FFF0000


def answer(machine: str, number: int, *arguments: int, own_files: bool = True, architecture: int | None = None) -> int:
    """What the program returns for a system call: the few instructions that it is made of, carried out here."""
    audit = seccomp.AUDIT[machine] if architecture is None else architecture
    passed = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, audit, 0, *passed)
    program = list(struct.iter_unpack("=HBBI", seccomp.prepared(machine, own_files)))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == seccomp.RETURN:
            return value
        if code == seccomp.LOAD:
            [accumulator] = struct.unpack_from("=I", data, value)
        else:
            holds = {
                seccomp.EQUAL: accumulator == value,
                seccomp.AT_LEAST: accumulator >= value,
                seccomp.ANY_BIT: bool(accumulator & value),
            }[code]
            at += if_true if holds else if_false


@pytest.fixture(scope="module")
def libseccomp():
    return pytest.importorskip("pyseccomp", exc_type=Exception)


def numbers_of(machine: str) -> dict[str, int]:
    column = 1 if machine == "x86_64" else 2
    single = ("CLONE", "FCNTL", "IOCTL", "PRCTL", "KILL", "TGKILL")
    named = {name.lower(): getattr(seccomp, name)[machine] for name in single}
    others = {"prlimit64": seccomp.PRLIMIT[machine], "clone3": seccomp.CLONE3}
    return seccomp.allowed(machine) | seccomp.table(seccomp.REFUSED_AS_UNSUPPORTED, column) | named | others


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_libseccomp(libseccomp, machine):
    architecture = {"x86_64": libseccomp.Arch.X86_64, "aarch64": libseccomp.Arch.AARCH64}[machine]
    known = {name: libseccomp.resolve_syscall(architecture, name) for name in numbers_of(machine)}

    newer_than_the_library = {name for name, number in known.items() if number < 0}
    assert newer_than_the_library <= {"fchmodat2"}
    assert {name: number for name, number in numbers_of(machine).items() if name not in newer_than_the_library} == {
        name: number for name, number in known.items() if name not in newer_than_the_library
    }


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_is_allowed_if_and_only_if_the_table_has_it(machine):
    allowed = {number for number in range(600) if answer(machine, number, 99, 99) == ALLOW}
    assert allowed == set(seccomp.allowed(machine).values())


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("table", "allowed", "refused"),
    [
        (seccomp.CLONE, [(0x3D0F00,)], [(17,), (0x10000000,), (0,)]),
        (seccomp.KILL, [(seccomp.OWN_PID, 9)], [(1,), (0,), (0xFFFFFFFF,)]),
        (seccomp.TGKILL, [(seccomp.OWN_PID, 7, 9)], [(1, 1, 9)]),
        (seccomp.FCNTL, [(5, 1), (5, 1030)], [(5, 8), (5, 10), (5, 15), (5, 1031)]),
        (seccomp.IOCTL, [(1, 0x5401)], [(0, 0x5412), (3, 0)]),
        (seccomp.PRCTL, [(15,)], [(1,), (4,), (22,), (36,)]),
        (seccomp.PRLIMIT, [(0, 7), (seccomp.OWN_PID, 7)], [(1, 7)]),
    ],
    ids=["clone", "kill", "tgkill", "fcntl", "ioctl", "prctl", "prlimit"],
)
def test_calls_that_are_judged_by_an_argument(machine, table, allowed, refused):
    assert {answer(machine, table[machine], *arguments) for arguments in allowed} == {ALLOW}
    assert {answer(machine, table[machine], *arguments) for arguments in refused} == {ERRNO | errno.EPERM}


@pytest.mark.parametrize("machine", MACHINES)
def test_where_files_are_not_a_sessions_own_their_modes_and_times_stay(machine):
    for name, number in seccomp.allowed(machine).items():
        assert (answer(machine, number, own_files=False) == ALLOW) == (name not in seccomp.BY_PATH)


def test_other_architectures_and_x32_are_refused():
    assert answer("x86_64", 1, architecture=0x40000003) == ERRNO | errno.EPERM
    assert answer("aarch64", 64, architecture=seccomp.AUDIT["x86_64"]) == ERRNO | errno.EPERM
    assert answer("x86_64", seccomp.X32 | 1) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_newer_than_the_table_are_unknown_and_clone3_too(machine):
    assert {answer(machine, number) for number in (*range(440, 452), 435, 500)} <= {ERRNO | errno.ENOSYS}


def test_the_own_number_is_put_in_and_nothing_else_changes():
    one, other = seccomp.program_for(77, own_files=True), seccomp.program_for(78, own_files=True)
    assert len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 3


def test_a_machine_without_a_filter_is_told(monkeypatch):
    monkeypatch.setattr("os.uname", lambda: type("uname", (), {"machine": "riscv64"}))
    with pytest.raises(OSError, match="no system call filter for riscv64"):
        seccomp.program_for(1, own_files=True)
