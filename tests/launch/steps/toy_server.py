"""A server step for tests: announces itself, waits for TERM, and says how it was started and ended."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

options = json.loads(Path(sys.argv[1]).read_text())["server"]
if os.environ.get("MATHMILL_DIE_WITH_PARENT"):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
if os.environ.get("SLURM_NTASKS", "1") == "1":  # of several tasks srun mixes long lines
    print("environment", json.dumps(dict(os.environ)), flush=True)
print("rank", *(os.environ.get(name, "-") for name in ("SLURMD_NODENAME", "SLURM_NODEID", "SLURM_PROCID")), flush=True)
print("pid", os.getpid(), flush=True)
if options.get("die_at_start"):
    for number in range(30):
        print(f"loading part {number}")
    print("out of memory on purpose", file=sys.stderr)
    sys.exit(3)
if not options.get("never_ready"):
    ready = Path(os.path.expandvars(options.get("ready", "$MATHMILL_RUN/servers/$MATHMILL_JOB.json")))
    ready.write_text("{}")
if "live_s" in options:
    time.sleep(options["live_s"])
    print("the GPU fell off on purpose", flush=True)
    sys.exit(9)
while not ended.wait(0.1):
    pass
print("ended in order", flush=True)
if options.get("ignores_term"):
    time.sleep(600)
