"""One server of a model to talk to: here, or as a job on a cluster; its address, a way to it from afar, and its end."""

import shlex
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mathmill.errors import UserError
from mathmill.launch.launching import LaunchOptions, cluster_for, launch
from mathmill.launch.show import show
from mathmill.options import script
from mathmill.run import Run, check_run_name

if TYPE_CHECKING:
    from mathmill.launch.cluster import Model
    from mathmill.launch.job import Job
    from mathmill.serving.address import Address

PORT_HERE = 8000
"""Of the tunnel's near end."""
LOOK_S, ASK_S = 0.2, 5.0


@dataclass(frozen=True, kw_only=True)
class StartServerOptions(LaunchOptions):
    """Start one server of a model, print its address, a curl line and an ssh tunnel to it, and end it on Ctrl-C."""

    model: str | None = None
    """A name under models: in the cluster's file, or a Hugging Face folder; unset: words, the bundled one."""
    server: str | None = None
    """Kind of server: bundled, trtllm, vllm or sglang; unset: the model's."""


def main() -> None:
    script(StartServerOptions, start_server)


def start_server(options: StartServerOptions) -> int:
    """Start it, tell how to reach it, and stay until Ctrl-C or its end."""
    import signal

    from mathmill.launch.cluster import resolve_model
    from mathmill.stages.sampling import BUNDLED_MODEL, create_run, slug
    from mathmill.stages.solve import end_as_on_ctrl_c

    if options.num_jobs > 1:
        raise UserError("this starts one server; for many that share work: run_generation.py --server_jobs N")
    if options.server == "openai":
        raise UserError("a server of kind openai is there already; name a kind that is started")
    if options.run is not None:
        check_run_name(options.run)
    cluster = cluster_for(options)
    model = resolve_model(options.model or BUNDLED_MODEL, cluster, options.server)
    run = Run(Path("runs", options.run or f"server-{slug(model.name)}").resolve())
    here = cluster.executor == "local"
    job = talk_job(model, here)
    summary = [("model", f"{model.name}, served by {model.server}")]
    before = set(run.servers.glob("*.json"))
    if here:
        if not (options.dry_run or options.test_only):
            threading.Thread(target=tell_when_ready, args=(run, before), daemon=True).start()
        code = launch([job], cluster, run, options, summary, prepare=lambda: create_run(run))
        for path in run.servers.glob("*.header"):
            path.unlink(missing_ok=True)
        return 0 if code == 130 else code
    code = launch([job], cluster, run, options, summary, prepare=lambda: create_run(run))
    if code or options.dry_run or options.test_only:
        return code
    end_as_on_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    return stay_until_ctrl_c(run)


def talk_job(model: "Model", here: bool) -> "Job":
    """A job that is a server and nothing else, and does not come back by itself."""
    from mathmill.launch.job import Job
    from mathmill.stages.steps import server_section, server_step

    return Job(
        name="server",
        steps=(server_step(model, main=True),),
        options={"server": server_section(model, here)},
        directives={"requeue": None, "no-requeue": True},
    )


def stay_until_ctrl_c(run: Run) -> int:
    """Wait for the server that was just submitted, tell how to reach it, and cancel its job on Ctrl-C."""
    from mathmill.launch.status import cancel_jobs
    from mathmill.launch.submissions import submissions

    job_id = submissions(run)[-1].job_id
    path = run.servers / f"{job_id}.json"
    try:
        wait_until_ready(run, job_id, path)
        tell(path)
        while is_live(run, job_id):
            time.sleep(ASK_S)
        raise UserError(f"the server's job {job_id} has ended; its log: {log_of(run, job_id)}")
    except KeyboardInterrupt:
        print("the server ends", file=sys.stderr)
        cancel_jobs(job for job in submissions(run) if job.job_id == job_id)
        return 0
    finally:
        header_file(path).unlink(missing_ok=True)


def wait_until_ready(run: Run, job_id: str, path: Path) -> None:
    """UserError when its job ends before."""
    asked = 0.0
    while not path.exists():
        if time.monotonic() - asked > ASK_S:
            asked = time.monotonic()
            if not is_live(run, job_id) and not path.exists():
                log = log_of(run, job_id)
                last = " | ".join(log.read_text(errors="replace").strip().splitlines()[-5:]) if log.exists() else ""
                raise UserError(f"the server's job {job_id} ended before it was ready: {last or 'no log'}; {log}")
        time.sleep(LOOK_S)


def is_live(run: Run, job_id: str) -> bool:
    from mathmill.launch.status import live_jobs

    return any(job.submission.job_id == job_id for job in live_jobs(run))


def log_of(run: Run, job_id: str) -> Path:
    return next(iter(sorted(run.logs.glob(f"*.{job_id}.log"))), run.logs / f"server.{job_id}.log")


def tell_when_ready(run: Run, before: set[Path]) -> None:
    """In a thread, while the server runs in the foreground here."""
    while not (new := set(run.servers.glob("*.json")) - before):
        time.sleep(LOOK_S)
    tell(new.pop())


def header_file(path: Path) -> Path:
    """Where curl reads the token from: a command line would show it to every user of the machine."""
    return path.with_suffix(".header")


def tell(path: Path) -> None:
    """Print how the server of this address file is reached."""
    from mathmill.files import write_whole
    from mathmill.serving.address import read_address

    address = read_address(path)
    if address.token:
        write_whole(header_file(path), f"Authorization: Bearer {address.token}\n", mode=0o600)
    show([("", ""), *ways_to(address, header_file(path), socket.gethostname())])


def ways_to(address: "Address", header: Path, host: str) -> list[tuple[str, str | list[str]]]:
    """Address, curl and tunnel. `host`: the machine that a laptop reaches by ssh."""
    import json

    body = json.dumps({"model": address.model, "prompt": "2 + 2 =", "max_tokens": 16})
    token = ["-H", f"@{shlex.quote(str(header))}"] if address.token else []
    curl = ["curl", *token, "-H", "'Content-Type: application/json'", "-d", shlex.quote(body)]
    there = address.url.removeprefix("http://")
    lines: list[tuple[str, str | list[str]]] = [
        ("server", f"{address.model} at {address.url}"),
        ("try it", [*curl, f"{address.url}/v1/completions"]),
        ("tunnel", f"ssh -N -L {PORT_HERE}:{there} {host}   on your own machine; then http://localhost:{PORT_HERE}"),
    ]
    if address.token:
        lines.append(("token", f"in {header}, as the header that a request must have"))
    return [*lines, ("end", "Ctrl-C")]
