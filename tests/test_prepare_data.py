"""Problems made of benchmarks' published forms, from files and from addresses."""

import gzip
import http.server
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.problems import download
from mathmill.problems.download import PUBLISHED, Published, fetch
from mathmill.problems.prepare import DOWNLOAD, Prepared, locate, prepare, training_splits
from mathmill.problems.source import answer_type, load_corrections, problem_sha
from mathmill.records import Problem
from mathmill.stages.prepare_data import corrections_line

REPOSITORY = Path(__file__).parent.parent
CASES = REPOSITORY / "tests" / "cases"
DEV_DATA = Path(os.environ.get("MATHMILL_DEV_DATA") or REPOSITORY.parent / "shared" / "data")
needs_dev_data = pytest.mark.skipif(not (DEV_DATA / "gsm8k").is_dir(), reason="the developers' data is not here")


def cases(name: str) -> list:
    return yaml.safe_load((CASES / f"{name}.yaml").read_text())


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def dev_rows(name: str, split: str) -> list[dict]:
    return [json.loads(line) for line in gzip.open(DEV_DATA / name / f"{split}.jsonl.gz")]


def refusal(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# GSM8K


def gsm8k_row(answer: str = "2 and 2 are <<2+2=4>>4.\n#### 4", question: str = "What is 2 + 2?") -> dict:
    return {"question": question, "answer": answer}


def test_gsm8k_is_read_as_published(tmp_path):
    lines(tmp_path / "train.jsonl", *(gsm8k_row(question=f"q{number}") for number in range(5)))
    lines(tmp_path / "test.jsonl", gsm8k_row("#### 1,600"), gsm8k_row("It is <<-3=-3>>-3.\n#### -3"))
    splits = prepare("gsm8k", tmp_path, validation_size=2).splits
    assert {split: len(problems) for split, problems in splits.items()} == {
        "train": 3, "validation": 2, "train_full": 5, "test": 2,
    }  # fmt: skip
    assert [(each.problem_id, each.expected_answer) for each in splits["test"]] == [
        ("gsm8k/test/0", "1600"),
        ("gsm8k/test/1", "-3"),
    ]
    assert splits["test"][1].reference_solution == "It is -3."
    assert splits["test"][1].answer_type == "integer"


def test_a_problem_keeps_its_id_in_every_training_split(tmp_path):
    lines(tmp_path / "train.jsonl", *(gsm8k_row(question=f"q{number}") for number in range(30)))
    splits = prepare("gsm8k", tmp_path / "train.jsonl", validation_size=10).splits
    assert all(each.problem == f"q{each.problem_id.split('/')[-1]}" for each in splits["train_full"])
    ids = {split: [each.problem_id for each in problems] for split, problems in splits.items()}
    assert ids["train_full"] == ids["validation"] + ids["train"]
    assert {each.split for each in splits["validation"]} == {"validation"}
    order = list(range(30))
    random.Random(42).shuffle(order)
    assert ids["validation"] == [f"gsm8k/train/{number}" for number in order[:10]]


@given(st.integers(min_value=2, max_value=60), st.data())
def test_training_splits_neither_lose_nor_double_a_problem(count, data):
    size = data.draw(st.integers(min_value=1, max_value=count - 1))
    problems = [
        Problem(problem_id=str(number), problem="?", expected_answer=None, dataset="d", split="train")
        for number in range(count)
    ]
    parts = training_splits(problems, size)
    held, rest = ({each.problem_id for each in parts[split]} for split in ("validation", "train"))
    assert len(held) == size and not held & rest and held | rest == {each.problem_id for each in problems}


@pytest.mark.parametrize(
    "row, complaint",
    [
        (gsm8k_row("no mark"), "no '####'"),
        (gsm8k_row("#### many"), "is no number"),
        (gsm8k_row(question=" "), "the question is empty"),
        ({"question": "What?"}, "it needs question and answer"),
        ({"question": 3, "answer": "#### 3"}, "not a problem"),
        ("{", "not a problem"),
    ],
)
def test_a_bad_row_of_gsm8k_is_refused_by_its_line(tmp_path, row, complaint):
    path = lines(tmp_path / "test.jsonl", gsm8k_row(), row)
    message = refusal(prepare, "gsm8k", path, 1)
    assert message.startswith(f"{path}:2: ") and complaint in message


def test_a_source_that_is_no_gsm8k_is_refused(tmp_path):
    assert "is no file or folder" in refusal(prepare, "gsm8k", tmp_path / "nowhere", 1)
    assert "neither train.jsonl nor test.jsonl" in refusal(prepare, "gsm8k", tmp_path, 1)
    assert "the file's name says its split" in refusal(prepare, "gsm8k", lines(tmp_path / "x.jsonl", gsm8k_row()), 1)
    assert "the test split is empty" in refusal(prepare, "gsm8k", lines(tmp_path / "test.jsonl"), 1)
    lines(tmp_path / "test.jsonl.gz", gsm8k_row())
    assert "name the one to read" in refusal(prepare, "gsm8k", tmp_path, 1)


def test_a_validation_split_as_large_as_the_training_problems_is_refused(tmp_path):
    path = lines(tmp_path / "train.jsonl", *(gsm8k_row(question=f"q{number}") for number in range(3)))
    for size in (0, 3):
        assert "--validation_size" in refusal(prepare, "gsm8k", path, size)


# Corrected answers


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_the_tables_of_corrections_are_whole(name):
    rows = list(load_corrections(name).values())
    raw = yaml.safe_load((REPOSITORY / "problems" / "corrections" / f"{name}.yaml").read_text())
    assert len(rows) == len(raw) == len({row.problem_id for row in rows})
    assert all(row.published != row.corrected and row.reason and row.corrected for row in rows)


@needs_dev_data
@pytest.mark.parametrize("name, count", [("gsm8k", 12), ("math", 2)])
def test_every_correction_meets_the_problem_that_it_names(name, count):
    rows = {row["id"]: row for row in dev_rows(name, "train")}
    table = load_corrections(name)
    assert len(table) == count
    for sha, correction in table.items():
        assert problem_sha(rows[correction.problem_id]["problem"]) == sha
        published = rows[correction.problem_id]["expected_answer"]
        assert published == (correction.published or correction.corrected)


# MATH


def math_row(solution: str, level: str = "Level 2", subject: str = "Algebra", problem: str = "Find $x$.") -> dict:
    return {"problem": problem, "level": level, "type": subject, "solution": solution}


MATH_TREE = {
    "train/algebra/10.json": math_row(r"So $x = \boxed{\frac{1}{2}}$."),
    "train/algebra/9.json": math_row(r"First $\boxed{1}$, then $\fbox{2}$.", "Level 5"),
    "train/geometry/1.json": math_row(r"$\boxed{\text{even}}$", "Level ?", "Geometry"),
    "test/algebra/3.json": math_row(r"The set is $\boxed{\{1, 2\}}$."),
}


def write_math_tree(folder: Path, tree: dict[str, dict] = MATH_TREE) -> Path:
    for name, row in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(row))
    return folder


