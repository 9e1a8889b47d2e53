"""A job as the text of its script. Pure: the same job, cluster, run and code give the same bytes."""

import re
import shlex
from functools import cache
from typing import TYPE_CHECKING, Any

from mathmill.errors import UserError
from mathmill.launch.cluster import Cluster, directive_name
from mathmill.launch.job import Job, Step
from mathmill.launch.strict_yaml import CONTROL
from mathmill.launch.times import seconds_of
from mathmill.paths import shipped
from mathmill.run import Run

if TYPE_CHECKING:
    import jinja2

CONTAINERS = ("apptainer", "singularity", "pyxis", "docker", "podman")
EMPTIED = ("none", "apptainer", "singularity")
NODE_DIR = "$MATHMILL_NODE_DIR"
CPUS_WITHOUT_GPUS = 4
"""A job without GPUs on a cluster of GPU nodes is a small numpy server and a client: it leaves the rest to others."""


def render(job: Job, cluster: Cluster, run: Run, code_sha: str) -> str:
    """The script of a job: what sbatch gets, or what bash runs under `executor: local`.

    UserError where the cluster's file names no image for a container, or a path cannot be written into its flags.
    """
    if CONTROL.search(str(run.folder)):
        raise UserError(
            f"the run's folder {str(run.folder)!r} has a line break or a control character in its name; use another"
        )
    steps = [_described(step, job, cluster, run, code_sha) for step in job.steps]
    if any(step["runtime"] in CONTAINERS for step in steps) and re.search(r"[,:]", str(run.folder)):
        raise UserError(
            f"the run's folder {run.folder} has ',' or ':' in its name, which containers cannot mount; use another"
        )
    return _template().render(
        job=job,
        cluster=cluster,
        run=run,
        steps=steps,
        main=next(step for step in steps if step["main"]),
        others=[step for step in steps if not step["main"]],
        slurm=cluster.executor == "slurm",
        directives=_directive_lines(job, cluster, run),
        drain_at=_drain_at_s(job, cluster, run),
        code_sha=code_sha,
        announced=[
            step["ready_file"] for step in steps if step["ready_file"] and not step["ready_file"].startswith(NODE_DIR)
        ],
        contained=any(step["runtime"] in CONTAINERS for step in steps),
        emptied=any(step["role"] == "sandbox" and step["runtime"] in EMPTIED for step in steps),
        let_in=any(step["secrets"] and step["runtime"] in ("apptainer", "singularity") for step in steps),
        needs_cleaning=[step for step in steps if step["runtime"] in ("docker", "podman")],
    )


def runtime_of(step: Step, cluster: Cluster) -> str:
    """How the step starts. The bundled server is a program of ours and runs where the client does."""
    role = "client" if step.role == "server" and step.kind == "bundled" else step.role
    return getattr(cluster.runtime, role)


def directives_of(job: Job, cluster: Cluster, run: Run) -> dict[str, Any]:
    """Every #SBATCH flag with its value: ours, then the cluster's `directives`, then the job's. Later wins.

    None and False remove a flag, True is a flag without a value, and 0 stays, since `--mem=0` means all memory.
    """
    log = str(run.logs).replace("%", "%%")
    limit = job.time_limit or cluster.time_limit
    partition = cluster.partitions.gpu if job.gpus else cluster.partitions.cpu
    gpu_flag, _, gpu_value = (cluster.gpu_directive or "").replace("{gpus}", str(job.gpus)).partition("=")
    flags: dict[str, Any] = {
        "job-name": f"{run.name}-{job.name}",
        "output": f"{log}/{job.name}.{'%A_%a' if job.is_array else '%j'}.log",
        "open-mode": "append",
        "requeue": True,
        "export": ",".join(cluster.env) or "NONE",
        "signal": f"B:USR2@{_stop_before_s(limit, cluster)}",
        "array": _array(job, cluster),
        "time": limit,
        "partition": partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks_per_node,
        "cpus-per-task": _cpus(job, cluster, job.tasks_per_node),
        "mem": _mem(job, cluster),
    }
    if job.gpus and gpu_flag:
        flags[gpu_flag] = gpu_value
    for more in (cluster.directives, job.directives):
        flags.update({directive_name(key): value for key, value in more.items()})
    return {key: value for key, value in flags.items() if value is not None and value is not False}


