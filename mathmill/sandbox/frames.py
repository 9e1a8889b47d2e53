"""Messages on a stream: a version, a length, a JSON object. Whoever sends anything else is cut off."""

import json
import struct
from typing import Any

VERSION = 1
HEADER = struct.Struct(">BI")
MAX_REQUEST = 4 << 20
"""Bytes of the longest message between a client and a supervisor."""


class FrameError(Exception):
    """What came is no frame of ours; nothing after it can be trusted."""


def encode(message: dict[str, Any]) -> bytes:
    """The message as bytes for the stream."""
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    return HEADER.pack(VERSION, len(body)) + body


class FrameReader:
    """Bytes as they arrive in, whole messages out. The sender is not trusted: sizes and contents are checked."""

    def __init__(self, limit: int = MAX_REQUEST):
        """`limit`: bytes a message may have; it may be changed between messages."""
        self.limit = limit
        self._waiting = bytearray()
        self._failed = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that these bytes complete. FrameError on the first bad byte, and ever after."""
        if self._failed:
            raise FrameError("the stream is broken")
        self._waiting += data
        messages = []
        try:
            while (body := self._next_body()) is not None:
                messages.append(_decode(body))
        except FrameError:
            self._failed = True
            self._waiting.clear()
            raise
        return messages

    def _next_body(self) -> bytes | None:
        if self._waiting and self._waiting[0] != VERSION:
            raise FrameError(f"protocol version {self._waiting[0]}, not {VERSION}")
        if len(self._waiting) < HEADER.size:
            return None
        _, length = HEADER.unpack_from(self._waiting)
        if length > self.limit:
            raise FrameError(f"a message of {length} bytes; at most {self.limit} are allowed")
        end = HEADER.size + length
        if len(self._waiting) < end:
            return None
        body = bytes(self._waiting[HEADER.size : end])
        del self._waiting[:end]
        return body


def _decode(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body.decode(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as problem:
        raise FrameError(f"not JSON: {type(problem).__name__}") from None
    if not isinstance(message, dict):
        raise FrameError("not a JSON object")
    return message


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is no finite number")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
