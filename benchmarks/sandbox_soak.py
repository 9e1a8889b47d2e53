"""Many blocks, some of them hostile, many sessions at once: python benchmarks/sandbox_soak.py [--blocks N] [--hostile SHARE]

Every answer must be one that its block may have; processes, descriptors and memory of the supervisor and its descendants are
counted while it runs, and compared when all sessions are closed: after the warm-up, and at the end. With `--kill S` a process
below the supervisor dies by kill -9 every S seconds: an answer may then be `crash`, `memory` or `lost`, and the second request
after a kill, at the latest, must work. Ends with 1 where an answer was wrong or missing, or something grew.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from process_tree import children, cpu_of_descendants, descendants, descriptors, memory_mb, stat_of
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from soak_blocks import Block, benign_block, first_block, hostile_block

from mathmill.sandbox import AsyncSandbox, AsyncSession, BlockResult

PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6
ANSWER_WITHIN_S = 120.0
"""A block's own limit, and all that it may wait for behind others."""
KILLED_STATUSES = ("crash", "lost", "memory")
"""A process that died by kill -9 may have been chosen by the kernel, for want of memory: nobody can tell."""
MORE_DESCRIPTORS, MORE_MEMORY_MB, MORE_MEMORY = 2, 16.0, 0.1
"""What may come between the warm-up and the end: allocators are not exact."""


@dataclass(frozen=True)
class Sample:
    """What the supervisor and its descendants hold. Where memory or descriptors of one cannot be read they count 0."""

    processes: int
    zombies: int
    descriptors: int
    rss_mb: float
    pss_mb: float

    @classmethod
    def take(cls) -> "Sample":
        pids = descendants(os.getpid())
        stats = [stat for pid in pids if (stat := stat_of(pid))]
        return cls(
            processes=len(stats),
            zombies=sum(stat[0] == "Z" for stat in stats),
            descriptors=sum(map(descriptors, pids)),
            rss_mb=sum(int(stat[21]) for stat in stats) * PAGE_MB,
            pss_mb=sum(memory_mb(pid).get("Pss", 0.0) for pid in pids),
        )

    def grown_since(self, before: "Sample") -> list[str]:
        """What has grown, by more than the allowance."""
        grown = []
        if self.processes > before.processes or self.zombies > before.zombies:
            grown.append(
                f"processes {before.processes} -> {self.processes}, zombies {before.zombies} -> {self.zombies}"
            )
        if self.descriptors > before.descriptors + MORE_DESCRIPTORS:
            grown.append(f"descriptors {before.descriptors} -> {self.descriptors}")
        for name in ("rss_mb", "pss_mb"):
            old, new = getattr(before, name), getattr(self, name)
            if new > old * (1 + MORE_MEMORY) + MORE_MEMORY_MB:
                grown.append(f"{name} {old:.0f} -> {new:.0f}")
        return grown


@dataclass
class Account:
    """What was asked and what came back."""

    kills: bool
    """Whether processes are killed: any answer may then be one of KILLED_STATUSES."""
    asked: int = 0
    answers: Counter[tuple[bool, str, str]] = field(default_factory=Counter)
    """By hostile or not, kind and status."""
    states: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    after_kill: Counter[str] = field(default_factory=Counter)

    @property
    def answered(self) -> int:
        return sum(self.answers.values())

    def enter(self, block: Block, hostile: bool, told: BlockResult) -> None:
        """Count an answer; note it where it is not one that the block may have."""
        self.answers[hostile, block.kind, told.status] += 1
        self.states[told.state] += 1
        if self.kills and told.status in KILLED_STATUSES:
            return
        right = told.status in block.statuses and (told.state != "lost" or self.kills)
        if block.checked and told.status == "ok":
            right = right and (told.result, told.stdout) == (block.result, block.stdout)
        if not right:
            self.wrong.append(f"{block.kind}: {block.code[:80]!r} -> {told.status}, state {told.state}, result {told.result!r}, "
                              f"stdout {told.stdout[:80]!r}, stderr {told.stderr[-160:]!r}")  # fmt: skip


