"""A real OPA: found, started with policies of one's own on free addresses, asked, and ended by its process id.

@needs_opa
def test_...(tmp_path: Path) -> None:
    with opa_server(tmp_path / "policy.rego") as opa:
        httpx2.get(opa.url + "/health")

`make opa` (and so `make test`, where Go is installed) builds the pinned version into `.tools/bin`.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
START_SECONDS: Final = 20.0  # a loaded machine starts slowly
STOP_SECONDS: Final = 10.0
_PORTS_TRIED: Final = 5


def find() -> Path | None:
    """The `opa` to test with: the one that was built for this repository, else the one on PATH."""
    built = ROOT / ".tools" / "bin" / "opa"
    if built.is_file():
        return built
    found = shutil.which("opa")
    return Path(found) if found else None


OPA: Final = find()

needs_opa: Final = pytest.mark.skipif(OPA is None, reason="opa is not installed: `make opa` builds it where Go is")


@dataclass
class OpaServer:
    """One running OPA: `url` over TCP, `socket` the same server's Unix socket."""

    url: str
    socket: Path
    pid: int
    token: str | None = field(repr=False, default=None)
    log: Path = field(repr=False, default=Path())

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        """The parsed answer of OPA's REST API to one request; fails on any status of 400 and above."""
        status, content = _exchange(self.socket, method, path, body, kind, self.token)
        assert status < 400, f"{method} {path}: {status} {content.decode(errors='replace')}"
        return orjson.loads(content) if content else None

    def put_policy(self, name: str, text: str) -> None:
        """Each one is compiled with those already there: bring what others refer to first."""
        self.call("PUT", f"/v1/policies/{name}", text.encode(), "text/plain")

    def put_data(self, data: Mapping[str, Any]) -> None:
        """Sets the top-level keys given; others stay."""
        for key, value in data.items():
            self.call("PUT", f"/v1/data/{key}", orjson.dumps(value))

    def clear(self) -> None:
        """Removes all policies and all data."""
        for policy in self.call("GET", "/v1/policies")["result"]:
            self.call("DELETE", f"/v1/policies/{policy['id']}")
        for key in self.call("GET", "/v1/data")["result"]:
            self.call("DELETE", f"/v1/data/{key}")

    def said(self) -> str:
        """Everything the process has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def opa_server(
    *paths: Path,
    arguments: Sequence[str] = (),
    scheme: str = "http",
    token: str | None = None,
    port: int | None = None,
) -> Iterator[OpaServer]:
    """Runs `opa run --server` on `paths` (policies, data, folders; bundles with `--bundle` among the `arguments`).

    It listens on `port` (default: a free one) of the loopback and on a Unix socket. `scheme` and `token` are those
    that the arguments configure. Fails with OPA's own words where it does not come up.
    """
    assert OPA is not None, "mark the test with needs_opa"
    with tempfile.TemporaryDirectory(prefix="opa-") as folder:  # short: a socket's path has at most 107 bytes
        address, log = Path(folder) / "opa.sock", Path(folder) / "opa.log"
        for _ in range(_PORTS_TRIED):
            chosen = _free_port() if port is None else port
            process = _start(OPA, paths, arguments, chosen, address, log)
            if _answers(process, address, token, scheme, chosen):
                break
        else:
            raise AssertionError(f"opa did not come up; it said:\n{log.read_text(errors='replace')[-4000:]}")
        try:
            yield OpaServer(f"{scheme}://127.0.0.1:{chosen}", address, process.pid, token, log)
        finally:
            _end(process)


def _start(
    opa: Path, paths: Sequence[Path], arguments: Sequence[str], port: int, address: Path, log: Path
) -> subprocess.Popen[bytes]:
    command = [str(opa), "run", "--server", "--skip-version-check", "--log-level", "error"]
    command += ["--addr", f"127.0.0.1:{port}", "--addr", f"unix://{address}", "--shutdown-grace-period", "1"]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, *arguments, *(str(path.absolute()) for path in paths)],
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C on the tests is for the tests, which then end it
        )


def _answers(process: subprocess.Popen[bytes], address: Path, token: str | None, scheme: str, port: int) -> bool:
    """Waits for both listeners; False when the process ends first, as it does when somebody took the port."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if scheme == "http":
                _exchange(address, "GET", "/health", None, "", token)
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        if time.monotonic() > deadline:
            _end(process)
            return False
        time.sleep(0.01)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class _OverSocket(http.client.HTTPConnection):
    def __init__(self, address: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._address))


def _exchange(
    address: Path, method: str, path: str, body: bytes | None, kind: str, token: str | None
) -> tuple[int, bytes]:
    connection = _OverSocket(address)
    try:
        headers = {"content-type": kind} if body is not None else {}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
