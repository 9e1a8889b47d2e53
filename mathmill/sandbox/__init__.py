"""Runs code that nobody has read: a process a session, forked behind walls, its state kept from block to block.

Standard library only; what blocks may import is whatever the interpreter has. `python -m mathmill.sandbox doctor` tells
what holds on a machine.
"""

from mathmill.sandbox.client import AsyncSandbox, AsyncSession, Sandbox, SandboxLost, Session
from mathmill.sandbox.result import BlockResult

__all__ = ["AsyncSandbox", "AsyncSession", "BlockResult", "Sandbox", "SandboxLost", "Session"]
