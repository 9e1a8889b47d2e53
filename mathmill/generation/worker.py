"""A worker: claims shards of all sets of a run, solves their samples, journals every row, publishes whole shards."""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from mathmill.chat_template import text_maker
from mathmill.errors import UserError
from mathmill.files import write_whole
from mathmill.generation.claims import Claims, Heartbeat, WorkerCard, this_worker
from mathmill.generation.client import CompletionClient, Source, seeds_are_honoured
from mathmill.generation.effort import EffortNotes
from mathmill.generation.journal import OpenShard
from mathmill.generation.options import WorkerOptions
from mathmill.generation.parts import clear_away_what_is_published, journaled, publish
from mathmill.generation.pool import PoolClient, end_pool_when_done
from mathmill.generation.reporter import Reporter
from mathmill.generation.sets import SampleSet, SetFolder, sets_of
from mathmill.generation.shards import Shard, keys_of, left, published
from mathmill.generation.solve import SampleFailedError, Solver
from mathmill.generation.times import Gauge, Times
from mathmill.grading import GradingPool
from mathmill.paths import PACKAGE
from mathmill.records import Problem
from mathmill.run import Run
from mathmill.sandbox import AsyncSandbox
from mathmill.serving.address import Address, read_address
from mathmill.serving.kinds import KINDS

WORK_LEFT = 75
"""Exit code of a worker that drained before all was done (EX_TEMPFAIL): its script requeues the task."""
SYNC_S = 5.0
"""Rows survive a lost node after this long at most; a killed process loses none."""


class Going:
    """Tasks under way. What it costs to hear that one has ended does not grow with their number, unlike `asyncio.wait`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._others: list[asyncio.Task[None]] = []
        self._failures: list[BaseException] = []
        self._ended = asyncio.Event()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note)

    def meanwhile(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that goes on beside them until the end; its failure counts as theirs do."""
        self._others.append(asyncio.create_task(work))
        self._others[-1].add_done_callback(self._note)

    async def one_ended(self) -> None:
        """Wait until one has ended, or several, or somebody asks to look. Raises what failed."""
        await self._ended.wait()
        self._ended.clear()
        self.check()

    def look(self) -> None:
        """Let who waits for an end look about."""
        self._ended.set()

    def check(self) -> None:
        """Raise what failed: the first where several fail together."""
        if self._failures:
            raise self._failures[0]

    def _note(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)
        self._ended.set()

    async def __aenter__(self) -> "Going":
        return self

    async def __aexit__(self, *_: object) -> None:
        left = [*self._tasks, *self._others]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@dataclass
