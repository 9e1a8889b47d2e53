"""Asks a server that was just started whether it is ready, and whether it is ours. Standard library only."""

import http.client
import json
import threading
from typing import Any

PAUSE_S = 0.1
ANSWER_S = 10.0


class Probe:
    """Asks in a thread of its own, since an answer may take seconds, until the server is ready or nobody cares."""

    def __init__(self, port: int, health_path: str, name: str, token: str | None):
        self.ready = threading.Event()
        self.context_length: int | None = None
        """What the server says of its context, once it is ready; None where it says nothing."""
        self._port = port
        self._health_path = health_path
        self._name = name
        self._token = token
        self._over = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(PAUSE_S):
            try:
                if self._is_ours_and_ready():
                    self.ready.set()
                    return
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError):
                pass  # not there yet, or a stranger on the port who answers otherwise

    def _is_ours_and_ready(self) -> bool:
        if self._get(self._health_path)[0] != 200:
            return False
        status, body = self._get("/v1/models")
        cards: list[dict[str, Any]] = json.loads(body)["data"] if status == 200 else []
        ours = [card for card in cards if card["id"] == self._name]
        if ours:
            self.context_length = ours[0].get("max_model_len")  # vLLM's and SGLang's name for it, and the bundled one's
        return bool(ours)

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"} if self._token else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
