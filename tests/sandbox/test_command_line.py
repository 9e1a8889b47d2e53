"""python -m mathmill.sandbox run | doctor | serve, as a person calls it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def call(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mathmill.sandbox", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_file_runs_block_by_block_in_one_session(tmp_path):
    file = tmp_path / "code.py"
    file.write_text("x = 20\nprint('no newline', end='')\n# %%\nx + 1\n# %%\nwhile True: pass\n# %%\nx\n")
    told = call("run", str(file), "--timeout", "0.5")
    assert (told.returncode, told.stdout) == (1, "no newline\n21\n20\n")
    assert told.stderr == "[block 3: timeout after 0.5 s]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "exit_code", "last"),
    [("1 + 1", 0, ""), ("1 / 0", 1, "ZeroDivisionError: division by zero"), ("import sys; sys.exit(0)", 0, "[exit]"),
     ("import sys; sys.exit(4)", 1, "[exit]"), ("print('x' * 20_000)", 0, "[output cut; --max_output keeps more]")],
)  # fmt: skip
def test_the_exit_code_says_whether_all_went_well(code, exit_code, last):
    told = call("run", "-", text=code)
    assert (told.returncode, told.stderr.rstrip().rpartition("\n")[2]) == (exit_code, last), told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.py"], "nowhere.py: cannot be read: No such file or directory"),
        (["run", "-", "--timeout", "inf"], "--timeout inf: give seconds, more than 0"),
        (["run", "-", "--timeout", "-1"], "--timeout -1.0: give seconds, more than 0"),
        (["run", "-", "--policy", "sharp"], "no policy 'sharp'. Known: strict, standard, trusted"),
        (["serve", "--address", "somewhere"], "write unix:PATH or tcp:HOST:PORT"),
        (["serve", "--address", "unix:"], "write unix:PATH or tcp:HOST:PORT"),
        (["serve", "--address", "tcp:here"], "write tcp:HOST:PORT"),
        (["serve", "--address", "unix:/nonexistent/folder/socket"], "no folder /nonexistent/folder for the socket"),
        (["serve", "--libraries", "numpyy", "--address", "unix:x/y"], "no library 'numpyy' is imported ahead"),
        (["serve", "--options", "nofile.json"], "nofile.json: no JSON object"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = call(*arguments, text="1")
    assert told.returncode == 2 and told.stderr.count("\n") == 1 and words in told.stderr, told.stderr


def test_the_doctor_tries_every_mode_and_says_which_policies_can_be_had():
    told = call("doctor")
    rows = {line[:20].strip(): line[20:].split() for line in told.stdout.splitlines()}
    assert told.returncode == 0 and told.stderr == ""
    assert rows["system calls"][0] == rows["own processes"][0] == "holds"
    assert rows["files: Landlock"][2] in ("holds", "NO")
    assert "policy strict    by namespaces" in told.stdout


def test_help_names_the_commands():
    for arguments in ([], ["--help"]):
        told = call(*arguments)
        assert told.returncode == 0 and all(word in told.stdout for word in ("serve", "run", "doctor"))