class Worker:
    """Feeds samples of claimed shards to solvers until nothing is left, a drain is asked for, or the server is lost."""

    run: Run
    card: WorkerCard
    solvers: list[tuple[SetFolder, Solver, list[Problem]]]
    claims: Claims
    client: CompletionClient | PoolClient
    reporter: Reporter
    times: Times = field(default_factory=Times)
    draining: bool = False
    _has_settled: bool = False
    _open: dict[tuple[str, str], OpenShard] = field(default_factory=dict)

    def _left(self, folder: SetFolder, sample_set: SampleSet) -> list[Shard]:
        """Shards that are neither published nor open here; each task begins at a place of its own."""
        shards = left(folder, sample_set)
        task, tasks = int(os.environ.get("MATHMILL_TASK", 0)), int(os.environ.get("MATHMILL_TASKS", 1))
        first = len(shards) * task // max(tasks, 1)
        return [
            shard for shard in shards[first:] + shards[:first] if (folder.folder.name, shard.name) not in self._open
        ]

    def claim(self) -> OpenShard | None:
        """Claim and open the next shard of any set; None when nothing is to be had."""
        for folder, solver, problems in self.solvers:
            while taken := self.claims.take(folder, self._left(folder, solver.sample_set)):
                shard, number = taken
                rows = set(keys_of(folder, shard, problems)) - journaled(folder, shard)
                if shard.name in published(folder):  # by its last holder, since we looked
                    continue
                label = f"{shard.name}.{number:04d}.{self.card.name}"
                opened = OpenShard(folder, shard, solver, problems, label, rows)
                self._open[opened.key] = opened
                return opened
        return None

    async def close(self, opened: OpenShard) -> None:
        """Publish a shard whose rows are all settled; one that is not to be seen whole here is claimed anew."""
        await asyncio.to_thread(opened.close)
        if not await asyncio.to_thread(publish, opened.folder, opened.shard, opened.problems):
            self.reporter.say(f"{opened.shard.name} is opened again: parts of it are not to be seen here")
        del self._open[opened.key]

    async def work(self) -> None:
        """Until no shard is left for us. Raises ServerLostError and OSError (disk) with all finished rows journaled."""
        try:
            while (opened := await self._claim_or_wait()) is not None:
                await self._work_from(opened)
        finally:
            close_all(list(self._open.values()))

    async def _claim_or_wait(self) -> OpenShard | None:
        """The next shard; waits only for holders of claims that have not shown that they live."""
        while not self.draining:
            opened = await asyncio.to_thread(self.claim)
            if opened is not None:
                return opened
            held = [(folder, self._left(folder, solver.sample_set)) for folder, solver, _ in self.solvers]
            if not any(self.claims.others_may_be_gone(folder, shards) for folder, shards in held):
                return None
            self.reporter.say("all work is claimed; waiting to see whether its holders live")
            await asyncio.sleep(self.claims.beat_s / 3)
        return None

    async def _work_from(self, opened: OpenShard | None) -> None:
        """Keep as many samples going as may be in flight, and a few more, whose code runs or whose answer is graded."""
        queue: deque[tuple[OpenShard, Problem, int]] = deque()
        async with Going() as going:
            going.meanwhile(self._keep_syncing(going))
            while True:
                most = int(self.client.in_flight.limit * 1.25) + 2
                while opened is not None and not self.draining and len(going) + len(queue) < most:
                    queue.extend(samples_left(opened))
                    if not opened.left:
                        await self.close(opened)
                    opened = await asyncio.to_thread(self.claim)
                while queue and len(going) < most and not self.draining:
                    going.begin(self._settle(*queue.popleft()))
                if not len(going):
                    going.check()
                    return
                self.times.go_on(opened is not None or bool(queue))
                await going.one_ended()

    async def _keep_syncing(self, going: Going) -> None:
        while True:
            await asyncio.sleep(SYNC_S)
            for shard in list(self._open.values()):
                await asyncio.to_thread(shard.sync)
            going.look()  # more may be in flight meanwhile: a server has joined

    async def _settle(self, opened: OpenShard, problem: Problem, sample_index: int) -> None:
        key = (problem.problem_id, sample_index)
        try:
            solution = await opened.solver.solve(problem, sample_index)
        except (UserError, OSError):  # the server, the sandbox or the disk: no row is to blame
            raise
        except Exception as failure:  # one bad sample never ends the job
            reason = str(failure) if isinstance(failure, SampleFailedError) else f"{type(failure).__name__}: {failure}"
            opened.set_aside(key, reason)
            self.reporter.set_aside(key, reason)
        else:
            opened.journal(solution)
            self.times.num_rows += 1
            self.reporter.finished(solution)
        if not opened.left:
            await self.close(opened)
        if not self._has_settled:
            self._has_settled = True
            await asyncio.to_thread(note_progress, self.run, self.card)

    def is_done(self) -> bool:
        """Whether every shard of the sets that this worker works on is published."""
        return not any(left(folder, solver.sample_set) for folder, solver, _ in self.solvers)


def note_progress(run: Run, card: WorkerCard) -> None:
    """Say that this start of the task finished something: a task whose starts finish nothing gives up in the end."""
    write_whole(run.progress / card.job, f"{card.restart}\n")


def close_all(shards: list[OpenShard]) -> None:
    """Close every shard, whatever becomes of the others; the first failure is raised at the end."""
    failures = []
    for shard in shards:
        try:
            shard.close()
        except OSError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


def samples_left(opened: OpenShard) -> list[tuple[OpenShard, Problem, int]]:
    """The rows of a shard that are still to be made, in its order."""
    shard = opened.shard
    return [
        (opened, problem, sample)
        for problem in opened.problems[shard.first_problem : shard.last_problem + 1]
        for sample in range(shard.first_sample, shard.last_sample + 1)
        if (problem.problem_id, sample) in opened.left
    ]


def find_server(run: Run, options: WorkerOptions) -> Address:
    """The server that the options name, or this job's own by its address file."""
    if options.server_address is None:
        return read_address(run.servers / f"{os.environ['MATHMILL_JOB']}.json")
    token = os.environ.get(options.server_token_env) if options.server_token_env else None
    return Address(url=options.server_address, kind="openai", model=options.server_model or "", token=token)


