"""What a worker is told: a section of its job's JSON file."""

import msgspec


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `generation` of a job's JSON file."""

    model: str
    """The model's name: the worker makes the run's sets that are this model's."""
    model_path: str
    server_address: str | None = None
    """URL of a server that is already there; None: this job's own, by its address file."""
    server_model: str | None = None
    server_token_env: str | None = None
    """Name of the environment variable that holds that server's token."""
    pool: str | None = None
    """Use all servers of the run that serve this pool, instead of this job's own."""
    server_wait_minutes: float = 720.0
    """Of a pool: how long no server may be there."""
    max_in_flight: int = 256
    patience_s: float = 300.0
    drain_s: float = 240.0
    sums_up: bool = True
    """Whether the worker that finds the run finished reads all rows and prints the table."""
