"""What a listener may take, so that the gateway never wants for a descriptor itself."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.server import affordable
from tests.support.door import connected, door, post
from tests.support.exchanges import AGENT_KEY
from tests.support.gate import AUTHORIZED
from tests.support.process import serving_beside
from tests.support.target import target


@pytest.mark.parametrize(
    ("wanted", "descriptors", "given"),
    [(10_000, 1_048_576, 10_000), (10_000, 20_000, 10_000), (10_000, 4096, 3008), (10, 256, 10), (10_000, 64, 1)],
)
def test_targets_and_files_keep_their_share_of_the_descriptors(wanted: int, descriptors: int, given: int) -> None:
    assert affordable(wanted, descriptors) == given


def test_a_process_takes_all_the_descriptors_it_may_have() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200));"
        "from gateway.server import descriptors; print(descriptors())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "200\n"


async def test_silent_connections_do_not_take_the_descriptors_that_calls_need(tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text('package weighbridge\n\ndecision := {"decision": "ALLOW"}\n')
    async with target() as upstream, AsyncExitStack() as silent:
        config = {
            "policy": {"paths": [str(tmp_path / "p.rego")]},
            "agents": [{"name": "support-bot", "tenant": "acme", "key": AGENT_KEY}],
            "targets": [{"name": "primary", "kind": "openai", "url": upstream.url}],
            "routes": [{"name": "chat", "models": ["gpt-*"], "arms": [{"target": "primary"}]}],
        }
        async with serving_beside(config, tmp_path) as gateway:
            port = int(gateway.url.rpartition(":")[2])
            # The next worker has what its supervisor has.
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (140, 140))
            os.kill(worker_of(gateway.pid), signal.SIGKILL)
            async with connected(port) as client:
                await client.say(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n")
                assert (await client.answer())[0] == 200
                for _ in range(60):
                    await silent.enter_async_context(connected(port))
                await client.say(post("/v1/chat/completions", b'{"model":"gpt-4o","messages":[]}', AUTHORIZED))
                assert (await client.answer())[0] == 200
        assert "takes 41 connections" in gateway.stderr()


def worker_of(supervisor: int) -> int:
    (worker,) = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return int(worker)


@pytest.mark.parametrize("drain", [0.9, 5.0])
async def test_a_call_under_way_is_finished_within_any_drain_also_one_below_a_second(drain: float) -> None:
    arrived, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        arrived.set()
        await goes_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with door(slow, drain=drain) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n")
        await arrived.wait()
        asyncio.get_running_loop().call_later(0.1, goes_on.set)  # when the server is already told to stop
    assert (await reader.read()).endswith(b"\r\n\r\nok")
    writer.close()
