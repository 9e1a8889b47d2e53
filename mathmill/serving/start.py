"""Starts a job's server and announces it when it is ready: python -m mathmill.serving.start JOB.json

Runs in every task of the server's step, also inside foreign containers: standard library only. The first task starts
the server, watches it and writes the address file; the others run their part of a server on several nodes.
"""

import os
import secrets
import signal
import socket
import sys
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mathmill.errors import UserError
from mathmill.files import write_whole
from mathmill.options import ended_by, section
from mathmill.parent import die_with_parent_if_told, hide_environment
from mathmill.serving.address import Address
from mathmill.serving.kind import Kind, Launch
from mathmill.serving.kinds import find_kind
from mathmill.serving.process import Child
from mathmill.serving.ready import Probe
from mathmill.serving.shared import Duty, is_over
from mathmill.serving.times import ServerTimes

PORT_ATTEMPTS = 3
TICK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Section "server" of a job's JSON file."""

    kind: str
    model: str
    """Path of the model's folder."""
    served_name: str
    gpus: int = 1
    """GPUs a node."""
    nodes: int = 1
    context_length: int | None = None
    arguments: list[str] = field(default_factory=list)
    """Added to the server's command line as they are."""
    start_minutes: float = 30.0
    """The server is given up when it is not ready by then."""
    env: dict[str, str] = field(default_factory=dict)
    """Added to the server's environment."""
    host: str | None = None
    """The name under which other nodes reach this one (default: its host name)."""
    port: int | None = None
    """The port to try first (default: a free one)."""
    pool: str | None = None
    """The model's name, where all clients of the run share this server; its launch and theirs end apart."""
    num_servers: int = 1
    """Of a pool: how many servers this launch has."""
    drain_s: float = 60.0
    """Of a pool: how long what is in flight may take to finish before the job's time limit."""
    idle_minutes: float = 60.0
    """Of a pool: it ends when no worker of the run has lived for so long; 0: never."""
    max_idle_starts: int = 0
    """Of a pool: it gives up after so many starts in a row that were not ready while a worker lived; 0: never."""


@dataclass(frozen=True)
class Place:
    """Where this task is: from the job's and Slurm's environment."""

    servers: Path
    job: str
    restart: str
    rank: int
    node_dir: Path
    launch: str
    """Name of the job's files in RUN/jobs."""

    @property
    def address(self) -> Path:
        return self.servers / f"{self.job}.json"

    @property
    def rendezvous(self) -> Path:
        """Where the first task tells the others its host and port. One for each restart: an old one would mislead."""
        return self.servers / f"{self.job}.{self.restart}.rendezvous"

    @property
    def token_file(self) -> Path:
        """The token, for a kind that reads it from a file."""
        return self.node_dir / f"token-{self.job}.yaml"


def find_place(environment: dict[str, str], options_file: str) -> Place:
    """Read MATHMILL_RUN, MATHMILL_JOB, MATHMILL_RESTART and SLURM_PROCID."""
    try:
        run, job = environment["MATHMILL_RUN"], environment["MATHMILL_JOB"]
    except KeyError as missing:
        raise UserError(f"{missing.args[0]} is not set; a server is started by a job's script") from None
    servers = Path(run) / "servers"
    rank = int(environment.get("SLURM_PROCID", "0"))
    node_dir = Path(environment.get("MATHMILL_NODE_DIR", servers))
    return Place(servers, job, environment.get("MATHMILL_RESTART", "0"), rank, node_dir, Path(options_file).stem)


def read_options(path: str) -> ServerOptions:
    """The section "server" of a job's JSON file."""
    found: dict[str, Any] = section(path, "server")
    unknown = sorted(set(found) - {known.name for known in fields(ServerOptions)})
    if unknown:
        raise UserError(f"{path}: section server: unknown key '{unknown[0]}'")
    return ServerOptions(**found)


def free_port(bind: str) -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((bind, 0))
        return probe.getsockname()[1]


def is_taken(bind: str, port: int) -> bool:
    """Does somebody listen on this port?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections are no listener
        try:
            probe.bind((bind, port))
            probe.listen()
        except OSError:
            return True
    return False


def plan(options: ServerOptions, place: Place) -> Launch:
    """What all attempts have in common."""
    return Launch(
        model=options.model,
        served_name=options.served_name,
        port=0,
        bind="127.0.0.1" if host_of(options) in ("127.0.0.1", "localhost") else "0.0.0.0",
        gpus=options.gpus,
        nodes=options.nodes,
        node_rank=place.rank if options.nodes > 1 else 0,
        context_length=options.context_length,
        arguments=tuple(options.arguments),
    )


def host_of(options: ServerOptions) -> str:
    """The name that goes into addresses."""
    return options.host or socket.gethostname()


@dataclass(frozen=True)
class Server:
    """A server that was started: its address, if it gets ready, and the probe that asks it."""

    address: Address
    probe: Probe


def start(kind: Kind, launch: Launch, options: ServerOptions, place: Place, child: Child) -> Server:
    """Start the server's process, under a name with a nonce and with a token where its kind takes them."""
    name = f"{options.served_name}-{secrets.token_hex(4)}" if kind.takes_name else Path(launch.model).name
    token = secrets.token_hex(24) if kind.takes_token() else None
    environment = os.environ | options.env
    if token and kind.token_variable:
        environment |= {kind.token_variable: token}
    elif token and kind.token_file_text and "--config" not in options.arguments:
        write_whole(place.token_file, kind.token_file_text(token), mode=0o600)
        launch = replace(launch, token_file=str(place.token_file))
    else:
        token = None
    child.start(kind.command(replace(launch, served_name=name)), environment)
    url = f"http://{host_of(options)}:{launch.port}"
    address = Address(
        url=url, kind=kind.name, model=name, token=token, context_length=options.context_length, pool=options.pool
    )
    return Server(address, Probe(launch.port, kind.health_path, name, token))


