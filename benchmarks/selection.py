"""Selection beside pandas: rows per CPU-second, peak memory, and the same bytes from any number of processes.

    python benchmarks/selection.py                       # 400,000 rows for both
    python benchmarks/selection.py --rows 10000000       # ours on ten million, pandas on 400,000, in one run

The rows are shaped like a run's own solutions: 15,000 problems, code in most, a quarter right, some duplicates and faults.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PANDAS_ROWS = 400_000
ROWS_A_FILE = 20_000
TEXT = """the total number of apples that they have is found by adding both amounts so we first compute how many there
are in each of the boxes and then multiply by the price of one to get what has to be paid at the end of the week"""
WORDS = TEXT.split()
PANDAS = """
import hashlib, sys, time
begun = time.process_time()
import pandas as pd

def trim(text):
    place = text.find("\\\\boxed{")
    if place < 0:
        return text
    end = text.find("\\n", place)
    if end < 0:
        return text
    following = text[end + 1 : (text + "\\n").index("\\n", end + 1)]
    if following.strip() in ("\\\\]", "$$", "\\\\end{align}", "\\\\end{align*}"):
        end += 1 + len(following)
    return text[:end]

loaded = time.process_time()
rows = pd.concat([pd.read_json(path, lines=True, dtype=False) for path in sys.argv[2:]], ignore_index=True)
num_rows, reasons = len(rows), {}

def keep(rows, reason, wanted):
    reasons[reason] = int((~wanted).sum())
    return rows[wanted]

rows = keep(rows, "incorrect", rows["is_correct"] == True)
rows = keep(rows, "multi_boxed", rows["generation"].str.count(r"\\\\boxed\\{") == 1)
text = rows["generation"]
tags = [text.str.count(tag) for tag in ("<llm-code>", "</llm-code>", "<llm-code-output>", "</llm-code-output>")]
rows = keep(rows, "broken_code", (tags[0] == tags[1]) & (tags[1] == tags[2]) & (tags[2] == tags[3]))
rows = rows.assign(generation=rows["generation"].map(trim))
keys = {text: hashlib.sha256(text.encode()).digest()[:8] + bytes(8) for text in rows["problem"].unique()}
rows["digest"] = [hashlib.sha256(keys[problem] + text.encode()).hexdigest()[:32]
                  for problem, text in zip(rows["problem"], rows["generation"])]
rows = rows.sort_values("digest", kind="stable")
rows = keep(rows, "duplicate", ~rows.duplicated("digest"))
rows["code"] = rows["generation"].str.contains("<llm-code>", regex=False)
rows = keep(rows, "code_preference", rows["code"] | ~rows.groupby("problem")["code"].transform("any"))
rows = rows.assign(rank=rows.groupby("problem").cumcount()).sort_values(["rank", "digest"])
rows = keep(rows, "downsampled", pd.Series(range(len(rows)), index=rows.index) < int(num_rows * 0.1))
rows = rows.sort_values("digest")
names = {"problem": "question", "generation": "generated_solution"}
columns = ["question", "generated_solution", "expected_answer", "predicted_answer", "error_message", "is_correct", "dataset",
           "generation_type", "problem_id"]
kept = rows.rename(columns=names)[columns]
kept.to_json(sys.argv[1] + "/train.jsonl", orient="records", lines=True, force_ascii=False)
kept.to_parquet(sys.argv[1] + "/train.parquet")
asked = "Solve the problem. Use Python code where it helps, and put the final answer in \\\\boxed{}.\\n\\nProblem:\\n"
sft = pd.DataFrame({"problem_id": kept["problem_id"], "input": asked + kept["question"] + "\\n\\nSolution:\\n",
                    "output": kept["generated_solution"]})
