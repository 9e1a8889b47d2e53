"""A stage of a recipe: what it makes, how far it is, and what would do the rest."""

from dataclasses import dataclass

from mathmill.launch.job import Job


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage, the jobs that would do the rest of it (none where all is done), and the stages that go before it."""

    name: str
    makes: str
    done: int
    of: int
    unit: str
    jobs: tuple[Job, ...]
    needs: tuple[str, ...] = ()
    """Names of stages whose jobs have to end before these begin, well or not; each job checks its input."""
