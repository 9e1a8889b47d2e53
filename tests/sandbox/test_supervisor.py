"""The supervisor: clients that hang up, come back or send junk; its start, its end, and its death."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.sandbox import AsyncSandbox, Sandbox, SandboxLost
from mathmill.sandbox.frames import VERSION, FrameReader, encode
from mathmill.sandbox.options import SandboxOptions, address_of, options_from, read_address

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def start_step(folder: Path, options: dict | None = None, **environment: str) -> subprocess.Popen:
    """The sandbox step of a job, as its script starts it, once it serves."""
    folder.mkdir(exist_ok=True)
    job = folder / "generation.json"
    job.write_text(json.dumps({"sandbox": options or {}}))
    step = subprocess.Popen(
        [sys.executable, "-m", "mathmill.sandbox", str(job)],
        env=os.environ | {"MATHMILL_NODE_DIR": str(folder), "PYTHONPATH": str(REPOSITORY)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return step


@pytest.fixture
def step(tmp_path_factory):
    folder = tmp_path_factory.mktemp("n")
    step = start_step(folder, {"workers": 2, "libraries": ""})
    assert step.stdout.readline().startswith("ready ")
    step.folder, step.socket = folder, str(folder / "sandbox" / "socket")
    yield step
    step.kill()
    step.communicate()


def test_a_thousand_sessions_are_open_at_once_and_each_keeps_its_names():
    async def all_of_them():
        async with await AsyncSandbox.start(libraries="", max_sessions=300) as sandbox:
            sessions = [sandbox.session() for _ in range(1000)]
            await asyncio.gather(*[one.run(f"x = {number}", timeout=60) for number, one in enumerate(sessions)])
            stats = await sandbox.stats()
            return stats, await asyncio.gather(*[one.run("x", timeout=60) for one in sessions])

    stats, told = asyncio.run(all_of_them())
    assert (stats["sessions"], stats["parked"]) == (1000, 700)
    assert [one.result for one in told] == [str(number) for number in range(1000)]


def test_a_retried_request_runs_its_block_once(sandbox):
    async def cut_in_the_middle():
        async with await AsyncSandbox.connect(str(sandbox._inner.address)) as client, client.session() as session:
            code = "import time\ntime.sleep(0.3)\ncount = globals().get('count', 0) + 1"
            running = asyncio.ensure_future(session.run(code))
            await asyncio.sleep(0.1)
            client._connection._writer.transport.abort()
            first = await running
            return first, await session.run("count")

    first, second = asyncio.run(cut_in_the_middle())
    assert (first.status, second.result, second.state) == ("ok", "1", "live")


def test_the_sessions_of_a_client_that_stays_away_are_closed(sandbox, look):
    async def leave():
        client = await AsyncSandbox.connect(str(sandbox._inner.address))
        await client.session().run("x = 1")
        await client.close()

    before = sandbox.stats()["sessions"]
    asyncio.run(leave())
    assert sandbox.stats()["sessions"] == before + 1
    assert look.becomes_true(lambda: sandbox.stats()["sessions"] == before)


@pytest.mark.parametrize(
    "junk",
    [b"GET / HTTP/1.1\r\n\r\n", bytes([VERSION, 255, 255, 255, 255]), encode({"op": "run"}), encode({"op": "hello", "client": 5}),
     b"\x80\x04\x95pickle", encode({})],
)  # fmt: skip
def test_a_client_that_sends_junk_is_cut_off_and_the_others_go_on(sandbox, session, junk):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(sandbox._inner.address.path))
        client.sendall(junk)
        assert client.recv(100) == b""
    assert session.run("1").result == "1"


@pytest.mark.parametrize(
    "message",
    [{"op": "run"}, {"op": "fly"}, {}, {"op": "run", "session": 5, "code": "1", "index": 0, "timeout": 1},
     {"op": "run", "session": "s", "code": None, "index": 0, "timeout": 1}, {"op": "close"},
     {"op": "run", "session": "s", "code": "1", "index": 0, "timeout": "never"},
     {"op": "run", "session": "s" * 99, "code": "1", "index": 0, "timeout": 1},
     {"op": "run", "session": "s", "code": "1", "index": [], "timeout": {}}],
)  # fmt: skip
def test_a_request_without_sense_is_answered_with_an_error(sandbox, message):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(sandbox._inner.address.path))
        client.sendall(encode({"op": "hello", "id": 0, "client": "a test's own"}) + encode(message | {"id": 1}))
        reader, answers = FrameReader(), []
        while len(answers) < 2:
            answers += reader.feed(client.recv(4096))
    assert answers[1]["id"] == 1 and answers[1]["error"].startswith("bad request")


def test_when_the_own_supervisor_is_killed_another_one_goes_on_and_nothing_of_the_old_is_left(look):
    with Sandbox.start(workers=1, libraries="") as sandbox, sandbox.session() as session:
        pid, folder = sandbox._inner._started.process.pid, sandbox._inner._started.folder
        session.run("x = 1")
        session.run("import os; os._exit(0)")
        children = look.processes_of(pid)
        assert len(children) >= 3
        os.kill(pid, signal.SIGKILL)
        told = session.run("x")
        assert (told.status, told.result, told.state) == ("ok", "1", "replayed")
        assert look.becomes_true(lambda: not any(map(look.running, children)))
        assert not folder.exists()


def test_a_block_in_flight_when_the_supervisor_dies_is_run_by_the_next():
    async def kill_meanwhile():
        async with await AsyncSandbox.start(workers=1, spares=0, libraries="") as sandbox, sandbox.session() as session:
            await session.run("import time\nx = 20")
            running = asyncio.ensure_future(session.run("time.sleep(1)\nx + 1"))
            await asyncio.sleep(0.3)
            os.kill(sandbox._started.process.pid, signal.SIGKILL)
            return await running

    told = asyncio.run(kill_meanwhile())
    assert (told.status, told.result, told.state) == ("ok", "21", "replayed")


def forking_processes(look, pid: int) -> list[int]:
    """The process that sessions are forked from, and the one that started it."""
    return [child for child in look.processes_of(pid) if "mathmill.sandbox.forkserver" in cmdline(child)][:2]


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


@pytest.mark.parametrize("which", [0, 1])
def test_when_the_forking_process_is_killed_the_block_is_lost_and_the_next_request_works(look, which):
    async def kill_meanwhile():
        async with await AsyncSandbox.start(workers=2, spares=1, libraries="") as sandbox, sandbox.session() as session:
            await session.run("x = 5")
            running = asyncio.ensure_future(session.run("import time; time.sleep(9)"))
            await asyncio.sleep(0.3)
            os.kill(forking_processes(look, sandbox._started.process.pid)[which], signal.SIGKILL)
            lost, after = await running, await session.run("x")
            async with sandbox.session() as other:
                return lost, after, await other.run("1 + 1")

    lost, after, other = asyncio.run(kill_meanwhile())
    assert (lost.status, lost.state) == ("lost", "lost") and "died" in lost.stderr
    assert (after.status, after.result, after.state) == ("ok", "5", "replayed")
    assert other.result == "2"


def test_when_a_session_is_killed_from_outside_its_status_says_so_and_it_goes_on(look):
    async def kill_meanwhile():
        async with await AsyncSandbox.start(workers=1, spares=0, libraries="") as sandbox, sandbox.session() as session:
            await session.run("x = 5")
            [_, _, *sessions] = look.processes_of(sandbox._started.process.pid)
            running = asyncio.ensure_future(session.run("import time; time.sleep(9)"))
            await asyncio.sleep(0.3)
            for pid in sessions:
                os.kill(pid, signal.SIGKILL)
            return await running, await session.run("x")

    killed, after = asyncio.run(kill_meanwhile())
    assert killed.status == "memory"  # only the kernel kills so, when memory is gone
    assert (after.result, after.state) == ("5", "replayed")


def test_a_session_goes_on_in_the_supervisor_that_follows_on_the_same_socket(step):
    with Sandbox.connect(step.socket) as sandbox:
        session = sandbox.session()
        session.run("x = 1")
        step.send_signal(signal.SIGTERM)
        step.wait(timeout=5)
        again = start_step(step.folder, {"libraries": ""})
        try:
            assert again.stdout.readline().startswith("ready ")
            told = session.run("x + 1")
            assert (told.result, told.state) == ("2", "replayed")
        finally:
            again.terminate()
            again.communicate()


def test_a_sandbox_on_tcp_wants_its_token(monkeypatch, tmp_path):
    monkeypatch.setenv("MATHMILL_SANDBOX_TOKEN", "a secret of the tests")
    step = start_step(tmp_path, {"workers": 1, "address": "tcp:127.0.0.1:0", "libraries": ""})
    try:
        address = step.stdout.readline().split()[1]
        with Sandbox.connect(address) as sandbox, sandbox.session() as session:
            assert session.run("6 * 7").result == "42"
            assert "secret" not in str(session.run("import os; dict(os.environ)"))
        for wrong in ("", "another secret of some"):
            with pytest.raises(UserError, match=r"refuses: the token is wrong.*MATHMILL_SANDBOX_TOKEN"):
                Sandbox.connect(address, token=wrong)
    finally:
        step.terminate()
        step.communicate()


def test_a_sandbox_on_tcp_without_a_token_does_not_start(monkeypatch, tmp_path):
    monkeypatch.delenv("MATHMILL_SANDBOX_TOKEN", raising=False)
    step = start_step(tmp_path, {"address": "tcp:127.0.0.1:0"})
    assert step.wait(timeout=20) == 2
    assert "16 characters" in step.stderr.read()


def test_term_ends_everything_within_two_seconds(step, look):
    with Sandbox.connect(step.socket) as sandbox:
        session = sandbox.session()
        session.run("open('f', 'w').write('x')")
        children = look.processes_of(step.pid)
        began = time.monotonic()
        step.send_signal(signal.SIGTERM)
        assert step.wait(timeout=5) == 0
        assert time.monotonic() - began < 2
        assert not any(map(look.running, children))
        assert list((step.folder / "sandbox").iterdir()) == []
        assert session.run("1").status == "lost"
    assert step.stderr.read() == ""


def test_a_program_that_dies_takes_its_sandbox_with_it(tmp_path, look):
    script = (
        "import os, signal\nfrom mathmill.sandbox import Sandbox\nsandbox = Sandbox.start(libraries='')\n"
        "sandbox.session().run('1')\n"
        "print(sandbox._inner._started.process.pid, sandbox._inner._started.folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    assert look.becomes_true(lambda: not look.running(int(told[0])) and not Path(told[1]).exists())


def test_a_step_can_be_told_to_die_with_its_parent(tmp_path, look):
    script = (
        f"import subprocess, sys, os, signal\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "command = [sys.executable, '-m', 'mathmill.sandbox', 'serve', '--libraries', '']\n"
        "os.environ['MATHMILL_DIE_WITH_PARENT'] = str(os.getpid())\n"
        "step = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "step.stdout.readline()\nprint(step.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {"PYTHONPATH": str(REPOSITORY), "MATHMILL_NODE_DIR": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, stdout=subprocess.PIPE, text=True
    ).stdout
    assert look.becomes_true(lambda: not look.running(int(told)))
    assert not (tmp_path / "sandbox" / "socket").exists()


def test_a_second_sandbox_on_the_same_socket_is_refused_and_a_dead_ones_socket_is_taken(step):
    second = start_step(step.folder)
    assert second.wait(timeout=10) == 2
    assert "another sandbox serves on" in second.stderr.read()
    step.kill()
    step.wait()
    assert Path(step.socket).exists()
    third = start_step(step.folder, {"libraries": ""})
    try:
        assert third.stdout.readline().startswith("ready ")
    finally:
        third.kill()
        third.communicate()


def test_a_socket_path_that_is_too_long_is_refused_in_one_line(monkeypatch):
    with pytest.raises(UserError, match="at most 107 work"):
        read_address("/tmp/" + "a" * 103)
    assert read_address("unix:/tmp/" + "a" * 102).path
    monkeypatch.delenv("MATHMILL_NODE_DIR", raising=False)
    with pytest.raises(UserError, match="MATHMILL_NODE_DIR"):
        address_of(SandboxOptions())


def test_a_folder_that_is_open_to_others_is_refused(tmp_path):
    (tmp_path / "sandbox").mkdir(mode=0o755)
    step = start_step(tmp_path)
    assert step.wait(timeout=10) == 2
    assert "others may enter" in step.stderr.read()


@pytest.mark.parametrize("isolation", ["namespaces", "reduced", "bubblewrap"])
def test_libraries_are_found_where_the_environment_says_even_below_tmp(tmp_path_factory, isolation):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        Path(folder, "scipy").mkdir()
        Path(folder, "scipy", "__init__.py").write_text("name = 'ours'")
        Path(folder, "scipy", "later.py").write_text("number = 7")
        options = {"isolation": isolation, "libraries": "", "spares": 0}
        step = start_step(tmp_path_factory.mktemp("n"), options, PYTHONPATH=f"{folder}:{REPOSITORY}")
        try:
            with Sandbox.connect(step.stdout.readline().split()[1]) as sandbox, sandbox.session() as session:
                told = session.run("import scipy.later\nscipy.name, scipy.later.number, open('mine', 'w').write('x')")
                assert told.result == "('ours', 7, 1)", told
                assert session.run(f"open('{folder}/scipy/made', 'w')").status == "error"
        finally:
            step.terminate()
            step.communicate()


def test_a_file_at_the_address_is_left_alone(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "thesis").write_text("precious")
    step = start_step(tmp_path, {"address": f"unix:{tmp_path}/thesis"})
    assert step.wait(timeout=20) == 2
    assert "is no socket" in step.stderr.read()
    assert (tmp_path / "thesis").read_text() == "precious"


def test_ctrl_c_in_the_terminal_ends_a_sandbox_in_silence(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-m", "mathmill.sandbox", "serve", "--address", f"unix:{folder}/s", "--libraries", ""]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    serving = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert serving.stdout.readline().startswith("ready ")
    os.killpg(serving.pid, signal.SIGINT)
    _, errors = serving.communicate(timeout=10)
    assert (serving.returncode, errors) == (0, "")
    assert list(folder.iterdir()) == []


def test_what_listens_but_is_no_sandbox_is_told(monkeypatch):
    monkeypatch.setattr("mathmill.sandbox.client.GREETED_WITHIN_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(UserError, match="does not answer as a sandbox does"):
            Sandbox.connect(f"tcp:127.0.0.1:{server.getsockname()[1]}", token="any")


def test_a_closed_sandbox_answers_lost():
    with Sandbox.start(libraries="", spares=0) as sandbox:
        session = sandbox.session()
        assert session.run("1").result == "1"
    assert session.run("1").status == "lost"
    session.close()
    sandbox.close()


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown option 'worker'.*workers"):
        options_from({"worker": 3})
    with pytest.raises(UserError, match="'workers' is 'two'; it must be of type int"):
        options_from({"workers": "two"})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sandbox": 5}', None])
def test_a_job_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, content):
    job = tmp_path / "job.json"
    if content is not None:
        job.write_text(content)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MATHMILL_NODE_DIR": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-m", "mathmill.sandbox", str(job)], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert told.returncode == 2 and told.stderr.count("\n") == 1 and str(job) in told.stderr


@pytest.mark.parametrize("isolation", ["reduced", "bubblewrap"])
def test_a_policy_above_what_a_mode_holds_is_refused_in_one_line(isolation):
    with pytest.raises(
        UserError, match=f"policy 'strict' is not reached here; {isolation}: no own users, own processes.*doctor"
    ) as refusal:
        Sandbox.start(policy="strict", isolation=isolation)
    assert "\n" not in str(refusal.value)


def test_the_strictest_policy_is_reached_by_namespaces():
    with Sandbox.start(policy="strict", workers=1, spares=0, libraries="") as sandbox:
        assert sandbox.about["isolation"] == "namespaces"
        assert {layer for layer, holds in sandbox.layers.items() if not holds} == {"files: Landlock"}


def test_an_unknown_policy_and_an_address_without_sandbox_are_refused(tmp_path):
    with pytest.raises(UserError, match="Known: strict, standard, trusted"):
        Sandbox.start(policy="none")
    with pytest.raises(UserError, match="no sandbox answers at"):
        Sandbox.connect(str(tmp_path / "socket"))
    with pytest.raises(UserError, match="unix:PATH or tcp:HOST:PORT"):
        Sandbox.connect("localhost:8000")


def test_the_room_needs_the_standard_library_only():
    script = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import mathmill.sandbox.__main__, mathmill.sandbox.blocks"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)


def test_nothing_grows_over_many_sessions(sandbox):
    pid = sandbox._inner._started.process.pid

    def held() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{pid}/fd")), sandbox.stats()["sessions"]

    def use(number: int) -> None:
        with sandbox.session() as session:
            session.run("x = 1" if number % 3 else "import os; os._exit(1)")

    use(0)
    time.sleep(0.3)
    before = held()
    for number in range(20):
        use(number)
    time.sleep(0.5)
    assert held() == before


def test_a_block_too_large_to_send_is_an_error_and_ten_others_go_on():
    async def one(sandbox: AsyncSandbox, number: int) -> str | None:
        async with sandbox.session() as session:
            await session.run(f"import time; x = {number}; time.sleep(0.3)", timeout=30)
            return (await session.run("x", timeout=30)).result

    async def beside() -> tuple[list, list]:
        async with await AsyncSandbox.start(workers=4, libraries="") as sandbox, sandbox.session() as large:
            others = [asyncio.ensure_future(one(sandbox, number)) for number in range(10)]
            await asyncio.sleep(0.1)
            refused = await large.run(f"x = '{'a' * 5_000_000}'")
            return [refused, await large.run("1 + 1")], await asyncio.gather(*others)

    (refused, next_block), others = asyncio.run(beside())
    assert refused.status == "error" and refused.stderr.endswith("ValueError: the code is larger than 4 MiB")
    assert (next_block.status, next_block.result) == ("ok", "2")
    assert others == [str(number) for number in range(10)]


def test_a_lost_session_is_told_apart_from_a_supervisor_that_is_gone(step):
    async def lose_both() -> tuple[str, int, float, str]:
        async with await AsyncSandbox.connect(step.socket) as sandbox, sandbox.session() as session:
            await session.run("x = 1")
            running = asyncio.ensure_future(session.run("import time; time.sleep(5)"))
            await asyncio.sleep(0.2)
            await session.close()
            lost, stats = await running, await sandbox.stats()
            step.kill()
            began = time.monotonic()
            with pytest.raises(SandboxLost):
                await sandbox.stats()
            waited_s = time.monotonic() - began
            return lost.status, stats["sessions"], waited_s, (await session.run("1")).status

    status, sessions, waited_s, after = asyncio.run(lose_both())
    assert (status, sessions, after) == ("lost", 0, "lost")
    assert waited_s < 1
