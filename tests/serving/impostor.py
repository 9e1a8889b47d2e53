"""Stands in for the command of a server that needs a GPU: same options, same routes, writes down how it was started."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


def option(name: str) -> str | None:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


def main() -> None:
    rank = option("--node-rank") or "0"
    started = {"arguments": sys.argv[1:], "token": os.environ.get("VLLM_API_KEY"), "pid": os.getpid()}
    token_file = option("--config")
    if token_file:
        started["token"] = json.loads(Path(token_file).read_text())["api-key"]
        started["token_file_mode"] = oct(Path(token_file).stat().st_mode & 0o777)
    Path(os.environ["IMPOSTOR_NOTES"], f"rank{rank}.json").write_text(json.dumps(started))

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.path == "/health" or self.headers["Authorization"] == f"Bearer {started['token']}"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            card = {"id": option("--served-model-name"), "max_model_len": 1234}
            self.wfile.write(json.dumps({"data": [card]}).encode())

        def log_message(self, *words: object) -> None:
            pass

    if rank == "0":
        HTTPServer(("127.0.0.1", int(option("--port") or 0)), Answers).serve_forever()


if __name__ == "__main__":
    main()
