"""Training throughput beside two floors of the same run: python benchmarks/training.py --help

One process of the trainer on packed rows of a Llama's shape with random weights; then a plain loop of torch's AdamW around
transformers' model of the same shape, on batches of as many tokens; and one large matrix product, which bounds both.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mathmill.training.hf_files import Entry, write_folder
from mathmill.training.shape import read_shape
from mathmill.training.weights import all_names

REPO = Path(__file__).resolve().parents[1]
WORDS = REPO / "models" / "words"
SIZES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096, "vocab_size": 32000},
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512, "vocab_size": 1152},
}  # fmt: skip
WARM_UP = 3
"""Steps that are not counted."""


def make_model(folder: Path, size: str) -> Path:
    """A Hugging Face folder with random weights of this shape, and the bundled tokenizer."""
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": 0, **SIZES[size]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((WORDS / "tokenizer.json").read_bytes())
    entries = {name: Entry("BF16", shape) for name, shape in all_names(read_shape(folder)).items()}
    write_folder(folder / "hf", entries, lambda name: 0.02 * torch.randn(entries[name].shape), 5 * 10**9, folder)
    return folder / "hf"


def make_rows(path: Path) -> Path:
    dice = random.Random(0)
    words = ["apples", "books", "12", "34", "km", "hours", "How many", "per box"]
    rows = [{"input": "Q", "output": " ".join(dice.choices(words, k=120))} for _ in range(2000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wait_for(device: str) -> float:
    """The time once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def matmul_tflops(device: str, dtype: torch.dtype) -> float:
    """What one large product reaches here."""
    size = 8192 if device == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=dtype)
    for _ in range(3):
        left @ left
    begin, count = wait_for(device), 20
    for _ in range(count):
        left @ left
    return 2 * size**3 * count / (wait_for(device) - begin) / 1e12


def trainers_tokens_a_second(folder: Path, model: Path, chosen: argparse.Namespace, device: str) -> float:
    """Median over the steps of a training of ours."""
    options = {
        "folder": str(folder / "run"), "model": str(model), "data": [str(make_rows(folder / "rows.jsonl"))],
        "device": device, "precision": "bf16" if device == "cuda" else "fp32", "recompute": "none", "packing": True,
        "global_batch": chosen.rows_per_step, "steps": chosen.steps, "context_length": chosen.length, "save_minutes": None,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps({"trainer": options}))
    command = [sys.executable, "-m", "mathmill.training.torchrun", "--nproc_per_node=1", "-m", "mathmill.training"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    env = {**os.environ, "PYTHONPATH": str(REPO), **threads}
    subprocess.run([*command, str(folder / "job.json")], check=True, env=env)
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return median([row["tokens_per_s_per_gpu"] for row in rows if "loss" in row][WARM_UP:])


def plain_tokens_a_second(model_folder: Path, chosen: argparse.Namespace, device: str) -> float:
    """Median over the steps of transformers' model under torch's AdamW, a row at a time, as many rows a step."""
    import transformers

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    seconds = []
    for _ in range(chosen.steps):
        begin = wait_for(device)
        for _ in range(chosen.rows_per_step):
            tokens = torch.randint(1, 1000, (1, chosen.length), device=device)
            (model(input_ids=tokens, labels=tokens).loss / chosen.rows_per_step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(wait_for(device) - begin)
    return chosen.rows_per_step * chosen.length / median(seconds[WARM_UP:])


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b" if on_gpu else "small")
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--rows_per_step", type=int, default=16 if on_gpu else 4)
    chosen = parser.parse_args()
    chosen.length = SIZES[chosen.size]["max_position_embeddings"]
    device = "cuda" if on_gpu else "cpu"
    torch.set_num_threads(torch.get_num_threads() if on_gpu else 1)
    with tempfile.TemporaryDirectory(prefix="mathmill-benchmark-") as place:
        folder = Path(place)
        model = make_model(folder / "model", chosen.size)
        shape = read_shape(model)
        ours = trainers_tokens_a_second(folder, model, chosen, device)
        plain = plain_tokens_a_second(model, chosen, device)
        peak = matmul_tflops(device, torch.bfloat16 if on_gpu else torch.float32)
    flops = shape.flops_per_token(chosen.length) / 1e12
    print(f"{chosen.size}: {shape.num_parameters / 1e6:,.1f}M parameters, {device}, {torch.get_num_threads()} threads, "
          f"{chosen.rows_per_step} rows of {chosen.length} tokens a step, medians of {chosen.steps - WARM_UP} steps")  # fmt: skip
    for name, tokens in (("mathmill's trainer", ours), ("transformers and torch's AdamW", plain)):
        print(
            f"{name:32} {tokens:10,.0f} tokens/s  {tokens * flops / peak:6.1%} of the {peak:,.3g} TFLOPS of one matrix product"
        )
    print(f"the trainer does {ours / plain:.2f} times the tokens of the plain loop")


if __name__ == "__main__":
    main()
