"""Training throughput beside what this device's matrix product reaches in the same run: python benchmarks/training.py --help"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mathmill.training.hf_files import Entry, write_folder
from mathmill.training.shape import read_shape
from mathmill.training.weights import all_names

REPO = Path(__file__).resolve().parents[1]
WORDS = REPO / "models" / "words"
SIZES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512},
}  # fmt: skip


def make_model(folder: Path, size: str) -> None:
    """A folder with random weights of a Llama's shape, with the bundled tokenizer."""
    folder.mkdir()
    config = {"model_type": "llama", "vocab_size": 32000 if size == "1b" else 1152, "eos_token_id": 0, **SIZES[size]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((WORDS / "tokenizer.json").read_bytes())
    entries = {name: Entry("BF16", shape) for name, shape in all_names(read_shape(folder)).items()}
    write_folder(folder / "hf", entries, lambda name: 0.02 * torch.randn(entries[name].shape), 5 * 10**9, folder)


def matmul_tflops(device: str, dtype: torch.dtype) -> float:
    """What one large product reaches here."""
    size = 8192 if device == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=dtype)
    for _ in range(3):
        left @ left
    if device == "cuda":
        torch.cuda.synchronize()
    begin, count = time.monotonic(), 20
    for _ in range(count):
        left @ left
    if device == "cuda":
        torch.cuda.synchronize()
    return 2 * size**3 * count / (time.monotonic() - begin) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=SIZES, default="1b" if on_gpu else "tiny")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows_per_step", type=int, default=16)
    chosen = parser.parse_args()
    device, precision = ("cuda", "bf16") if on_gpu else ("cpu", "fp32")
    torch.set_num_threads(1 if not on_gpu else torch.get_num_threads())
    peak = matmul_tflops(device, torch.bfloat16 if on_gpu else torch.float32)
    with tempfile.TemporaryDirectory(prefix="mathmill-benchmark-") as place:
        folder = Path(place)
        make_model(folder / "model", chosen.size)
        dice = random.Random(0)
        words = ["apples", "books", "12", "34", "km", "hours", "How many", "per box"]
        rows = [{"input": "Q", "output": " ".join(dice.choices(words, k=120))} for _ in range(2000)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        length = SIZES[chosen.size]["max_position_embeddings"]
        options = {
            "folder": str(folder / "run"), "model": str(folder / "model" / "hf"), "data": [str(folder / "rows.jsonl")],
            "device": device, "precision": precision, "recompute": "selective" if on_gpu else "none",
            "global_batch": chosen.rows_per_step, "steps": chosen.steps, "packing": True, "context_length": length,
            "peak_tflops": peak,
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps({"trainer": options}))
        command = [sys.executable, "-m", "mathmill.training.torchrun", "--nproc_per_node=1", "-m", "mathmill.training"]
        env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1" if not on_gpu else "8"}
        subprocess.run([*command, str(folder / "job.json")], check=True, env=env)
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines][3:]  # the first ones warm up
    tokens = sorted(row["tokens_per_s_per_gpu"] for row in steps)[len(steps) // 2]
    share = sorted(row["utilisation"] for row in steps)[len(steps) // 2]
    print(f"{chosen.size}, {precision}, {device}: {tokens:,.0f} tokens/s, {share:.1%} of the {peak:,.2f} TFLOPS that one large "
          f"matrix product reaches here (median of {len(steps)} steps)")  # fmt: skip


if __name__ == "__main__":
    main()
