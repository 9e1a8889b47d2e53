"""A site's file: where jobs run and what is there. Read strictly, with errors that name the file."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mathmill.errors import UserError
from mathmill.launch.times import seconds_of
from mathmill.paths import shipped

RuntimeName = Literal["none", "apptainer", "singularity", "pyxis", "docker", "podman"]


@dataclass(frozen=True, kw_only=True)
class Partitions:
    """Where jobs with and without GPUs go."""

    gpu: str | None = None
    cpu: str | None = None


@dataclass(frozen=True, kw_only=True)
class Runtimes:
    """How the steps of each role start."""

    server: RuntimeName = "none"
    sandbox: RuntimeName = "none"
    trainer: RuntimeName = "none"
    client: RuntimeName = "none"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """What a cluster file says of a model."""

    path: str = "???"
    server: str = "trtllm"
    context_length: int | None = None
    gpus: int | None = None
    nodes: int = 1
    arguments: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """Every key that a file in cluster_configs/ may have; `cluster_configs/README.md` explains each."""

    description: str = ""
    contact: str = ""
    executor: Literal["local", "slurm"] = "slurm"
    partitions: Partitions = field(default_factory=Partitions)
    account: str | None = None
    qos: str | None = None
    time_limit: str | None = None
    stop_before: int | str | None = None
    gpus_per_node: int = 0
    gpu_directive: str | None = "gpus-per-node={gpus}"
    cpus: int | None = None
    mem: int | str | None = None
    max_running: int | None = None
    max_array_size: int = 1001
    setup: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    python: str | None = None
    runtime: Runtimes = field(default_factory=Runtimes)
    images: dict[str, str] = field(default_factory=dict)
    models: dict[str, ModelEntry] = field(default_factory=dict)
    directives: dict[str, Any] = field(default_factory=dict)
    confirm_gpu_hours: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cluster(ClusterFile):
    """A cluster file that was read and checked; `file` is as a person would write it."""

    name: str
    file: str

    @property
    def stop_before_s(self) -> int | None:
        """Seconds before the time limit at which a job is asked to drain; None where nothing ends it.

        By default a tenth of the limit, between one and ten minutes, and never more than half of it.
        """
        if self.stop_before is not None:
            return self.stop_before * 60 if isinstance(self.stop_before, int) else seconds_of(self.stop_before)
        if self.time_limit is None:
            return 600
        limit = seconds_of(self.time_limit)
        return min(max(limit // 10, 60), 600, limit // 2)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A Hugging Face folder and how it is served. `gpus` are a node's; `path` is absolute."""

    name: str
    path: str
    context_length: int | None
    server: str
    gpus: int
    nodes: int
    arguments: list[str]


def cluster_files() -> dict[str, Path]:
    """Every cluster that a name can mean: `./cluster_configs` goes before the shipped folder."""
    folders = [shipped("cluster_configs"), Path("cluster_configs")]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def load_cluster(name_or_path: str) -> Cluster:
    """The cluster of this name, or in this file. A mistake in the file is a UserError that names file and key."""
    known = cluster_files()
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f"no cluster file {name_or_path}; give a yaml file, or one of: {', '.join(sorted(known))}")
    elif name_or_path in known:
        path = known[name_or_path]
    else:
        raise UserError(f"no cluster config '{name_or_path}'. Known: {', '.join(sorted(known))}")
    shown = _shown(path)
    entries = _read(path, shown)
    cluster = Cluster(**{f.name: getattr(entries, f.name) for f in fields(ClusterFile)}, name=path.stem, file=shown)
    check_cluster(cluster)
    return replace(cluster, models={**_bundled_models(), **cluster.models})


def resolve_model(name_or_path: str, cluster: Cluster, server: str | None = None) -> Model:
    """The model of this name in the cluster's file, or a Hugging Face folder; `server` goes before the kind named there.

    A folder is served by the bundled server on `executor: local` and by trtllm with a whole node's GPUs elsewhere.
    """
    entry = cluster.models.get(name_or_path)
    if entry is None:
        folder = Path(name_or_path).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(
                f"no model '{name_or_path}' in {cluster.file}. Known: {', '.join(sorted(cluster.models))}; "
                "or give a Hugging Face folder (one with a config.json)"
            )
        kind = "bundled" if cluster.executor == "local" else "trtllm"
        entry = ModelEntry(path=str(folder.resolve()), server=kind, context_length=_context_length(folder))
        name_or_path = folder.resolve().name
    entry = replace(entry, server=server or entry.server)
    gpus = entry.gpus if entry.gpus is not None else 0 if entry.server == "bundled" else cluster.gpus_per_node
    path = Path(entry.path).expanduser()
    if not path.is_absolute():
        raise UserError(f"{cluster.file}: models.{name_or_path}.path must be absolute, not '{entry.path}'")
    return Model(
        name=name_or_path,
        path=str(path),
        context_length=entry.context_length,
        server=entry.server,
        gpus=gpus,
        nodes=entry.nodes,
        arguments=list(entry.arguments),
    )


