"""What a user sees while samples are made: a live line in a terminal, plain lines in a batch job's log."""

import contextlib
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mathmill.generation.client import CompletionClient
from mathmill.generation.effort import Counts
from mathmill.generation.pool import PoolClient
from mathmill.generation.progress import progress
from mathmill.generation.shards import Key, published_rows
from mathmill.records import MASKING, Solution
from mathmill.run import Run

FIRST_LINE_S, LINE_S = 10.0, 60.0


class Reporter:
    """Counts what this worker finishes and shows it; `with` it around the work."""

    def __init__(self, run: Run, client: CompletionClient | PoolClient) -> None:
        self.run, self.client = run, client
        self.console = Console(stderr=True, soft_wrap=True)
        self.is_wide = self.console.width >= 110
        self.finished_rows = self.candidates = self.graded = self.correct = self.set_aside_rows = 0
        self.begun = time.monotonic()
        self._said = ""
        self._ended = threading.Event()
        before = progress(run)
        self.num_rows = sum(one.num_rows for one in before)
        self.num_before = sum(one.num_done + one.num_in_parts for one in before)
        self._live = self._make_live() if self.console.is_terminal else None
        self._thread = threading.Thread(target=self._log, name="log", daemon=True)

    def _make_live(self) -> Progress:
        columns = [
            TextColumn("[bold]solving"),
            BarColumn(bar_width=24 if self.is_wide else 10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            *([TimeElapsedColumn()] if self.is_wide else []),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        return Progress(*columns, console=self.console, transient=True)

    def __enter__(self) -> "Reporter":
        if self._live is not None:
            self._live.start()
            self._row = self._live.add_task("solving", total=self.num_rows, completed=self.num_before, rates="")
        else:
            self.say(f"{self.num_before:,} of {self.num_rows:,} rows were there before")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._live is not None:
            self._show()
            self._live.stop()
        else:
            self._thread.join()
        self.say(self.line())
        if self.client.failures:
            failed = ", ".join(f"{kind} {count:,}" for kind, count in self.client.failures.most_common())
            self.say(f"requests that had to be sent again: {failed}")

    def finished(self, solution: Solution) -> None:
        self.finished_rows += 1
        if solution.generation_type == MASKING:
            self.candidates += 1
        else:
            self.graded += solution.is_correct is not None
            self.correct += solution.is_correct is True
        self._show()

    def set_aside(self, key: Key, reason: str) -> None:
        self.set_aside_rows += 1
        self.say(f"quarantined {key[0]} sample {key[1]}: {reason}")
        self._show()

    def say(self, text: str) -> None:
        """One line, once in a row."""
        if text != self._said:
            self._said = text
            stamp = "" if self._live is not None else time.strftime("%H:%M:%S ")
            with contextlib.suppress(OSError):  # the log may lie on a disk that is full
                self.console.print(f"{stamp}{text}", highlight=False, markup=False)

    def counts(self) -> Counts:
        """What a worker's effort is told by."""
        return Counts(self.client.at_server.busy_s(), self.finished_rows, self.correct, self.client.num_tokens)

    def rates(self, in_full: bool = True) -> str:
        seconds = max(time.monotonic() - self.begun, 1e-9)
        share = f"{self.correct / self.graded:6.1%} correct  " if self.graded else ""
        tokens = f"  {self.client.num_tokens / seconds:,.0f} tokens/s" if in_full else ""
        return f"{share}{self.finished_rows / seconds:.1f} samples/s{tokens}"

    def line(self) -> str:
        masking = f", {self.candidates:,} of them candidates for masked solutions" if self.candidates else ""
        rows = f"{self.finished_rows:,} rows by this task{masking}"
        quarantined = f"  {self.set_aside_rows:,} quarantined" if self.set_aside_rows else ""
        return f"{rows}  {self.rates().strip()}{quarantined}"

    def _show(self) -> None:
        if self._live is not None:
            settled = self.num_before + self.finished_rows + self.set_aside_rows
            self._live.update(self._row, completed=settled, rates=self.rates(in_full=self.is_wide))

    def _log(self) -> None:
        pause = FIRST_LINE_S
        while not self._ended.wait(pause):
            pause = LINE_S
            self.say(f"{self.line()}; the run: {published_rows(self.run):,} of {self.num_rows:,} rows published")
