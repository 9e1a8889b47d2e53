"""What is submitted: a job's resources and its steps. Frozen data; nothing here acts."""

import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

Role = Literal["server", "sandbox", "trainer", "client"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One program of a job: `PYTHON -m MODULE [ARGUMENTS] RUN/jobs/JOB.json`, which reads its options there under the
    step's name."""

    name: str
    role: Role
    """Decides the runtime and what of the file system and the network the step sees."""
    module: str
    arguments: tuple[str, ...] = ()
    """Words before the options' file: flags of a module that is a launcher itself."""
    main: bool = False
    """Its end is the job's end; its output is the job's own. Exactly one step of a job is main."""
    kind: str = ""
    """Which image it runs in, where `images` has that name; else the role's. A `bundled` server runs like a client."""
    gpus: int = 0
    """On each of its nodes."""
    nodes: int = 1
    tasks_per_node: int = 1
    cpus: int | None = None
    """For each of its tasks; None: all of the job's CPUs, shared with the other steps."""
    mpi: str | None = None
    """srun's --mpi, where the tasks form one MPI world."""
    ready_file: str | None = None
    """A path whose existence says that the step is ready; $MATHMILL_… in it is replaced."""
    ready_minutes: float = 30
    """How long that may take before the job gives up."""
    env: dict[str, str] = field(default_factory=dict)
    """More variables, written into the script: nothing secret."""
    mounts: tuple[str, ...] = ()
    """More paths a container sees: /source[:/target[:ro]], a model's folder for example."""
    secrets: bool = False
    """Whether the variables named under `env` in the cluster's file reach it. Never in a sandbox."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"step name {self.name!r} is no shell function name")
        if self.role == "sandbox" and self.secrets:
            raise ValueError("a sandbox gets no secrets")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Steps that run side by side on the same nodes, as one job or as an array of `tasks` equal ones."""

    name: str
    steps: tuple[Step, ...]
    tasks: int = 1
    """Array size; tasks share the work and know their index as MATHMILL_TASK of MATHMILL_TASKS."""
    options: dict[str, Any] = field(default_factory=dict)
    """Step name to its options: what is written to RUN/jobs/NAME.json."""
    time_limit: str | None = None
    """None: the cluster's."""
    directives: dict[str, Any] = field(default_factory=dict)
    """More #SBATCH lines; they win over the cluster's, and None removes."""
    first_task: int = 0
    """Index of the first task, where one job is split over several arrays."""
    all_tasks: int | None = None
    """Tasks of all those arrays."""
    max_idle_starts: int | None = None
    """Starts of a task in a row that may finish nothing until it gives up; main says in RUN/progress/JOB which of its
    starts finished something. None: main does not say."""
    after: tuple[str, ...] = ()
    """Names of earlier jobs of the same launch, or ids of Slurm's, that have to end before it begins, well or not."""
    needs: tuple[str, ...] = ()
    """Paths in the run, which earlier jobs make: without them it ends before any of its steps starts."""
    cpus: int | None = None
    """CPUs that it wants on each node, where it has no GPUs; None: a few."""

    def __post_init__(self) -> None:
        if sum(step.main for step in self.steps) != 1:
            raise ValueError(f"job {self.name} needs exactly one main step")
        if len({step.name for step in self.steps}) != len(self.steps):
            raise ValueError(f"job {self.name} names a step twice")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) or self.tasks < 1:
            raise ValueError(f"job {self.name!r} with {self.tasks} tasks")

    @property
    def main(self) -> Step:
        return next(step for step in self.steps if step.main)

    @property
    def nodes(self) -> int:
        """Nodes of each task."""
        return max(step.nodes for step in self.steps)

    @property
    def gpus(self) -> int:
        """GPUs on each of those nodes."""
        return max(step.gpus for step in self.steps)

    @property
    def tasks_per_node(self) -> int:
        return max(step.tasks_per_node for step in self.steps)

    @property
    def is_array(self) -> bool:
        return self.tasks > 1 or self.all_tasks is not None


def split_job(job: Job, max_array_size: int) -> list[Job]:
    """As few jobs as Slurm's MaxArraySize allows, of nearly equal size.

    With 1001 the highest index is 1000, so 1001 tasks fit.
    """
    count = -(-job.tasks // max_array_size)
    if count == 1:
        return [job]
    edges = [job.tasks * number // count for number in range(count + 1)]
    return [
        replace(
            job,
            name=job.name if not first else f"{job.name}-part{number}",
            tasks=end - first,
            first_task=first,
            all_tasks=job.tasks,
        )
        for number, (first, end) in enumerate(pairwise(edges), 1)
    ]
