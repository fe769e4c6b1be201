"""A real Node with what others have published to run on it: scripts beside this module, official clients, a suite.

`make node` installs all of it from `tests/support/node/package-lock.json`, a Node of its own where none is new enough.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

SCRIPTS: Final = Path(__file__).with_name("node")
_INSTALLED: Final = SCRIPTS / "node_modules"
_OLDEST: Final = 22


def _found() -> str | None:
    if not (_INSTALLED / "@modelcontextprotocol").is_dir():
        return None
    for own in sorted(_INSTALLED.glob("node-*/bin/node")):
        return str(own)
    node = shutil.which("node")
    if node is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v([0-9]+)\.", version)
    return node if found and int(found[1]) >= _OLDEST else None


NODE: Final = _found()
"""None where there is none: `make node` installs it."""
CONFORMANCE: Final = _INSTALLED / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"


def command(script: Path, *arguments: str) -> list[str]:
    assert NODE is not None, "tests that need Node are skipped where there is none"
    return [NODE, str(script), *arguments]


def environment(**more: str) -> dict[str, str]:
    """Nothing of this process's own that would lead a request elsewhere."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "NO_COLOR": "1", **more}


def run(script: Path, *arguments: str, timeout: float = 50.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end; its exit code is the caller's to judge."""
    return subprocess.run(
        command(script, *arguments),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
