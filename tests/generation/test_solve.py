"""One sample against a scripted server, with the real sandbox and the real grader."""

import asyncio
import contextlib
import os
import signal
from functools import partial
from pathlib import Path

import msgspec
import pytest

from mathmill.generation.client import Completion, RequestRefusedError
from mathmill.generation.sets import seed_of
from mathmill.generation.solve import SampleFailedError, Solver
from mathmill.grading import GradingPool
from mathmill.prompts import prompt_text
from mathmill.records import Problem
from mathmill.sandbox import AsyncSandbox
from tests.generation.making import problems_like, set_of

PROBLEM = Problem(problem_id="toy/test/0", problem="What is 6 x 7?", expected_answer="42", dataset="toy", split="test")


class Script:
    """Stands for the client: gives texts in turn and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    async def complete(self, prompt, **options):
        self.asked.append({"prompt": prompt, **options})
        text = self.texts.pop(0)
        if isinstance(text, Exception):
            raise text
        if isinstance(text, Completion):
            return text
        if isinstance(text, str):
            text = (text, "stop", 10)
        return Completion(text=text[0], finish_reason=text[1], stopped_by=None, num_tokens=text[2])


def solve(*texts, problem=PROBLEM, **sampling):
    script = Script(*texts)

    async def scene():
        sample_set = set_of([problem], **sampling)
        sandbox, grading = await AsyncSandbox.start(spares=0, libraries=""), GradingPool()
        try:
            solver = Solver(
                sample_set,
                lambda one: prompt_text(sample_set.prompt, one),
                "sha",
                script,
                sandbox,
                grading,
            )
            return await solver.solve(problem, 0)
        finally:
            await sandbox.close()
            grading.close()

    return asyncio.run(scene()), script


def test_code_is_run_its_output_shown_and_the_answer_graded():
    solution, script = solve("Multiply.\n<llm-code>\n6 * 7\n", "It is \\boxed{42}.")
    assert solution.generation == (
        "Multiply.\n<llm-code>\n6 * 7\n</llm-code>\n<llm-code-output>\n42\n</llm-code-output>\nIt is \\boxed{42}."
    )
    assert (solution.predicted_answer, solution.is_correct, solution.finish_reason) == ("42", True, "stop")
    assert [(block.code, block.output, block.status) for block in solution.code_blocks] == [("6 * 7", "42", "ok")]
    assert (solution.num_tokens, solution.error_message, solution.seed) == (
        20,
        "",
        seed_of(set_of([PROBLEM]), "toy/test/0", 0),
    )
    assert script.asked[1]["prompt"].endswith("<llm-code-output>\n42\n</llm-code-output>\n")
    assert "</llm-code>" in script.asked[0]["stop"]


def test_blocks_of_a_solution_share_their_variables():
    solution, _ = solve("<llm-code>\nx = 40\nx\n", "<llm-code>\nx + 2\n", "\\boxed{42}")
    assert [block.output for block in solution.code_blocks] == ["40", "42"]


@pytest.mark.slow
def test_a_failing_block_ends_the_solution_or_is_shown_as_asked():
    solution, _ = solve("<llm-code>\n1 / 0\n")
    assert (solution.finish_reason, solution.error_message, solution.is_correct) == ("code_error", "error", False)
    assert "ZeroDivisionError" in solution.generation
    solution, _ = solve("<llm-code>\n1 / 0\n", "Never mind: \\boxed{42}", stop_on_code_error=False)
    assert (solution.finish_reason, solution.is_correct) == ("stop", True)


@pytest.mark.slow
def test_code_that_runs_for_ever_is_a_timeout():
    solution, _ = solve("<llm-code>\nwhile True: pass\n", code_timeout_s=0.5)
    assert (solution.error_message, solution.code_blocks[0].status) == ("timeout", "timeout")


@pytest.mark.slow
def test_at_most_so_many_blocks_are_run():
    solution, _ = solve(*["<llm-code>\n1\n"] * 4, max_code_executions=3)
    assert (len(solution.code_blocks), solution.finish_reason) == (3, "max_code_executions")
    solution, _ = solve(*["<llm-code>\n1\n"] * 3, "\\boxed{42}", max_code_executions=3)
    assert (len(solution.code_blocks), solution.finish_reason, solution.is_correct) == (3, "stop", True)


def test_budgets_hold_per_round_and_in_all():
    solution, script = solve(
        ("<llm-code>\n1\n", "stop", 100), ("long", "length", 50), max_tokens=150, max_tokens_per_round=120
    )
    assert [asked["max_tokens"] for asked in script.asked] == [120, 50]
    assert solution.finish_reason == "length"


def test_code_that_ran_out_of_tokens_is_not_run():
    solution, _ = solve(("<llm-code>\n6 * 7", "length", 100))
    assert (solution.code_blocks, solution.finish_reason, solution.error_message) == ([], "length", "not_executed")


def test_text_that_ended_at_another_stop_string_is_not_run_as_code():
    solution, _ = solve(Completion(text="<llm-code>\n6 *", finish_reason="stop", stopped_by="\n\n\n", num_tokens=5))
    assert (solution.code_blocks, solution.finish_reason) == ([], "stop")


def test_rounds_of_a_solution_have_seeds_of_their_own():
    _, script = solve("<llm-code>\n1\n", "<llm-code>\n2\n", "\\boxed{42}")
    seeds = [asked["seed"] for asked in script.asked]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.slow
def test_a_prompt_that_nearly_fills_the_context_gets_what_room_is_left():
    too_long = RequestRefusedError("context", too_long=True)
    solution, script = solve(too_long, too_long, "\\boxed{42}")
    assert [asked["max_tokens"] for asked in script.asked] == [256, 128, 64]
    assert solution.is_correct
    with pytest.raises(SampleFailedError, match="prompt is too long"):
        solve(*[too_long] * 6)
    solution, _ = solve("<llm-code>\n1\n", *[too_long] * 6)
    assert solution.finish_reason == "context"


def test_a_refused_request_fails_this_sample_with_its_reason():
    with pytest.raises(SampleFailedError, match="status 422"):
        solve(RequestRefusedError("status 422: no"))


def test_seeds_differ_between_samples_problems_sets_and_runs_and_repeat():
    problems = problems_like(50)
    one, other = set_of(problems), set_of(problems, name="other")
    seeds = {seed_of(made, p.problem_id, n) for made in (one, other) for p in problems for n in range(20)}
    assert len(seeds) == 2 * 50 * 20
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(one, "toy/test/3", 2) == seed_of(set_of(problems), "toy/test/3", 2)


class Crashing:
    """Stands for the client. Every solution has one block of code; the poison's is told by its size."""

    async def complete(self, prompt, **options):
        asked = prompt.rpartition("Problem:")[2]
        if "</llm-code-output>" in asked:
            text = "\\boxed{42}"
        elif "poison" in asked:
            text = "<llm-code>\nimport time; large = b'x' * 60_000_000; time.sleep(600)\n"
        else:
            text = "<llm-code>\nimport time; time.sleep(2)\n42\n"
        return Completion(text=text, finish_reason="stop", stopped_by=None, num_tokens=5)


