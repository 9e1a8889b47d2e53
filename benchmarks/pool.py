"""The bundled server's ceiling and the pipeline's throughput through it, in one run: python benchmarks/pool.py

Ceiling: raw requests from a loop of bare aiohttp. Pipeline: a worker as a job starts it, with prompts, seeds, claims, journal,
grading and publication, through the client of a pool. Both send the same number of requests with the same prompts and options to
one server process, in turns; each turn counts from a tenth to nine tenths of its tokens, by the server's own counter, so that
neither's start and tail count. The server has one half of the cores and whoever asks it the other, as on a cluster, where a
client takes none of its server's; --shared lets them share all. Tokens a second of the server's processor time are printed too.
Machines are noisy, so the turns are compared by their medians, and the ratio of each pair of turns is printed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import aiohttp
import msgspec

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
from mathmill.chat_template import text_maker  # noqa: E402
from mathmill.generation.sets import SampleSet, Sampling, create_set, seed_of  # noqa: E402
from mathmill.problems import load_problems  # noqa: E402
from mathmill.prompts import load_prompt  # noqa: E402
from mathmill.records import lines_of, short_sha  # noqa: E402
from mathmill.run import Run  # noqa: E402
from mathmill.serving.address import Address, read_address  # noqa: E402

MODEL = REPOSITORY / "models" / "words"
PROMPT = msgspec.structs.replace(load_prompt("code_sft"), code=False)  # a sandbox would be a third user of the cores
SAMPLING = Sampling(
    temperature=0.7,
    top_p=0.95,
    max_tokens=64,
    max_tokens_per_round=64,
    max_code_executions=0,
    stop_on_code_error=True,
    output_style="ipython",
    max_output_characters=1000,
    code_timeout_s=10.0,
)
SAMPLE_S = 0.1


@dataclass(frozen=True)
class Reading:
    """The server's counters at a moment."""

    at: float
    tokens: int
    cpu_s: float


