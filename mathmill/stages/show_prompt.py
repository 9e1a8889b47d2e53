"""Stage: the exact text that a model gets for a problem."""

import sys
from dataclasses import dataclass

from mathmill.chat_template import chat_text
from mathmill.errors import UserError
from mathmill.options import script
from mathmill.problems import load_problems
from mathmill.prompts import Prompt, load_prompt, prompt_messages, prompt_text
from mathmill.records import Problem


@dataclass(frozen=True, kw_only=True)
class ShowPromptOptions:
    """Print the exact text that a model gets for a problem."""

    prompt: str = "code_sft"
    """A name in prompts/, or a path to a yaml file."""
    problems: str = "words:test"
    """NAME:SPLIT or FILE.jsonl."""
    index: int = 0
    """Which problem, counted from 0."""
    problem_id: str | None = None
    """Which problem, by its id, instead of --index."""
    model_folder: str | None = None
    """The model's Hugging Face folder; a prompt with template: chat needs its chat template."""


def run(options: ShowPromptOptions) -> None:
    """The text goes to stdout and nothing else does; its length and the stop strings go to stderr."""
    prompt = load_prompt(options.prompt)
    problem = _problem(options)
    text = _text(prompt, problem, options.model_folder)
    stops = ", ".join(map(repr, prompt.stop)) or "none"
    note = f"{prompt.name} {prompt.sha}, {problem.problem_id}: {len(text):,} characters, stop strings: {stops}"
    print(f"\033[2m{note}\033[0m" if sys.stderr.isatty() else note, file=sys.stderr)
    sys.stdout.write(text)


def _text(prompt: Prompt, problem: Problem, model_folder: str | None) -> str:
    if prompt.template == "raw":
        return prompt_text(prompt, problem)
    if model_folder is None:
        raise UserError(f"prompt '{prompt.name}' is a chat: name the model with --model_folder, for its chat template")
    return chat_text(prompt_messages(prompt, problem), model_folder)


def _problem(options: ShowPromptOptions) -> Problem:
    problems = load_problems(options.problems)
    if options.problem_id is not None:
        for problem in problems:
            if problem.problem_id == options.problem_id:
                return problem
        raise UserError(
            f"{options.problems} has no problem '{options.problem_id}'; its first is {problems[0].problem_id}"
        )
    if not 0 <= options.index < len(problems):
        raise UserError(f"--index {options.index}: {options.problems} has problems 0 to {len(problems) - 1}")
    return problems[options.index]


def main() -> None:
    script(ShowPromptOptions, run)
