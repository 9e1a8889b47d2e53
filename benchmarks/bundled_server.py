"""The bundled server's speed beside a floor measured in the same run: python benchmarks/bundled_server.py [MODEL]

Prints tokens/s over HTTP at 1, 8 and 32 concurrent requests, and tokens a second of processor time, HTTP included, which
other programs on the machine disturb less. The floor is the least that a decode step must do: the bare numpy products of
the model's weights with that many rows, on as many BLAS threads as the server has (one), also by processor time.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))  # before numpy
import aiohttp
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "serving")]
from mathmill.serving.bundled.llama import Llama  # noqa: E402
from mathmill.serving.bundled.server import load_tokenizer  # noqa: E402

PROMPT = (
    "Solve the problem. Use Python code where it helps.\n\nProblem:\nTom has 17 apples and buys 25 more.\n\nSolution:\n"
)
SHIPPED = REPOSITORY / "models" / "words"
SHIPPED_SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
}


def floor_tokens_per_second(model: Llama, rows: int, seconds: float) -> float:
    """Tokens a second if a step were its weight products alone, as one product a weight."""
    weights = [
        weight
        for layer in model.layers
        for weight in (layer.queries_keys_values, layer.attention_out, layer.gate_up, layer.down)
    ]
    pairs = [(np.ones((weight.shape[1], rows), np.float32), weight) for weight in [*weights, model.head]]
    begin, steps = time.process_time(), 0
    while time.process_time() - begin < seconds:
        for states, weight in pairs:
            weight @ states
        steps += 1
    return rows * steps / (time.process_time() - begin)


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far, in steps of 10 ms."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def served(url: str, name: str, concurrent: int, tokens: int, pid: int) -> tuple[float, float]:
    """Tokens a second, and tokens a processor second, of `concurrent` clients that each send a few requests in turn."""
    rounds = max(2, 16 // concurrent)

    async def client(session: aiohttp.ClientSession, number: int) -> int:
        generated = 0
        for turn in range(rounds):
            body = {"model": name, "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "seed": number + turn}
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                generated += (await answer.json())["usage"]["completion_tokens"]
        return generated

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await client(session, 0)
        begin, used = time.perf_counter(), processor_seconds(pid)
        generated = sum(await asyncio.gather(*(client(session, number) for number in range(concurrent))))
        return generated / (time.perf_counter() - begin), generated / (processor_seconds(pid) - used)


def report(folder: Path, arguments: argparse.Namespace) -> None:
    """Start the server, measure, print a table."""
    model = Llama(folder)
    prompt_tokens = len(load_tokenizer(folder).encode(PROMPT).ids)
    print(f"{folder.name}: prompt {prompt_tokens} tokens, {arguments.tokens} generated, temperature 1, one BLAS thread")
    print(f"{'concurrent':>10} {'tokens/s':>9} {'per CPU s':>9} {'floor':>9} {'ratio':>6}")
    command = [sys.executable, "-m", "mathmill.serving.bundled", str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            name, _, url = server.stdout.readline().split()
            for concurrent in arguments.concurrent:
                floors, rates = [], []
                for _ in range(arguments.repeats):  # in turns, so that a busy machine slows both
                    floors.append(floor_tokens_per_second(model, concurrent, 0.3))
                    rates.append(asyncio.run(served(url, name, concurrent, arguments.tokens, server.pid)))
                (by_clock, by_processor), floor = map(max, zip(*rates, strict=True)), max(floors)
                ratio = by_processor / floor
                print(
                    f"{concurrent:>10} {by_clock:>9,.0f} {by_processor:>9,.0f} {floor:>9,.0f} {ratio:>6.2f}", flush=True
                )
        finally:
            server.terminate()


def main() -> None:
    """Measure a model folder, by default the shipped one, or a random one of its shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="model folder (default: models/words, or a random one)")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each request")
    parser.add_argument("--repeats", type=int, default=3, help="the best of this many counts")
    arguments = parser.parse_args()
    if arguments.model or (SHIPPED / "config.json").exists():
        report(arguments.model or SHIPPED, arguments)
        return
    from tiny_llama import make_model

    with tempfile.TemporaryDirectory() as scratch:
        report(make_model(Path(scratch) / "random", **SHIPPED_SHAPE), arguments)


if __name__ == "__main__":
    main()
