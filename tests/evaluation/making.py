"""Evaluated runs of a known outcome: toy problems, a greedy and a sampled set, graded for real."""

from pathlib import Path

import msgspec

from mathmill.generation.sets import SetFolder, create_set
from mathmill.generation.shards import left
from mathmill.grading import GradingPool
from mathmill.grading.pairs import grade_all
from mathmill.records import CodeBlock, Problem, lines_of
from mathmill.run import Run
from tests.generation.making import set_of, solution_of

Answers = list[list[str | None]]
"""For each problem the answers of its samples."""


def problems_of(expected: list[str], dataset: str = "toy") -> list[Problem]:
    return [
        Problem(
            problem_id=f"{dataset}/test/{number}",
            problem=f"Problem {number}: what is $x_{{{number}}}$, if it costs $5 and $7?",
            expected_answer=answer,
            dataset=dataset,
            split="test",
            subject="even" if number % 2 == 0 else "odd",
            level=1 + number % 3,
            answer_type="integer",
        )
        for number, answer in enumerate(expected)
    ]


def evaluated_run(
    folder: Path,
    problems: list[Problem],
    greedy: Answers | None,
    sampled: Answers | None,
    name: str = "toy",
    model: str = "toy",
) -> Run:
    """A run in `folder/runs/NAME` whose sets are finished, with these answers."""
    run = Run(folder / "runs" / name)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.write_text(f"name: {name}\n")
    pool = GradingPool(workers=1)
    try:
        for decoding, answers, temperature in (("greedy", greedy, 0.0), ("sampled", sampled, 0.7)):
            if answers is not None:
                _finished_set(run, f"toy-{decoding}", problems, answers, temperature, model, pool)
    finally:
        pool.close()
    return run


def _finished_set(
    run: Run, name: str, problems: list[Problem], answers: Answers, temperature: float, model: str, pool: GradingPool
) -> SetFolder:
    sample_set = msgspec.structs.replace(set_of(problems, name, temperature=temperature), model=model)
    made = create_set(run, sample_set, problems)
    made.grow(len(answers[0]))
    places = {problem.problem_id: place for place, problem in enumerate(problems)}
    for shard in left(made, made.load()):
        keys = shard.keys(problems)
        said = [
            (answers[places[problem_id]][index], problems[places[problem_id]].expected_answer)
            for problem_id, index in keys
        ]
        rows = []
        for (problem_id, index), (answer, _), grade in zip(keys, said, grade_all(said, pool), strict=True):
            blocks = [CodeBlock(code="1 +", output="SyntaxError", status="error")] if answer is None else []
            text = "I do not know." if answer is None else f"It is $y < 3$, so \\boxed{{{answer}}}."
            code = f"<llm-code>\nx = 2\nx + {index}\n</llm-code>\n"
            shown = f"Let us see.\n{code}<llm-code-output>\n{2 + index}\n</llm-code-output>\n"
            rows.append(
                msgspec.structs.replace(
                    solution_of(problems[places[problem_id]], index, shown + text),
                    predicted_answer=answer,
                    is_correct=grade.is_correct,
                    grade_rule=grade.rule,
                    code_blocks=[CodeBlock(code="x = 2", output="2", status="ok"), *blocks],
                    model=model,
                )
            )
        (made.folder / f"{shard.name}.jsonl").write_bytes(lines_of(rows))
    return made
