"""A random tiny model, and a real server process of it for the whole session."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_llama import make_model

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Running:
    """A server under test."""

    port: int
    name: str

    def get(self, path: str) -> str:
        return self.ask("GET", path)[1]

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def complete(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        status, text = self.ask("POST", "/v1/completions", {"model": self.name, "prompt": prompt, **fields})
        assert status == 200, text
        return json.loads(text)

    def text(self, prompt: Any, **fields: Any) -> str:
        return self.complete(prompt, **fields)["choices"][0]["text"]

    def refusal(self, **fields: Any) -> dict[str, Any]:
        status, text = self.ask("POST", "/v1/completions", {"model": self.name, "prompt": "Tom", **fields})
        return {"status": status, **json.loads(text)["error"]}

    def stream(self, prompt: Any, **fields: Any) -> list[Any]:
        body = {"model": self.name, "prompt": prompt, "stream": True, **fields}
        events = self.ask("POST", "/v1/completions", body)[1].strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]

    def metric(self, name: str) -> int:
        rows = dict(line.split() for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return int(rows[f"mathmill_{name}"])


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a context of 4,096 tokens."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    """A bundled server of this folder as a process of its own."""
    command = [sys.executable, "-m", "mathmill.serving.bundled", str(folder), *arguments]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name, _, url = process.stdout.readline().split()
        try:
            yield Running(int(url.rsplit(":", 1)[1]), name)
        finally:
            process.terminate()
            assert process.wait(5) == 0


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Iterator[Running]:
    """The session's server: up to 40 samples at once."""
    with serving(model_folder, "--max_running", "40") as running:
        yield running
