"""Prompts: a file that makes text, or chat messages, of a problem. The files are described in prompts/README.md."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from mathmill.errors import UserError
from mathmill.paths import shipped
from mathmill.records import GenerationType, Problem, open_lines, short_sha

_MARK = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_PROBLEM_FIELDS = tuple(Problem.__struct_fields__)


class PromptFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a prompts/NAME.yaml says."""

    description: str
    template: Literal["raw", "chat"]
    user: str
    """The text of the prompt, with `{{field}}` marks: fields of Problem, and `examples`."""
    system: str | None = None
    """The system message of a chat, with the same marks."""
    examples: str | None = None
    """A few-shot set: NAME of examples/NAME.yaml or .jsonl beside the prompt file, or else in the shipped prompts/."""
    example_format: str = ""
    """The text of one example, with marks for the fields of its set."""
    delimiter: str = ""
    """What follows every example."""
    num_shots: int = 0
    """How many examples are shown: the first of the set."""
    stop: list[str] = []
    """Strings at which generation stops; they are removed from the text."""
    generation_type: GenerationType = "without_reference_solution"
    code: bool = False
    """Whether the model's <llm-code> blocks are run."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt whole, with its examples: what set.yaml keeps, so that it is there when its file is not."""

    name: str
    description: str
    template: Literal["raw", "chat"]
    user: str
    system: str | None
    examples: list[dict[str, str]]
    example_format: str
    delimiter: str
    stop: list[str]
    generation_type: GenerationType
    code: bool

    @property
    def sha(self) -> str:
        """Twelve hexadecimal digits that stand for all but the prompt's name and description."""
        shaping = {
            field: getattr(self, field) for field in self.__struct_fields__ if field not in ("name", "description")
        }
        return short_sha(msgspec.json.encode(shaping, order="sorted"))

    @property
    def num_shots(self) -> int:
        return len(self.examples)


def load_prompt(name_or_path: str, more_fields: tuple[str, ...] = ()) -> Prompt:
    """The prompt of that name in the shipped prompts/, or of a file; `NAME@SET` is the same prompt with other examples.

    `more_fields`: marks that its text may have beside a problem's fields, filled by who asks. Raises UserError for what
    a user can mend.
    """
    name_or_path, _, examples = name_or_path.partition("@")
    path = _prompt_path(name_or_path)
    file = _read_file(path)
    _check_marks(path, file, more_fields)
    if examples:
        if file.examples is None:
            raise UserError(f"prompt '{path.stem}' shows no examples: write it without @{examples}")
        file = msgspec.structs.replace(file, examples=examples)
    return Prompt(
        name=path.stem + (f"@{examples}" if examples else ""),
        description=file.description,
        template=file.template,
        user=file.user,
        system=file.system,
        examples=_examples(path, file),
        example_format=file.example_format,
        delimiter=file.delimiter,
        stop=file.stop,
        generation_type=file.generation_type,
        code=file.code,
    )


def prompt_text(prompt: Prompt, problem: Problem) -> str:
    """The text that a raw prompt makes of a problem. A field that the problem lacks is refused by name."""
    if prompt.template != "raw":
        raise UserError(f"prompt '{prompt.name}' is a chat: its text is made by the model's own chat template")
    return _filled(prompt, prompt.user, problem)


def prompt_messages(prompt: Prompt, problem: Problem) -> list[dict[str, str]]:
    """The messages (role, content) that a chat prompt makes of a problem."""
    if prompt.template != "chat":
        raise UserError(f"prompt '{prompt.name}' is raw text: it has no messages")
    parts = [("system", prompt.system), ("user", prompt.user)]
    return [{"role": role, "content": _filled(prompt, text, problem)} for role, text in parts if text is not None]


def fill(text: str, fields: Mapping[str, str | None], place: str) -> str:
    """Put fields into the `{{field}}` marks of a text, in one pass: what is put in is not looked through again.

    A field that is not there, or None, is refused; `place` says where.
    """

    def value(mark: re.Match[str]) -> str:
        found = fields.get(mark[1])
        if found is None:
            raise UserError(f"{place} has no {mark[1]}, which {mark[0]} asks for; add it, or take another prompt")
        return found

    return _MARK.sub(value, text)


def _filled(prompt: Prompt, text: str, problem: Problem) -> str:
    fields = {field: None if value is None else str(value) for field, value in msgspec.structs.asdict(problem).items()}
    place = f"prompt '{prompt.name}': problem {problem.problem_id}"
    return fill(text, fields | {"examples": _shots(prompt)}, place)


