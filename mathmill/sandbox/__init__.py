"""Runs code that nobody has read: a process a session, its state kept from block to block. Standard library only.

The floor of this version is the policy `trusted`: processes, limits, time and output are held, and where the kernel has
seccomp, new processes, signals and sockets are refused. The file system is not isolated.
"""

from mathmill.sandbox.client import AsyncSandbox, AsyncSession, Sandbox, SandboxLost, Session
from mathmill.sandbox.result import BlockResult

__all__ = ["AsyncSandbox", "AsyncSession", "BlockResult", "Sandbox", "SandboxLost", "Session"]