sft.to_json(sys.argv[1] + "/sft.jsonl", orient="records", lines=True)
print(num_rows, len(kept), time.process_time() - loaded)
"""


def write_rows(folder: Path, num_rows: int, seed: int) -> list[Path]:
    """Files of rows as a run has them."""
    draw = random.Random(seed)
    problems = [f"Problem {number}: {_words(draw, 35)}?" for number in range(15_000)]
    bodies = [_words(draw, 20) for _ in range(2_000)]
    paths = []
    for first in range(0, num_rows, ROWS_A_FILE):
        path = folder / f"part-{first // ROWS_A_FILE:05d}.jsonl"
        with path.open("w") as stream:
            for number in range(first, min(first + ROWS_A_FILE, num_rows)):
                stream.write(_row(draw, number, problems, bodies) + "\n")
        paths.append(path)
    return paths


def _words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


def _row(draw: random.Random, number: int, problems: list[str], bodies: list[str]) -> str:
    chance, place = draw.random(), int(len(problems) * draw.random() ** 2)
    first, second = draw.randrange(90), draw.randrange(90)
    answer = str(first * second)
    code = f"first = {first}\nsecond = {second}\ntotal = first * second\ntotal"
    block = (
        f"<llm-code>\n{code}\n</llm-code>\n<llm-code-output>\n{answer}\n</llm-code-output>\n" if chance < 0.83 else ""
    )
    tail = {0: "</llm-code>", 1: r" So \boxed{5}."}.get(int(draw.random() * 40), "")
    after = f"\n{draw.choice(bodies)}" if draw.random() < 0.1 else ""
    text = f"{draw.choice(bodies)}.\n{block}So the answer is $\\boxed{{{answer}}}$.{tail}{after}"
    digest = hashlib.md5(text.encode()).hexdigest()
    row = {
        "problem_id": f"bench/{place}", "sample_index": number, "seed": int(digest[:7], 16), "problem": problems[place],
        "expected_answer": answer, "generation": text,
        "code_blocks": [{"code": code, "output": answer, "status": "ok"}] if block else [],
        "predicted_answer": answer, "is_correct": draw.random() < 0.27, "grade_rule": "number",
        "error_message": "" if block else "not_executed", "finish_reason": "stop", "num_tokens": 170,
        "generation_type": "without_reference_solution", "prompt": "code_base", "prompt_sha": digest[:12], "model": "bench",
        "server_kind": "vllm", "seed_honoured": True, "dataset": "bench", "options_sha": digest[:12], "code_sha": digest[:12],
    }  # fmt: skip
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def run_ours(paths: list[Path], output: Path, wanted: int, processes: int) -> tuple[float, float]:
    """CPU-seconds of all processes, and the peak of their memory together in MiB."""
    command = [sys.executable, str(Path(__file__).parents[1] / "pipeline" / "prepare_sft_data.py")]
    command += ["--input", str(paths[0].parent), "--output", str(output), "--code_preference", "any_code"]
    command += ["--num_samples", str(wanted), "--num_processes", str(processes)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak = _watched(child)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        sys.exit("the selection failed")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak


def _watched(child: subprocess.Popen) -> float:
    """Wait for a process; the peak of the private memory of it and all below it, in MiB, looked at 20 times a second."""
    peak, done = 0.0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, sum(map(_memory, _tree(child.pid))) / 2**20)

    watcher = threading.Thread(target=look)
    watcher.start()
    child.communicate()
    done.set()
    watcher.join()
    return peak


def _tree(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                found += map(int, Path(f"/proc/{process}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return found


def _memory(pid: int) -> int:
    """Proportional set size in bytes: pages that processes share are counted once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def run_pandas(paths: list[Path], output: Path) -> tuple[float, float]:
    """Rows per CPU-second, without the import, and the peak in MiB."""
    output.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", PANDAS, str(output), *map(str, paths)], capture_output=True, text=True, check=True
    )
    rows, kept, cpu = child.stdout.split()
    print(f"pandas        {int(rows):>12,} rows  {int(kept):>10,} kept  {float(cpu):8.1f} s CPU")
    return int(rows) / float(cpu), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def same(one: Path, other: Path) -> bool:
    return all(
        hashlib.sha256((one / name).read_bytes()).digest() == hashlib.sha256((other / name).read_bytes()).digest()
        for name in ("train.jsonl", "train.parquet", "sft.jsonl")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=PANDAS_ROWS)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3], help="1 must be among them")
    parser.add_argument("--folder", type=Path, help="where the rows are written (default: a temporary folder)")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mathmill-bench-", dir=chosen.folder))
    try:
        source = folder / "rows"
        source.mkdir()
        paths = write_rows(source, chosen.rows, seed=0)
        size = sum(path.stat().st_size for path in paths)
        print(f"{chosen.rows:,} rows, {size / 1e9:.1f} GB, {size / chosen.rows:.0f} bytes each")
        rates = []
        for processes in chosen.processes:
            begun = time.monotonic()
            cpu, peak = run_ours(paths, folder / f"ours-{processes}", int(chosen.rows * 0.1), processes)
            if processes == 1:  # of others' CPU time the system tells this process nothing
                rates.append(chosen.rows / cpu)
            wall = time.monotonic() - begun
            charged = f"{cpu:8.1f} s CPU" if processes == 1 else ""
            print(f"mathmill x {processes}  {chosen.rows:>12,} rows  {charged}  {wall:6.1f} s  peak {peak:,.0f} MiB")
        first, *others = (folder / f"ours-{processes}" for processes in chosen.processes)
        print(f"equal bytes with {chosen.processes} processes: {all(same(first, other) for other in others)}")
        some = folder / "some"
        some.mkdir()
        for path in paths[: PANDAS_ROWS // ROWS_A_FILE]:
            (some / path.name).symlink_to(path)
        few = sorted(some.iterdir())
        theirs, _ = run_pandas(few, folder / "pandas")
        run_ours(few, folder / "ours-some", int(min(chosen.rows, PANDAS_ROWS) * 0.1), 1)
        print(
            f"pandas selects the same rows in the same order: {rows_of(folder / 'pandas') == rows_of(folder / 'ours-some')}"
        )
        print(
            f"rows per CPU-second: mathmill {rates[0]:,.0f}, pandas {theirs:,.0f}: {rates[0] / theirs:.1f} times as many"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
