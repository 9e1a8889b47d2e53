"""What a worker and `status` pay to find out what is left of a large run: python benchmarks/resume_scan.py

10 million finished rows in 10,000 shards, and a million rows in parts, are laid out as files (finished shards are told by
their names alone, so they are empty here; the parts have real rows). The floor is a bare listing of the same folders and a
bare read of the same parts in the same run. The scan runs in a process of its own, whose peak memory is told.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mathmill.generation.sets import SampleSet, Sampling, SetFolder, create_set
from mathmill.generation.shards import cut, shard_of
from mathmill.prompts import load_prompt
from mathmill.records import Problem, Solution, line_of, lines_of, short_sha
from mathmill.run import Run

NUM_PROBLEMS, NUM_SAMPLES = 5500, 2000
PROBLEMS_A_SHARD, SAMPLES_A_SHARD = 50, 20
FINISHED_SHARDS, PART_SHARDS = 10_000, 1_000
SAMPLING = Sampling(
    temperature=1.0,
    top_p=0.95,
    max_tokens=2048,
    max_tokens_per_round=512,
    max_code_executions=3,
    stop_on_code_error=True,
    output_style="ipython",
    max_output_characters=1000,
    code_timeout_s=10.0,
)


def problems() -> list[Problem]:
    return [
        Problem(
            problem_id=f"made/test/{number}",
            problem=f"A mill grinds {number} sacks a day. " * 6,
            expected_answer=str(number),
            dataset="made",
            split="test",
        )
        for number in range(NUM_PROBLEMS)
    ]


def lay_out(run: Run) -> None:
    """The files of the run. Every row of a part is 1.2 kB."""
    made = problems()
    sample_set = SampleSet(
        name="made-test",
        problems_sha=short_sha(lines_of(made)),
        num_problems=len(made),
        prompt=load_prompt("code_sft"),
        model="made",
        sampling=SAMPLING,
        seed=0,
        problems_per_shard=PROBLEMS_A_SHARD,
        samples_per_shard=SAMPLES_A_SHARD,
    )
    run.folder.mkdir(parents=True)
    run.config.write_text("name: made\n")
    folder = create_set(run, sample_set, made)
    folder.grow(NUM_SAMPLES)
    shards = cut(sample_set, [NUM_SAMPLES])
    for shard in shards[:FINISHED_SHARDS]:
        (folder.folder / f"{shard.name}.jsonl").touch()
        (folder.claims / f"{shard.name}.1").write_text("a-worker-that-ended-well")
    for shard in shards[FINISHED_SHARDS : FINISHED_SHARDS + PART_SHARDS]:
        (folder.claims / f"{shard.name}.1").write_text("a-worker-that-was-killed")
        lines = b"".join(line_of(row(problem, key[1])) for problem, key in zip_keys(shard, made))
        (folder.parts / f"{shard.name}.0001.a-worker-that-was-killed.jsonl").write_bytes(lines)


def zip_keys(shard, made: list[Problem]):
    by_id = {problem.problem_id: problem for problem in made[shard.first_problem : shard.last_problem + 1]}
    return [(by_id[key[0]], key) for key in shard.keys(made)]


def row(problem: Problem, sample_index: int) -> Solution:
    return Solution(
        problem_id=problem.problem_id,
        sample_index=sample_index,
        seed=sample_index,
        problem=problem.problem,
        expected_answer=problem.expected_answer,
        generation="The mill grinds so many sacks a day, so we count the days and the sacks. " * 7,
        code_blocks=[],
        predicted_answer=problem.expected_answer,
        is_correct=True,
        grade_rule="number",
        error_message="not_executed",
        finish_reason="stop",
        num_tokens=120,
        generation_type="without_reference_solution",
        prompt="code_sft",
        prompt_sha="0" * 12,
        model="made",
        server_kind="made",
        seed_honoured=True,
        dataset="made",
        options_sha="0" * 12,
        code_sha="0" * 12,
    )


def floor(folder: SetFolder) -> None:
    """The same folders listed, the same parts read, and nothing understood."""
    for path in (folder.folder, folder.claims, folder.parts):
        for entry in os.scandir(path):
            if path == folder.parts:
                with open(entry.path, "rb") as stream:
                    for _ in stream:
                        pass


def scan(folder: SetFolder, run: Run) -> tuple[int, int]:
    """What a worker finds out at its start: its set, its problems, how far it is, and the first shard that it may have."""
    from mathmill.generation.claims import Claims, this_worker
    from mathmill.generation.progress import progress
    from mathmill.generation.shards import left

    sample_set = folder.load()
    folder.load_problems()
    [one] = progress(run)
    (run.folder / "workers").mkdir(exist_ok=True)
    taken = Claims(run, this_worker()).take(folder, left(folder, sample_set))
    assert taken is not None and taken[0].name.startswith("p") and shard_of(taken[0].name) == taken[0]
    return one.num_done, one.num_in_parts


def timed(name: str, run: Run) -> float:
    """Seconds of `floor` or `scan` in a process of its own, and its peak memory."""
    done = subprocess.run([sys.executable, __file__, name, run.folder], capture_output=True, text=True, check=True)
    seconds, cpu, peak, found = done.stdout.split(maxsplit=3)
    print(
        f"{name:6} {float(seconds):6.2f} s, {float(cpu):5.2f} s of CPU, at most {float(peak):5.1f} MiB  {found.strip()}"
    )
    return float(seconds)


def main() -> None:
    if len(sys.argv) > 1:
        run = Run(Path(sys.argv[2]))
        folder = SetFolder(run.solutions / "made-test")
        begun = time.perf_counter()
        found = {"floor": floor, "scan": lambda folder: scan(folder, run)}[sys.argv[1]](folder)
        seconds, cpu = time.perf_counter() - begun, time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{seconds} {cpu} {peak} {f'{found[0]:,} rows finished, {found[1]:,} in parts' if found else '-'}")
        return
    with tempfile.TemporaryDirectory(prefix="mathmill-resume-") as place:
        run = Run(Path(place, "runs", "made"))
        lay_out(run)
        size = sum(path.stat().st_size for path in (run.solutions / "made-test" / "parts").iterdir())
        print(f"{FINISHED_SHARDS:,} finished shards, {PART_SHARDS:,} parts of {size / 2**20:,.0f} MiB")
        bare = timed("floor", run)
        print(f"scan / floor: {timed('scan', run) / bare:.1f}")


if __name__ == "__main__":
    main()
