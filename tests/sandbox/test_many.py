"""Many sessions, few places for them, clients that misbehave: nobody waits for ever, nothing is run twice or left open."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mathmill.sandbox import AsyncSandbox, Sandbox
from mathmill.sandbox.frames import FrameReader, encode

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
OPEN_DESCRIPTORS = """
import os
found = []
for number in range(10_000):
    try: os.fstat(number)
    except OSError: continue
    found.append(number)
found
"""


def test_a_session_inherits_nothing_however_many_there_are_and_whichever_process_it_was_forked_from():
    with Sandbox.start(workers=2, spares=0) as sandbox:
        sessions = [sandbox.session() for _ in range(80)]
        assert {session.run("1").status for session in sessions} == {"ok"}
        for first in ("", "import scipy"):  # the second tier's process starts when many descriptors are open
            with sandbox.session() as session:
                session.run(first)
                assert session.run(OPEN_DESCRIPTORS).result == "[0, 1, 2, 3]"


def test_pipelined_blocks_of_more_sessions_than_have_room_all_end():
    async def pipelined() -> list:
        async with await AsyncSandbox.start(workers=2, max_sessions=3, spares=0, libraries="") as sandbox:
            sessions = [sandbox.session() for _ in range(8)]
            blocks = [session.run(f"x = {number}", timeout=60) for number in range(3) for session in sessions]
            await asyncio.wait_for(asyncio.gather(*blocks), 60)
            return await asyncio.wait_for(asyncio.gather(*[session.run("x") for session in sessions]), 60)

    assert [told.result for told in asyncio.run(pipelined())] == ["2"] * 8


def test_a_session_closed_while_its_block_waits_for_a_process_does_not_run_it():
    async def close_meanwhile() -> tuple:
        async with await AsyncSandbox.start(workers=1, spares=0, libraries="numpy,scipy") as sandbox:
            session = sandbox.session()
            running = asyncio.ensure_future(session.run("import scipy\nwhile True: pass", timeout=30))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await session.close()
            async with sandbox.session() as other:
                return await running, await other.run("1 + 1"), time.monotonic() - began

    ended, other, waited_s = asyncio.run(close_meanwhile())
    assert (ended.status, other.result) == ("lost", "2")
    assert waited_s < 25


def test_a_thread_that_waits_for_its_block_is_told_when_the_sandbox_is_closed():
    told = []
    sandbox = Sandbox.start(libraries="", spares=0)
    session = sandbox.session()
    thread = threading.Thread(target=lambda: told.append(session.run("while True: pass", timeout=300)))
    thread.start()
    time.sleep(0.3)
    sandbox.close()
    thread.join(timeout=10)
    assert [one.status for one in told] == ["lost"]


def test_a_fork_of_a_program_with_a_sandbox_is_told_that_it_has_none():
    with Sandbox.start(libraries="", spares=0) as sandbox, sandbox.session() as session:
        session.run("x = 1")
        pid = os.fork()
        if pid == 0:
            status = session.run("x").status
            sandbox.close()
            os._exit(0 if status == "lost" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert session.run("x").result == "1"


async def talk(sandbox: AsyncSandbox, *messages: dict) -> list[dict]:
    """The answers to raw messages on a connection of their own."""
    reader, writer = await asyncio.open_unix_connection(str(sandbox.address.path))
    writer.write(b"".join(map(encode, [{"op": "hello", "id": 0, "client": "a raw client"}, *messages])))
    frames, answers = FrameReader(), []
    while len(answers) <= len(messages):
        answers += frames.feed(await asyncio.wait_for(reader.read(65536), 20))
    writer.close()
    return answers[1:]


def test_a_request_that_comes_again_long_after_is_not_run_again():
    def block(number: int, code: str) -> dict:
        return {"op": "run", "session": "s", "index": number - 1, "id": number, "code": code, "timeout": 9}

    async def twice() -> tuple:
        async with await AsyncSandbox.start(workers=1, spares=0, libraries="") as sandbox:
            blocks = [block(1, "n = 0"), *[block(number, "n += 1") for number in range(2, 101)]]
            first = await talk(sandbox, *blocks)
            again = await talk(sandbox, *blocks)
            return first, again, await talk(sandbox, block(101, "n"))

    first, again, [last] = asyncio.run(twice())
    assert {answer["status"] for answer in first} == {"ok"}
    assert {answer["status"] for answer in again} <= {"ok", "lost"}
    assert last["result"] == "99"


@pytest.mark.parametrize(
    "field", [{"max_output": 1e308}, {"timeout": 10**400}, {"index": 1, "earlier": [{"code": "1"}]}]
)
def test_numbers_beyond_all_measure_are_answered(field: dict):
    async def ask() -> list[dict]:
        async with await AsyncSandbox.start(workers=1, spares=0, libraries="") as sandbox:
            message = {"op": "run", "session": "s", "index": 0, "id": 1, "code": "1", "timeout": 9} | field
            return await talk(sandbox, message)

    [answer] = asyncio.run(ask())
    assert "error" in answer or answer["status"] == "ok"


def test_after_the_forking_process_died_reduced_sessions_go_on_too(look):
    with Sandbox.start(isolation="reduced", workers=2, spares=1, libraries="") as sandbox:
        sessions = [sandbox.session() for _ in range(6)]
        for number, session in enumerate(sessions):
            session.run(f"x = {number}\nwith open('kept', 'w') as file: _ = file.write('x')")
        [forking, *_] = look.processes_of(sandbox._inner._started.process.pid)
        os.kill(forking, signal.SIGKILL)
        time.sleep(0.3)  # a block in flight would be lost
        told = [session.run("x, open('kept').read()") for session in sessions]
        assert [one.result for one in told] == [f"({number}, 'x')" for number in range(6)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can send so many")
def test_other_programs_of_the_user_that_send_many_descriptors_are_no_harm(tmp_path):
    (tmp_path / "own").mkdir(mode=0o700)
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for _ in range(40):
        socket.send_fds(ends[0], [b"unread"], [ends[0].fileno()] * 10)
    command = [
        "unshare",
        "--user",
        "--map-user=1000",
        sys.executable,
        "-m",
        "mathmill.sandbox",
        "serve",
        "--libraries",
        "",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    serving = subprocess.Popen(
        [*command, "--address", f"unix:{tmp_path}/own/s"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        with Sandbox.connect(serving.stdout.readline().split()[1]) as sandbox, sandbox.session() as session:
            assert session.run("1 + 1").result == "2"
            assert session.run("while True: pass", timeout=0.3).status == "timeout"
    finally:
        serving.terminate()
        serving.communicate()
        for end in ends:
            end.close()


@pytest.mark.parametrize("limit", ["-n 256", "-t 1800"])
def test_a_sandbox_starts_under_the_limits_of_a_login_node(limit: str):
    code = "from mathmill.sandbox import Sandbox\nwith Sandbox.start(libraries='') as s:\n"
    code += "    sessions = [s.session() for _ in range(60)]\n    print({one.run('1 + 1').result for one in sessions})"
    command = ["bash", "-c", f'ulimit {limit}; exec "$0" -c "$1"', sys.executable, code]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "{'2'}\n"), done.stderr
