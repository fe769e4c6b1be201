"""The MCP server that has something of everything, in front of which a gateway or a client is put."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.guard import guard

ROOT: Final = Path(__file__).resolve().parents[2]
READY: Final = "everything: "
STOP_SECONDS: Final = 10.0


@contextmanager
def everything(log: Path) -> Iterator[str]:
    """The URL of a server process of its own until the block ends; `log` gets what it says on standard error."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with guard() as guarded, log.open("wb") as stderr:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.support.everything_server"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        ) as process:
            guarded(process.pid)
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line.startswith(READY), f"it said {line!r}, and on standard error:\n{log.read_text()[-4000:]}"
                yield line.removeprefix(READY).strip()
            finally:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