async def kill_at_poison(supervisor: int) -> None:
    """Kill what forks the sandbox's sessions as soon as one of them is as large as the poison's, again and again."""
    while True:
        await asyncio.sleep(0.2)
        if any(kilobytes_of(pid) > 55_000 for pid in descendants(supervisor)):
            for pid in children(supervisor):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        return [int(child) for task in tasks for child in task]
    return []


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def kilobytes_of(pid: int) -> int:
    """Its own memory."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return 0


@pytest.mark.slow
def test_a_solution_that_crashes_the_sandbox_every_time_fails_and_those_beside_it_do_not():
    poison = msgspec.structs.replace(PROBLEM, problem_id="toy/test/1", problem="poison")

    async def scene():
        sample_set = set_of([PROBLEM, poison], code_timeout_s=900.0)
        sandbox, grading = await AsyncSandbox.start(spares=0, libraries=""), GradingPool()
        killer = asyncio.create_task(kill_at_poison(sandbox._started.process.pid))
        text_of = partial(prompt_text, sample_set.prompt)
        solver = Solver(sample_set, text_of, "sha", Crashing(), sandbox, grading)
        try:
            beside = (solver.solve(PROBLEM, number) for number in range(6))
            return await asyncio.gather(solver.solve(poison, 0), *beside, return_exceptions=True)
        finally:
            killer.cancel()
            await sandbox.close()
            grading.close()

    failed, *solved = asyncio.run(scene())
    assert isinstance(failed, SampleFailedError) and "lost 3 times" in str(failed)
    assert [getattr(one, "is_correct", one) for one in solved] == [True] * 6