class NotNeeded(Exception):
    """A shared server has to end although nothing is wrong with it; its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def watch_start(child: Child, server: Server, deadline: float, duty: Duty) -> int | None:
    """Wait until the server is ready (None). Raises NotNeeded with the exit code when it has to end before.

    An exit code that is not 0 when the server has ended, or was given up.
    """
    try:
        while not server.probe.ready.is_set():
            code = child.poll(TICK_S)
            if code is not None:
                return code or 1
            if (end := duty.ends_with()) is not None:
                raise NotNeeded(end)
            if time.monotonic() > deadline:
                print("the server was not ready in time (start_minutes)", file=sys.stderr, flush=True)
                return 1
        return None
    finally:
        server.probe.stop()


def stay(child: Child, server: Server, duty: Duty) -> int:
    """Announce the server, wait for its end, take the announcement back; its exit code. Raises NotNeeded likewise."""
    address = replace(server.address, context_length=server.address.context_length or server.probe.context_length)
    duty.announce(address)
    try:
        print(f"server ready: {address.model} at {address.url}", flush=True)
        while (code := child.poll(TICK_S)) is None:
            if (end := duty.ends_with()) is not None:
                raise NotNeeded(end)
        return code
    finally:
        duty.withdraw()


def run_first(options: ServerOptions, place: Place, kind: Kind) -> int:
    """Start the server and stay with it; its exit code. One of a pool that ends unasked says why, for all to see."""
    duty = Duty(
        place.address,
        place.launch,
        options.pool,
        restart=place.restart,
        drain_s=options.drain_s,
        idle_minutes=options.idle_minutes,
    )
    if duty.is_of_no_use(options.max_idle_starts):
        return 1
    times = ServerTimes(place.servers.parent, place.job, place.restart)
    try:
        with Child() as child:
            code = serve(options, place, kind, child, duty, times)
            if options.pool is None or child.told_to_stop:
                return code
        duty.say_gone(f"the server ended with exit code {code}{'' if times.is_ready else ' before it was ready'}")
        return code or 1
    except NotNeeded as end:
        return end.code
    except UserError as problem:
        duty.say_gone(str(problem))
        raise
    finally:
        times.note("ended")


def serve(options: ServerOptions, place: Place, kind: Kind, child: Child, duty: Duty, times: ServerTimes) -> int:
    """Start the server and stay with it; its exit code. When its port was taken meanwhile, it gets another one."""
    launch = plan(options, place)
    place.address.unlink(missing_ok=True)
    if kind.needs_rendezvous and options.nodes > 1:
        launch = replace(launch, rendezvous=f"{host_of(options)}:{free_port(launch.bind)}")
        write_whole(place.rendezvous, str(launch.rendezvous))
    deadline = time.monotonic() + 60 * options.start_minutes
    port = options.port or free_port(launch.bind)
    for _ in range(PORT_ATTEMPTS):
        server = start(kind, replace(launch, port=port), options, place, child)
        ended = watch_start(child, server, deadline, duty)
        if ended is None:
            times.note("ready")
            return stay(child, server, duty)
        # On several nodes the other tasks are already part of the attempt that failed.
        child.end()
        if child.told_to_stop or options.nodes > 1 or not is_taken(launch.bind, port):
            break
        print(f"somebody else listens on port {port}; trying another one", file=sys.stderr, flush=True)
        port = free_port(launch.bind)
    return ended or 1


def run_other(options: ServerOptions, place: Place, kind: Kind) -> int:
    """This task's part of a server on several nodes: the process becomes it, unless it has to watch for the pool's end."""
    launch = replace(plan(options, place), port=free_port("0.0.0.0"))
    deadline = time.monotonic() + 60 * options.start_minutes
    while kind.needs_rendezvous and not place.rendezvous.exists():
        if time.monotonic() > deadline:
            raise UserError(f"the first task wrote no {place.rendezvous} in time (start_minutes); see its log")
        time.sleep(TICK_S)
    if kind.needs_rendezvous:
        launch = replace(launch, rendezvous=place.rendezvous.read_text())
    command, environment = kind.command(launch), os.environ | options.env
    if options.pool is None:
        os.execvpe(command[0], command, environment)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the first task alone drains, and its exit code ends the others
    with Child() as child:
        child.start(command, environment)
        while (code := child.poll(TICK_S)) is None:
            if is_over(place.address, place.launch):
                return 0
    return code


def main() -> int:
    """Run the server's step; its exit code."""
    if len(sys.argv) != 2:
        raise UserError("give one argument, the job's JSON file")
    options = read_options(sys.argv[1])
    die_with_parent_if_told()
    hide_environment()
    place, kind = find_place(dict(os.environ), sys.argv[1]), find_kind(options.kind)
    if place.rank > 0:
        return run_other(options, place, kind)
    try:
        return run_first(options, place, kind)
    finally:
        for path in (place.rendezvous, place.token_file):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    ended_by(main)
