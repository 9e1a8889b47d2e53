"""When a server was started, got ready and ended: RUN/times/JOB.RESTART.server.jsonl. Standard library only."""

import json
import time
from pathlib import Path


class ServerTimes:
    """Notes events of one start of a server, each with the time on its node's clock in seconds since 1970."""

    def __init__(self, run: Path, job: str, restart: str) -> None:
        self.path = run / "times" / f"{job}.{restart}.server.jsonl"
        self.is_ready = False
        self.note("started")

    def note(self, event: str) -> None:
        """Add a line. A file system that fails costs this line and nothing else."""
        self.is_ready = self.is_ready or event == "ready"
        try:
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("a") as stream:
                stream.write(json.dumps({"event": event, "at": round(time.time(), 3)}) + "\n")
        except OSError:
            pass
