"""One local MCP server as a child of the gateway: lines to it and from it, its word on standard error, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, cast

from config.settings import ToolSettings
from gateway.logs import printable

log = logging.getLogger("weighbridge.mcp")

_KEEPER: Final = Path(__file__).with_name("keeper.py")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_FAREWELL: Final = 1.5
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


class Child(asyncio.SubprocessProtocol):
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
        self.gone = asyncio.Event()
        """Set when there is no process any more."""
        self._settings = settings
        self._murmur = murmur
        self._heard = heard
        self._ended = ended
        self._mute = False
        self._transport: asyncio.SubprocessTransport | None = None
        self._said = bytearray()
        self._murmured = bytearray()

    async def start(self, variables: dict[str, str]) -> None:
        """Raises OSError."""
        settings = self._settings
        self.began = time.monotonic()
        loop = asyncio.get_running_loop()
        keeper = [sys.executable, "-I", "-S", str(_KEEPER), str(os.getpid()), str(settings.memory), str(_GRACE)]
        await loop.subprocess_exec(
            lambda: self,
            *keeper,
            *settings.command,
            env=variables,
            cwd=str(settings.directory) if settings.directory is not None else None,
            start_new_session=True,
        )

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
        transport = self._transport
        if transport is None:
            return
        if self._input is not None:
            self._input.close()
        if await self._is_gone(_FAREWELL):
            return
        with contextlib.suppress(ProcessLookupError):
            transport.send_signal(signal.SIGTERM)
        if await self._is_gone(_GRACE + _LAST):
            return
        log.error("%s: the keeper of child %d had to be killed", self._settings.name, self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._is_gone(_LAST)

    def kill(self) -> None:
        """Ends it without waiting: SIGTERM, and SIGKILL a little later."""
        self.told = True
        if self._transport is not None:
            with contextlib.suppress(ProcessLookupError):
                self._transport.send_signal(signal.SIGTERM)

    @property
    def _input(self) -> asyncio.WriteTransport | None:
        return cast("asyncio.WriteTransport | None", self._transport and self._transport.get_pipe_transport(0))

    async def _is_gone(self, within: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.gone.wait()
        return self.gone.is_set()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid() or 0

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._murmurs(data)
        elif not self._mute:
            self._says(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._falls_silent("it has ended")
            if not self.told:
                self.kill()

    def process_exited(self) -> None:
        self.gone.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self._falls_silent("it has ended")

    def _says(self, data: bytes) -> None:
        said = self._said
        said += data
        if b"\n" in data:
            *lines, rest = bytes(said).split(b"\n")
            said[:] = rest
            for line in lines:
                if line.strip() and not self._mute:
                    self._heard(line)
        if len(said) > self._settings.largest_answer:
            log.error("%s: a line of more than %d bytes", self._settings.name, self._settings.largest_answer)
            self._falls_silent("it has said a line longer than `largest_answer`")
            self.kill()

    def give_up(self, why: str) -> None:
        """Listens no more to what makes no sense."""
        self._falls_silent(why)
        self.kill()

    def _falls_silent(self, why: str) -> None:
        if not self._mute:
            self._mute = True
            self._said.clear()
            self._ended(why)

    def _murmurs(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._murmur.tell(self.pid, bytes(self._murmured + line))
            self._murmured.clear()
        if len(self._murmured) < _LONGEST_KEPT:
            self._murmured += rest[:_LONGEST_KEPT]