def _directive_lines(job: Job, cluster: Cluster, run: Run) -> list[str]:
    flags = directives_of(job, cluster, run)
    return [f"--{key}" if value is True else f"--{key}={shlex.quote(str(value))}" for key, value in flags.items()]


def _array(job: Job, cluster: Cluster) -> str | None:
    if not job.is_array:
        return None
    running = f"%{cluster.max_running}" if cluster.max_running is not None else ""
    return f"0-{job.tasks - 1}{running}"


def _stop_before_s(limit: str | None, cluster: Cluster) -> int:
    from dataclasses import replace

    before = replace(cluster, time_limit=limit).stop_before_s or 0
    if limit is not None and before >= seconds_of(limit):
        raise UserError(f"a time limit of {limit} leaves nothing before stop_before ({before} s) in {cluster.file}")
    return min(before, 65535)  # sbatch's manual: sig_time is at most 65535


def _drain_at_s(job: Job, cluster: Cluster, run: Run) -> int:
    """Seconds from its start at which a job drains by its own clock; 0 where it has no limit that we can read."""
    limit = directives_of(job, cluster, run).get("time") if cluster.executor == "slurm" else None
    try:
        seconds = seconds_of(str(limit)) if limit is not None else 0
    except ValueError:
        return 0
    return max(seconds - _stop_before_s(str(limit), cluster), 0) if seconds else 0


def _share(job: Job, cluster: Cluster) -> tuple[int, int]:
    """Of a node's GPUs the job asks for the first number out of the second; (1, 1) where GPUs are no measure."""
    return (job.gpus, cluster.gpus_per_node) if 0 < job.gpus < cluster.gpus_per_node else (1, 1)


