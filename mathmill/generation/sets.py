"""Sample sets: problems, a prompt, a model and sampling options, written once and never changed; only samples are added."""

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mathmill.errors import UserError
from mathmill.files import publish_once
from mathmill.prompts import Prompt
from mathmill.records import Problem, lines_of, read_records, short_sha
from mathmill.run import Run

ROWS_PER_SHARD = 512
PROBLEMS_PER_SHARD = 64
SHARDS_PER_TASK = 2
FEWEST_SHARDS = 128
_EXTENT = re.compile(r"samples\.(\d+)")


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How a solution is sampled and its code run."""

    temperature: float
    top_p: float
    max_tokens: int
    """Tokens the model may generate for one solution."""
    max_tokens_per_round: int
    """Tokens it may generate before its first block of code and after each."""
    max_code_executions: int
    stop_on_code_error: bool
    output_style: Literal["omi1", "ipython"]
    max_output_characters: int
    code_timeout_s: float


class SampleSet(msgspec.Struct, frozen=True, kw_only=True):
    """What every row of a set has in common: `set.yaml`."""

    name: str
    problems_sha: str
    num_problems: int
    prompt: Prompt
    model: str
    model_path: str = ""
    """Its folder, since two folders may have one name; empty: not known when the set was planned."""
    sampling: Sampling
    seed: int
    problems_per_shard: int
    samples_per_shard: int

    @property
    def options_sha(self) -> str:
        """Stands for all that shapes a row, except its place in the set."""
        shaping = (self.problems_sha, self.prompt, self.model, self.sampling, self.seed)
        return short_sha(msgspec.json.encode(shaping))


def seed_of(sample_set: SampleSet, problem_id: str, sample_index: int) -> int:
    """The sample's own seed, 0 to 2^31 - 1, whatever the batch, the task or the attempt."""
    key = f"{sample_set.seed}\0{sample_set.name}\0{problem_id}\0{sample_index}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> 1


def shard_shape(num_problems: int, num_samples: int, num_jobs: int) -> tuple[int, int]:
    """Problems and samples of a shard: at most 512 rows, and shards enough for the tasks of this launch and a larger one."""
    rows = min(ROWS_PER_SHARD, max(1, num_problems * num_samples // max(FEWEST_SHARDS, num_jobs * SHARDS_PER_TASK)))
    samples = min(num_samples, 8, rows)
    problems = min(rows // samples, PROBLEMS_PER_SHARD)
    return problems, samples


@dataclass(frozen=True)
class SetFolder:
    """`RUN/solutions/SET` and what lies in it."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "set.yaml"

    @property
    def problems(self) -> Path:
        return self.folder / "problems.jsonl"

    @property
    def claims(self) -> Path:
        return self.folder / "claims"

    @property
    def parts(self) -> Path:
        return self.folder / "parts"

    @property
    def quarantine(self) -> Path:
        """Rows that failed for their own reasons, with the reason: a file a shard, once the shard is published."""
        return self.folder / "quarantine"

    @property
    def reopened(self) -> Path:
        """Names of the further attempts that were asked for of what shards set aside."""
        return self.folder / "reopened"

    def load(self) -> SampleSet:
        """The set as it was created."""
        try:
            return msgspec.yaml.decode(self.config.read_bytes(), type=SampleSet)
        except msgspec.DecodeError as problem:
            raise UserError(
                f"{self.config}: not a sample set of this version: {' '.join(str(problem).split())}"
            ) from None

    def load_problems(self) -> list[Problem]:
        """The problems, which must be those that the set was created with."""
        problems = list(read_records(self.problems, Problem))
        if short_sha(lines_of(problems)) != self.load().problems_sha:
            raise UserError(f"{self.problems} is not what {self.config} was made with; use another run name")
        return problems

    def extents(self) -> list[int]:
        """Every number of samples that was asked for, ascending: the K-th is in the file `samples.K`; none is ever removed."""
        numbers = [int(match[1]) for path in self.folder.glob("samples.*") if (match := _EXTENT.fullmatch(path.name))]
        return [self._extent(number) for number in range(1, max(numbers, default=0) + 1)]

    def _extent(self, number: int) -> int:
        path = self.folder / f"samples.{number:03d}"
        try:
            return int(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{self.folder} was begun by an older mathmill; use another run name") from None
        except ValueError:
            raise UserError(f"{path}: does not hold a number of samples; was it changed?") from None

    def extents_with(self, num_samples: int) -> list[int]:
        """The extents once this many samples are asked for."""
        extents = self.extents()
        return [*extents, num_samples] if num_samples > max(extents, default=0) else extents

    def grow(self, num_samples: int) -> None:
        """Ask for this many samples a problem; fewer than there are changes nothing.

        Whoever publishes the next number has seen all before it, so a node whose view of the folder lags cannot cut a block
        anew that others make already.
        """
        while num_samples > max(extents := self.extents(), default=0):
            if not publish_once(self.folder / f"samples.{len(extents) + 1:03d}", f"{num_samples}\n"):
                time.sleep(0.2)  # another launch was first; its number may show here only after a while


def set_folders(run: Run) -> list[SetFolder]:
    """The sample sets of a run, by name."""
    return [SetFolder(path.parent) for path in sorted(run.solutions.glob("*/set.yaml"))]


def sets_of(run: Run, model: str) -> list[SetFolder]:
    """The sets of a run that this model makes: another model's are another job's work."""
    return [folder for folder in set_folders(run) if folder.load().model == model]


def create_set(run: Run, sample_set: SampleSet, problems: list[Problem]) -> SetFolder:
    """Write a set once; an existing one must be the same but for its number of samples."""
    folder = SetFolder(run.solutions / sample_set.name)
    for path in (folder.claims, folder.parts, folder.quarantine, folder.reopened):
        path.mkdir(parents=True, exist_ok=True)
    publish_once(folder.problems, lines_of(problems))
    publish_once(folder.config, msgspec.yaml.encode(sample_set))
    refuse_other_options(run, folder.load(), sample_set)  # another launch may have been first
    folder.load_problems()  # and was perhaps killed between the two files
    return folder


def refuse_other_options(run: Run, started: SampleSet, asked: SampleSet) -> None:
    """Name the first option in which a set that exists differs from the one asked for."""
    fields = [
        ("model", started.model, asked.model),
        ("prompt", started.prompt.name, asked.prompt.name),
        ("seed", started.seed, asked.seed),
        *(
            (field, getattr(started.sampling, field), getattr(asked.sampling, field))
            for field in Sampling.__struct_fields__
        ),
    ]
    for field, old, new in fields:
        if old != new:
            raise UserError(f"{run.folder} was started with {field} {old}; use another run name, or that {field}")
    if started.model_path and asked.model_path and started.model_path != asked.model_path:
        raise UserError(
            f"{run.folder} was started with {started.model} of {started.model_path}, "
            f"not of {asked.model_path}; use another run name"
        )
    if started.prompt != asked.prompt:
        raise UserError(
            f"{run.folder} was started with another text of prompt {started.prompt.name}; use another run name"
        )
    if started.problems_sha != asked.problems_sha:
        raise UserError(f"{run.folder} was started with other problems in set {started.name}; use another run name")
