"""The text that a model continues: a prompt's own, or what the model's chat template makes of its messages."""

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mathmill.errors import UserError
from mathmill.prompts import Prompt, prompt_messages, prompt_text
from mathmill.records import Problem

Messages = list[dict[str, str]]
KNOWN_TEXTS = 256
"""The samples of one problem come one after the other: its text is made once."""


def text_maker(prompt: Prompt, model_path: str) -> Callable[[Problem], str]:
    """Makes the text that a model continues: the prompt's own, or by the chat template in the model's folder."""
    if prompt.template == "raw":
        return lru_cache(KNOWN_TEXTS)(lambda problem: prompt_text(prompt, problem))
    if not model_path:
        raise UserError(
            f"prompt '{prompt.name}' is a chat: name the model's folder with --model, for its chat template"
        )
    template = ChatTemplate(model_path)
    return lru_cache(KNOWN_TEXTS)(lambda problem: template.text(prompt_messages(prompt, problem)))


class ChatTemplate:
    """The chat template in a Hugging Face folder: `chat_template.jinja`, or `chat_template` in tokenizer_config.json.

    The template is the model's, not ours, so it runs in Jinja's sandbox. Raises UserError where there is none, or where
    it cannot be read.
    """

    def __init__(self, model_folder: str | Path) -> None:
        self.folder = Path(model_folder)
        config = _tokenizer_config(self.folder)
        self._special_tokens = _special_tokens(config)
        source = _template(self.folder, config)
        with self._refusals():
            self._template = _environment().from_string(source)

    def text(self, messages: Messages) -> str:
        """The prompt that it makes of messages (role, content), up to where the model's answer starts."""
        with self._refusals():
            return self._template.render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._special_tokens
            )

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (jinja2.TemplateError, TypeError, ValueError) as problem:
            raise UserError(f"{self.folder}: its chat template refuses the messages: {problem}") from None


def chat_text(messages: Messages, model_folder: str | Path) -> str:
    """What the chat template of a folder makes of messages, once."""
    return ChatTemplate(model_folder).text(messages)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise UserError(f"{path}: no JSON: {problem}") from None


def _template(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    if not isinstance(template, str):
        raise UserError(
            f"{folder}: no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            "take a prompt with template: raw for this model"
        )
    return template


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and their like, each a text or an object with its `content`."""
    tokens = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return {"bos_token": "", "eos_token": ""} | tokens


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that such templates are written for: trimmed blocks, loop controls, and four names."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **rest: Any) -> str:
    """Plain JSON: Jinja's own filter would write `<` as an HTML escape."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **rest)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
