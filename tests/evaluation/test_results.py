"""From a run's solutions to its numbers: what is counted, what is compared, and what is refused."""

import csv
import io
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mathmill.errors import UserError
from mathmill.evaluation.report import tables_of
from mathmill.evaluation.results import compare_all, counts_of, evaluate_runs, groups_of
from mathmill.evaluation.sets import keep_benchmark
from mathmill.evaluation.tables import curve_rows, published_table, tidy_rows
from mathmill.evaluation.writing import csv_text, latex, markdown
from mathmill.problems.benchmark import Benchmark, Reference
from mathmill.run import Run
from tests.evaluation.making import evaluated_run, problems_of

EXPECTED = ["1", "2", r"\frac{1}{2}", "4"]
GREEDY = [["1"], ["3"], ["0.5"], [None]]
SAMPLED = [
    ["1", "5", "1.0", "5"],  # a tie: the answer seen first, and right
    ["7", "2", "2", "7"],  # a tie: seen first, and wrong
    ["3", r"\frac{1}{2}", "1/2", "0.5"],  # one class in three spellings
    [None, None, "4", None],
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return evaluated_run(tmp_path, problems_of(EXPECTED), GREEDY, SAMPLED)


def toy_benchmark(size: int = 4, verdict: str = "symbolic") -> Benchmark:
    reference = Reference(
        source="a paper", verdict=verdict, results={"greedy": {"Their-7B": "1/4"}, "majority@4": {"Their-7B": 100}}
    )
    return Benchmark(title="Toys", problems="toy:test", size=size, licence="", reference={"paper": reference})


def test_the_scores_are_those_counted_by_hand(run: Run):
    [result] = evaluate_runs([run])

    assert result.score("greedy").values.tolist() == [1, 0, 1, 0]
    assert result.score("majority@4").values.tolist() == [1, 0, 1, 1]
    assert result.score("majority@1").values.tolist() == [1, 0, 0, 0]
    assert result.score("avg@4").values.tolist() == [0.5, 0.5, 0.75, 0.25]
    assert result.score("pass@4").values.tolist() == [1, 1, 1, 1]
    assert result.score("majority@5") is None
    pass_curve, majority_curve = result.curves
    assert pass_curve.shares[0] == pytest.approx(0.5)
    assert majority_curve.shares[0] == pytest.approx(0.5, abs=0.1)
    assert (pass_curve.low <= pass_curve.shares + 1e-6).all()


def test_solutions_are_counted_by_how_they_went(run: Run):
    [result] = evaluate_runs([run])
    counts = counts_of(result.sampled)

    assert (counts.num_solutions, counts.no_answer, counts.with_failed_block, counts.could_not_tell) == (16, 3, 3, 0)
    assert counts.blocks_each == pytest.approx(19 / 16)


def test_groups_divide_the_problems(run: Run):
    [result] = evaluate_runs([run])
    kinds = {}
    for group in groups_of(result.problems):
        kinds.setdefault(group.kind, []).extend(group.places)

    assert set(kinds) == {"level", "subject"}  # one type of answer divides nothing
    assert all(sorted(places) == [0, 1, 2, 3] for places in kinds.values())


def test_two_models_are_compared_problem_by_problem(run: Run, tmp_path: Path):
    other = evaluated_run(tmp_path, problems_of(EXPECTED), [["1"], ["2"], ["1/2"], ["9"]], None, "other", "other")
    [comparison] = compare_all(evaluate_runs([run, other]))

    assert (comparison.metric, comparison.test.difference) == ("greedy", -0.25)
    assert (comparison.test.num_first_only, comparison.test.num_second_only) == (0, 1)


def test_an_unfinished_run_is_refused_with_what_is_missing(run: Run):
    next((run.solutions / "toy-sampled").glob("p*.jsonl")).unlink()

    with pytest.raises(UserError, match=r"unfinished: 8 of 16 solutions of toy-sampled are missing"):
        evaluate_runs([run])


def test_runs_over_different_problems_are_refused(run: Run, tmp_path: Path):
    other = evaluated_run(tmp_path, problems_of(["1", "2", "3"]), [["1"], ["2"], ["3"]], None, "other", "other")
    with pytest.raises(UserError, match=r"different problems \(4 and 3\)"):
        evaluate_runs([run, other])

    third = evaluated_run(tmp_path, problems_of(["1"], "else"), [["1"]], None, "third", "third")
    with pytest.raises(UserError, match="no benchmark in common"):
        evaluate_runs([run, third])


def test_a_run_without_solutions_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no solutions"):
        evaluate_runs([Run(tmp_path)])


def test_a_quarantined_sample_is_wrong_and_counted(run: Run):
    path = next((run.solutions / "toy-greedy").glob("p*.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(UserError, match=r"toy-greedy: 1 rows are neither in its shards nor in quarantine"):
        evaluate_runs([run])

    lost = json.loads(lines[0])
    settled = {"problem_id": lost["problem_id"], "sample_index": lost["sample_index"], "reason": "too long"}
    quarantine = run.solutions / "toy-greedy" / "quarantine"
    quarantine.mkdir(exist_ok=True)
    (quarantine / path.name).write_text(json.dumps(settled) + "\n")
    [result] = evaluate_runs([run])

    assert result.score("greedy").values.tolist() == [0, 0, 1, 0]
    assert counts_of(result.greedy).quarantined == 1


def test_problems_without_an_expected_answer_are_not_scored(tmp_path: Path):
    unknown = [msgspec.structs.replace(one, expected_answer=None) for one in problems_of(["1", "2"])]
    run = evaluated_run(tmp_path, unknown, [["1"], ["2"]], None, "unknown", "unknown")
    with pytest.raises(UserError, match="2 of 2 problems have no expected_answer"):
        evaluate_runs([run])


def test_the_published_rows_stand_beside_ours_with_the_difference(run: Run):
    keep_benchmark(run, "toys", toy_benchmark())
    table = published_table(evaluate_runs([run]), "paper")

    assert table.heads == ["model", "Toys\ngreedy", "Toys\nmajority@4"]
    assert [row[0] for row in table.rows] == ["Their-7B", "toy"]
    assert table.rows[0][1].startswith("25.0\n+25.0 [")
    assert table.rows[0][2].startswith("100.0\n-25.0 [")
    assert table.rows[1][2].startswith("75.0\n[")
    assert table.strong == {1}


def test_what_a_benchmarks_file_says_by_now_goes_before_the_copy_in_the_run_and_is_told(run: Run, workdir, capsys):
    own = Path("toys.yaml").resolve()
    started = msgspec.structs.replace(toy_benchmark(), reference={})
    own.write_bytes(msgspec.yaml.encode(started))
    keep_benchmark(run, "toys", started, "toys.yaml")
    own.write_bytes(msgspec.yaml.encode(msgspec.structs.replace(toy_benchmark(), title="Dolls", prompt="other")))

    [result] = evaluate_runs([run])
    assert (result.title, result.benchmark.prompt) == ("Dolls", "code_sft")  # the sets were made with that prompt
    assert published_table([result], "paper").rows[0][0] == "Their-7B"
    said = capsys.readouterr().err
    assert said == f"note: {own} has another title, reference than {run.folder} was started with: taken as it is now\n"

    own.unlink()  # as where the run was copied to another machine
    assert evaluate_runs([run])[0].title == "Toys"
    assert capsys.readouterr().err == ""


def test_a_row_that_is_not_the_sets_is_told_in_one_line(run: Run):
    path = next((run.solutions / "toy-greedy").glob("p*.jsonl"))
    path.write_text(path.read_text().replace("toy/test/0", "toy/test/99"))
    with pytest.raises(
        UserError, match=r"toy/test/99, sample 0 is no row of this set; look: python pipeline/verify.py toy"
    ):
        evaluate_runs([run])


@pytest.mark.parametrize("place", [("toy/test/99", 0), ("toy/test/1", 4), ("toy/test/1", -1)])
def test_a_verdict_on_something_else_than_the_sets_rows_is_told_in_one_line(run: Run, place: tuple[str, int]):
    for decoding in ("greedy", "sampled"):
        verdicts = run.solutions / f"toy-{decoding}" / "verdicts" / "mine"
        verdicts.mkdir(parents=True)
        row = {"problem_id": place[0], "sample_index": place[1], "is_correct": True, "rule": "judge"}
        (verdicts / "p00000-00001.s000-000.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"{place[0]}, sample {place[1]} is no row of this set; remove this file"):
        evaluate_runs([run], judge="mine")


def test_published_results_of_another_number_of_problems_or_verdict_are_told_apart(run: Run):
    keep_benchmark(run, "toys", toy_benchmark(size=1000, verdict="judge"))
    note = published_table(evaluate_runs([run]), "paper").note

    assert "not of the published number of problems" in note
    assert "with a judge, ours by symbols alone" in note


def test_an_unknown_published_table_is_told_with_the_known_ones(run: Run):
    keep_benchmark(run, "toys", toy_benchmark())
    results = evaluate_runs([run])

    with pytest.raises(UserError, match="Known: openmathinstruct-1, openmathinstruct-2"):
        published_table(results, "papers")
    with pytest.raises(UserError, match="none of these runs has one of them"):
        published_table(results, "openmathinstruct-1")


def test_tables_are_whole_in_every_form(run: Run, tmp_path: Path):
    other = evaluated_run(tmp_path, problems_of(EXPECTED), GREEDY, SAMPLED, "other", "100%_&_other")
    results = evaluate_runs([run, other])
    tables = tables_of(results, None).all

    text = markdown(tables)
    assert "| toy:test | toy | 4 | 4 | 50.0 [15.0, 85.0] |" in text
    assert r"100\%\_\&\_other" in latex(tables)
    assert latex(tables).count(r"\begin{tabular}") == len(tables)
    for table in tables:
        assert all(len(row) == len(table.heads) for row in table.rows)
    rows = list(csv.DictReader(io.StringIO(csv_text(tidy_rows(results)))))
    whole = next(row for row in rows if row["metric"] == "majority@4" and row["group"] == "all")
    assert (float(whole["share"]), whole["problems"]) == (0.75, "4")
    curve = list(csv.DictReader(io.StringIO(csv_text(curve_rows(results)))))
    assert len(curve) == 2 * 2 * 4


def test_two_runs_of_one_model_are_told_apart_by_their_names(run: Run, tmp_path: Path):
    shutil.copytree(run.folder, tmp_path / "runs" / "again")

    labels = {result.label for result in evaluate_runs([run, Run(tmp_path / "runs" / "again")])}

    assert labels == {"toy (toy)", "toy (again)"}


def test_equal_answers_with_different_verdicts_do_not_change_the_votes(run: Run):
    [result] = evaluate_runs([run])

    assert [one.votes for one in result.sampled.classes[2]] == [3, 1]
    assert np.array_equal(result.leaders[:, 3], [0, 0, 1, 2])
