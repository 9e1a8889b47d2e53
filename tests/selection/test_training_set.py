"""Training sets: the laws of selection, the same bytes whatever the way, others' files, and lines that are no rows."""

import gzip
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.generation.regrade import regrade
from mathmill.generation.shards import left
from mathmill.grading import GradingPool
from mathmill.records import lines_of
from mathmill.selection import sources, spill
from mathmill.selection.options import Choice, Filters, Output
from mathmill.selection.rows import COLUMNS
from mathmill.selection.training_set import Report, Selection, make_training_set
from tests.generation.making import problems_like, run_with, solution_of

BLOCK = "<llm-code>\n1\n</llm-code>\n<llm-code-output>\n1\n</llm-code-output>\n"
FILES = ("train.jsonl", "train.parquet", "sft.jsonl")


def row(problem: int, sample: int, code: bool = True, **fields) -> dict:
    text = f"Way {sample}.\n{BLOCK if code else ''}So \\boxed{{1}}."
    return {
        "question": f"Question {problem}?", "generated_solution": text, "expected_answer": "1", "predicted_answer": "1",
        "error_message": "" if code else "<not_executed>", "is_correct": True, "dataset": "made",
        "generation_type": "without_reference_solution",
    } | fields  # fmt: skip


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def select(output: Path, *inputs: Path, **options) -> tuple[list[dict], Report | None]:
    report = make_training_set(Selection(inputs=tuple(map(str, inputs)), output=output, **options))
    return [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()], report


def counts_of(rows: list[dict]) -> Counter:
    return Counter(each["question"] for each in rows)


