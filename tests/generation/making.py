"""Problems, prompts, sets and solutions for the tests of generation."""

from pathlib import Path

from mathmill.generation.sets import SampleSet, Sampling, SetFolder, create_set
from mathmill.prompts import load_prompt
from mathmill.records import Problem, Solution, lines_of, short_sha
from mathmill.run import Run

SAMPLING = Sampling(
    temperature=1.0,
    top_p=0.95,
    max_tokens=512,
    max_tokens_per_round=256,
    max_code_executions=3,
    stop_on_code_error=True,
    output_style="ipython",
    max_output_characters=1000,
    code_timeout_s=10.0,
)


def problems_like(count: int) -> list[Problem]:
    return [
        Problem(
            problem_id=f"toy/test/{n}",
            problem=f"What is {n} + {n}?",
            expected_answer=str(2 * n),
            dataset="toy",
            split="test",
        )
        for n in range(count)
    ]


def set_of(
    problems: list[Problem], name: str = "toy-test", problems_per_shard: int = 4, samples_per_shard: int = 2, **sampling
) -> SampleSet:
    import msgspec

    return SampleSet(
        name=name,
        problems_sha=short_sha(lines_of(problems)),
        num_problems=len(problems),
        prompt=load_prompt("code_sft"),
        model="toy",
        sampling=msgspec.structs.replace(SAMPLING, **sampling),
        seed=0,
        problems_per_shard=problems_per_shard,
        samples_per_shard=samples_per_shard,
    )


def run_with(folder: Path, problems: list[Problem], num_samples: int = 2, **options) -> tuple[Run, SetFolder]:
    run = Run(folder / "runs" / "toy")
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.write_text("name: toy\n")
    made = create_set(run, set_of(problems, **options), problems)
    made.grow(num_samples)
    return run, made


def solution_of(problem: Problem, sample_index: int, text: str = "done") -> Solution:
    return Solution(
        problem_id=problem.problem_id,
        sample_index=sample_index,
        seed=1,
        problem=problem.problem,
        expected_answer=problem.expected_answer,
        generation=text,
        code_blocks=[],
        predicted_answer=problem.expected_answer,
        is_correct=True,
        grade_rule="text",
        error_message="not_executed",
        finish_reason="stop",
        num_tokens=3,
        generation_type="without_reference_solution",
        prompt="code_sft",
        prompt_sha="x",
        model="toy",
        server_kind="openai",
        seed_honoured=True,
        dataset="toy",
        options_sha="x",
        code_sha="x",
    )
