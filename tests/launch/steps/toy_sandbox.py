"""A sandbox step for tests: prints what it can see of the host, and makes its socket."""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
print("environment", json.dumps(dict(os.environ)), flush=True)
print("pid", os.getpid(), flush=True)
options = json.loads(Path(sys.argv[1]).read_text())["sandbox"]
sees = {path: os.path.exists(path) for path in options.get("look_at", [])}
print("sees", json.dumps(sees), flush=True)
if "port" in options:
    with socket.socket() as there:
        print("network", there.connect_ex(("127.0.0.1", options["port"])), flush=True)
server = socket.socket(socket.AF_UNIX)
server.bind(os.path.expandvars("$MATHMILL_NODE_DIR/sandbox/socket"))
ended.wait()
print("ended in order", flush=True)
