"""What else runs blocks of Python: a plain process per block, an IPython kernel per session. Standard library and jupyter_client.

`python benchmarks/sandbox_peers.py SESSIONS BUDGET_S AT_ONCE HELD` measures the kernel under this very Python and prints JSON.
"""

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from sandbox_measures import Extent, measure


class BlockProcesses:
    """One session: each block is a `python -c` that first runs the code of the blocks before it once more."""

    def __init__(self) -> None:
        self._earlier = ""

    def run(self, code: str, timeout: float) -> str:
        tree = ast.parse(code)
        last = tree.body[-1]
        if isinstance(last, ast.Expr):  # shown as a session would show it
            last.value = ast.Call(ast.Name("print", ast.Load()), [last.value], [])
        program = self._earlier + ast.unparse(ast.fix_missing_locations(tree))
        self._earlier += code + "\n"
        try:
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return "timeout"
        return done.stdout.strip() if done.returncode == 0 else done.stderr


class ProcessPerBlock:
    """A fresh process for each block; nothing is isolated or limited but time."""

    name = "process per block"

    def start(self) -> None:
        pass

    @contextmanager
    def session(self) -> Iterator[BlockProcesses]:
        yield BlockProcesses()

    def close(self) -> None:
        pass


class Kernel:
    """One session: a kernel of its own, asked over its sockets; a block that takes too long is interrupted."""

    def __init__(self, kernel: Any, client: Any):
        self._kernel, self._client = kernel, client

    def run(self, code: str, timeout: float) -> str:
        request, shown, status = self._client.execute(code), "", ""
        end = time.monotonic() + timeout
        while True:
            try:
                message = self._client.get_iopub_msg(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                self._kernel.interrupt_kernel()
                status, end = "timeout", time.monotonic() + 10
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "execute_result":
                shown = content["data"]["text/plain"]
            elif message["msg_type"] == "error":
                status = status or content["ename"]
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return status or shown


class KernelPerSession:
    """A kernel started for each session, as jupyter_client does; nothing is isolated or limited but time."""

    name = "IPython kernel"

    def start(self) -> None:
        pass

    @contextmanager
    def session(self) -> Iterator[Kernel]:
        from jupyter_client.manager import KernelManager

        kernel = KernelManager(kernel_name="python3")
        kernel.start_kernel()
        client = kernel.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            yield Kernel(kernel, client)
        finally:
            client.stop_channels()
            kernel.shutdown_kernel(now=True)

    def close(self) -> None:
        pass


def main() -> None:
    """Measure the kernel."""
    sessions, budget_s, at_once, held = sys.argv[1:]
    extent = Extent(sessions=int(sessions), budget_s=float(budget_s), at_once=int(at_once), held=int(held))
    print(json.dumps(measure(KernelPerSession(), extent)))


if __name__ == "__main__":
    main()
