"""The steps that every job with a model needs: its server, and the sandbox for the code that it writes."""

from typing import Any

from mathmill.launch.cluster import Model
from mathmill.launch.job import Step
from mathmill.serving.kinds import find_kind


def server_step(model: Model) -> Step:
    """The step that serves a model and announces it by an address file."""
    kind = find_kind(model.server)
    return Step(
        name="server",
        role="server",
        kind=model.server,
        module="mathmill.serving.start",
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


def sandbox_step() -> Step:
    """The step that runs untrusted code: it sees no secret and nothing of the run."""
    return Step(
        name="sandbox",
        role="sandbox",
        module="mathmill.sandbox",
        ready_file="$MATHMILL_NODE_DIR/sandbox/socket",
        ready_minutes=3,
    )
