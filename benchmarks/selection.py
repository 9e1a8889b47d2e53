"""Selection beside pandas: rows per CPU-second, peak memory, and the same bytes from any number of processes.

    python benchmarks/selection.py                       # 400,000 rows for both
    python benchmarks/selection.py --rows 10000000       # ours on ten million, pandas on 400,000, in one run

The rows are shaped like a run's own solutions: 15,000 problems, code in most, a quarter right, some duplicates and faults.
pandas reads them in both of its ways, `read_json` as it comes and with `engine="pyarrow"`, and keeps only the columns it needs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
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
columns = ["problem_id", "problem", "expected_answer", "generation", "predicted_answer", "is_correct", "error_message",
           "generation_type", "dataset"]
how = {"dtype": False} if sys.argv[1] == "ujson" else {"engine": "pyarrow"}
output, paths = sys.argv[2], sys.argv[3:]
rows = pd.concat([pd.read_json(path, lines=True, **how)[columns] for path in paths], ignore_index=True)
num_rows, reasons = len(rows), {}

def keep(rows, reason, wanted):
    reasons[reason] = int((~wanted).sum())
    return rows[wanted]

rows = keep(rows, "incorrect", rows["is_correct"].astype(bool))
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
rows["error_message"] = rows["error_message"].replace("not_executed", "<not_executed>")
kept = rows.rename(columns=names)[columns]
kept.to_json(output + "/train.jsonl", orient="records", lines=True, force_ascii=False)
kept.to_parquet(output + "/train.parquet")
asked = "Solve the problem. Use Python code where it helps, and put the final answer in \\\\boxed{}.\\n\\nProblem:\\n"
sft = pd.DataFrame({"problem_id": kept["problem_id"], "input": asked + kept["question"] + "\\n\\nSolution:\\n",
                    "output": kept["generated_solution"]})
sft.to_json(output + "/sft.jsonl", orient="records", lines=True)
print(num_rows, len(kept), time.process_time() - loaded)
"""


def write_rows(folder: Path, num_rows: int) -> list[Path]:
    """Files of rows as a run has them; those that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, num_rows, ROWS_A_FILE)
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_write_file, [folder] * len(starts), starts, [num_rows] * len(starts)))


def _write_file(folder: Path, first: int, num_rows: int) -> Path:
    path = folder / f"part-{first // ROWS_A_FILE:05d}.jsonl"
    if not path.exists():
        problems, bodies = _texts()
        draw = random.Random(first)
        rows = [_row(draw, number, problems, bodies) for number in range(first, min(first + ROWS_A_FILE, num_rows))]
        path.with_suffix(".part").write_text("\n".join(rows) + "\n")
        path.with_suffix(".part").rename(path)
    return path


@cache
def _texts() -> tuple[list[str], list[str]]:
    """Problems, and what solutions say."""
    draw = random.Random(0)
    return [f"Problem {number}: {_words(draw, 35)}?" for number in range(15_000)], [
        _words(draw, 20) for _ in range(2_000)
    ]


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


OURS = """
import sys, time
from pathlib import Path
import pyarrow.json, pyarrow.parquet
from mathmill.selection.options import Choice
from mathmill.selection.training_set import Selection, make_training_set

if __name__ == "__main__":
    loaded = time.process_time()
    choice = Choice(code_preference="any_code", num_samples=int(sys.argv[3]))
    make_training_set(Selection(inputs=(sys.argv[1],), output=Path(sys.argv[2]), choice=choice, processes=int(sys.argv[4])))
    print(time.process_time() - loaded)
