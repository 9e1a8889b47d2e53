"""One question on the command line."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.launch.cluster import load_cluster, resolve_model
from mathmill.stages import solve as stage

REPOSITORY = Path(__file__).parents[2]
SCRIPT = [sys.executable, str(REPOSITORY / "pipeline" / "solve.py")]


def said(*arguments: str) -> tuple[int, str]:
    told = subprocess.run(
        [*SCRIPT, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, timeout=60
    )
    return told.returncode, told.stderr


def test_an_empty_question_is_refused():
    assert said("") == (2, "error: the question is empty; write it behind the script's name, in quotes\n")


@pytest.mark.slow
def test_a_server_that_is_not_there_is_told_at_once():
    began = time.monotonic()
    code, message = said("What", "is", "2+2?", "--server_address", "http://127.0.0.1:9")
    assert code == 2 and "no server answers at http://127.0.0.1:9 (Connection refused)" in message
    assert time.monotonic() - began < 60
    assert "looks like http://HOST:PORT" in said("x", "--server_address", "localhost:9")[1]


def test_a_server_that_never_gets_ready_is_given_up(monkeypatch):
    monkeypatch.setattr(stage, "START_WITHIN_S", 0.0)
    with pytest.raises(UserError, match="was not ready within 0 s"):
        with stage.own_server(resolve_model("words", load_cluster("local"))):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after_s", [0.7, None], ids=["at its start", "at work"])
@pytest.mark.slow
def test_a_signal_leaves_no_folder_behind(tmp_path, number, after_s):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        where = [] if after_s else ["--server_address", f"http://127.0.0.1:{silent.getsockname()[1]}", "--model", "x"]
        script = subprocess.Popen(
            [*SCRIPT, "two", "words", *where],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert script.stdout is not None
        if after_s:
            deadline = time.monotonic() + 20
            while not list(tmp_path.glob("mathmill-*")) and time.monotonic() < deadline:
                time.sleep(0.01)
        else:
            assert script.stdout.readline() == "two words\n"
        assert list(tmp_path.glob("mathmill-*"))
        script.send_signal(number)
        _, message = script.communicate(timeout=20)
    assert (script.returncode, message) == (130, "stopped\n")
    assert not list(tmp_path.glob("mathmill-*"))