def code_sha(run: Run) -> str:
    """The snapshot that this process runs from; empty when it runs from elsewhere."""
    return PACKAGE.parent.name if PACKAGE.parent.parent.resolve() == run.code.resolve() else ""


async def run_worker(run: Run, options: WorkerOptions) -> int:
    """Work until nothing is left for us: 0. Drained with work left: 75; told to end: 143. Rows are safe in each case."""
    sets = [(folder, folder.load(), folder.load_problems()) for folder in sets_of(run, options.model)]
    for folder, _, problems in sets:
        clear_away_what_is_published(folder, problems)
    address = find_server(run, options) if options.pool is None else None
    card = this_worker()
    times = Times()
    async with contextlib.AsyncExitStack() as stack:
        heartbeat = Heartbeat(run, card)  # servers of a pool see that somebody comes
        stack.callback(heartbeat.end)
        needed = any(one.sampling.temperature > 0 for _, one, _ in sets)
        client: CompletionClient | PoolClient
        if address is None:
            client = await stack.enter_async_context(pool_client(run, options, times.at_server, needed))
        else:
            client = await stack.enter_async_context(own_client(address, options, times.at_server))
        times.write_to(run.times / f"{card.job}.{card.restart}.worker.jsonl", lambda: sums_of(client))
        stack.callback(times.note)
        noting = asyncio.create_task(times.keep_noting())
        stack.callback(noting.cancel)
        if isinstance(client, PoolClient):
            await client.first_server()
        elif address is not None:
            client.source = Source(address.kind, await seeds_are_honoured(client, needed))
        sandbox = None
        if any(one.prompt.code for _, one, _ in sets):
            sandbox = await AsyncSandbox.connect(f"{os.environ['MATHMILL_NODE_DIR']}/sandbox/socket")
            stack.push_async_callback(sandbox.close)
        grading = GradingPool()
        stack.callback(grading.close)
        solvers, suspects = [], asyncio.Lock()
        for folder, one, problems in sets:
            own_sandbox = sandbox if one.prompt.code else None
            text_of = text_maker(one.prompt, options.model_path)
            solver = Solver(one, text_of, code_sha(run), client, own_sandbox, grading, suspects, times)
            solvers.append((folder, solver, problems))
        reporter = stack.enter_context(Reporter(run, client))
        stack.enter_context(EffortNotes(run, card.name, card.job, card.restart, reporter.counts))
        worker = Worker(run, card, solvers, Claims(run, card), client, reporter, times)
        code = await end_well(worker, options.drain_s)
        if options.pool is not None:
            await asyncio.to_thread(end_pool_when_done, run, options.pool, worker.is_done)
        return code


def own_client(address: Address, options: WorkerOptions, at_server: Gauge) -> CompletionClient:
    """The client of the one server that is this worker's."""
    return CompletionClient(
        address.url,
        address.model,
        fields=KINDS[address.kind].fields,
        token=address.token,
        most_in_flight=options.max_in_flight,
        patience_s=options.patience_s,
        at_server=at_server,
    )


def pool_client(run: Run, options: WorkerOptions, at_server: Gauge, seeds_needed: bool) -> PoolClient:
    """The client of all servers of the run that serve this worker's pool."""
    return PoolClient(
        run,
        options.pool or "",
        at_server=at_server,
        most_in_flight=options.max_in_flight,
        wait_s=60 * options.server_wait_minutes,
        patience_s=options.patience_s,
        seeds_needed=seeds_needed,
    )


def sums_of(client: CompletionClient | PoolClient) -> tuple[int, dict[str, float]]:
    """Tokens so far, and of a pool the seconds with anything at each server."""
    return client.num_tokens, client.busy_s() if isinstance(client, PoolClient) else {}


async def end_well(worker: Worker, drain_s: float) -> int:
    """Work with both ways of ending: USR2 drains (what is in flight may finish), TERM and Ctrl-C flush and end at once."""
    work = asyncio.create_task(worker.work())
    loop = asyncio.get_running_loop()
    told: list[int] = []

    def drain() -> None:
        worker.draining = True
        worker.reporter.say(f"draining: what is in flight may finish within {drain_s:.0f} s")
        loop.call_later(drain_s, work.cancel)

    def end(number: int) -> None:
        told.append(number)
        work.cancel()

    loop.add_signal_handler(signal.SIGUSR2, drain)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    try:
        await work
    except asyncio.CancelledError:
        if told:
            worker.reporter.say("told to end: every finished row is journaled")
            return 128 + told[0]
    return WORK_LEFT if worker.draining and not worker.is_done() else 0