"""


def run_ours(paths: list[Path], output: Path, wanted: int, processes: int) -> tuple[float, float]:
    """CPU-seconds of the first process, imports apart (with one process: all of them), and the peak of memory in MiB."""
    arguments = [str(paths[0].parent), str(output), str(wanted), str(processes)]
    child = subprocess.Popen([sys.executable, "-c", OURS, *arguments], stdout=subprocess.PIPE, text=True)
    peak, said = _watched(child)
    if child.returncode:
        sys.exit("the selection failed")
    return float(said), peak


def _watched(child: subprocess.Popen) -> tuple[float, str]:
    """Wait for a process; the peak of the memory of it and all below it in MiB, looked at 20 times a second, and what it said."""
    peak, done = 0.0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, sum(map(_memory, _tree(child.pid))) / 2**20)

    watcher = threading.Thread(target=look)
    watcher.start()
    said, _ = child.communicate()
    done.set()
    watcher.join()
    return peak, said


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


def run_pandas(paths: list[Path], output: Path, reader: str) -> float:
    """CPU-seconds, without the import."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", PANDAS, reader, str(output), *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    rows, kept, cpu = child.stdout.split()
    print(f"pandas, {reader:<8}{int(rows):>12,} rows  {int(kept):>8,} kept  {float(cpu):8.1f} s CPU")
    return float(cpu)


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def same(one: Path, other: Path) -> bool:
    return all(
        hashlib.sha256((one / name).read_bytes()).digest() == hashlib.sha256((other / name).read_bytes()).digest()
        for name in ("train.jsonl", "train.parquet", "sft.jsonl")
    )


def beside_pandas(paths: list[Path], num_rows: int, folder: Path, times: int) -> None:
    """The same rows selected by each, one after another and some times over; the best time of each is what counts."""
    best: dict[str, float] = {}
    for _ in range(times):
        shutil.rmtree(folder / "ours-some", ignore_errors=True)
        cpu, _ = run_ours(paths, folder / "ours-some", int(num_rows * 0.1), 1)
        print(f"mathmill        {num_rows:>12,} rows  {'':>13}  {cpu:8.1f} s CPU")
        best["mathmill"] = min(best.get("mathmill", cpu), cpu)
        for reader in ("ujson", "pyarrow"):
            cpu = run_pandas(paths, folder / f"pandas-{reader}", reader)
            best[reader] = min(best.get(reader, cpu), cpu)
    same_rows = [
        rows_of(folder / f"pandas-{reader}") == rows_of(folder / "ours-some") for reader in ("ujson", "pyarrow")
    ]
    print(f"pandas selects the same rows in the same order: {all(same_rows)}")
    rates = {name: num_rows / cpu for name, cpu in best.items()}
    print(f"rows per CPU-second: mathmill {rates['mathmill']:,.0f}")
    for reader, words in (("ujson", "read_json as it comes"), ("pyarrow", "engine='pyarrow'")):
        print(
            f"  pandas, {words}: {rates[reader]:,.0f}; mathmill has {rates['mathmill'] / rates[reader]:.1f} times as many"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=PANDAS_ROWS)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3], help="1 must be among them")
    parser.add_argument(
        "--times", type=int, default=3, help="how often pandas and mathmill select the same rows in turns"
    )
    parser.add_argument("--source", type=Path, help="where the rows are, or are written and stay")
    parser.add_argument("--folder", type=Path, help="where the rows are written (default: a temporary folder)")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mathmill-bench-", dir=chosen.folder))
    try:
        paths = write_rows(chosen.source or folder / "rows", chosen.rows)
        size = sum(path.stat().st_size for path in paths)
        print(f"{chosen.rows:,} rows, {size / 1e9:.1f} GB, {size / chosen.rows:.0f} bytes each")
        for processes in chosen.processes:
            begun = time.monotonic()
            cpu, peak = run_ours(paths, folder / f"ours-{processes}", int(chosen.rows * 0.1), processes)
            wall = time.monotonic() - begun
            charged = f"{cpu:8.1f} s CPU" if processes == 1 else ""  # of others' the system tells this process nothing
            print(f"mathmill x {processes}  {chosen.rows:>12,} rows  {charged}  {wall:6.1f} s  peak {peak:,.0f} MiB")
        first, *others = (folder / f"ours-{processes}" for processes in chosen.processes)
        print(f"equal bytes with {chosen.processes} processes: {all(same(first, other) for other in others)}")
        some = folder / "some"
        some.mkdir()
        for path in paths[: PANDAS_ROWS // ROWS_A_FILE]:
            (some / path.name).symlink_to(path)
        beside_pandas(sorted(some.iterdir()), min(chosen.rows, PANDAS_ROWS), folder, chosen.times)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