def _cpus(job: Job, cluster: Cluster, tasks_per_node: int) -> int | None:
    """CPUs of each task of a step: its part of the node's share that goes with the job's GPUs."""
    if job.cpus is not None and not job.gpus:
        return max(1, min(job.cpus, cluster.cpus or job.cpus) // tasks_per_node)
    if cluster.cpus is None:
        return None
    part, whole = _share(job, cluster)
    of_node = -(-cluster.cpus * part // whole)
    if cluster.gpus_per_node and not job.gpus:
        of_node = min(of_node, CPUS_WITHOUT_GPUS)
    return max(1, of_node // tasks_per_node)


def _mem(job: Job, cluster: Cluster) -> int | str | None:
    """Memory on each node: the share that goes with the job's GPUs; nothing asked where the share is not known."""
    if cluster.gpus_per_node and not job.gpus:
        return None
    part, whole = _share(job, cluster)
    amount = re.fullmatch(r"(\d+)([KMGTkmgt]?)", str(cluster.mem))
    if whole == 1 or amount is None:
        return cluster.mem
    return f"{-(-int(amount[1]) * part // whole)}{amount[2]}" if int(amount[1]) else None  # 0 would be all of it


def _described(step: Step, job: Job, cluster: Cluster, run: Run, code_sha: str) -> dict[str, Any]:
    """A step with everything decided: what the templates write down."""
    runtime = runtime_of(step, cluster)
    contained = runtime in CONTAINERS
    tasks = step.nodes * step.tasks_per_node
    env = {**step.env, **({"HOME": "/tmp"} if contained and step.role != "sandbox" else {})}
    dies_with = ['MATHMILL_DIE_WITH_PARENT="$$"'] if cluster.executor == "local" and not contained else []
    return {
        "name": step.name,
        "role": step.role,
        "main": step.main,
        "module": shlex.join((step.module, *step.arguments)),
        "contained": runtime in ("apptainer", "singularity") and step.role != "trainer" and tasks == 1,
        "runtime": runtime,
        "macros": {"singularity": "apptainer", "podman": "docker"}.get(runtime, runtime),
        "python": "python3" if contained else shlex.quote(cluster.python or "python3"),
        "image": image_of(step, cluster)[1] if contained else None,
        "mounts": _mounts(step, job, cluster, code_sha) if contained else [],
        "secrets": cluster.env if step.secrets else [],
        "withheld": [] if step.secrets else cluster.env,
        "env": [*(f'{name}="{_expanding(value)}"' for name, value in env.items()), *dies_with],
        "gpus": step.gpus,
        "nodes": step.nodes,
        "tasks": tasks,
        "tasks_per_node": step.tasks_per_node,
        "cpus": step.cpus or _cpus(job, cluster, step.tasks_per_node),
        "gpu_flag": _gpu_flag(step, job, cluster),
        "mpi": step.mpi,
        "ready_file": _expanding(step.ready_file) if step.ready_file else None,
        "ready_minutes": step.ready_minutes,
        "ready_s": max(1, round(step.ready_minutes * 60)),
        "workdir": "/" if step.role == "sandbox" else '"$MATHMILL_RUN"',
    }


def _gpu_flag(step: Step, job: Job, cluster: Cluster) -> str | None:
    if not job.gpus or cluster.gpu_directive is None:
        return None
    return "--" + shlex.quote(cluster.gpu_directive.replace("{gpus}", str(step.gpus))) if step.gpus else "--gres=none"


def image_of(step: Step, cluster: Cluster) -> tuple[str, str]:
    """The image of a contained step: its name under `images`, and what stands there. UserError where nothing does."""
    runtime = runtime_of(step, cluster)
    for name in (step.kind, step.role):
        if image := cluster.images.get(name):
            if runtime == "pyxis" and image.endswith((".sqsh", ".squashfs")) and not image.startswith(("/", "./")):
                raise UserError(
                    f"{cluster.file}: images.{name}: pyxis takes '{image}' for a name in a registry; start the path with / or ./"
                )
            return name, image
    wanted = step.kind or step.role
    raise UserError(
        f"{cluster.file}: the {step.role} runs under {runtime}, so images needs '{wanted}': the path or name of its image"
    )


def _mounts(step: Step, job: Job, cluster: Cluster, code_sha: str) -> list[str]:
    """/source:/target[:ro] of everything the step sees. A sandbox sees its socket's folder, the code and its options."""
    code, options = f"$MATHMILL_RUN/code/{code_sha}", f"$MATHMILL_RUN/jobs/{job.name}.json"
    if step.role == "sandbox":
        own = [(f"{NODE_DIR}/{step.name}", ""), (code, ":ro"), (options, ":ro")]
        return [_expanding(f"{path}:{path}{mode}") for path, mode in own]
    mounts = ["$MATHMILL_RUN:$MATHMILL_RUN", f"{code}:{code}:ro", f"{NODE_DIR}:{NODE_DIR}"]
    for mount in (*cluster.mounts, *step.mounts):
        source, _, rest = mount.partition(":")
        mounts.append(f"{source}:{rest or source}")
    return [_expanding(mount) for mount in dict.fromkeys(mounts)]


def _expanding(text: str) -> str:
    """The text for between double quotes, where the shell replaces $MATHMILL_… and nothing else."""
    return re.sub(r'[\\"`]|\$(?!MATHMILL_)', r"\\\g<0>", text)


@cache
def _template() -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped("slurm_templates")),
        undefined=jinja2.StrictUndefined,
        comment_start_string="<#",  # bash's ${#list[@]} holds Jinja's own mark
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quoted"] = lambda value: shlex.quote(str(value))
    environment.filters["continued"] = lambda text: " \\\n    ".join(
        line.strip() for line in text.split("\n") if line.strip()
    )
    return environment.get_template("job.sbatch.j2")