@dataclass
class Soak:
    """One sandbox, its clients, its account."""

    sandbox: AsyncSandbox
    hostile: float
    at_once: int
    account: Account
    last_kill: float = 0.0

    async def run(self, blocks: int, seed: int, told: Callable[[int], None]) -> None:
        """Run so many blocks; `told` hears how many were answered."""
        goal = self.account.asked + blocks

        async def client(number: int) -> None:
            chance = random.Random(f"{seed} {number}")
            while self.account.asked < goal:
                await self._one_session(chance, goal)
                told(self.account.answered)

        await asyncio.gather(*map(client, range(self.at_once)))

    async def _one_session(self, chance: random.Random, goal: int) -> None:
        """Up to a dozen blocks in one session."""
        total = 0
        async with self.sandbox.session() as session:
            for turn in range(chance.randint(1, 12)):
                if self.account.asked >= goal:
                    return
                hostile = turn > 0 and chance.random() < self.hostile * 13 / 11  # the first block never is
                new = hostile_block(chance) if hostile else benign_block(chance, total)
                block = new if turn else first_block(chance.randrange(10**6))
                told = await self._ask(session, block, hostile)
                if told is None or block.ends_session or told.status == "lost" or (not turn and told.status != "ok"):
                    return
                total += block.added if told.status == "ok" else 0

    async def _ask(self, session: AsyncSession, block: Block, hostile: bool) -> BlockResult | None:
        self.account.asked += 1
        try:
            told = await asyncio.wait_for(session.run(block.code, timeout=block.timeout), ANSWER_WITHIN_S)
        except Exception as problem:  # counted as a block without an answer
            self.account.wrong.append(f"{block.kind}: {block.code[:80]!r} -> {type(problem).__name__}: {problem}")
            return None
        self.account.enter(block, hostile, told)
        return told

    async def kill_now_and_then(self, every_s: float, seed: int) -> None:
        """Kill something below the supervisor, then see that requests work."""
        chance = random.Random(seed)
        while True:
            await asyncio.sleep(every_s)
            below = [pid for supervisor in children(os.getpid()) for pid in descendants(supervisor)]
            forking = [pid for pid in below if children(pid)]
            victims = forking if forking and chance.random() < 0.3 else below
            if not victims:
                continue
            victim = chance.choice(victims)
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.account.killed["forking process" if victim in forking else "session or spare process"] += 1
            await self._works_again()

    async def _works_again(self) -> None:
        for attempt in ("first request", "second request"):
            async with self.sandbox.session() as session:
                told = await asyncio.wait_for(session.run("20 + 22", timeout=30), ANSWER_WITHIN_S)
            if (told.status, told.result) == ("ok", "42"):
                self.account.after_kill[f"{attempt} works"] += 1
                return
        self.account.after_kill[f"second request is {told.status}"] += 1
        self.account.wrong.append(f"two requests after a kill: {told.status} {told.stderr[-160:]!r}")


async def quiet() -> Sample:
    """What is held once no process works any more."""
    before, still = cpu_of_descendants().total, 0
    while still < 4:
        await asyncio.sleep(0.5)
        now = cpu_of_descendants().total
        still, before = (still + 1, now) if now - before < 0.02 else (0, now)
    return Sample.take()


async def sampled(work: Awaitable[None], every_s: float, heard: Callable[[Sample], None]) -> list[Sample]:
    """Do the work; what was held meanwhile."""
    task, samples = asyncio.ensure_future(work), []
    while not task.done():
        await asyncio.wait([task], timeout=every_s)
        samples.append(Sample.take())
        heard(samples[-1])
    await task
    return samples


