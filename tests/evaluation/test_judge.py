"""A judge over real HTTP: asked in both directions, its verdicts beside the shards, its columns in the table."""

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.evaluation.judge import read_verdict
from mathmill.evaluation.results import evaluate_runs
from mathmill.evaluation.samples import UNKNOWN
from mathmill.evaluation.tables import main_table
from mathmill.generation.regrade import KeyedVerdict
from mathmill.paths import shipped
from mathmill.records import read_records
from mathmill.run import Run
from mathmill.stages.judge import load_judge_prompt
from tests.evaluation.making import evaluated_run, problems_of
from tests.stages.test_main_job import pipeline

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
EXPECTED = ["1", "2", "3", "4", "5"]
GREEDY = [["1"], ["[2]"], ["maybe 3"], ["one way"], [None]]
SAMPLED = [["1", "1"], ["{2}.", "7"], ["3", "3"], ["4", "4"], ["5", "5"]]


@contextlib.contextmanager
def judging(folder: Path):
    """URL of the judge's server, and the folder of its chat template."""
    (folder / "rule").mkdir()
    (folder / "rule" / "config.json").write_text("{}")
    (folder / "rule" / "chat_template.jinja").write_text(TEMPLATE)
    port = folder / "port"
    server = subprocess.Popen([sys.executable, Path(__file__).with_name("judge_server.py"), port])
    try:
        while not port.exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text()}"
    finally:
        server.terminate()
        server.wait()


def hashes(run) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(run.solutions.glob("*/p*.jsonl"))
    }


@pytest.mark.slow
def test_the_judge_is_asked_both_ways_and_stands_beside_the_symbols(workdir):
    run = evaluated_run(workdir, problems_of(EXPECTED), GREEDY, SAMPLED)
    before = hashes(run)
    with judging(workdir) as url:
        flags = ["--server", "openai", "--server_address", url, "--model", "rule", "--num_jobs", "2"]
        first = pipeline("judge", "toy", *flags)
        again = pipeline("judge", "toy", *flags)
        other = pipeline("judge", "toy", *flags, "--max_tokens", "100", check=False)
    assert "each asked about in both directions" in first.stderr
    log = "".join(path.read_text() for path in Path("runs/toy/logs").glob("judge*"))
    assert re.search(r"^\d+ different answers: \d+ the same as expected, \d+ not, \d+ could not tell$", log, re.M)
    assert "nothing to do" in again.stderr
    assert (other.returncode, other.stderr.count("\n")) == (0, 1)  # finished: nothing that could be mixed
    assert hashes(run) == before

    verdicts = {
        row.problem_id[-1]: (row.is_correct, row.rule)
        for path in (run.solutions / "toy-greedy" / "verdicts" / "judge").glob("p*.jsonl")
        for row in read_records(path, KeyedVerdict)
    }
    assert verdicts == {
        "0": (True, "judge:yes/yes"),
        "1": (True, "judge:yes/yes"),
        "2": (None, "judge:unclear/unclear"),
        "3": (None, "judge:no/yes"),
        "4": (False, "no answer"),
    }

    [result] = evaluate_runs([run], judge="judge")
    shares = {name: result.score("greedy", name).share for name in result.verdict_names}
    symbolic = result.score("greedy").values
    assert shares["judge"] == 0.4
    assert shares["either"] == max(symbolic.mean(), 0.4)
    assert shares["both"] <= min(shares["symbolic"], shares["judge"])
    assert result.score("majority@2", "judge").values.tolist() == [1, 1, 1, 1, 1]
    assert (result.judged["greedy"] == UNKNOWN).sum() == 2
    assert [row[2] for row in main_table([result]).rows] == ["symbolic", "judge", "either", "both"]

    shown = pipeline("summarize_results", "toy")
    assert "either" in shown.stdout
    assert "judge: " in (run.folder / "report" / "problems-1-toy-test.html").read_text()


@pytest.mark.slow
def test_a_model_that_is_no_judge_ends_without_a_verdict_and_says_so(workdir):
    evaluated_run(workdir, problems_of(EXPECTED), GREEDY, None)
    chat = pipeline("judge", "toy", "--model", "words", check=False)
    assert (chat.returncode, chat.stderr.count("\n"), "template: raw" in chat.stderr) == (2, 1, True)

    text = Path("raw.yaml")
    text.write_text((shipped("prompts") / "judges" / "equivalence.yaml").read_text().replace(": chat", ": raw"))
    done = pipeline("judge", "toy", "--model", "words", "--prompt", "raw.yaml", "--max_tokens", "20")
    assert "4 could not tell; words never gave a verdict: it may be no chat model" in done.stderr + done.stdout
    assert evaluate_runs([Run(Path("runs/toy"))], judge="judge")[0].score("greedy", "judge").share == 0


@pytest.mark.slow
def test_verdicts_of_another_judge_are_not_mixed_in(workdir):
    run = evaluated_run(workdir, problems_of(EXPECTED), GREEDY, SAMPLED)
    with judging(workdir) as url:
        flags = ["--server", "openai", "--server_address", url, "--model", "rule"]
        pipeline("judge", "toy", *flags)
        next((run.solutions / "toy-greedy" / "verdicts" / "judge").glob("p*.jsonl")).unlink()
        other = pipeline("judge", "toy", *flags, "--max_tokens", "100", check=False)
        none = pipeline("judge", "toy", *flags[:4], check=False)
    assert (other.returncode, "begun with max_tokens 512" in other.stderr) == (2, True)
    assert (none.returncode, "name the judge's folder" in none.stderr) == (2, True)
    assert "Traceback" not in other.stderr + none.stderr


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("They agree.\nJudgement: Yes", True),
        ("**Judgment: no**", False),
        ("Judgement: Yes at first.\nOn reflection:\nJudgement: No", False),
        ("No.", False),
        ("Yes", True),
        ("There is no doubt that yes may be said.", None),
        ("", None),
    ],
)
def test_the_judges_last_word_counts(said, verdict):
    assert read_verdict(said) is verdict


def test_a_judges_prompt_must_show_both_answers(workdir):
    Path("half.yaml").write_text(
        json.dumps({"description": "x", "template": "raw", "user": "{{problem}} {{first_answer}}"})
    )
    with pytest.raises(UserError, match="second_answer"):
        load_judge_prompt("half.yaml")
    with pytest.raises(UserError, match="Known: equivalence"):
        load_judge_prompt("halves")
