"""A site's file: where jobs run and what is there. Read strictly, with errors that name the file."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mathmill.errors import UserError
from mathmill.launch.strict_yaml import CONTROL, read_strictly
from mathmill.launch.times import seconds_of
from mathmill.paths import shipped

RuntimeName = Literal["none", "apptainer", "singularity", "pyxis", "docker", "podman"]
IMAGE_NAMES = ("trtllm", "vllm", "sglang", "server", "sandbox", "trainer", "nemo", "client")
"""Server kinds that have images of their own, and roles."""


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
    start_minutes: float = 30
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
    gpu_memory_gb: float | None = None
    gpu_tflops: float | None = None
    cpus: int | None = None
    mem: int | str | None = None
    max_running: int | None = None
    max_array_size: int | None = None
    setup: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    python: str | None = None
    runtime: Runtimes = field(default_factory=Runtimes)
    sandbox_policy: Literal["strict", "standard", "trusted"] = "standard"
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
    """A Hugging Face folder and how it is served. `gpus` are a node's; `path` is absolute; `start_minutes` is how long
    its server may take until it answers."""

    name: str
    path: str
    context_length: int | None
    server: str
    gpus: int
    nodes: int
    arguments: list[str]
    start_minutes: float = 30


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
    if CONTROL.search(str(path)):
        raise UserError(
            f"the cluster file {str(path)!r} has a line break or a control character in its name; rename it"
        )
    shown = _shown(path)
    entries = read_strictly(ClusterFile, path, shown)
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
    if CONTROL.search(str(path)):
        raise UserError(
            f"the model's folder {str(path)!r} has a line break or a control character in its name; rename it"
        )
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
        start_minutes=entry.start_minutes,
    )


def check_cluster(cluster: Cluster) -> None:
    """Refuse what is well typed and still cannot work: empty directives, values among names, times, mounts."""
    for wrong in _mistakes(cluster):
        raise UserError(f"{cluster.file}: {wrong}")


def _mistakes(cluster: Cluster) -> Iterable[str]:
    yield from _wrong_values(cluster)
    yield from _wrong_times(cluster)
    yield from _wrong_numbers(cluster)
    yield from _wrong_directives(cluster)
    for role, runtime in vars(cluster.runtime).items():
        if runtime == "pyxis" and cluster.executor == "local":
            yield f"runtime.{role}: pyxis is a plugin of Slurm; with executor local use docker, podman or apptainer"


def _wrong_values(cluster: Cluster) -> Iterable[str]:
    named = {"account": cluster.account, "qos": cluster.qos, "mem": cluster.mem}
    named |= {f"partitions.{key}": value for key, value in vars(cluster.partitions).items()}
    named |= {f"directives.{key}": value for key, value in cluster.directives.items()}
    for key, value in named.items():
        if value == "":
            yield f"{key} is empty, which Slurm refuses; write null, or leave it out"
        if isinstance(value, list | dict):
            yield f"{key} must be one value, not several"
    for number, name in enumerate(cluster.env, 1):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"env holds names of variables; entry {number} is not a name (values stay in your own environment)"
    for mount in cluster.mounts:
        if not re.fullmatch(r"/[^:,]*(:/[^:,]*(:r[ow])?)?", mount):
            yield f"mount '{mount}' is not /source[:/target[:ro]] (absolute, without commas)"
    for name in cluster.images:
        if name not in IMAGE_NAMES:
            yield f"unknown key 'images.{name}'; known: {', '.join(IMAGE_NAMES)}"


def _wrong_times(cluster: Cluster) -> Iterable[str]:
    for key in ("time_limit", "stop_before"):
        value = getattr(cluster, key)
        if isinstance(value, str):
            try:
                seconds_of(value)
            except ValueError as problem:
                yield f"{key}: {problem}"
                return
    if cluster.time_limit and not seconds_of(cluster.time_limit):
        yield f"time_limit must be more than 0, not '{cluster.time_limit}'; leave it out for the site's own"
    before = cluster.stop_before_s
    if before and cluster.time_limit and before >= seconds_of(cluster.time_limit):
        yield f"stop_before ({before} s) must be shorter than time_limit ({cluster.time_limit})"


def _wrong_numbers(cluster: Cluster) -> Iterable[str]:
    least = {"gpus_per_node": 0, "cpus": 1, "max_running": 1, "max_array_size": 1, "stop_before": 0, "mem": 0}
    numbers = {key: (getattr(cluster, key), lowest) for key, lowest in least.items()}
    for name, model in cluster.models.items():
        numbers |= {f"models.{name}.gpus": (model.gpus, 0), f"models.{name}.nodes": (model.nodes, 1)}
        if not model.start_minutes > 0:
            yield f"models.{name}.start_minutes must be more than 0, not {model.start_minutes:g}"
    for key, (value, lowest) in numbers.items():
        if isinstance(value, int) and value < lowest:
            yield f"{key} must be at least {lowest}, not {value}"


def _wrong_directives(cluster: Cluster) -> Iterable[str]:
    directive = "[A-Za-z][A-Za-z0-9-]*"
    for key in cluster.directives:
        if not re.fullmatch(directive, directive_name(key)):
            yield f"directives: '{key}' is no option of sbatch: a letter, then letters, digits and -"
    asked = cluster.gpu_directive
    if asked is not None and "{gpus}" not in asked:
        yield f"gpu_directive '{asked}' must say where the number goes, as \"gres=gpu:{{gpus}}\""
    elif asked is not None and not re.fullmatch(rf"{directive}=[^{{}}\s]+", asked.replace("{gpus}", "1")):
        yield f"gpu_directive '{asked}' must be NAME=VALUE with {{gpus}} as its only braces, as \"gres=gpu:{{gpus}}\""


def directive_name(key: str) -> str:
    """sbatch's name of an option that a file may write as `--mail-type`, `mail-type` or `mail_type`."""
    return key.lstrip("-").replace("_", "-")


def _bundled_models() -> dict[str, ModelEntry]:
    return {
        name: ModelEntry(path=str(shipped("models") / name), server="bundled", context_length=2048, gpus=0)
        for name in ("words", "student")
    }


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
