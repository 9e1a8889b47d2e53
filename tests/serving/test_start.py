"""The server's step: real processes, from the start to the end of them."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.serving.address import Address, read_address, write_address

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Step:
    """A job's server step in a run folder of its own."""

    run: Path
    options: dict

    @property
    def address(self):
        return self.run / "servers" / "77.json"

    @contextlib.contextmanager
    def start(self, rank=0, **environment):
        (self.run / "jobs").mkdir(exist_ok=True)
        job = self.run / "jobs" / "job.json"
        job.write_text(json.dumps({"server": self.options}))
        variables = {"MATHMILL_RUN": self.run, "MATHMILL_JOB": "77", "MATHMILL_NODE_DIR": self.run / "node"}
        variables |= {"SLURM_PROCID": rank, "PYTHONPATH": REPOSITORY} | environment
        with subprocess.Popen(
            [sys.executable, "-m", "mathmill.serving.start", str(job)],
            env=os.environ | {name: str(value) for name, value in variables.items()},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.terminate()  # after a failed claim; else it has ended already

    def wait_ready(self, process):
        wait_until(lambda: self.address.exists() or process.poll() is not None)
        return read_address(self.address)


@pytest.fixture
def step(tmp_path, model_folder):
    return Step(
        tmp_path,
        {"kind": "bundled", "model": str(model_folder), "served_name": "tiny", "host": "127.0.0.1"},
    )


@pytest.fixture
def impostors(tmp_path):
    """Commands named as those of servers that need a GPU, on the PATH and the PYTHONPATH; where they take notes."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "sglang").mkdir()
    source = Path(__file__).parent / "impostor.py"
    shutil.copy(source, tmp_path / "sglang" / "launch_server.py")
    (tmp_path / "sglang" / "__init__.py").touch()
    vllm = tmp_path / "bin" / "vllm"
    vllm.write_text(f"#!{sys.executable}\n{source.read_text()}")
    vllm.chmod(0o755)
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{tmp_path}",
        "IMPOSTOR_NOTES": str(tmp_path),
    }


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def ask(address, path, body=None, token=None):
    connection = http.client.HTTPConnection(address.url.removeprefix("http://"), timeout=10)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        return connection.getresponse().status


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_ready_server_is_announced_needs_its_token_and_name_and_ends_with_term(step):
    with step.start() as process:
        address = step.wait_ready(process)
        assert stat.S_IMODE(step.address.stat().st_mode) == 0o600
        assert (address.kind, address.context_length) == ("bundled", 4096)
        assert address.model.startswith("tiny-")
        assert address.token not in repr(address)
        body = {"model": address.model, "prompt": "Tom", "max_tokens": 2}
        assert ask(address, "/v1/completions", body, address.token) == 200
        assert ask(address, "/v1/completions", body) == 401
        assert ask(address, "/v1/completions", body, "guess") == 401
        assert ask(address, "/v1/completions", body | {"model": "tiny"}, address.token) == 404
        assert address.token not in Path(f"/proc/{children(process.pid)[0]}/cmdline").read_text()
        begin = time.monotonic()
        process.terminate()
        assert process.wait(5) == 0
        assert time.monotonic() - begin < 2
        assert not step.address.exists()


def test_a_server_that_dies_at_start_ends_the_step_at_once_with_its_code(step):
    step.options["arguments"] = ["--no_such_option"]
    with step.start() as process:
        assert process.wait(10) == 2
        assert "unrecognized arguments: --no_such_option" in process.stderr.read()
    assert not step.address.exists()


@pytest.mark.slow
def test_a_server_that_dies_later_ends_the_step_and_its_announcement(step):
    with step.start() as process:
        step.wait_ready(process)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        begin = time.monotonic()
        assert process.wait(5) == 128 + signal.SIGKILL
        assert time.monotonic() - begin < 1
        assert not step.address.exists()


@pytest.mark.slow
def test_a_port_that_somebody_took_is_given_up_for_another(step):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        step.options["port"] = taken
        with step.start() as process:
            address = step.wait_ready(process)
            assert not address.url.endswith(f":{taken}")
            process.terminate()
            assert f"somebody else listens on port {taken}" in process.stderr.read()


@pytest.mark.slow
def test_a_server_that_ignores_term_is_killed_after_the_grace(step, impostors, tmp_path):
    stubborn = tmp_path / "bin" / "vllm"
    stubborn.write_text(f"#!/bin/bash\ntrap '' TERM\nsleep 1000 & echo $! > {tmp_path}/pid\nwhile :; do wait; done\n")
    sitecustomize = "import mathmill.serving.process as process\nprocess.GRACE_S = 0.5\n"
    (tmp_path / "sitecustomize.py").write_text(sitecustomize)
    step.options["kind"] = "vllm"
    with step.start(**impostors) as process:
        wait_until((tmp_path / "pid").exists)
        wait_until(lambda: (tmp_path / "pid").read_text().strip())
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGKILL
        wait_until(lambda: not lives((tmp_path / "pid").read_text().strip()))


@pytest.mark.slow
def test_a_server_that_is_not_ready_in_time_is_given_up(step, impostors, tmp_path):
    (tmp_path / "bin" / "vllm").write_text("#!/bin/bash\nexec sleep 1000\n")
    step.options |= {"kind": "vllm", "start_minutes": 0.005}
    with step.start(**impostors) as process:
        assert process.wait(10) == 1
        assert "not ready in time (start_minutes)" in process.stderr.read()


@pytest.mark.slow
def test_a_strangers_server_on_the_port_is_never_announced(step, impostors, tmp_path):
    """vLLM's command runs but listens elsewhere; the port answers /health and /v1/models under another name."""
    (tmp_path / "bin" / "vllm").write_text("#!/bin/bash\nexec sleep 1000\n")
    stranger_notes = tmp_path / "stranger"
    stranger_notes.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stranger = [sys.executable, str(Path(__file__).parent / "impostor.py"), "--port", str(port)]
    with subprocess.Popen(
        [*stranger, "--served-model-name", "tiny"], env=os.environ | {"IMPOSTOR_NOTES": str(stranger_notes)}
    ) as other:
        wait_until((stranger_notes / "rank0.json").exists)
        step.options |= {"kind": "vllm", "port": port, "start_minutes": 0.012}
        with step.start(**impostors) as process:
            assert process.wait(10) == 1
        assert not step.address.exists()
        other.terminate()


def test_vllm_gets_its_token_by_environment(step, impostors, tmp_path):
    step.options |= {"kind": "vllm", "gpus": 2, "arguments": ["--seed", "a b"]}
    with step.start(**impostors) as process:
        address = step.wait_ready(process)
        started = json.loads((tmp_path / "rank0.json").read_text())
        assert (started["token"], address.context_length) == (address.token, 1234)
        assert started["arguments"][-4:] == ["--tensor-parallel-size", "2", "--seed", "a b"]
        assert address.token not in " ".join(started["arguments"])
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGTERM


def test_sglang_on_two_nodes_meets_where_the_first_task_says(step, impostors, tmp_path):
    step.options |= {"kind": "sglang", "gpus": 4, "nodes": 2}
    with step.start(rank=1, **impostors) as second:
        time.sleep(0.3)
        assert not (tmp_path / "rank1.json").exists()
        with step.start(rank=0, **impostors) as first:
            address = step.wait_ready(first)
            assert second.wait(10) == 0
            notes = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
            meeting = [note["arguments"][note["arguments"].index("--dist-init-addr") + 1] for note in notes]
            assert meeting[0] == meeting[1]
            assert meeting[0].startswith("127.0.0.1:")
            assert notes[1]["pid"] == second.pid  # exec: signals of the step reach the server itself
            assert (notes[0]["token"], notes[0]["token_file_mode"]) == (address.token, "0o600")
            first.terminate()
            assert first.wait(5) == 128 + signal.SIGTERM
    assert list((tmp_path / "servers").iterdir()) == []
    assert list((tmp_path / "node").iterdir()) == []


@pytest.mark.parametrize("victim", ["script", "step"])
@pytest.mark.slow
def test_a_server_does_not_outlive_a_killed_script_or_step(step, tmp_path, victim):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.json").write_text(json.dumps({"server": step.options}))
    script = textwrap.dedent(f"""
        MATHMILL_DIE_WITH_PARENT=$$ {sys.executable} -m mathmill.serving.start {tmp_path}/jobs/job.json &
        echo $! > {tmp_path}/step
        wait
    """)
    environment = {"MATHMILL_RUN": str(tmp_path), "MATHMILL_JOB": "77", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(["bash", "-c", script], env=os.environ | environment) as bash:
        try:
            wait_until(step.address.exists)
        except AssertionError:
            bash.kill()
            raise
        step_pid = int((tmp_path / "step").read_text())
        server_pid = children(step_pid)[0]
        os.kill(bash.pid if victim == "script" else step_pid, signal.SIGKILL)
        wait_until(lambda: not lives(server_pid) and not lives(step_pid), 5)
    if victim == "script":
        assert not step.address.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "tensorrt"}, "no server kind 'tensorrt'. Known: bundled"),
        ({"kind": "trtllm"}, "cannot run trtllm-serve: No such file or directory"),
        ({"kind": "openai"}, "--server_address URL"),
        ({"gpu": 8}, "unknown key 'gpu'"),
    ],
)
def test_what_cannot_start_is_said_in_one_line(step, changes, said):
    step.options |= changes
    with step.start() as process:
        errors = process.stderr.read()
        assert process.wait(10) == 2
    assert said in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_an_address_file_is_read_back_and_a_bad_one_is_named(tmp_path):
    path = tmp_path / "77.json"
    address = Address(url="http://node:1", kind="vllm", model="m-1", token="t", context_length=4096)
    write_address(path, address)
    assert read_address(path) == address
    path.write_text("{}")
    with pytest.raises(UserError, match=r"77\.json is not an address file"):
        read_address(path)
    path.unlink()
    with pytest.raises(UserError, match="no address file"):
        read_address(path)
