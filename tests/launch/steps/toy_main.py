"""A main step for tests: notes how it starts, what it is told and how it ends, in RUN/notes/JOB-RESTART.txt."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

options = json.loads(Path(sys.argv[1]).read_text())["generation"]
run, job, restart = Path(os.environ["MATHMILL_RUN"]), os.environ["MATHMILL_JOB"], int(os.environ["MATHMILL_RESTART"])
(run / "notes").mkdir(exist_ok=True)
notes = run / "notes" / f"{job}-{restart}.txt"
told: list[str] = []


def note(text: str) -> None:
    with notes.open("a") as stream:
        stream.write(text + "\n")


def on_signal(number: int, _: object) -> None:
    told.append(signal.Signals(number).name)
    note(told[-1])


signal.signal(signal.SIGUSR2, on_signal)
signal.signal(signal.SIGTERM, on_signal)
if os.environ.get("MATHMILL_DIE_WITH_PARENT"):
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
note("started " + json.dumps({name: value for name, value in os.environ.items() if name.startswith("MATHMILL_")}))
note("environment " + json.dumps(dict(os.environ)))
note(f"pid {os.getpid()}")
note(f"terminal {sys.stdin.isatty()} {sys.stdout.isatty()}")
print("main runs", flush=True)
if options.get("echo"):
    print("read", sys.stdin.readline().strip(), flush=True)
end = time.monotonic() + options.get("seconds", 0.0 if restart else options.get("first_seconds", 0.0))
if "seconds" in options and restart:
    end = time.monotonic()
child = subprocess.Popen(["sleep", "600"]) if options.get("has_child") else None
while time.monotonic() < end and not told:
    time.sleep(0.05)
if told:
    time.sleep(options.get("flush_s", 0.2))
    note("flushed")
if child is not None:
    child.kill()
code = 143 if "SIGTERM" in told else options.get("drain_code", 75) if "SIGUSR2" in told else options.get("code", 0)
note(f"ended {code}")
print("main ends", flush=True)
sys.exit(code)
