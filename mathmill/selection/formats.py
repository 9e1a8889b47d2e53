"""The same rows as other trainers read them: one function a format, from (system, user, row) to an object.

messages           TRL (conversational language modelling), axolotl (`type: chat_template`), NeMo-RL (OpenAIFormatDataset)
prompt_completion  TRL (prompt and completion as text)
nemo_chat          NeMo-Aligner (`model.data.chat=True`)
sharegpt           axolotl (`type: chat_template`, `field_messages: conversations`, `message_property_mappings: {role: from,
                   content: value}`; its own `type: sharegpt` is gone)
alpaca             axolotl (`type: alpaca`)
sft                NeMo-Aligner's prompt-response format, NeMo-RL (PromptResponseDataset with its default keys)

Read against: TRL's documentation, "Dataset formats and types", v0.17 to v0.24; axolotl's docs/dataset-formats/conversation.qmd at
08d99fe and inst_tune.qmd at 2d19be4; NeMo's GPTSFTChatDataset (`system` and `conversations` must be there, `mask` is whose turns
are not learnt) and NeMo-Aligner's docs/user-guide/sft.rst at 0a22550; NeMo-RL's documentation, oai_format_dataset, 0.2.1.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from mathmill.errors import UserError
from mathmill.prompts import Prompt, prompt_messages, prompt_text
from mathmill.records import Problem
from mathmill.selection.rows import TrainingRow

Written = Callable[[str | None, str, TrainingRow], Any]


class SftRow(msgspec.Struct, frozen=True):
    """A line of sft.jsonl."""

    problem_id: str
    input: str
    output: str


def sft(system: str | None, user: str, row: TrainingRow) -> SftRow:
    return SftRow(row.problem_id, _asked(system, user), row.generated_solution)


def _asked(system: str | None, user: str) -> str:
    return f"{system}\n\n{user}" if system else user


def messages(system: str | None, user: str, row: TrainingRow) -> dict[str, Any]:
    said = [("system", system), ("user", user), ("assistant", row.generated_solution)]
    return {"messages": [{"role": role, "content": text} for role, text in said if text is not None]}


def prompt_completion(system: str | None, user: str, row: TrainingRow) -> dict[str, Any]:
    return {"prompt": _asked(system, user), "completion": row.generated_solution}


def nemo_chat(system: str | None, user: str, row: TrainingRow) -> dict[str, Any]:
    turns = [{"from": "User", "value": user}, {"from": "Assistant", "value": row.generated_solution}]
    return {"mask": "User", "system": system or "", "conversations": turns}


def sharegpt(system: str | None, user: str, row: TrainingRow) -> dict[str, Any]:
    said = [("system", system), ("human", user), ("gpt", row.generated_solution)]
    return {"conversations": [{"from": role, "value": text} for role, text in said if text is not None]}


def alpaca(system: str | None, user: str, row: TrainingRow) -> dict[str, Any]:
    return {"instruction": _asked(system, user), "input": "", "output": row.generated_solution}


FORMATS: dict[str, Written] = {
    one.__name__: one for one in (sft, messages, prompt_completion, nemo_chat, sharegpt, alpaca)
}


_QUESTION = "\0question\0"


def asker(prompt: Prompt) -> Callable[[str], tuple[str | None, str]]:
    """A function from a question to the system message, if there is one, and what the user says."""
    problem = Problem(problem_id="", problem=_QUESTION, expected_answer=None, dataset="", split="")
    if prompt.template == "raw":
        said = {"user": prompt_text(prompt, problem)}
    else:
        said = {message["role"]: message["content"] for message in prompt_messages(prompt, problem)}
    user, system = said["user"].split(_QUESTION), said.get("system")

    def ask(question: str) -> tuple[str | None, str]:
        return system and system.replace(_QUESTION, question), question.join(user)

    return ask


def check_prompt(prompt: Prompt) -> None:
    """UserError where the prompt asks for more than a question."""
    if prompt.examples or prompt.stop:
        raise UserError(
            f"--sft_prompt {prompt.name} shows examples; a fine-tuned model is asked without: take code_sft"
        )
    asker(prompt)("1 + 1?")