def _shots(prompt: Prompt) -> str:
    """The examples as text, each followed by the delimiter."""
    return "".join(
        fill(prompt.example_format, example, f"prompt '{prompt.name}': example {number}") + prompt.delimiter
        for number, example in enumerate(prompt.examples, 1)
    )


def _prompt_path(name: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"no prompt file {name}")
        return Path(name)
    path = shipped("prompts") / f"{name}.yaml"
    if path.is_file():
        return path
    known = sorted(each.stem for each in shipped("prompts").glob("*.yaml"))
    raise UserError(f"no prompt '{name}'{_nearest(name, known)} Known: {', '.join(known)}, or a path to a yaml file")


def _read_file(path: Path) -> PromptFile:
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: no keys in it; prompts/README.md says which a prompt has")
    keys = PromptFile.__struct_fields__
    for key in content:
        if key not in keys:
            raise UserError(f"{path}: unknown key '{key}'{_nearest(str(key), keys)} Known: {', '.join(keys)}")
    try:
        return msgspec.convert(content, PromptFile)
    except msgspec.ValidationError as problem:
        raise UserError(f"{path}: {problem}; prompts/README.md says what a prompt holds") from None


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: no yaml: {' '.join(str(problem).split())}") from None


def _check_marks(path: Path, file: PromptFile, more_fields: tuple[str, ...]) -> None:
    """Refuse a prompt whose marks cannot be filled, or that would not show what it names."""
    known = (*_PROBLEM_FIELDS, "examples", *more_fields)
    for key, text in (("user", file.user), ("system", file.system or "")):
        for field in _MARK.findall(text):
            if field not in known:
                raise UserError(f"{path}: {key} has {{{{{field}}}}}{_nearest(field, known)} Known: {', '.join(known)}")
    marks = set(_MARK.findall(file.user + (file.system or "")))
    if "problem" not in marks:
        raise UserError(f"{path}: {{{{problem}}}} stands nowhere in user; a model would not see the problem")
    if ("examples" in marks) != (file.examples is not None):
        raise UserError(f"{path}: {{{{examples}}}} in user and the key examples go together; one of them is missing")
    if file.template == "raw" and file.system is not None:
        raise UserError(f"{path}: a raw prompt has no system message; write its text at the start of user")
    if "" in file.stop:
        raise UserError(f"{path}: an empty stop string would stop every generation at once; remove it")


def _examples(path: Path, file: PromptFile) -> list[dict[str, str]]:
    """The first `num_shots` examples of the prompt's set, all of whose marked fields are there."""
    if file.examples is None:
        if file.num_shots:
            raise UserError(f"{path}: num_shots is {file.num_shots}, and examples names no set")
        return []
    folders = (path.parent / "examples", shipped("prompts") / "examples")
    places = [folder / f"{file.examples}{ending}" for folder in folders for ending in (".yaml", ".jsonl")]
    place = next((each for each in places if each.is_file()), None)
    if place is None:
        known = sorted(
            {each.stem for folder in folders for each in folder.glob("*") if each.suffix in (".yaml", ".jsonl")}
        )
        raise UserError(
            f"{path}: no examples '{file.examples}'{_nearest(file.examples, known)} Known: {', '.join(known)}"
        )
    examples = load_examples(place)
    if not 0 < file.num_shots <= len(examples):
        raise UserError(f"{path}: num_shots is {file.num_shots}, and {place} has 1 to {len(examples)} to show")
    wanted = set(_MARK.findall(file.example_format))
    for number, example in enumerate(examples[: file.num_shots], 1):
        for field in sorted(wanted - example.keys()):
            raise UserError(f"{place}: example {number} has no {field}, which example_format of {path} needs")
    return examples[: file.num_shots]


def load_examples(path: Path) -> list[dict[str, str]]:
    """A few-shot set: texts by name, a list in yaml or one JSON object a line."""
    try:
        if path.suffix == ".jsonl":
            return [msgspec.json.decode(line, type=dict[str, str]) for _, line in open_lines(path)]
        return msgspec.convert(_read_yaml(path), list[dict[str, str]])
    except msgspec.DecodeError as problem:
        raise UserError(f"{path}: {problem}; examples are a list of texts by name (quote numbers)") from None


def _nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else "."
