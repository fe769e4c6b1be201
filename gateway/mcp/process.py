"""One local MCP server as a child of the gateway: lines to it and from it, its word on standard error, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from config.settings import ToolSettings
from gateway.logs import printable

log = logging.getLogger("weighbridge.mcp")

_KEEPER: Final = Path(__file__).with_name("keeper.py")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_FAREWELL: Final = 1.0
"""Seconds between the end of its input and SIGTERM."""
_GRACE: Final = 1.0
"""Seconds between SIGTERM and SIGKILL."""
_LAST: Final = 1.0
"""Seconds in which its keeper has to be gone then."""

MOST_UNREAD: Final = 1024 * 1024
"""Bytes written that it has not taken yet: then it is asked nothing more."""

_WINDOW: Final = 10.0
_MOST_WORDS: Final = 20
_LONGEST_WORD: Final = 500
_LONGEST_KEPT: Final = 8192


class Murmur:
    """What the children of one server write to standard error, in the log: some of it, and nothing secret."""

    def __init__(self, name: str, secrets: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._secrets = sorted((each for each in secrets if len(each) > 3), key=len, reverse=True)
        self._clock = clock
        self._since = 0.0
        self._told = self._untold = 0

    def tell(self, pid: int, line: bytes) -> None:
        text = line[:_LONGEST_KEPT].decode("utf-8", "replace").rstrip()
        if not text:
            return
        now = self._clock()
        if now - self._since >= _WINDOW:
            if self._untold:
                log.info("%s: %d more lines were not written here", self._name, self._untold)
            self._since, self._told, self._untold = now, 0, 0
        if self._told == _MOST_WORDS:
            self._untold += 1
            return
        self._told += 1
        for secret in self._secrets:
            text = text.replace(secret, "***")
        log.info("%s [%d]: %s", self._name, pid, printable(text[:_LONGEST_WORD]))


def environment(settings: ToolSettings) -> dict[str, str]:
    """That of a child. Raises SecretMissing."""
    own = {"PATH": _PATH, "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
    return own | {each.name: each.value.reveal() for each in settings.env}


class Child:
    """One process. `heard` is called with each line that it says, `ended` once, when it can say nothing more.

    `began` is the time of the monotonic clock at which it was started.
    """

    def __init__(
        self,
        settings: ToolSettings,
        murmur: Murmur,
        heard: Callable[[bytes], None],
        ended: Callable[[str], None],
    ) -> None:
        self.began = 0.0
        self.pid = 0
        self.told = False
        """Whether it was told to end."""
        self._gone = asyncio.Event()
        """Set when there is no process any more."""
        self._settings = settings
        self._murmur = murmur
        self._heard = heard
        self._ended = ended
        self._mute = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: list[asyncio.BaseTransport] = []
        self._input: asyncio.WriteTransport | None = None
        self._said = bytearray()
        self._murmured = bytearray()

    async def start(self, variables: dict[str, str]) -> None:
        """Raises OSError.

        Popen and not the event loop's own way: uvloop copies the gateway's page tables, which takes tens of
        milliseconds, where this borrows them (vfork).
        """
        settings, loop = self._settings, asyncio.get_running_loop()
        self.began = time.monotonic()
        keeper = [sys.executable, "-I", "-S", str(_KEEPER), str(os.getpid()), str(settings.memory), str(_GRACE)]
        process = self._process = subprocess.Popen(  # noqa: ASYNC220  # see above
            [*keeper, *settings.command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
            cwd=settings.directory,
            start_new_session=True,
        )
        self.pid = process.pid
        alive = os.pidfd_open(process.pid)
        loop.add_reader(alive, self._exits, loop, alive)
        assert process.stdin is not None, "pipes were asked for"
        assert process.stdout is not None, "pipes were asked for"
        assert process.stderr is not None, "pipes were asked for"
        said = _Pipe(self._says, functools.partial(self._closes, "it has ended"))
        murmured = _Pipe(self._murmurs, lambda: None)
        taken = _Pipe(lambda _: None, self._takes_no_more)
        self._input, _ = await loop.connect_write_pipe(functools.partial(_same, taken), process.stdin)
        for protocol, pipe in ((said, process.stdout), (murmured, process.stderr)):
            transport, _ = await loop.connect_read_pipe(functools.partial(_same, protocol), pipe)
            self._pipes.append(transport)

    def write(self, line: bytes) -> bool:
        """False where it takes nothing: it is ending, or does not read what was written before."""
        pipe = self._input
        if self._mute or self.told or pipe is None or pipe.is_closing():
            return False
        if pipe.get_write_buffer_size() > MOST_UNREAD:
            return False
        pipe.write(line + b"\n")
        return True

    async def end(self) -> None:
        """Until there is no process any more: its input is closed, then come SIGTERM and SIGKILL."""
        self.told = True
        process = self._process
        if process is None:
            return
        try:
            if self._input is not None:
                self._input.close()
            if await self._is_gone(_FAREWELL):
                return
            process.terminate()
            if await self._is_gone(_GRACE + _LAST):
                return
            log.error("%s: the keeper of child %d had to be killed", self._settings.name, self.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self._is_gone(_LAST)
        finally:
            if self._input is not None:
                self._input.abort()
            for pipe in self._pipes:
                pipe.close()

    def give_up(self, why: str) -> None:
        """Listens no more to what makes no sense, and ends it without waiting."""
        self._closes(why)

    def _closes(self, why: str) -> None:
        """It can say nothing more, or is not heard any more."""
        if self._mute:
            return
        self._mute = True
        self._said.clear()
        self._ended(why)
        if not self._gone.is_set() and self._process is not None:
            self._process.terminate()

    def _takes_no_more(self) -> None:
        self._input = None

    async def _is_gone(self, within: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._gone.wait()
        return self._gone.is_set()

    def _exits(self, loop: asyncio.AbstractEventLoop, alive: int) -> None:
        loop.remove_reader(alive)
        os.close(alive)
        assert self._process is not None, "what exits was started"
        self._process.wait()
        self._gone.set()

    def _says(self, data: bytes) -> None:
        if self._mute:
            return
        said = self._said
        said += data
        if b"\n" in data:
            *lines, rest = bytes(said).split(b"\n")
            said[:] = rest
            for line in lines:
                if line.strip() and not self._mute:
                    self._heard(line)
        if len(said) > self._settings.largest_answer:
            self._closes("it has said a line longer than `largest_answer`")

    def _murmurs(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._murmur.tell(self.pid, bytes(self._murmured + line))
            self._murmured.clear()
        if len(self._murmured) < _LONGEST_KEPT:
            self._murmured += rest[:_LONGEST_KEPT]


class _Pipe(asyncio.Protocol):
    """What comes out of one."""

    def __init__(self, came: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._came = came
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._came(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()


def _same(protocol: _Pipe) -> _Pipe:
    return protocol
