"""Train the bundled model on generated word problems and measure it: python models/words/train.py (extra `train`)."""

import argparse
import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from mathmill.prompts import load_prompt, prompt_text
from mathmill.records import Problem
from mathmill.words import generate, stream

PROMPT = load_prompt("code_sft")
HEADER = PROMPT.user.partition("{{problem}}")[0]
CODE, CODE_END, OUTPUT, OUTPUT_END = "<llm-code>", "</llm-code>", "<llm-code-output>", "</llm-code-output>"
END = "<|endoftext|>"
PIECES = r" ?\\[a-z]+\{?|[0-9]{1,2}| ?\p{L}+| ?[\p{P}\p{S}]+(?: (?=[0-9]))?|\n| "
"""A LaTeX command, at most two digits, a word, symbols (with the space before a digit), a newline, a space."""

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1152,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.05,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
    "torch_dtype": "float16",
    "use_cache": True,
}
Past = list[tuple[Tensor, Tensor]]


def train_tokenizer(num_problems: int = 4000) -> Tokenizer:
    """Byte-level BPE over the very text of the task; 0 to 99 and 00 to 99 are single tokens, so are the four tags."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tags = [CODE, CODE_END, OUTPUT, OUTPUT_END]
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END, *tags],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [prompt_text(PROMPT, p) + str(p.reference_solution) for p in generate("train", num_problems)]
    pairs = [f"{number:02}\n" for number in range(100)] * 1000
    tokenizer.train_from_iterator([*texts, *pairs], trainer)
    saved = json.loads(tokenizer.to_str())
    for token in saved["added_tokens"]:
        token["special"] = token["content"] == END  # a special token is left out of decoded text; tags must be seen
    return Tokenizer.from_str(json.dumps(saved))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = (
            CONFIG["num_attention_heads"],
            CONFIG["num_key_value_heads"],
            CONFIG["head_dim"],
        )
        hidden = CONFIG["hidden_size"]
        self.q_proj = nn.Linear(hidden, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None):
        batch, length, _ = x.shape
        query, key, value = (
            project(x).view(batch, length, -1, self.size).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past is not None:
            key = torch.cat((past[0].expand(batch, -1, -1, -1), key), dim=2)
            value = torch.cat((past[1].expand(batch, -1, -1, -1), value), dim=2)
        seen = torch.ones(length, key.shape[2], dtype=torch.bool).tril(key.shape[2] - length)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1)), (key, value)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(CONFIG["hidden_size"], CONFIG["rms_norm_eps"])
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(CONFIG["hidden_size"], CONFIG["rms_norm_eps"])
        self.mlp = Mlp()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None):
        mixed, present = self.self_attn(self.input_layernorm(x), cos, sin, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Llama(nn.Module):
    """transformers' LlamaModel with the same weight names (without their prefix `model.`) and the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = nn.RMSNorm(CONFIG["hidden_size"], CONFIG["rms_norm_eps"])
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * len(self.layers)) ** -0.5 if into_stream else 1.0
                nn.init.normal_(weight, std=CONFIG["initializer_range"] * scale)

    def forward(self, tokens: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Hidden states of `tokens` [batch, length], and every layer's keys and values. `past`: those of what came before,
        of batch 1 when it is the same for all rows."""
        start = past[0][0].shape[2] if past else 0
        size = CONFIG["head_dim"]
        frequency = CONFIG["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angle = torch.outer(torch.arange(start, start + tokens.shape[1]), frequency).repeat(1, 2)
        x, presents = self.embed_tokens(tokens), []
        cos, sin = angle.cos(), angle.sin()
        for layer, before in zip(self.layers, past or [None] * len(self.layers), strict=True):
            x, present = layer(x, cos, sin, before)
            presents.append(present)
        return self.norm(x), presents

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embed_tokens.weight.T


def encode(tokenizer: Tokenizer, problem: Problem, header: list[int]) -> tuple[list[int], list[bool]]:
    """Tokens after the header, and which of them the model has to learn: the solution without the executed output."""
    prompt = tokenizer.encode(prompt_text(PROMPT, problem)).ids[len(header) :]
    written, rest = str(problem.reference_solution).split(CODE_END)
    supplied, closing = rest.split(OUTPUT_END + "\n")
    parts = (
        (prompt, False),
        (tokenizer.encode(written + CODE_END).ids, True),
        (tokenizer.encode(supplied + OUTPUT_END + "\n").ids, False),
        (tokenizer.encode(closing + END).ids, True),
    )
    return [t for ids, _ in parts for t in ids], [learned for ids, learned in parts for _ in ids]


def batches(tokenizer: Tokenizer, header: list[int], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and what to learn, [size, length], rows of like length together, from an endless stream of problems."""
    problems, draw = stream("train", seed), random.Random(seed)
    while True:
        rows = sorted((encode(tokenizer, p, header) for p in islice(problems, 16 * size)), key=lambda row: len(row[0]))
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        draw.shuffle(chunks)
        for chunk in chunks:
            length = max(len(tokens) for tokens, _ in chunk)
            tokens = [tokens + [0] * (length - len(tokens)) for tokens, _ in chunk]
            learned = [learned + [False] * (length - len(learned)) for _, learned in chunk]
            yield torch.tensor(tokens), torch.tensor(learned)


def train(tokenizer: Tokenizer, folder: Path, steps: int, size: int, peak: float, seed: int) -> Llama:
    """AdamW, linear warm-up over 100 steps, then linear decay to zero; the folder is written every 500 steps.

    The header, alike in all rows, is computed once."""
    torch.manual_seed(seed)
    model = Llama()
    header = tokenizer.encode(HEADER).ids
    matrices = [w for w in model.parameters() if w.dim() == 2]
    vectors = [w for w in model.parameters() if w.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)
    warm_up = min(100, steps // 4)
    start, recent = time.monotonic(), []
    for step, (tokens, learned) in enumerate(islice(batches(tokenizer, header, size, seed), steps)):
        for group in optimizer.param_groups:
            group["lr"] = peak * min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
        _, past = model(torch.tensor([header]))
        hidden, _ = model(tokens[:, :-1], past)
        loss = F.cross_entropy(model.logits(hidden[learned[:, 1:]]), tokens[:, 1:][learned[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = sum(recent) / len(recent)
            print(f"step {step + 1} of {steps}  loss {mean:.4f}  {time.monotonic() - start:.0f} s", flush=True)
            recent = []
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save(model, tokenizer, folder)
    return model


def save(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """A Hugging Face folder: weights in float16, configuration, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": w.detach().half().contiguous() for name, w in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "config": CONFIG,
        "generation_config": {"do_sample": True, "temperature": 1.0, "eos_token_id": 0},
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "model_max_length": CONFIG["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """The model, in float32, and the tokenizer of a folder that `save` wrote."""
    model = Llama()
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): w.float() for name, w in weights.items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.no_grad()
def continue_texts(
    model: Llama, tokenizer: Tokenizer, texts: list[str], temperature: float = 0.0, most: int = 80
) -> list[str]:
    """What the model writes after each text, up to the code's end tag, the end of text, or `most` tokens."""
    prompts = [tokenizer.encode(text).ids for text in texts]
    stops = torch.tensor([tokenizer.token_to_id(END), tokenizer.token_to_id(CODE_END)])
    answers = [""] * len(texts)
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        tokens, past, written = torch.tensor([prompts[row] for row in rows]), None, []
        done = torch.zeros(len(rows), dtype=torch.bool)
        while not done.all() and len(written) < most:
            hidden, past = model(tokens, past)
            logits = model.logits(hidden[:, -1])
            tokens = logits.argmax(-1, True) if not temperature else (logits / temperature).softmax(-1).multinomial(1)
            tokens[done] = stops[0]
            done |= torch.isin(tokens[:, 0], stops)
            written.append(tokens)
        for row, ids in zip(rows, torch.cat(written, 1).tolist(), strict=True):
            answers[row] = tokenizer.decode(ids, skip_special_tokens=True)
    return answers


RUN_BLOCK = """
import ast, sys
tree = ast.parse(sys.stdin.read())
last = ast.Expression(tree.body.pop().value)
names = {}
exec(compile(tree, "block", "exec"), names)
print(repr(eval(compile(last, "block", "eval"), names)))
"""


def run_block(code: str) -> str:
    """What the last expression of a block gives, run by a Python of its own; empty when it fails."""
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", RUN_BLOCK], input=code, capture_output=True, text=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        return ""
    return child.stdout.strip()


def solve(model: Llama, tokenizer: Tokenizer, problems: list[Problem], temperature: float = 0.0) -> list[str]:
    """Full solutions: the model writes a block, a child process runs it, the model goes on after its output."""
    texts = [prompt_text(PROMPT, p) for p in problems]
    written = continue_texts(model, tokenizer, texts, temperature)
    for row, text in enumerate(written):
        if CODE in text and text.endswith(CODE_END):
            result = run_block(text.split(CODE)[1].removesuffix(CODE_END))
            written[row] += f"\n{OUTPUT}\n{result}\n{OUTPUT_END}\n"
    closings = continue_texts(model, tokenizer, [a + b for a, b in zip(texts, written, strict=True)], temperature)
    return [a + b for a, b in zip(written, closings, strict=True)]


def measure(folder: Path, count: int, seed: int, temperature: float = 0.0) -> None:
    """Print the share of unseen problems solved exactly, in all and by kind, with a 95 % Wilson interval."""
    model, tokenizer = load(folder)
    torch.manual_seed(0)
    problems = generate("test", count, seed)
    solutions = solve(model, tokenizer, problems, temperature)
    boxed = [re.findall(r"\\boxed\{([^{}]*)\}", text)[-1:] for text in solutions]
    correct = [answer == [p.expected_answer] for answer, p in zip(boxed, problems, strict=True)]
    for kind in sorted({str(p.subject) for p in problems}):
        of_kind = [right for right, p in zip(correct, problems, strict=True) if p.subject == kind]
        print(f"  {kind:12} {sum(of_kind):4} of {len(of_kind)}")
    wrong = [(p.problem, text) for p, text, right in zip(problems, solutions, correct, strict=True) if not right]
    for problem, text in wrong[:5]:
        print(f"--- wrong: {problem}\n{text}")
    share, z = sum(correct) / count, 1.96
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    low, high = ((middle + sign * half) / (1 + z * z / count) for sign in (-1, 1))
    print(f"temperature {temperature}: {sum(correct)} of n={count} unseen problems solved: {share:.1%} "
          f"(95 % interval {low:.1%} to {high:.1%})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2.5e-3, help="at its peak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the model is written")
    parser.add_argument("--num_test", type=int, default=1000, help="unseen problems to measure on")
    parser.add_argument("--test_seed", type=int, default=1, help="of those; 0 is the bundled benchmark's")
    parser.add_argument("--measure_only", action="store_true", help="measure the model in the folder, train nothing")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the measured solutions; 0: greedy")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    if not chosen.measure_only:
        start = time.monotonic()
        tokenizer = train_tokenizer()
        model = train(tokenizer, chosen.folder, chosen.steps, chosen.batch_size, chosen.learning_rate, chosen.seed)
        size = sum(w.numel() for w in model.parameters())
        print(f"{size:,} parameters, {chosen.steps} steps, {time.monotonic() - start:.0f} s")
    measure(chosen.folder, chosen.num_test, chosen.test_seed, chosen.temperature)


if __name__ == "__main__":
    main()
