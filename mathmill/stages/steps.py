"""The steps that every job with a model needs: its server, and the sandbox for the code that it writes."""

from typing import Any

from mathmill.launch.cluster import Cluster, Model
from mathmill.launch.job import Job, Step
from mathmill.serving.kinds import find_kind

MAX_IDLE_STARTS = 5
"""Starts of a task in a row that may come to nothing, by its limit or by preemption, before it gives up: a worker's that
finish no row, a shared server's that are not ready while a worker lives."""


def server_step(model: Model, main: bool = False) -> Step:
    """The step that serves a model and announces it by an address file; `main` in a job that is a server and nothing else."""
    kind = find_kind(model.server)
    return Step(
        name="server",
        role="server",
        kind=model.server,
        module="mathmill.serving.start",
        main=main,
        gpus=model.gpus,
        nodes=model.nodes,
        tasks_per_node=kind.tasks_per_node(model.gpus, model.nodes),
        mpi=kind.mpi_flag(model.nodes),
        ready_file="$MATHMILL_RUN/servers/$MATHMILL_JOB.json",
        ready_minutes=model.start_minutes + 1,  # the step itself gives up first, and says why
        mounts=(f"{model.path}:{model.path}:ro",),
        secrets=True,
    )


def server_section(model: Model, here: bool) -> dict[str, Any]:
    """The server's options; `here`: on this machine alone, so that nobody else reaches it."""
    return {
        "kind": model.server,
        "model": model.path,
        "served_name": model.name,
        "gpus": model.gpus,
        "nodes": model.nodes,
        "context_length": model.context_length,
        "arguments": model.arguments,
        "start_minutes": model.start_minutes,
        **({"host": "127.0.0.1"} if here else {}),
    }


def server_job(
    model: Model, num_servers: int, cluster: Cluster, *, idle_minutes: float = 60.0, name: str = "servers"
) -> Job:
    """An array of servers that all clients of the run share: its one step is the server."""
    pool = {
        "pool": model.name,
        "num_servers": num_servers,
        "idle_minutes": idle_minutes,
        "max_idle_starts": MAX_IDLE_STARTS if idle_minutes else 0,
        # what is in flight may finish, and is done again elsewhere where it does not
        "drain_s": min(120.0, 0.5 * (cluster.stop_before_s or 240)),
    }
    section = server_section(model, here=cluster.executor == "local") | pool
    return Job(name=name, steps=(server_step(model, main=True),), tasks=num_servers, options={"server": section})


def sandbox_step() -> Step:
    """The step that runs untrusted code: it sees no secret and nothing of the run."""
    return Step(
        name="sandbox",
        role="sandbox",
        module="mathmill.sandbox",
        ready_file="$MATHMILL_NODE_DIR/sandbox/socket",
        ready_minutes=3,
    )