async def soak(arguments: argparse.Namespace, progress: Progress) -> tuple[Account, list[tuple[str, Sample]], float]:
    """Warm up, run, and give the account, what was held when, and blocks a second."""
    account = Account(kills=arguments.kill > 0)
    async with await AsyncSandbox.start(memory_mb=arguments.memory_mb) as sandbox:
        work = Soak(sandbox, arguments.hostile, arguments.at_once, account)
        bar = progress.add_task("warm-up", total=arguments.blocks, held="")

        def answered(count: int) -> None:
            progress.update(bar, completed=count)

        def held(sample: Sample) -> None:
            text = f"{sample.processes} processes, {sample.descriptors} descriptors, {sample.pss_mb:.0f} MB"
            progress.update(bar, held=text)

        warm_up = min(arguments.warm_up, arguments.blocks // 4)
        await sampled(work.run(warm_up, arguments.seed, answered), arguments.sample_s, held)
        before = await quiet()
        killing = (
            asyncio.ensure_future(work.kill_now_and_then(arguments.kill, arguments.seed)) if arguments.kill else None
        )
        progress.update(bar, description="soak")
        began = time.perf_counter()
        rest = work.run(arguments.blocks - warm_up, arguments.seed + 1, answered)
        samples = await sampled(rest, arguments.sample_s, held)
        rate = (arguments.blocks - warm_up) / (time.perf_counter() - began)
        if killing:
            killing.cancel()
            if (await asyncio.gather(killing, return_exceptions=True))[0].__class__ is not asyncio.CancelledError:
                account.wrong.append(f"the killing ended: {killing}")
        most = Sample(*(max(getattr(sample, name) for sample in samples) for name in Sample.__dataclass_fields__))
        return account, [("after the warm-up", before), ("most at work", most), ("at the end", await quiet())], rate


def report(account: Account, held: list[tuple[str, Sample]], rate: float, console: Console) -> None:
    """What was answered, what was held."""
    table = Table("blocks", "kind", "answers", title=f"{account.answered:,} answers, {rate:,.0f} blocks a second")
    for hostile in (False, True):
        for kind in sorted({kind for is_hostile, kind, _ in account.answers if is_hostile == hostile}):
            counts = {status: n for (h, k, status), n in account.answers.items() if (h, k) == (hostile, kind)}
            listed = ", ".join(
                f"{status} {count:,}" for status, count in sorted(counts.items(), key=lambda one: -one[1])
            )
            table.add_row("hostile" if hostile else "benign", kind, listed)
    console.print(table)
    table = Table("held", "processes", "zombies", "descriptors", "RSS MB", "PSS MB")
    for when, sample in held:
        memory = (f"{sample.rss_mb:,.0f}", f"{sample.pss_mb:,.0f}")
        table.add_row(when, *map(str, (sample.processes, sample.zombies, sample.descriptors)), *memory)
    console.print(table)
    for name, counts in (("states", account.states), ("killed", account.killed), ("after a kill", account.after_kill)):
        if counts:
            console.print(f"{name}: {', '.join(f'{what} {count:,}' for what, count in counts.most_common())}")


def main() -> int:
    """Soak, report, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of hostile blocks")
    parser.add_argument("--at_once", type=int, default=48, help="sessions open at a time")
    parser.add_argument("--kill", type=float, default=0.0, help="kill a process every so many seconds; 0: never")
    parser.add_argument("--memory_mb", type=int, default=1024, help="limit of a session")
    parser.add_argument(
        "--warm_up", type=int, default=5000, help="blocks before the first count, a quarter of all at most"
    )
    parser.add_argument("--sample_s", type=float, default=3.0, help="count processes, descriptors and memory so often")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    with Progress(
        *columns, TextColumn("{task.fields[held]}"), console=errors, disable=not errors.is_terminal
    ) as progress:
        account, held, rate = asyncio.run(soak(arguments, progress))
    report(account, held, rate, console)
    faults = [f"wrong: {text}" for text in account.wrong[:20]]
    faults += [f"and {len(account.wrong) - 20} more are wrong"] if len(account.wrong) > 20 else []
    faults += (
        [f"{account.asked - account.answered} blocks unaccounted for"] if account.asked != account.answered else []
    )
    faults += [f"grown: {text}" for text in held[-1][1].grown_since(held[0][1])]
    faults += [f"left behind: process {pid}" for pid in descendants(os.getpid())]
    for fault in faults or ["every answer accounted for, nothing grew, nothing left behind"]:
        console.print(fault, markup=False, highlight=False, soft_wrap=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