class Meter:
    """Reads the server's counters every tenth of a second while a turn lasts."""

    def __init__(self, address: Address, pid: int) -> None:
        self.address, self.pid = address, pid
        self.readings: list[Reading] = []
        self._over = threading.Event()

    def read(self) -> Reading:
        with urllib.request.urlopen(f"{self.address.url}/metrics") as answer:
            lines = dict(line.split() for line in answer.read().decode().splitlines() if not line.startswith("#"))
        user, system = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        cpu_s = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return Reading(time.perf_counter(), int(lines["mathmill_generated_tokens_total"]), cpu_s)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.readings = [self.read()]
        thread = threading.Thread(target=self._keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._over.clear()
            self.readings.append(self.read())

    def _keep(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.readings.append(self.read())

    def rates(self) -> tuple[float, float]:
        """Tokens a second, and a second of the server's processor time, from a tenth to nine tenths of the turn's tokens."""
        first, last = self.readings[0].tokens, self.readings[-1].tokens
        middle = [one for one in self.readings if 0.1 <= (one.tokens - first) / (last - first) <= 0.9]
        tokens = middle[-1].tokens - middle[0].tokens
        return tokens / (middle[-1].at - middle[0].at), tokens / (middle[-1].cpu_s - middle[0].cpu_s)


def environment(run: Run, job: str) -> dict[str, str]:
    return {**os.environ, "MATHMILL_RUN": str(run.folder), "MATHMILL_JOB": job, "PYTHONPATH": str(REPOSITORY)}


@contextlib.contextmanager
def server(run: Run) -> Iterator[tuple[Address, int]]:
    """The bundled server as a job of a pool starts it; its address and its process."""
    section = {"kind": "bundled", "model": str(MODEL), "served_name": "words", "host": "127.0.0.1", "pool": "words"}
    options = run.folder / "server.json"  # not a launch that a worker would find and end
    options.write_text(json.dumps({"server": section}))
    command = [sys.executable, "-m", "mathmill.serving.start", options]
    with subprocess.Popen(command, env=environment(run, "server"), stdout=subprocess.DEVNULL) as process:
        try:
            path = run.servers / "server.json"
            while not path.exists():
                assert process.poll() is None, "the server died"
                time.sleep(0.05)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield read_address(path), int(children[0])
        finally:
            process.terminate()


def make_set(run: Run, name: str, num_samples: int) -> SampleSet:
    problems = load_problems("words:test")
    sample_set = SampleSet(
        name=name,
        problems_sha=short_sha(lines_of(problems)),
        num_problems=len(problems),
        prompt=PROMPT,
        model="words",
        sampling=SAMPLING,
        seed=0,
        problems_per_shard=8,
        samples_per_shard=8,
    )
    create_set(run, sample_set, problems).grow(num_samples)
    return sample_set


def pipeline(run: Run, name: str, num_samples: int) -> None:
    make_set(run, name, num_samples)
    options = run.jobs / f"{name}.json"
    section = {"model": "words", "model_path": str(MODEL), "pool": "words", "sums_up": False}
    options.write_text(json.dumps({"generation": section}))
    done = subprocess.run(
        [sys.executable, "-m", "mathmill.generation", options],
        env=environment(run, name) | {"MATHMILL_NODE_DIR": str(run.folder)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def raw(address: Address, sample_set: SampleSet, num_samples: int, in_flight: int) -> None:
    text_of = text_maker(PROMPT, str(MODEL))
    asked = iter(
        [
            {
                "model": address.model,
                "prompt": text_of(problem),
                "max_tokens": SAMPLING.max_tokens,
                "temperature": SAMPLING.temperature,
                "top_p": SAMPLING.top_p,
                "seed": seed_of(sample_set, problem.problem_id, sample),
            }
            for problem in load_problems("words:test")
            for sample in range(num_samples)
        ]
    )
    headers = {"Authorization": f"Bearer {address.token}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask_in_turn() -> None:
            for body in asked:
                async with session.post(f"{address.url}/v1/completions", json=body) as answer:
                    assert (await answer.json())["usage"]["completion_tokens"] > 0

        await asyncio.gather(*(ask_in_turn() for _ in range(in_flight)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12, help="samples of each of the 200 problems, a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--in_flight", type=int, default=256, help="of the raw requests; the pipeline's own most")
    parser.add_argument("--shared", action="store_true", help="server and clients share all cores")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    apart = len(cores) > 1 and not arguments.shared
    if apart:
        os.sched_setaffinity(0, cores[: len(cores) // 2])  # the server inherits it
    with tempfile.TemporaryDirectory(prefix="mathmill-benchmark-") as folder:
        run = Run(Path(folder, "pool"))
        run.jobs.mkdir(parents=True)
        run.config.write_text("name: pool\n")
        with server(run) as (address, pid):
            if apart:
                os.sched_setaffinity(0, cores[len(cores) // 2 :])
            meter = Meter(address, pid)
            rates: dict[str, list[tuple[float, float]]] = {"raw": [], "pipeline": []}
            for turn in range(arguments.turns):
                named = make_set(Run(Path(folder, "unused")), f"raw-{turn}", arguments.samples)
                with meter.running():
                    asyncio.run(raw(address, named, arguments.samples, arguments.in_flight))
                rates["raw"].append(meter.rates())
                with meter.running():
                    pipeline(run, f"pipeline-{turn}", arguments.samples)
                rates["pipeline"].append(meter.rates())
                for name in rates:
                    wall, cpu = rates[name][-1]
                    print(
                        f"turn {turn}  {name:8}  {wall:8,.0f} tokens/s  {cpu:8,.0f} per CPU s of the server", flush=True
                    )
    for number, what in enumerate(("tokens/s", "tokens per CPU s of the server")):
        ceilings, reached = ([rate[number] for rate in rates[name]] for name in ("raw", "pipeline"))
        pairs = " ".join(f"{mine / most:.3f}" for mine, most in zip(reached, ceilings, strict=True))
        ceiling, ours = median(ceilings), median(reached)
        print(f"{what}: ceiling {ceiling:,.0f}, pipeline {ours:,.0f}, ratio {ours / ceiling:.3f} (turns: {pairs})")


if __name__ == "__main__":
    main()
