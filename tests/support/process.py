"""A real gateway process for journeys: written configuration in, two URLs out, and a clean end demanded.

with serving({"targets": [...], ...}, tmp_path) as gateway:
    httpx2.get(gateway.url + "/healthz")
"""

import asyncio
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.guard import guard

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"weighbridge: agents (http://\S+) admin (http://\S+)")
START_SECONDS = 30.0  # a loaded machine imports slowly
STOP_SECONDS = 30.0
LAST_LINES = 40


@dataclass
class Gateway:
    """One running gateway: `url` is where agents call, `admin` where people do, `pid` takes the signals."""

    url: str
    admin: str
    pid: int
    config: Path
    folder: Path  # the process's working directory
    process: "subprocess.Popen[str]" = field(repr=False)
    log: Path = field(repr=False)

    def stderr(self) -> str:
        """Everything the process has said on standard error so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Ask it to end, as an operator would, and insist that it ends well. Does nothing the second time."""
        if self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {STOP_SECONDS:.0f} s after SIGTERM; it said:\n{self.tail()}") from None
        assert code == 0, f"ended with {code}; it said:\n{self.tail()}"

    def tail(self) -> str:
        return "\n".join(self.stderr().splitlines()[-LAST_LINES:])


@contextmanager
def serving(
    config: str | Mapping[str, Any],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
) -> Iterator[Gateway]:
    """Runs `weighbridge serve` on a configuration written into `folder`, from the first answer to a clean end.

    A mapping gets free ports for both listeners unless it names them; a text is written as it is. `env` is added to the
    environment, `arguments` to the command. Fails with the process's own words where it does not come up or go down.
    """
    written = folder / "weighbridge.yaml"
    written.write_text(config if isinstance(config, str) else yaml.safe_dump(_on_free_ports(config)), encoding="utf-8")
    # In a folder of its own: the gateway watches the one of its configuration, and its own words are no news to it.
    log = folder / "log" / "weighbridge.stderr"
    log.parent.mkdir()
    command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(written), *arguments]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    lines: queue.Queue[str | None] = queue.Queue()
    with guard() as guarded, log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # a Ctrl-C on the tests is for the tests, which then end it
        )
        try:
            guarded(process.pid)
            reader = threading.Thread(target=_read_lines, args=(process, lines), name="gateway-stdout")
            reader.start()
            url, admin = _ready(process, lines, log)
            gateway = Gateway(url, admin, process.pid, written, folder, process, log)
            yield gateway
            gateway.stop()
        finally:
            _end_all(process)
            reader.join()
            if process.stdout is not None:
                process.stdout.close()


@asynccontextmanager
async def serving_beside(
    config: str | Mapping[str, Any],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
) -> AsyncIterator[Gateway]:
    """As `serving`, for tests whose own loop must keep turning meanwhile, because a target or a client lives in it."""
    context = serving(config, folder, env=env, arguments=arguments)
    starting = asyncio.ensure_future(asyncio.to_thread(context.__enter__))
    try:
        gateway = await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting  # nothing breaks it off, and what it starts has to be ended
        await asyncio.to_thread(context.__exit__, None, None, None)
        raise
    try:
        yield gateway
    except BaseException as error:
        await asyncio.to_thread(context.__exit__, type(error), error, error.__traceback__)
        raise
    else:
        await asyncio.to_thread(context.__exit__, None, None, None)


def _on_free_ports(config: Mapping[str, Any]) -> dict[str, Any]:
    admin = dict(config.get("admin", {}))
    admin["listen"] = {"host": "127.0.0.1", "port": 0, **admin.get("listen", {})}
    return {**config, "listen": {"host": "127.0.0.1", "port": 0, **config.get("listen", {})}, "admin": admin}


def _read_lines(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def _ready(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]", log: Path) -> tuple[str, str]:
    try:
        line = lines.get(timeout=START_SECONDS)
    except queue.Empty:
        line = f"(nothing for {START_SECONDS:.0f} s)"
    matched = READY.fullmatch(line or "")
    if matched is None:
        said = log.read_text(encoding="utf-8", errors="replace")
        ended = f"ended with {process.wait(5)}" if line is None else f"said {line!r}"
        raise AssertionError(f"the gateway did not come up: it {ended}; standard error:\n{said[-4000:]}")
    return matched[1], matched[2]


def _end_all(process: "subprocess.Popen[str]") -> None:
    """No process of the gateway outlives its test, whatever went wrong."""
    if process.poll() is None:
        for pid in [*_children(process.pid), process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    process.wait(STOP_SECONDS)


def _children(pid: int) -> list[int]:
    """Where the system tells: without it a worker still ends when it finds its supervisor gone."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []
