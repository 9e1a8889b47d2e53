"""Proof of a run by its files: every row that was asked for once, none malformed, each made as its set says."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mathmill.errors import UserError
from mathmill.generation.parts import set_aside_by
from mathmill.generation.sets import SampleSet, SetFolder, seed_of
from mathmill.generation.shards import (
    Key,
    Shard,
    all_shards,
    keys_of,
    published,
    set_aside_file,
)
from mathmill.records import Problem, Solution

SHOWN = 20


@dataclass
class Proof:
    """What was found of a sample set. It holds when nothing is wrong and no row is still to come."""

    name: str
    num_rows: int = 0
    """Rows that were asked for."""
    num_made: int = 0
    num_set_aside: int = 0
    num_to_come: int = 0
    num_shards_to_come: int = 0
    num_wrong: int = 0
    wrong: list[str] = field(default_factory=list)
    """The first of what is wrong, each with its file and line."""

    @property
    def holds(self) -> bool:
        return not self.num_wrong and not self.num_to_come

    def found(self, what: str) -> None:
        self.num_wrong += 1
        if len(self.wrong) < SHOWN:
            self.wrong.append(what)

    def lines(self) -> list[str]:
        """The findings for a reader: a line for the set, then one for each thing that is wrong."""
        head = f"{self.name}: {self.num_rows:,} rows asked for, {self.num_made:,} made once"
        if self.num_set_aside:
            head += f", {self.num_set_aside:,} in quarantine"
        if self.num_to_come:
            head += f", {self.num_to_come:,} still to come in {self.num_shards_to_come:,} shards"
        wrong = "1 thing is" if self.num_wrong == 1 else f"{self.num_wrong:,} things are"
        so_far = " so far: not finished" if self.num_to_come else ""
        head += f"; {wrong} wrong" if self.num_wrong else f"; nothing is wrong{so_far}"
        more = [f"and {self.num_wrong - len(self.wrong):,} more"] if self.num_wrong > len(self.wrong) else []
        if self.num_wrong:
            more.append(
                "a shard is made anew by the launch command, once its file and those of its name in quarantine/ and reopened/ "
                "are moved out of the run, and its further attempts SHARD.r1 … with theirs"
            )
        return [head, *(f"  {line}" for line in self.wrong + more)]


def verify_set(folder: SetFolder, codes: set[str]) -> Proof:
    """Read every published row of a set. `codes`: the hashes of the code that the run's jobs ran from.

    One shard is in memory at a time.
    """
    proof = Proof(folder.folder.name)
    try:
        sample_set, problems = folder.load(), folder.load_problems()
        asked = all_shards(folder, sample_set)
    except UserError as problem:
        proof.found(str(problem))
        return proof
    if not asked:
        proof.found(f"{folder.folder}: no number of samples was asked for yet; give the launch command again")
    proof.num_rows = sum(shard.num_rows for shard in asked if not shard.attempt)
    done, again = published(folder), {shard.before() for shard in asked if shard.attempt}
    check = RowCheck(sample_set, codes)
    for shard in asked:
        try:
            keys = keys_of(folder, shard, problems)
        except (OSError, UserError) as problem:
            proof.found(str(problem))
            continue
        if shard.name in done:
            _check_shard(proof, folder, shard, problems, check, keys, is_last=shard not in again)
        else:
            proof.num_shards_to_come += 1
            proof.num_to_come += len(keys)
    for name in sorted(done - {shard.name for shard in asked}):
        proof.found(f"{folder.folder / name}.jsonl: nobody asked for this shard")
    return proof


@dataclass
class RowCheck:
    """What every row of a set must say of how it was made."""

    sample_set: SampleSet
    codes: set[str]

    def __post_init__(self) -> None:
        self._options_sha = self.sample_set.options_sha

    def wrong(self, row: Solution, problem: Problem) -> Iterator[str]:
        """Each thing that the row says otherwise."""
        prompt = self.sample_set.prompt
        seed = seed_of(self.sample_set, row.problem_id, row.sample_index)
        for name, value, must in (
            ("seed", row.seed, seed),
            ("options_sha", row.options_sha, self._options_sha),
            ("prompt", row.prompt, prompt.name),
            ("prompt_sha", row.prompt_sha, prompt.sha),
            ("generation_type", row.generation_type, prompt.generation_type),
            ("model", row.model, self.sample_set.model),
            ("problem", row.problem, problem.problem),
            ("expected_answer", row.expected_answer, problem.expected_answer),
            ("dataset", row.dataset, problem.dataset),
        ):
            if value != must:
                yield f"{name} is {_short(value)}, and should be {_short(must)}"
        if row.code_sha not in self.codes:
            yield f"code_sha is {_short(row.code_sha)}, which is no code of this run"


def _check_shard(
    proof: Proof,
    folder: SetFolder,
    shard: Shard,
    problems: list[Problem],
    check: RowCheck,
    keys: list[Key],
    *,
    is_last: bool,
) -> None:
    """`is_last`: what this attempt set aside is not asked for again."""
    path = folder.folder / f"{shard.name}.jsonl"
    expected, made = set(keys), set[Key]()
    problem_of = {problem.problem_id: problem for problem in problems[shard.first_problem : shard.last_problem + 1]}
    for number, row in _rows(proof, path):
        key = (row.problem_id, row.sample_index)
        if key not in expected:
            proof.found(f"{path}:{number}: {_key(key)} does not belong here")
        elif key in made:
            proof.found(f"{path}:{number}: {_key(key)} is here twice")
        else:
            made.add(key)
            for what in check.wrong(row, problem_of[row.problem_id]):
                proof.found(f"{path}:{number}: {what}")
    proof.num_made += len(made)
    _check_quarantine(proof, folder, shard, expected, made, is_last)


def _check_quarantine(
    proof: Proof, folder: SetFolder, shard: Shard, expected: set[Key], made: set[Key], is_last: bool
) -> None:
    """What the shard lacks must be set aside, and nothing else."""
    path = set_aside_file(folder, shard)
    try:
        set_aside = [(row.problem_id, row.sample_index) for row in set_aside_by(folder, shard)]
    except UserError as problem:
        proof.found(str(problem))
        return
    for key in sorted(expected - made - set(set_aside)):
        proof.found(f"{folder.folder / shard.name}.jsonl: {_key(key)} is missing, and not in quarantine")
    for key in sorted(key for key in set(set_aside) if key in made or key not in expected):
        proof.found(f"{path}: {_key(key)} was made, or does not belong here")
    if len(set_aside) > len(set(set_aside)):
        proof.found(f"{path}: a row is here twice")
    if is_last:
        proof.num_set_aside += len(set(set_aside) - made)


def _rows(proof: Proof, path: Path) -> Iterator[tuple[int, Solution]]:
    decoder = msgspec.json.Decoder(Solution)
    try:
        content = path.read_bytes()
    except OSError as problem:
        proof.found(f"{path}: cannot be read: {problem.strerror}")
        return
    if content and not content.endswith(b"\n"):
        proof.found(f"{path}: its last line is torn")
    for number, line in enumerate(content.splitlines(), 1):
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            proof.found(f"{path}:{number}: malformed: {problem}")


def _key(key: Key) -> str:
    return f"{key[0]} sample {key[1]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
