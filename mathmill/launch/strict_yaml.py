"""Yaml read strictly into a dataclass: every mistake is one line that names file and key."""

import difflib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mathmill.errors import UserError

Kind = TypeVar("Kind")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
PLAIN_REFERENCE = re.compile(r"\$\{[A-Za-z0-9_.\[\]-]+\}")


def read_strictly(kind: type[Kind], path: Path, shown: str) -> Kind:
    """The dataclass that a yaml file describes; `shown` is what errors call the file."""
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        text = path.read_text()
        _check_node(yaml.compose(text), shown)
        schema = OmegaConf.structured(kind)
        OmegaConf.set_readonly(schema, False)
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig):
            raise UserError(f"{shown}: must hold 'key: value' lines")
        for key in map(str, loaded):
            try:
                schema = OmegaConf.merge(schema, OmegaConf.masked_copy(loaded, [key]))
            except TypeError:  # a list where a mapping is meant
                raise UserError(f"{shown}: {key} must be {_meant(kind, key)}") from None
        return OmegaConf.to_object(schema)  # type: ignore[return-value]
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{shown}:{line}: not yaml: {problem.problem or problem.context}") from None
    except RecursionError:
        raise UserError(f"{shown}: an alias (*name) stands inside what it refers to, or lists are too deep") from None
    except (UnicodeDecodeError, OSError, yaml.YAMLError) as problem:
        reason = " ".join(str(problem).split())
        raise UserError(f"{shown}: cannot be read: {reason}") from None
    except OmegaConfBaseException as problem:
        raise UserError(f"{shown}: {_explained(kind, problem)}") from None


def _check_node(node: Any, shown: str, key: str = "") -> None:
    """Refuse what yaml allows and a script cannot hold, or what yaml reads as something that nobody meant."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            _check_key(name, shown, key)
            _check_node(value, shown, f"{key}.{name.value}" if key else str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _check_node(value, shown, f"{key}[{index}]")
    elif isinstance(node, yaml.ScalarNode):
        _check_scalar(node, shown, key)


def _check_key(node: Any, shown: str, parent: str) -> None:
    import yaml

    inside = f" under {parent}" if parent else ""
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{shown}: a key{inside} must be a word")
    if CONTROL.search(node.value):
        raise UserError(
            f"{shown}: the key {node.value!r}{inside} holds a line break, a tab or another control character"
        )
    if (kind := node.tag.rpartition(":")[2]) not in ("str", "merge"):
        raise UserError(f"{shown}: the key {node.value or '(none)'}{inside} is {kind} to yaml; put quotes around it")


def _check_scalar(node: Any, shown: str, key: str) -> None:
    import yaml

    if CONTROL.search(node.value):
        raise UserError(f"{shown}: {key} holds a line break, a tab or another control character; write one line")
    if "${" in PLAIN_REFERENCE.sub("", node.value):
        raise UserError(
            f"{shown}: {key}: ${{…:…}} would be written into scripts with its value; name variables of your environment "
            "under env:, and in setup write $NAME, without braces"
        )
    if node.tag.rpartition(":")[2] in ("int", "float"):
        # YAML 1.1 reads 12:00:00 as 43200 and 4:00 as 240, wherever it stands without quotes
        clock = ":" in node.value
        if clock or key == "time_limit":
            read, written = yaml.safe_load(node.value), node.value if clock else "12:00:00"
            raise UserError(f'{shown}: {key} was read as the number {read}; put quotes around it, as "{written}"')


def _explained(kind: type, problem: Any) -> str:
    """OmegaConf's error in one line of a user's words."""
    from omegaconf import errors

    key = str(problem.full_key or problem.key or "?")
    if isinstance(problem, errors.ConfigKeyError | errors.ConfigAttributeError):
        known = [each.name for each in fields(problem.object_type)]  # type: ignore[arg-type]
        near = difflib.get_close_matches(str(problem.key), known, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"unknown key '{key}'; {hint}"
    if isinstance(problem, errors.InterpolationResolutionError):
        return f"{key}: {str(problem).splitlines()[0]}; write a shell variable as $NAME, without braces"
    if isinstance(problem, errors.MissingMandatoryValue):
        return f"{key} is missing"
    secret = key == "env" or key.startswith("env[")  # what stands there by mistake may be a value
    found = "" if problem.value is None or secret else f", not {str(problem.value)!r}"
    return f"{key} must be {_meant(kind, key)}{found}"


def _meant(kind: Any, key: str) -> str:
    """What a value at `models.mixtral.gpus` or `setup[1]` must be, from the fields' own types."""
    for part in re.findall(r"[^.\[\]]+", key):
        if is_dataclass(kind):
            kind = get_type_hints(kind)[part]
        elif get_origin(kind) in (dict, list):
            kind = get_args(kind)[-1]
    choices = get_args(kind) if get_origin(kind) in (Literal, Union, UnionType) else (kind,)
    return " or ".join(_words(each) for each in choices if each is not type(None))


def _words(kind: Any) -> str:
    if isinstance(kind, str):
        return f"'{kind}'"
    if is_dataclass(kind) or get_origin(kind) is dict:
        return "'key: value' lines"
    if get_origin(kind) is list:
        return "a list, one '- item' a line"
    return {int: "a whole number", float: "a number", str: "text"}.get(kind, "something else")
