"""Calls that wait for people, thousands at once: memory of each, CPU while nothing happens, and how soon a word of a
person is the answer of an agent."""

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from benchmarks.children import PYTHON, Child, Children
from benchmarks.compare import Say, start_upstream
from benchmarks.machine import CONTESTANT_CORE, cpu_seconds, rss
from benchmarks.scenarios import MODEL
from benchmarks.table import markdown

HEAD: Final = ("calls", "held", "KB each", "idle CPU", "a word, p50 ms", "p99 ms", "longest", "note")
_SPARE: Final = 4096
"""File descriptors that are no held call's."""
_WARM: Final = 500
"""Calls that are held, and given up, before memory is looked at: caches and pools fill up first."""
_TOKEN: Final = "benchmark-person"
_KEY: Final = "benchmark-key"
_POLICY: Final = """package weighbridge

decision := {"decision": "NEEDS_APPROVAL", "required_approvals": ["admin"], "explanation": "Held."}
"""
_PATIENCE: Final = 300.0


@dataclass(frozen=True, slots=True)
class Held:
    """One call's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def run(children: Children, folder: Path, calls: int, seconds: float, words: int, say: Say) -> str:
    """The table: `calls` at once, watched for `seconds` while nothing happens; then people decide on `words` of them.

    Raises StartFailed.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    calls = min(calls, (hard - _SPARE) * 3 // 4)
    _, upstream = start_upstream(children)
    rows = []
    for streams in (False, True):
        own = folder / ("streamed" if streams else "whole")
        own.mkdir()
        command = [PYTHON, "-m", "gateway.cli", "serve", "--config", str(_configuration(own, upstream))]
        child, told = children.start(own.name, command, core=CONTESTANT_CORE, ready="weighbridge: agents ")
        urls = [part for part in told.split() if part.startswith("http")]
        say(f"holding {calls} calls, {own.name}")
        rows.append(
            (own.name, *asyncio.run(_measured(child, urls[0], urls[1], calls, seconds, words, streams=streams)))
        )
        child.stop()
    return markdown(HEAD, [tuple(map(str, row)) for row in rows])


def _configuration(folder: Path, upstream: int) -> Path:
    (folder / "main.rego").write_text(_POLICY)
    settings: dict[str, Any] = {
        "listen": {"port": 0},
        "admin": {"listen": {"port": 0}, "people": [{"name": "pat", "token": _TOKEN, "roles": ["admin"]}]},
        "state": f"sqlite:///{folder / 'state.db'}",
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": ["main.rego"]},
        "targets": [{"name": "upstream", "kind": "openai", "url": f"http://127.0.0.1:{upstream}/v1"}],
        "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "upstream"}]}],
        "agents": [{"name": "agent", "key": _KEY}],
        "approvals": {"decide_within": "2h", "hold_for": "1h", "hold_streams_for": "1h"},
    }
    written = folder / "gateway.yaml"
    written.write_text(json.dumps(settings))
    return written


async def _measured(
    child: Child, agents: str, admin: str, calls: int, seconds: float, words: int, *, streams: bool
) -> tuple[str, ...]:
    port = int(agents.rpartition(":")[2].rstrip("/"))
    person = {"authorization": f"Bearer {_TOKEN}"}
    async with httpx2.AsyncClient(base_url=admin.rstrip("/"), headers=person, timeout=60) as api:
        warm = await _hold(port, range(_WARM), streams=streams)
        await _until(api, _WARM)
        for each in warm.values():
            each.writer.close()
        await _until(api, 0)
        before = rss(child.pid)
        held = await _hold(port, range(_WARM, _WARM + calls), streams=streams)
        await _until(api, calls)
        each_kb = (rss(child.pid) - before) / calls / 1000
        began, spent = time.monotonic(), cpu_seconds(child.pid)
        await asyncio.sleep(seconds)
        idle = (cpu_seconds(child.pid) - spent) / (time.monotonic() - began)
        delays = sorted([delay async for delay in _decided(api, held, words)])
        for call in held.values():
            call.writer.close()
    milliseconds = [f"{1000 * delays[place]:.3g}" for place in (len(delays) // 2, int(len(delays) * 0.99), -1)]
    return (str(calls), f"{each_kb:.1f}", f"{idle:.1%}", *milliseconds, "")


async def _hold(port: int, numbers: range, *, streams: bool) -> dict[int, Held]:
    async def one(number: int) -> tuple[int, Held]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        message = {"role": "user", "content": f"call {number}: " + "x" * 600}
        body = json.dumps({"model": MODEL, "messages": [message], "max_tokens": 50, "stream": streams}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: gate\r\nauthorization: Bearer {_KEY}\r\n"
        writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        return number, Held(reader, writer)

    held: dict[int, Held] = {}
    for portion in _portions(numbers):
        held.update(await asyncio.gather(*(one(number) for number in portion)))
    return held


def _portions(numbers: range) -> Iterator[range]:
    """As many at once as a listener's backlog takes."""
    for start in range(0, len(numbers), 100):
        yield numbers[start : start + 100]


async def _until(api: httpx2.AsyncClient, calls: int) -> None:
    """So many calls are under way."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            text = (await api.get("/metrics")).text
            (line,) = [each for each in text.splitlines() if each.startswith("weighbridge_in_flight ")]
            if float(line.split()[1]) == calls:
                return
            await asyncio.sleep(0.1)


async def _decided(api: httpx2.AsyncClient, held: dict[int, Held], words: int) -> AsyncIterator[float]:
    """Seconds from a person's word being taken to the first byte of the answer, or of the stream's first event."""
    async for number, name in _pending(api):
        if number not in held:
            continue
        if words == 0:
            return
        words -= 1
        (await api.post(f"/approvals/{name}/approve", json={})).raise_for_status()
        began = time.monotonic()
        answer = b""
        while b'"choices"' not in answer:
            piece = await held[number].reader.read(65536)
            if not piece:
                raise ConnectionError(f"call {number} was dropped")
            answer += piece
        yield time.monotonic() - began


async def _pending(api: httpx2.AsyncClient) -> AsyncIterator[tuple[int, str]]:
    """The number of each call that waits, and its approval."""
    after: str | None = ""
    while after is not None:
        page = (await api.get("/approvals", params={"state": "pending", **({"after": after} if after else {})})).json()
        for item in page["items"]:
            said = item["arguments"]["messages"][0]["content"]
            yield int(said.split()[1].rstrip(":")), item["id"]
        after = page["next"]