some_rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.booleans()), max_size=60)
few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.slow
@few
@given(some_rows, st.integers(1, 40), st.integers(0, 3), st.randoms(use_true_random=False))
def test_fair_sampling_is_fair_and_knows_no_order_and_done_twice_is_done_once(
    tmp_path_factory, made, wanted, seed, draw
):
    folder = tmp_path_factory.mktemp("fair")
    rows = [row(*each) for each in made]
    choice = Choice(num_samples=wanted, seed=seed, code_preference="any_code")
    kept, report = select(folder / "one", write(folder / "rows.jsonl", rows), choice=choice)

    alone, _ = select(folder / "all", folder / "rows.jsonl", choice=Choice(code_preference="any_code"))
    had, has = counts_of(alone), counts_of(kept)
    assert len(kept) == min(wanted, len(alone))
    assert all(has[one] >= has[other] - 1 for one in had for other in had if has[one] < had[one])
    assert report is not None and report.num_rows == len(rows) == report.num_kept + sum(report.reasons.values())

    draw.shuffle(rows)
    halves = [write(folder / "b.jsonl", rows[: len(rows) // 2]), write(folder / "a.jsonl", rows[len(rows) // 2 :])]
    select(folder / "other", *halves, choice=choice)
    select(folder / "twice", folder / "one" / "train.jsonl", choice=choice)
    for name in ("train.jsonl", "sft.jsonl"):
        first = (folder / "one" / name).read_bytes()
        assert (folder / "other" / name).read_bytes() == (folder / "twice" / name).read_bytes() == first


@pytest.mark.parametrize(("preference", "with_code", "without"), [
    ("none", {0: 3, 1: 1, 2: 0}, {0: 1, 1: 3, 2: 2}),
    ("all", {0: 3, 1: 1, 2: 0}, {0: 0, 1: 0, 2: 0}),
    ("any_code", {0: 3, 1: 1, 2: 0}, {0: 0, 1: 0, 2: 2}),
    ("majority_code", {0: 3, 1: 1, 2: 0}, {0: 0, 1: 3, 2: 2}),
])  # fmt: skip
def test_code_is_preferred_as_asked(preference, with_code, without, tmp_path):
    shares = {0: (3, 1), 1: (1, 3), 2: (0, 2)}
    rows = [row(each, n, n < code) for each, (code, text) in shares.items() for n in range(code + text)]
    kept, _ = select(tmp_path / "set", write(tmp_path / "rows.jsonl", rows), choice=Choice(code_preference=preference))
    found = Counter(
        (int(each["question"].split()[1][:-1]), "<llm-code>" in each["generated_solution"]) for each in kept
    )
    assert ({n: found[n, True] for n in shares}, {n: found[n, False] for n in shares}) == (with_code, without)


def test_the_majority_is_counted_after_bad_solutions_are_gone(tmp_path):
    bad = [row(0, n, generated_solution=f"{n} <llm-code> \\boxed{{1}}") for n in range(5)]  # code that is broken
    rows = [row(0, 10), row(0, 11, code=False), row(0, 12, code=False), *bad]
    kept, _ = select(
        tmp_path / "set", write(tmp_path / "r.jsonl", rows), choice=Choice(code_preference="majority_code")
    )
    assert len(kept) == 3


def test_solutions_that_differ_only_after_the_answer_are_duplicates(tmp_path):
    rows = [row(0, 0), row(0, 0), row(0, 0, generated_solution=row(0, 0)["generated_solution"] + "\nBye."), row(1, 0)]
    kept, report = select(tmp_path / "set", write(tmp_path / "r.jsonl", rows))
    assert counts_of(kept) == {"Question 0?": 1, "Question 1?": 1}
    assert report is not None and report.reasons == {"duplicate": 2}


def test_more_rows_than_there_are_is_all_of_them(tmp_path):
    kept, _ = select(
        tmp_path / "s", write(tmp_path / "r.jsonl", [row(0, 0), row(1, 1)]), choice=Choice(num_samples=10**9)
    )
    assert len(kept) == 2


def test_random_sampling_takes_as_many_as_asked_whatever_the_problem(tmp_path):
    rows = [row(0, n) for n in range(300)] + [row(1, 0)]
    path = write(tmp_path / "r.jsonl", rows)
    sets = [
        select(tmp_path / f"s{seed}", path, choice=Choice(num_samples=50, downsample="random", seed=seed))[0]
        for seed in (1, 2)
    ]
    assert [len(each) for each in sets] == [50, 50] and sets[0] != sets[1]
    assert all(counts_of(each)["Question 0?"] >= 49 for each in sets)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes_and_every_row_is_accounted_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT_BYTES", 1 << 14)
    draw = random.Random(5)
    rows = [
        row(draw.randrange(40), draw.randrange(60), draw.random() < 0.8, is_correct=draw.random() < 0.5)
        for _ in range(4000)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    options = {"choice": Choice(num_samples=400, code_preference="any_code"), "written": Output(keep_drops=True)}
    for processes in (1, 2, 3):
        kept, report = select(tmp_path / f"set-{processes}", path, processes=processes, **options)
        for name in (*FILES, "dropped.jsonl", "README.md"):
            one, other = (tmp_path / f"set-{number}" / name for number in (1, processes))
            assert one.read_text("latin-1").replace("set-1", "") == other.read_text("latin-1").replace(
                f"set-{processes}", ""
            )
    dropped = [json.loads(line) for line in (tmp_path / "set-1" / "dropped.jsonl").read_text().splitlines()]
    assert report is not None and Counter(each["reason"] for each in dropped) == report.reasons
    key = ("question", "generated_solution", "is_correct")
    there = Counter(tuple(each[k] for k in key) for each in [*kept, *(one["row"] for one in dropped)])
    assert there == Counter(tuple(each[k] for k in key) for each in rows)
    places = Counter(each["where"].rpartition(":")[2] for each in dropped)
    assert max(places.values()) == 1 and all(1 <= int(place) <= 4000 for place in places)
    for each in dropped[:50]:
        there = rows[int(each["where"].rpartition(":")[2]) - 1]
        assert there["question"] == each["row"]["question"]


def test_how_often_rows_are_spilled_shows_nowhere(tmp_path, monkeypatch):
    draw = random.Random(9)
    rows = [row(draw.randrange(9), draw.randrange(60), draw.random() < 0.8) for _ in range(3000)]
    path = write(tmp_path / "rows.jsonl", rows)
    select(tmp_path / "once", path, written=Output(keep_drops=True))
    monkeypatch.setattr(spill, "SPILL_BYTES", 1 << 14)
    select(tmp_path / "often", path, written=Output(keep_drops=True))
    for name in (*FILES, "dropped.jsonl"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "often" / name).read_bytes()


def test_parquet_has_the_rows_and_columns_of_the_lines_and_is_read_again(tmp_path):
    rows = [
        row(n % 7, n, question=f"Question {n % 7}, 2024-01-01 \\u00e9é?", predicted_answer="3.0") for n in range(50)
    ]
    kept, _ = select(tmp_path / "set", write(tmp_path / "r.jsonl", rows))
    table = pyarrow.parquet.read_table(tmp_path / "set" / "train.parquet")
    assert tuple(table.column_names) == COLUMNS and table.to_pylist() == kept
    select(tmp_path / "again", tmp_path / "set" / "train.parquet")
    assert (tmp_path / "again" / "train.jsonl").read_bytes() == (tmp_path / "set" / "train.jsonl").read_bytes()


def test_files_of_other_tools_are_read(tmp_path):
    raw = [
        {key: value for key, value in row(0, n).items() if key not in ("dataset", "generation_type")} for n in range(3)
    ]
    write(tmp_path / "raw" / "output-rs0.jsonl", raw)
    later = [{"problem": "Question 0?", "generation": f"\\boxed{{{n}}}", "expected_answer": n, "predicted_answer": float(n),
              "symbolic_correct": True} for n in range(2)]  # fmt: skip
    write(tmp_path / "raw" / "output-rs1.jsonl", later)
    write(tmp_path / "raw" / "metrics.jsonl", [{"not": "a row"}])
    with gzip.open(tmp_path / "published.jsonl.gz", "wt") as stream:
        stream.write(json.dumps(row(1, 0)) + "\n")
    kept, _ = select(tmp_path / "set", tmp_path / "raw", tmp_path / "published.jsonl.gz")
    assert counts_of(kept) == {"Question 0?": 5, "Question 1?": 1}
    assert {each["predicted_answer"] for each in kept} == {"0", "1"}


BAD = {
    b'{"question": "q", "generated_so': "not a row of solutions",
    b"\n": "an empty line",
    b"   \n": "an empty line",
    b'{"question": "\xff", "generated_solution": "s", "is_correct": true}\n': "not UTF-8",
    b'{"question": "q", "other": "\xff", "generated_solution": "s", "is_correct": false}\n': "not UTF-8",
    b'{"question": 5, "generated_solution": "s", "is_correct": true}\n': "Expected `str | null`, got `int`",
    b'{"generated_solution": "s", "is_correct": true}\n': "no `question`",
    b'{"generated_solution": "s", "is_correct": false}\n': "no `question`",
    b'{"question": "q", "is_correct": false}\n': "no `generated_solution`",
    b'["question"]\n': "Expected `object`",
    b'{"question": "q", "generated_solution": "s", "is_correct": "yes"}\n': "is_correct",
    b"null\n": "Expected `object`",
    b"\0\0\0\0\n": "not a row of solutions",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.decode("latin-1")[:30].strip() or repr(bad))
def test_a_line_that_is_no_row_is_named_and_refused_or_skipped_and_counted(bad, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = [(json.dumps(row(0, n, is_correct=n != 1)) + "\n").encode() for n in range(4)]
    path.write_bytes(
        good[0] + good[1] + (bad + b"".join(good[2:]) if bad.endswith(b"\n") else b"".join(good[2:]) + bad)
    )
    line = 3 if bad.endswith(b"\n") else 5
    with pytest.raises(UserError) as refusal:
        select(tmp_path / "set", path)
    assert (
        f"{path}:{line}: " in str(refusal.value) and BAD[bad] in str(refusal.value) and "\n" not in str(refusal.value)
    )
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]

    kept, report = select(tmp_path / "set", path, filters=Filters(bad_lines="skip"), written=Output(keep_drops=True))
    assert report is not None and report.reasons == {"bad_line": 1, "incorrect": 1} and len(kept) == 3
    assert report.bad_lines[0].startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("beside", [b"", b"\n", b"   \n"])
def test_two_rows_in_a_line_are_no_row_also_beside_an_empty_line(beside, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = [json.dumps(row(0, n)).encode() for n in range(4)]
    path.write_bytes(good[0] + b"\n" + good[1] + good[2] + b"\n" + beside + good[3] + b"\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not a row of solutions"):
        select(tmp_path / "set", path)
    kept, report = select(tmp_path / "set", path, filters=Filters(bad_lines="skip"))
    assert report is not None and report.reasons["bad_line"] == 1 + bool(beside) and len(kept) == 2
    assert report.num_rows == 3 + bool(beside)


def test_a_row_over_two_lines_is_two_lines_that_are_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = [json.dumps(row(0, n)).encode() for n in range(3)]
    path.write_bytes(good[0] + good[1] + b"\n" + good[2].replace(b", ", b",\n", 1) + b"\n")
    kept, report = select(tmp_path / "set", path, filters=Filters(bad_lines="skip"))
    assert kept == [] and report is not None and report.reasons == {"bad_line": 3}


@pytest.mark.slow
def test_nothing_of_a_selection_lives_on_when_it_is_killed(tmp_path):
    line = (json.dumps(row(0, 0, is_correct=False)) + "\n").encode()
    paths = [tmp_path / f"rows-{number}.jsonl" for number in range(2)]
    for path in paths:  # a unit of work each
        path.write_bytes(line * (sources.UNIT_BYTES // len(line) + 1))
    command = ["pipeline/prepare_sft_data.py", "--input", *map(str, paths), "--num_processes", "2"]
    command += ["--output", str(tmp_path / "set"), "--keep_drops"]
    selection = subprocess.Popen([sys.executable, *command], cwd=Path(__file__).parents[2], start_new_session=True)
    try:
        assert becomes(5, lambda: alive(selection.pid))  # itself, tracker of resources, fork server, two workers
    finally:
        selection.kill()
        selection.wait()
        for path in paths:
            path.unlink()
    assert becomes(0, lambda: alive(selection.pid))


def alive(session: int) -> int:
    """How many processes a session has."""
    listed = subprocess.run(["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True).stdout
    return sum(not state.startswith("Z") for state in listed.splitlines())


def becomes(number: int, count: Callable[[], int]) -> bool:
    deadline = time.monotonic() + 30
    while count() != number and time.monotonic() < deadline:
        time.sleep(0.05)
    return count() == number


def test_a_bad_line_deep_in_a_large_file_has_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT_BYTES", 1 << 12)
    rows = [json.dumps(row(n % 9, n)) for n in range(500)]
    rows[387] = rows[387][:-20]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:388: "):
        select(tmp_path / "set", path)


def test_two_sets_of_matched_coverage_have_the_same_problems_equally_often(tmp_path):
    draw = random.Random(1)
    for name in "ab":
        rows = [row(draw.randrange(20), n, generated_solution=f"{name}{n} \\boxed{{1}}") for n in range(100)]
        select(tmp_path / name, write(tmp_path / f"{name}.jsonl", rows))
    one, _ = select(tmp_path / "one", tmp_path / "a.jsonl", match_coverage=tmp_path / "b")
    other, _ = select(tmp_path / "other", tmp_path / "b.jsonl", match_coverage=tmp_path / "one")
    assert counts_of(one) == counts_of(other) and 0 < len(one) < 100


def test_the_same_command_does_nothing_and_another_is_refused(tmp_path):
    path = write(tmp_path / "r.jsonl", [row(0, 0)])
    select(tmp_path / "set", path)
    before = (tmp_path / "set" / "train.jsonl").stat().st_mtime_ns
    assert select(tmp_path / "set", path)[1] is None
    assert (tmp_path / "set" / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="was made with other choice"):
        select(tmp_path / "set", path, choice=Choice(seed=7))
    write(path, [row(0, 0), row(0, 1)])
    with pytest.raises(UserError, match="was made with other files"):
        select(tmp_path / "set", path)


def test_rows_of_sft_and_conversations_say_the_same_in_the_same_order(tmp_path):
    names = ("messages", "prompt_completion", "nemo_chat", "sharegpt", "alpaca")
    kept, _ = select(
        tmp_path / "set", write(tmp_path / "r.jsonl", [row(0, n) for n in range(5)]), written=Output(formats=names)
    )
    read = {name: [json.loads(line) for line in (tmp_path / "set" / f"{name}.jsonl").read_text().splitlines()]
            for name in ("sft", *names)}  # fmt: skip
    for place, each in enumerate(kept):
        sft = read["sft"][place]
        assert sft["output"] == each["generated_solution"] and each["question"] in sft["input"]
        user, solution = sft["input"], sft["output"]
        said = [{"role": "user", "content": user}, {"role": "assistant", "content": solution}]
        assert read["messages"][place] == {"messages": said}
        assert read["prompt_completion"][place] == {"prompt": user, "completion": solution}
        assert [turn["value"] for turn in read["nemo_chat"][place]["conversations"]] == [user, solution]
        assert [turn["value"] for turn in read["sharegpt"][place]["conversations"]] == [user, solution]
        assert read["alpaca"][place] == {"instruction": user, "input": "", "output": solution}


def test_the_card_says_what_was_read_left_out_and_kept(tmp_path):
    rows = [row(0, 0), row(0, 0), row(0, 1, is_correct=False)]
    select(tmp_path / "set", write(tmp_path / "r.jsonl", rows), licence="cc-by-4.0")
    card = (tmp_path / "set" / "README.md").read_text()
    head = msgspec.yaml.decode(card.split("---\n")[1])
    assert head["license"] == "cc-by-4.0" and head["size_categories"] == ["n<1K"]
    for line in (
        "| read | 3 |",
        "| left out: duplicate | 1 |",
        "| left out: incorrect | 1 |",
        "| kept | 1 |",
        "| `trim` | yes |",
    ):
        assert line in card


def test_verdicts_given_later_stand_in_the_place_of_those_of_the_rows(tmp_path, monkeypatch):
    problems = problems_like(4)
    run, made = run_with(tmp_path, problems, num_samples=2)
    for shard in left(made, made.load()):
        keys = [(int(problem_id.rpartition("/")[2]), sample) for problem_id, sample in shard.keys(problems)]
        rows = [msgspec.structs.replace(solution_of(problems[number], sample), is_correct=False,
                                        generation=f"Way {sample} \\boxed{{1}}", predicted_answer=str(2 * number + sample))
                for number, sample in keys]  # fmt: skip
        (made.folder / f"{shard.name}.jsonl").write_bytes(lines_of(rows))
    kept, report = select(tmp_path / "own", run.folder)
    assert kept == [] and report is not None and report.reasons == {"incorrect": 8}
    with pytest.raises(UserError, match=r"no verdicts .*default.*pipeline/grade.py --name default"):
        select(tmp_path / "none", run.folder, verdicts="default")

    pool = GradingPool(workers=1)
    try:
        regrade(made, "default", pool)
    finally:
        pool.close()
    kept, report = select(tmp_path / "later", run.folder, verdicts="default")
    assert len(kept) == 4 and all(each["is_correct"] for each in kept)
    assert {each["generated_solution"] for each in kept} == {"Way 0 \\boxed{1}"}
    assert report is not None and report.reasons == {"incorrect": 4}
    with pytest.raises(UserError, match="is neither"):
        select(tmp_path / "file", write(tmp_path / "r.jsonl", [row(0, 0)]), verdicts="default")
