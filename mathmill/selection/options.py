"""What a selection is asked for."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from mathmill.errors import UserError

CodePreference = Literal["none", "all", "majority_code", "any_code"]
Format = Literal["messages", "prompt_completion", "nemo_chat", "sharegpt", "alpaca"]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a solution must be, and where it is cut."""

    keep: Literal["correct", "incorrect", "all"] = "correct"
    """Whose answers: right ones; wrong ones (for verifiers); every row, graded or not."""
    generation_types: tuple[str, ...] = ("without_reference_solution", "masked_reference_solution")
    """How the solution was made. One that was shown the whole reference solution only copies it."""
    require_box: bool = True
    """Drop solutions without a boxed answer."""
    drop_multi_boxed: bool = True
    """Drop solutions with more than one boxed answer."""
    drop_broken_code: bool = True
    """Drop solutions whose code tags do not match."""
    drop_useless_code: bool = False
    """Drop solutions that box their answer before their first code."""
    trim: bool = True
    """Cut a solution after the line with its answer."""
    trim_prefix: bool = False
    """Cut a first line "My solution:" away (OpenMathInstruct-2)."""
    drop_wrong_arithmetic: bool = False
    """Drop solutions with wrong arithmetic in their words, such as 2 + 3 = 6 (OpenMathInstruct-2)."""
    min_solution_characters: int = 0
    """Drop shorter solutions; OpenMathInstruct-2: 200."""
    max_solution_characters: int | None = None
    """Drop longer solutions."""
    max_problem_tokens: int | None = None
    """Drop longer problems; OpenMathInstruct-2: 1024. Needs --tokenizer."""
    max_solution_tokens: int | None = None
    """Drop longer solutions; OpenMathInstruct-2: 1024. Needs --tokenizer."""
    tokenizer: str | None = None
    """A Hugging Face folder, or a tokenizer.json, to count tokens by."""
    bad_lines: Literal["refuse", "skip"] = "refuse"
    """What a line is met with that cannot be read: an error that names it, or a count and a list."""

    def __post_init__(self) -> None:
        if (self.max_problem_tokens or self.max_solution_tokens) and not self.tokenizer:
            raise UserError("--max_problem_tokens and --max_solution_tokens need --tokenizer FOLDER to count by")

    def look_at_usual(self) -> bool:
        """Whether a solution with one plain box and whole code may be unfit or changed for what else it says."""
        return (
            self.trim_prefix
            or self.drop_wrong_arithmetic
            or self.min_solution_characters > 0
            or any(
                most is not None
                for most in (self.max_solution_characters, self.max_problem_tokens, self.max_solution_tokens)
            )
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of the fit solutions are taken."""

    code_preference: CodePreference = "none"
    """Of each problem: all: only solutions with code; any_code: only those, if it has one; majority_code: only those, if
    they are the majority."""
    num_samples: int | None = None
    """How many rows are wanted; unset: all."""
    downsample: Literal["fair", "random"] = "fair"
    """fair: one solution of every problem, then a second of every one that has it, and so on; random: any."""
    seed: int = 0
    """Decides which rows are taken, and their order."""

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < 1:
            raise UserError(f"--num_samples must be at least 1, not {self.num_samples}")


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is written of the rows."""

    sft_prompt: str = "code_sft"
    """The prompt that makes the input of sft.jsonl and of the conversations; its model is to be asked with it later."""
    formats: tuple[Format, ...] = ()
    """More files, for other trainers: messages (TRL, axolotl, NeMo-RL), prompt_completion (TRL), nemo_chat (NeMo-Aligner),
    sharegpt and alpaca (axolotl). sft.jsonl itself is what NeMo-Aligner's and NeMo-RL's input/output readers take."""
    parquet: bool = True
    """Write train.parquet too."""
    keep_drops: bool = False
    """Write dropped.jsonl: every row left out, its reason, and where it stood."""


def as_data(options: Any) -> dict[str, Any]:
    """Plain data, as JSON has it."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(options).items()
    }
