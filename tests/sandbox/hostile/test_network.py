"""Ways out of the machine, and to its other services."""

import socket

import pytest

from tests.sandbox.hostile.attempts import REFUSED, UNREACHABLE, assert_refused, errno_of, lives, value

FAMILIES = {
    "unix": 1,
    "inet": 2,
    "inet6": 10,
    "netlink": 16,
    "packet": 17,
    "can": 29,
    "bluetooth": 31,
    "alg": 38,
    "vsock": 40,
}
AT_ONCE_S = 3.0


@pytest.fixture
def service():
    """Something that listens on this machine; nobody may have come by at the end."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]
        listening.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_socket_of_the_family_can_be_made(session, family):
    kind = 3 if family in ("netlink", "packet", "can", "bluetooth") else 5 if family == "alg" else 1
    assert errno_of(session, f"socket.socket({FAMILIES[family]}, {kind})", before="import socket") in REFUSED
    assert lives(session)


def test_no_socket_of_any_family_and_kind_can_be_made(session):
    """Refused one and all, before the kernel says which of them it knows."""
    code = """
import errno, socket
told = set()
for family in range(50):
    for kind in range(1, 7):
        try:
            socket.socket(family, kind).close()
            told.add('made')
        except OSError as problem: told.add(errno.errorcode[problem.errno])
sorted(told)
"""
    assert value(session.run(code)) in ([error] for error in REFUSED)


def test_a_raw_socket_cannot_be_made(session):
    attempt = "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)"
    assert errno_of(session, attempt, before="import socket") in REFUSED


def test_the_system_call_socket_is_refused(session):
    assert_refused(session, "socket", 9999, 1, 0)


def test_a_pair_of_sockets_cannot_be_made(session):
    assert errno_of(session, "socket.socketpair()", before="import socket") in REFUSED
    assert_refused(session, "socketpair", 9999, 1, 0, 0)


def test_a_service_of_this_machine_cannot_be_reached(session, service):
    attempt = f"socket.create_connection(('127.0.0.1', {service}), timeout=1)"
    assert errno_of(session, attempt, before="import socket") in REFUSED
    assert lives(session)


def test_a_service_of_this_machine_cannot_be_reached_over_http(session, service):
    told = session.run(f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{service}/', timeout=1)")
    assert told.status == "error" and "URLError" in told.stderr and told.wall_s < AT_ONCE_S + 1
    assert lives(session)


def test_an_address_elsewhere_is_refused_before_anything_is_sent(session):
    told = session.run("import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=5)", timeout=8)
    assert told.status == "error" and told.stderr.splitlines()[-1].startswith("PermissionError"), told
    assert told.wall_s < AT_ONCE_S


def test_a_datagram_cannot_be_sent(session):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(0.1)
        port = listening.getsockname()[1]
        attempt = f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'out', ('127.0.0.1', {port}))"
        assert errno_of(session, attempt, before="import socket") in REFUSED
        with pytest.raises(TimeoutError):
            listening.recv(100)


def test_nothing_can_be_sent_over_the_channel_to_another_address(session):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel picks an abstract name
        listening.settimeout(0.1)
        address = b"\x01\0" + listening.getsockname()
        code = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\naddress = {address!r}\n"
        told = value(session.run(code + "libc.sendto(3, b'', 0, 0, address, len(address)), ctypes.get_errno() > 0"))
        assert told == (-1, True)
        with pytest.raises(TimeoutError):
            listening.recv(100)


def test_a_port_cannot_be_opened(session):
    assert errno_of(session, "socket.create_server(('127.0.0.1', 0))", before="import socket") in REFUSED


def test_a_socket_of_the_machine_in_the_file_system_cannot_be_reached(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        listening.listen()
        listening.settimeout(0.05)
        attempt = f"socket.socket(socket.AF_UNIX).connect({path!r})"
        assert errno_of(session, attempt, before="import socket") in UNREACHABLE
        with pytest.raises(TimeoutError):
            listening.accept()


def test_the_socket_of_the_sandbox_itself_cannot_be_reached(session, sandbox):
    address = str(sandbox._inner.address.path)
    assert lives(session)
    before = sandbox.stats()["sessions"]
    attempt = f"socket.socket(socket.AF_UNIX).connect({address!r})"
    assert errno_of(session, attempt, before="import socket") in UNREACHABLE
    assert errno_of(session, f"open({address!r})") in (*UNREACHABLE, "ENXIO")
    assert sandbox.stats()["sessions"] == before


def test_the_socket_of_the_sandbox_itself_cannot_be_removed(session, sandbox):
    address = str(sandbox._inner.address.path)
    beside = address + "-beside"  # not itself: a sandbox without the layer has to be there for the tests after this one
    assert errno_of(session, f"open({beside!r}, 'x').close()\nos.unlink({beside!r})") in UNREACHABLE


def test_network_interfaces_are_not_told(session):
    assert errno_of(session, "socket.if_nameindex()", before="import socket") in UNREACHABLE


def test_an_event_loop_cannot_be_used_to_reach_out(session, service):
    code = f"import asyncio\nasync def out(): await asyncio.open_connection('127.0.0.1', {service})\nasyncio.run(out())"
    told = session.run(code)
    assert told.status == "error" and "PermissionError" in told.stderr
    assert lives(session)


def test_many_attempts_from_many_threads_are_all_refused(session, service):
    code = f"""
import socket, threading
told = []
def attempt():
    for _ in range(50):
        try:
            socket.create_connection(('127.0.0.1', {service}), timeout=1)
            told.append('connected')
        except OSError as problem: told.append(problem.errno)
threads = [threading.Thread(target=attempt) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
len(told), set(told) <= {{1, 13, 38}}
"""
    assert value(session.run(code)) == (200, True)


def test_a_session_after_a_replay_cannot_reach_out_either(session, service):
    session.run("import os\nos._exit(0)")
    attempt = f"socket.create_connection(('127.0.0.1', {service}), timeout=1)"
    assert errno_of(session, attempt, before="import socket") in REFUSED
