"""A client's way to its supervisor: a connection that finds each answer its question, and a supervisor of one's own."""

import asyncio
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from mathmill.errors import UserError
from mathmill.sandbox.frames import FrameError, FrameReader, encode

START_WITHIN_S = 60.0
DEATH_WITHIN_S = 1.0


class SandboxLost(ConnectionError):
    """The supervisor cannot be reached."""


class Started:
    """A supervisor that this process started, and the folder of its socket."""

    def __init__(self, options: dict[str, Any]):
        self._options = options
        self._package = str(Path(__file__).parents[2])
        self.begin()

    def begin(self) -> None:
        """Start it, or another one where the last one died. UserError when it does not come up."""
        where = os.environ.get("MATHMILL_NODE_DIR")
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="mathmill-sandbox-", dir=where))
        except OSError as problem:
            raise UserError(f"sandbox: no folder can be made in {where or 'TMPDIR'}: {problem.strerror}") from None
        self.address = str(self.folder / "socket")
        job = self.folder / "options.json"
        job.write_text(json.dumps({"sandbox": self._options | {"address": self.address, "until_stdin_closes": True}}))
        paths = [self._package, *filter(None, [os.environ.get("PYTHONPATH")])]
        with tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mathmill.sandbox", "serve", "--options", str(job)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
            try:
                self._wait_until_ready(log)
            except BaseException:
                self.end()
                raise

    def _wait_until_ready(self, log: IO[bytes]) -> None:
        assert self.process.stdout is not None
        came, _, _ = select.select([self.process.stdout], [], [], START_WITHIN_S)
        if not came or not self.process.stdout.readline().startswith(b"ready "):
            self.end()
            log.seek(0)
            told = log.read().decode(errors="replace").strip().splitlines()
            raise UserError((told or ["the sandbox did not start: it said nothing"])[-1].removeprefix("error: "))

    def died(self) -> bool:
        """Whether it is gone. To be asked when it has hung up: a process that dies may take a moment."""
        try:
            self.process.wait(timeout=DEATH_WITHIN_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """End it, if it has not, and remove its folder."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Connection:
    """One connection: questions go out numbered, answers find their question."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.open = True
        self._reading = asyncio.ensure_future(self._read())

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if not self.open:
            raise SandboxLost("the connection is closed")
        answer = self._waiting[message["id"]] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(encode(message))
            return await answer
        finally:
            self._waiting.pop(message["id"], None)

    async def close(self) -> None:
        self._writer.close()
        self._reading.cancel()
        await asyncio.wait((self._reading,))

    async def _read(self) -> None:
        frames = FrameReader(limit=64 << 20)
        try:
            while data := await self._reader.read(1 << 16):
                for message in frames.feed(data):
                    answer = self._waiting.get(message.get("id", -1))
                    if answer is not None and not answer.done():
                        answer.set_result(message)
        except (FrameError, ConnectionError):
            pass
        finally:
            self.open = False
            self._writer.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(SandboxLost("the sandbox hung up"))