def write_math_tar(path: Path, tree: dict[str, dict] = MATH_TREE) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, row in [*tree.items(), ("README.txt", {})]:
            content = json.dumps(row).encode()
            member = tarfile.TarInfo(f"MATH/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def math_jsonl(folder: Path) -> Path:
    order = ["train/algebra/9.json", "train/algebra/10.json", "train/geometry/1.json"]
    lines(folder / "train.jsonl.gz", *(MATH_TREE[name] for name in order))
    lines(folder / "test.jsonl.gz", MATH_TREE["test/algebra/3.json"])
    return folder


@pytest.mark.parametrize(
    "published",
    [write_math_tree, lambda folder: write_math_tree(folder / "MATH").parent,
     lambda folder: write_math_tar(folder / "MATH.tar"), math_jsonl],
    ids=["folder", "folder above", "tar", "lines"],
)  # fmt: skip
def test_math_is_read_from_its_tree_a_tar_and_json_lines(tmp_path, published):
    splits = prepare("math", published(tmp_path), validation_size=1).splits
    found = {each.problem_id: (each.expected_answer, each.level, each.subject, each.answer_type)
             for each in splits["train_full"] + splits["test"]}  # fmt: skip
    assert found == {
        "math/train/0": ("2", 5, "Algebra", "integer"),
        "math/train/1": (r"\frac{1}{2}", 2, "Algebra", "fraction"),
        "math/train/2": (r"\text{even}", None, "Geometry", "text"),
        "math/test/0": (r"\{1, 2\}", 2, "Algebra", "list"),
    }


@pytest.mark.parametrize(
    "row, complaint",
    [
        (math_row("It is 3."), r"no answer in a closed \boxed{}"),
        (math_row(r"It is $\boxed{3$."), r"no answer in a closed \boxed{}"),
        (math_row(r"$\boxed{3}$", level="Level 9"), "is none of Level 1 to Level 5"),
        (math_row(r"$\boxed{3}$", problem=""), "the problem is empty"),
        ({"level": "Level 1"}, "not a problem"),
        (math_row("#### 3"), "rows look like GSM8K, not MATH"),
        ({"problem": "What?", "solution": r"$\boxed{3}$"}, "rows look like GSM8K, not MATH"),
    ],
)
def test_a_bad_problem_of_math_is_refused_by_its_place(tmp_path, row, complaint):
    tree = {"test/algebra/1.json": MATH_TREE["test/algebra/3.json"], "test/algebra/2.json": row}
    bad = write_math_tree(tmp_path / "a", tree) / "test/algebra/2.json"
    assert refusal(prepare, "math", tmp_path / "a", 1).startswith(f"{bad}: ")
    tar = write_math_tar(tmp_path / "MATH.tar", tree)
    message = refusal(prepare, "math", tar, 1)
    assert message.startswith(f"{tar}:MATH/test/algebra/2.json: ") and complaint in message
    path = lines(tmp_path / "b" / "test.jsonl", *tree.values())
    assert refusal(prepare, "math", path, 1).startswith(f"{path}:2: ")


def test_known_gaps_that_a_source_has_filled_are_told():
    def line(corrected: int, num_right: int) -> str:
        prepared = Prepared({}, ["id"] * corrected, num_right=num_right, num_corrections=2)
        return corrections_line("math", prepared).rpartition(" (")[0]

    assert line(0, 2) == "2 known gaps: already right in this source"
    assert line(2, 0) == "2 of 2 known wrong answers found and put right"
    assert line(1, 1) == "1 of 2 known wrong answers found and put right, 1 already right"


def test_a_tar_that_ends_early_is_refused(tmp_path):
    path = write_math_tar(tmp_path / "MATH.tar")
    path.write_bytes(path.read_bytes()[:700])
    assert "cannot be read as a tar" in refusal(prepare, "math", path, 1)


@pytest.mark.parametrize("answer, kind", cases("answer_types"))
def test_an_answers_kind_is_what_it_looks_like(answer, kind):
    assert answer_type(answer) == kind


# The real ones


def published_gsm8k(folder: Path) -> Path:
    """The files as their authors publish them, written again from the developers' rows."""
    for split in ("train", "test"):
        rows = ({"question": row["problem"], "answer": row["raw_answer"]} for row in dev_rows("gsm8k", split))
        lines(folder / f"{split}.jsonl", *rows)
    return folder


@needs_dev_data
@pytest.mark.slow
def test_the_real_gsm8k_gives_the_known_answers(tmp_path):
    prepared = prepare("gsm8k", published_gsm8k(tmp_path), 1000)
    assert {split: len(problems) for split, problems in prepared.splits.items()} == {
        "train": 6473, "validation": 1000, "train_full": 7473, "test": 1319,
    }  # fmt: skip
    assert len(prepared.corrected) == prepared.num_corrections == 12 and prepared.num_right == 0
    known = {row["id"]: row for split in ("train", "test") for row in dev_rows("gsm8k", split)}
    for problem in prepared.splits["train_full"] + prepared.splits["test"]:
        row = known.pop(problem.problem_id)
        assert problem.problem == row["problem"] and problem.reference_solution == row["reference_solution"]
        if problem.problem_id not in prepared.corrected:
            assert problem.expected_answer == row["expected_answer"] != ""
    assert not known
    assert prepare("gsm8k", DEV_DATA / "gsm8k", 1000) == prepared


@needs_dev_data
@pytest.mark.slow
def test_the_real_math_gives_the_known_answers(tmp_path):
    for split in ("train", "test"):
        rows = (
            {key: value for key, value in row.items() if key != "expected_answer"} for row in dev_rows("math", split)
        )
        lines(tmp_path / f"{split}.jsonl", *rows)
    prepared = prepare("math", tmp_path, 1000)
    assert {split: len(problems) for split, problems in prepared.splits.items()} == {
        "train": 6500, "validation": 1000, "train_full": 7500, "test": 5000,
    }  # fmt: skip
    assert sorted(prepared.corrected) == ["math/train/5341", "math/train/5343"]
    known = {row["id"]: row for split in ("train", "test") for row in dev_rows("math", split)}
    for problem in prepared.splits["train_full"] + prepared.splits["test"]:
        row = known.pop(problem.problem_id)
        assert problem.expected_answer == row["expected_answer"].strip() != ""
        assert (problem.level, problem.subject) == (row["level"], row["subject"])
    assert not known


# Download


class Site(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a path that holds `short` or `slow` misbehaves as it says."""

    def do_GET(self) -> None:
        if "short" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
        elif "slow" in self.path:
            time.sleep(1)
        else:
            super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(tmp_path):
    """The address of a real server of tmp_path/site."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Site(*arguments, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_gsm8k_is_fetched_from_an_address(tmp_path, site):
    lines(tmp_path / "site" / "train.jsonl", *(gsm8k_row(question=f"q{number}") for number in range(5)))
    lines(tmp_path / "site" / "test.jsonl", gsm8k_row())
    path = locate("gsm8k", f"{site}/test.jsonl", tmp_path / "one")
    assert prepare("gsm8k", path, 1).splits["test"][0].expected_answer == "4"


@needs_dev_data
def test_the_published_gsm8k_passes_its_checksums(tmp_path, site, monkeypatch):
    published_gsm8k(tmp_path / "site")
    there = tuple(replace(each, url=f"{site}/{each.name}") for each in PUBLISHED["gsm8k"])
    monkeypatch.setitem(PUBLISHED, "gsm8k", there)
    source = locate("gsm8k", DOWNLOAD, tmp_path / "source")
    assert len(prepare("gsm8k", source, 1000).splits["test"]) == 1319
    assert locate("gsm8k", site, tmp_path / "again") == tmp_path / "again"
    (tmp_path / "site" / "train.jsonl").write_text("changed")
    assert locate("gsm8k", DOWNLOAD, tmp_path / "source") == source, "what is there and whole is not fetched again"
    assert "SHA-256" in refusal(locate, "gsm8k", DOWNLOAD, tmp_path / "fresh")
    assert list((tmp_path / "source").iterdir()) and not list(tmp_path.glob("fresh/*"))


def test_math_is_fetched_as_a_tar(tmp_path, site):
    write_math_tar(tmp_path / "site" / "MATH.tar")
    path = locate("math", f"{site}/MATH.tar", tmp_path / "source")
    assert len(prepare("math", path, 1).splits["train_full"]) == 3


@pytest.mark.parametrize(
    "name, complaint", [("nowhere", "answered 404"), ("short", "cannot be fetched"), ("slow", "timed")]
)
def test_a_file_that_does_not_come_whole_leaves_nothing(tmp_path, site, monkeypatch, name, complaint):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    message = refusal(fetch, Published(f"{site}/{name}"), tmp_path / "source")
    assert message.startswith(f"{site}/{name}: ") and complaint in message and "--source" in message
    assert not list(tmp_path.glob("source/*"))


def test_a_site_that_is_not_there_is_refused(tmp_path):
    assert "cannot be reached" in refusal(fetch, Published("http://127.0.0.1:9/x"), tmp_path)


def test_every_published_address_names_a_checksum_and_says_whether_it_was_tried():
    for files in PUBLISHED.values():
        assert all(file.url.startswith("https://") and len(file.sha256 or "") == 64 for file in files)
        assert not any(file.tried for file in files), "say so in --help too"


# The script


def test_prepare_data_prints_what_it_wrote_and_the_next_command(tmp_path):
    lines(tmp_path / "train.jsonl", *(gsm8k_row(question=f"q{number}") for number in range(1005)))
    lines(tmp_path / "test.jsonl", gsm8k_row())
    script = [sys.executable, str(REPOSITORY / "pipeline" / "prepare_data.py"), "gsm8k"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*script, "--source", str(tmp_path), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "validation     1,000  " in done.stdout
    assert "python pipeline/run_generation.py --problems gsm8k:test\n" in done.stdout
    (tmp_path / "test.jsonl").write_text("{")
    failed = subprocess.run(
        [*script, "--source", str(tmp_path / "test.jsonl"), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert (tmp_path / "out" / "gsm8k" / "test.jsonl").read_text().count("\n") == 1, "an older file stays as it was"
