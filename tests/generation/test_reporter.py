"""What is said while samples are made and when they are there."""

import msgspec
import pytest

from mathmill.generation.client import CompletionClient
from mathmill.generation.reporter import Reporter
from mathmill.generation.sets import create_set
from mathmill.generation.shards import left
from mathmill.generation.summary import print_summary
from mathmill.prompts import load_prompt
from mathmill.records import lines_of
from tests.generation.making import problems_like, run_with, set_of, solution_of

NOT_ASKED = CompletionClient("http://127.0.0.1:9", "toy", fields=frozenset())


@pytest.mark.parametrize(("prompt", "line"), [
    ("mask_sft", "4 rows by this task, 4 of them candidates for masked solutions  "),
    ("code_sft", "4 rows by this task  50.0% correct  "),
])  # fmt: skip
def test_candidates_for_masks_are_counted_and_not_called_wrong(prompt, line, tmp_path, capsys):
    problems = problems_like(2)
    run, _ = run_with(tmp_path, problems)
    sample_set = msgspec.structs.replace(set_of(problems, "asked"), prompt=load_prompt(prompt))
    made = create_set(run, sample_set, problems)
    made.grow(2)
    kind = made.load().prompt.generation_type
    for shard in left(made, made.load()):
        rows = [
            msgspec.structs.replace(
                solution_of(problem, sample, f"way {sample}"), is_correct=sample == 1, generation_type=kind
            )
            for problem in problems
            for sample in range(2)
        ]
        with Reporter(run, NOT_ASKED) as reporter:
            for row in rows:
                reporter.finished(row)
        (made.folder / f"{shard.name}.jsonl").write_bytes(lines_of(rows))
    assert line in capsys.readouterr().err
    print_summary(run)
    summary = capsys.readouterr().err
    assert ("50.0%" in summary, "100.0%" in summary) == ((False, False) if prompt == "mask_sft" else (True, True))