def check_cluster(cluster: Cluster) -> None:
    """Refuse what is well typed and still cannot work: empty directives, values among names, times, mounts."""
    for wrong in _mistakes(cluster):
        raise UserError(f"{cluster.file}: {wrong}")


def _mistakes(cluster: Cluster) -> Iterable[str]:
    named = {"account": cluster.account, "qos": cluster.qos, "mem": cluster.mem}
    named |= {f"partitions.{key}": value for key, value in vars(cluster.partitions).items()}
    named |= {f"directives.{key}": value for key, value in cluster.directives.items()}
    for key, value in named.items():
        if value == "":
            yield f"{key} is empty, which Slurm refuses; write null, or leave it out"
    for key in ("time_limit", "stop_before"):
        value = getattr(cluster, key)
        if isinstance(value, str):
            try:
                seconds_of(value)
            except ValueError as problem:
                yield f"{key}: {problem}"
                return
    before = cluster.stop_before_s
    if before and cluster.time_limit and before >= seconds_of(cluster.time_limit):
        yield f"stop_before ({before} s) must be shorter than time_limit ({cluster.time_limit})"
    for number, name in enumerate(cluster.env, 1):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"env holds names of variables; entry {number} is not a name (values stay in your own environment)"
    for mount in cluster.mounts:
        if not re.fullmatch(r"/[^:,]*(:/[^:,]*(:r[ow])?)?", mount):
            yield f"mount '{mount}' is not /source[:/target[:ro]] (absolute, without commas)"
    if cluster.gpu_directive is not None and "{gpus}" not in cluster.gpu_directive:
        yield f"gpu_directive '{cluster.gpu_directive}' must say where the number goes, as \"gres=gpu:{{gpus}}\""
    for role, runtime in vars(cluster.runtime).items():
        if runtime == "pyxis" and cluster.executor == "local":
            yield f"runtime.{role}: pyxis is a plugin of Slurm; with executor local use docker, podman or apptainer"
    if cluster.max_array_size < 1:
        yield f"max_array_size must be at least 1, not {cluster.max_array_size}"


def _bundled_models() -> dict[str, ModelEntry]:
    words = shipped("models") / "words"
    return {"words": ModelEntry(path=str(words), server="bundled", context_length=2048, gpus=0)}


def _context_length(folder: Path) -> int | None:
    import json

    try:
        length = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{folder}/config.json is not readable as JSON; is this a Hugging Face folder?") from None
    return length if isinstance(length, int) else None


def _shown(path: Path) -> str:
    """`cluster_configs/NAME.yaml` for a file of a known folder, else the path as given."""
    return f"{path.parent.name}/{path.name}" if path.parent == shipped("cluster_configs") else str(path)


def _read(path: Path, shown: str) -> ClusterFile:
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        text = path.read_text()
        _refuse_sexagesimal(yaml.compose(text), shown)
        schema = OmegaConf.structured(ClusterFile)
        OmegaConf.set_readonly(schema, False)
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig):
            raise UserError(f"{shown}: must hold 'key: value' lines")
        for key in map(str, loaded):
            try:
                schema = OmegaConf.merge(schema, OmegaConf.masked_copy(loaded, [key]))
            except TypeError:  # a list where a mapping is meant
                raise UserError(f"{shown}: {key} must be {_meant(key)}") from None
        return OmegaConf.to_object(schema)  # type: ignore[return-value]
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{shown}:{line}: not yaml: {problem.problem or problem.context}") from None
    except (UnicodeDecodeError, OSError, yaml.YAMLError) as problem:
        raise UserError(f"{shown}: cannot be read: {problem}") from None
    except OmegaConfBaseException as problem:
        raise UserError(f"{shown}: {_explained(problem)}") from None


def _refuse_sexagesimal(node: Any, shown: str, key: str = "") -> None:
    """YAML 1.1 reads 12:00:00 as 43200 and 4:00 as 240, wherever it stands without quotes."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            _refuse_sexagesimal(value, shown, f"{key}.{name.value}" if key else str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _refuse_sexagesimal(value, shown, f"{key}[{index}]")
    elif isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in ("int", "float"):
        clock = ":" in node.value
        if clock or key == "time_limit":
            read, written = yaml.safe_load(node.value), node.value if clock else "12:00:00"
            raise UserError(f'{shown}: {key} was read as the number {read}; put quotes around it, as "{written}"')


def _explained(problem: Any) -> str:
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
    return f"{key} must be {_meant(key)}{found}"


def _meant(key: str) -> str:
    """What a value at `models.mixtral.gpus` or `setup[1]` must be, from the fields' own types."""
    kind: Any = ClusterFile
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
