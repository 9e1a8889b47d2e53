"""What a server kind is. Standard library only: this runs inside foreign containers."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What one server process is started with."""

    model: str
    """Path of a Hugging Face folder."""
    served_name: str
    port: int
    bind: str = "0.0.0.0"
    """Address to listen on. Every kind's own default is reachable from its own node only, or not said."""
    gpus: int = 1
    """GPUs a node."""
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    """HOST:PORT where the nodes of one server meet, for kinds that need it."""
    context_length: int | None = None
    arguments: tuple[str, ...] = ()
    """What the user adds to the command line, unchanged."""
    token_file: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a kind of server is started, when it is ready, and what a request to it may say."""

    name: str
    version: str
    """The release these facts are of."""
    command: Callable[[Launch], list[str]]
    fields: frozenset[str]
    """Request fields of /v1/completions that it knows."""
    refuses_unknown_fields: bool
    """Otherwise it ignores them."""
    seed_honoured: bool | None
    """Does a request's seed decide its text? None: not verified."""
    several_samples: bool
    """Is n > 1 served?"""
    logprobs: bool
    takes_name: bool
    """Can it serve under a name of our choice?"""
    checks_model: bool | None
    """Does it refuse a request for another model name? None: not verified."""
    health_path: str = "/health"
    token_variable: str | None = None
    """Environment variable from which it reads the API token that requests must send."""
    token_file_text: Callable[[str], str] | None = None
    """Content of the file through which it gets the token instead (`Launch.token_file`)."""
    needs_rendezvous: bool = False
    """Do the tasks on several nodes have to be told where the first one is?"""
    task_per_gpu: bool = False
    """Do several nodes take one task a GPU? Otherwise one task a node."""
    mpi: str | None = None
    """srun's --mpi when several nodes serve together."""

    def tasks_per_node(self, gpus: int, nodes: int) -> int:
        """Tasks of the step on each node."""
        return gpus if self.task_per_gpu and nodes > 1 else 1

    def mpi_flag(self, nodes: int) -> str | None:
        """What srun's --mpi must be, None for nothing."""
        return self.mpi if nodes > 1 else None

    def takes_token(self) -> bool:
        """Can requests be made to need a token?"""
        return self.token_variable is not None or self.token_file_text is not None
