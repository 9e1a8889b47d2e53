"""Where the time of a run's jobs went: a table, a picture, the idle share of its GPUs, and what would shrink it."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from mathmill.errors import UserError
from mathmill.launch.show import count
from mathmill.options import script

if TYPE_CHECKING:
    from mathmill.generation.spent import ServerRecord, Spent, WorkerRecord
    from mathmill.launch.allocations import Allocation
    from mathmill.run import Run

SHOWN_TASKS = 40
WIDTH = 106
"""Columns of the table at least; a narrower terminal wraps its lines."""
REMEDIES = {
    "server start": "weights are loaded once a server with --server_jobs N; fewer tasks load them less often too",
    "waiting": "the server waited for code, grading or a free worker: more CPUs (cpus), or with --server_jobs more --client_jobs",
    "tail": "the last samples had their servers for themselves: fewer servers or tasks, more sets in a run, smaller --max_tokens",
    "end": "servers and sandboxes took long to end; see the ends of their logs",
}
SHARED_START = "more work in one run, fewer servers, or weights on a faster disk"
COLOURS = {"server start": "#d8a657", "work": "#4c8dae", "tail": "#a9c6d6", "end": "#bbbbbb"}


@dataclass(frozen=True, kw_only=True)
class WhereTimeWentOptions:
    """Show where the time of a run's jobs went: server start, generation, code, grading, waiting, tail; and draw it."""

    run: tyro.conf.Positional[str | None] = None
    """Name of a run in runs/, or its folder (default: the newest)."""
    tasks: bool = False
    """A line for each start of each task, not for each job alone."""
    picture: Path | None = None
    """Where the picture goes, .png, .pdf or .svg (default: RUN/where_time_went.png)."""


@dataclass(frozen=True)
class Row:
    """A start of a task, what it was for, and what can be drawn of it."""

    allocation: "Allocation"
    ended: float
    spent: "Spent"
    has_worker: bool
    segments: list[tuple[str, float, float]]
    """What it did from when to when, in seconds since 1970."""


def main() -> None:
    script(WhereTimeWentOptions, where_time_went)


def where_time_went(options: WhereTimeWentOptions) -> int:
    """Print the table and what is idle, and draw the picture."""
    from mathmill.generation.spent import worker_records
    from mathmill.run import find_run

    run = find_run(options.run)
    workers = worker_records(run)
    rows = rows_of(run, workers)
    if not rows:
        raise UserError(f"run {run.name} has no times yet: none of its jobs has begun to work")
    print_table(run, rows, options.tasks)
    for line in idle_lines(rows):
        print(line)
    path = options.picture or run.folder / "where_time_went.png"
    draw(run, rows, workers, path)
    print(f"picture: {path}")
    sys.stdout.flush()
    return 0


def rows_of(run: "Run", workers: "list[WorkerRecord]") -> list[Row]:
    """A row for every start of a task that wrote times."""
    from mathmill.generation.spent import server_records, spent_by_server, spent_by_worker
    from mathmill.launch.allocations import allocations

    servers = server_records(run)
    by_key = {(worker.job, worker.restart): worker for worker in workers}
    rows = []
    for one in allocations(run):
        key = (one.task_id, one.restart)
        worker, server = by_key.get(key), servers.get(key)
        if worker is not None:
            ended = one.ended or worker.lines[-1].at
            spent = spent_by_worker(worker, one.begun, ended, server is not None)
        elif server is not None:
            ended = one.ended or server.events.get("ended", time.time())
            spent = spent_by_server(server, workers, one.begun, ended)
        else:
            continue
        rows.append(Row(one, ended, spent, worker is not None, segments_of(one, worker, server, workers, ended)))
    return rows


def segments_of(
    allocation: "Allocation",
    worker: "WorkerRecord | None",
    server: "ServerRecord | None",
    workers: "list[WorkerRecord]",
    ended: float,
) -> list[tuple[str, float, float]]:
    """Start, work, tail and end of an allocation, one after the other."""
    if worker is not None:
        edges = [worker.work_begun, worker.tail_begun, worker.lines[-1].at]
    else:
        assert server is not None
        told = server.events.get("ended", ended)
        tail = max((each.tail_begun for each in workers), default=told)
        edges = [server.events.get("ready", told), tail, told]
    edges = [allocation.begun, *edges, ended]
    for number in range(1, len(edges)):
        edges[number] = min(max(edges[number], edges[number - 1]), ended)
    return list(zip(COLOURS, edges[:-1], edges[1:], strict=True))


