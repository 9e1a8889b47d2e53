"""torchrun, once on each node of a job: `python -m mathmill.training.torchrun` with torchrun's own flags.

It adds what only the nodes of a running job know, the meeting point, and turns a stop with work left into exit code 75.
The first node serves the meeting point on a port that the system chose and says where in the run's folder.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UNFINISHED = 75
PATIENCE_S = 600.0


def main(arguments: list[str]) -> int:
    """Run torchrun and give the exit code for the job's script."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # meant for the ranks, which set their own; ignored survives exec
    with contextlib.suppress(ImportError):
        from mathmill.parent import die_with_parent_if_told

        die_with_parent_if_told()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    nodes = next((int(word.partition("=")[2]) for word in arguments if word.startswith("--nnodes=")), 1)
    node = int(os.environ["SLURM_NODEID"]) if nodes > 1 else 0
    note = Path(os.environ.get("MATHMILL_NODE_DIR", tempfile.gettempdir()), f"unfinished-{node}-{os.getpid()}")
    os.environ["MATHMILL_UNFINISHED"] = str(note)
    # the ranks end with it, also where it is killed while they start
    os.environ["MATHMILL_TORCHRUN"] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    store, meeting = meet(nodes, node)
    try:
        torchrun([*meeting, *arguments])
        code = UNFINISHED if note.exists() else 0
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        code = 128 - code if code < 0 else code
    except SignalException as told:
        code = 128 + told.sigval
    finally:
        note.unlink(missing_ok=True)
        del store
    return code


def meet(nodes: int, node: int) -> tuple[Any, list[str]]:
    """torchrun's flags for where the nodes meet, and what must live as long as they do."""
    if nodes == 1:
        return None, ["--standalone"]
    import socket

    from torch.distributed import TCPStore

    from mathmill.files import write_whole

    job, start = os.environ["MATHMILL_JOB"], os.environ.get("MATHMILL_RESTART", "0")
    file = Path(os.environ["MATHMILL_RUN"], "servers", f"meeting-{job}-{start}")
    store = None
    if node == 0:
        store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
        write_whole(file, f"{socket.gethostname()}:{store.port}\n")
    deadline = time.monotonic() + PATIENCE_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"node 0 did not say within {PATIENCE_S:.0f} s where to meet ({file})")
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # lets a network file system look again
    where = file.read_text().strip()
    return store, [
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint={where}",
        f"--rdzv_id={job}-{start}",
        "--rdzv_conf=is_host=0",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