def print_table(run: "Run", rows: list[Row], each_task: bool) -> None:
    """A line a job, or a line a start of a task, and one for all."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from mathmill.generation.spent import PARTS, added

    console = Console(highlight=False, markup=False)
    console.width = max(console.width, WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(run.name, no_wrap=True)
    for name in ("time", *PARTS, "server busy"):
        table.add_column(name, justify="right", min_width=0 if " " in name else len(name))

    def line(name: str, some: list[Row]) -> None:
        whole = added(row.spent for row in some)
        shares = [f"{whole.parts[part] / whole.wall_s:.0%}" if whole.wall_s else "-" for part in PARTS]
        with_server = sum(row.spent.wall_s for row in some if row.spent.has_server)
        busy = f"{whole.busy_s / with_server:.0%}" if with_server else "-"
        table.add_row(name, clock(whole.wall_s), *shares, busy)

    for job in dict.fromkeys(row.allocation.job for row in rows):
        some = [row for row in rows if row.allocation.job == job]
        if each_task:
            for row in some:
                again = f", start {row.allocation.restart}" if row.allocation.restart else ""
                line(f"{job} {row.allocation.task_id}{again}", [row])
        else:
            line(f"{job} ({count(len(some), 'start')})", some)
    line("all", rows)
    console.print(table)


def idle_lines(rows: list[Row]) -> list[str]:
    """The share of the GPUs' time (or the servers', where there are no GPUs) without a request, and what would shrink it."""
    from mathmill.generation.spent import PARTS

    served = [row for row in rows if row.spent.has_server]
    if not served:
        return ["no server of this run's own: nothing is known of its GPUs"]
    what = "GPU" if any(row.allocation.gpus for row in served) else "server"
    weights = [(row, row.allocation.gpus if what == "GPU" else 1) for row in served]
    whole = sum(weight * row.spent.wall_s for row, weight in weights)
    idle = sum(weight * (row.spent.wall_s - row.spent.busy_s) for row, weight in weights)
    lines = [f"idle: {idle / whole:.0%} of {clock(whole)} of {what} time had no request at the server"]
    parts = {part: sum(weight * row.spent.parts[part] for row, weight in weights) for part in PARTS}
    worst = sorted((part for part in REMEDIES if parts[part] / whole >= 0.02), key=lambda part: -parts[part])
    is_shared = any(not row.has_worker for row in served)
    for part in worst:
        remedy = SHARED_START if part == "server start" and is_shared else REMEDIES[part]
        lines.append(f"  {part} {parts[part] / whole:.0%}: {remedy}")
    return lines if worst else [*lines, "  nothing stands out"]


def clock(seconds: float) -> str:
    """`42 s`, `5:07 min`, `3:15 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"


def draw(run: "Run", rows: list[Row], workers: "list[WorkerRecord]", path: Path) -> None:
    """What each allocation did over time, and below how much was at the servers, in code and in grading."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    shown = rows if len(rows) <= SHOWN_TASKS else rows[:: -(-len(rows) // SHOWN_TASKS)]
    begun = min(row.allocation.begun for row in rows)
    longest = max(row.ended for row in rows) - begun
    unit, name = (3600, "hours") if longest > 3 * 3600 else (60, "minutes") if longest > 180 else (1, "seconds")
    height = 1.8 + 0.22 * len(shown)
    figure, (tasks, flow) = pyplot.subplots(
        2, 1, sharex=True, figsize=(9, height + 2.4), height_ratios=[height, 2.0], layout="constrained"
    )
    for place, row in enumerate(shown):
        for part, first, last in row.segments:
            tasks.barh(place, (last - first) / unit, left=(first - begun) / unit, color=COLOURS[part], height=0.8)
    tasks.set_yticks(range(len(shown)), [f"{row.allocation.job} {row.allocation.task_id}" for row in shown], fontsize=7)
    tasks.invert_yaxis()
    tasks.legend(
        [Patch(color=colour) for colour in COLOURS.values()], list(COLOURS), ncols=4, loc="lower left",
        bbox_to_anchor=(0, 1), frameon=False,
    )  # fmt: skip
    left_out = f" ({len(shown)} of {len(rows)} shown)" if len(shown) < len(rows) else ""
    tasks.set_title(f"{run.name}{left_out}", loc="right", fontsize=9)
    for what, label in (("at_server_s", "at a server"), ("code_s", "running code"), ("grading_s", "being graded")):
        times, numbers = under_way(workers, what, begun)
        flow.step([moment / unit for moment in times], numbers, where="post", label=label)
    flow.set_ylabel("samples")
    flow.set_xlabel(f"{name} since the first allocation")
    flow.set_ylim(bottom=0)
    flow.legend(frameon=False, ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def under_way(workers: "Iterable[WorkerRecord]", what: str, begun: float) -> tuple[list[float], list[float]]:
    """How many samples of all workers did something, as steps: seconds since `begun`, and the number from there on."""
    changes: list[tuple[float, float]] = []
    for worker in workers:
        for before, line in worker.steps():
            if line.at > before.at:
                number = (getattr(line, what) - getattr(before, what)) / (line.at - before.at)
                changes += [(before.at, number), (line.at, -number)]
    steps: dict[float, float] = {}
    for moment, change in changes:
        steps[moment] = steps.get(moment, 0.0) + change
    moments = sorted(steps)
    numbers = [max(0.0, total) for total in accumulate(steps[moment] for moment in moments)]
    return [moment - begun for moment in moments], numbers
