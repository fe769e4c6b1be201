"""A carrier that may connect to some addresses only connects to the very ones that were looked at."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from gateway.carrier import Carrier, ConnectFailed, Origin, ReplyBroken
from tests.support.misbehaving import Misbehaving, Wire


class Resolver:
    """Says where a host is: something else with each look-up, if a test wants it."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int, **options: Any) -> list[Any]:
        self.asked.append(host)
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


def carrier(port: int, resolver: Resolver, *allowed: str) -> Carrier:
    made = Carrier(Origin("http", "crm.example", port), allowed=lambda address: address in allowed)
    made.loop = _Loop(resolver)  # type: ignore[assignment]  # the loop, with names of its own
    made._running = True
    return made


class _Loop:
    def __init__(self, resolver: Resolver) -> None:
        self._loop = asyncio.get_running_loop()
        self.getaddrinfo = resolver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def test_a_host_at_no_allowed_address_is_not_connected_to() -> None:
    async with Misbehaving() as upstream:
        line = carrier(upstream.port, Resolver(["127.0.0.1"]), "10.0.0.1")
        with pytest.raises(ConnectFailed, match="no address that it may be at") as caught:
            await line.send(b"GET", b"/ok", [])
        assert not caught.value.sent
        assert upstream.accepted == 0
        await line.close()


async def test_a_name_that_changes_between_look_and_connection_changes_nothing() -> None:
    async with Misbehaving() as upstream:
        resolver = Resolver(["127.0.0.1"], ["169.254.169.254"])
        line = carrier(upstream.port, resolver, "127.0.0.1")
        hosts: list[str] = []

        async def tells(wire: Wire) -> None:
            hosts.append(wire.headers["host"])
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

        upstream.on("/host", tells)
        answer = await line.send(b"GET", b"/host", [])
        assert answer.status == 200
        assert resolver.asked == ["crm.example"]
        assert hosts == [f"crm.example:{upstream.port}"]
        await line.close()


async def test_addresses_that_are_not_allowed_are_passed_over_and_others_tried_in_turn() -> None:
    async with Misbehaving() as upstream:
        resolver = Resolver(["169.254.169.254", "127.0.0.2", "127.0.0.1"])
        line = carrier(upstream.port, resolver, "127.0.0.2", "127.0.0.1")
        assert (await line.send(b"GET", b"/ok", [])).status == 200
        await line.close()


async def test_a_request_that_may_be_sent_once_is_not_repeated_on_another_connection() -> None:
    async with Misbehaving() as upstream:

        async def once(wire: Wire) -> None:
            if wire.turn == 1:
                await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            else:
                wire.close()

        upstream.on("/turn", once)
        line = Carrier(Origin("http", "127.0.0.1", upstream.port))
        assert (await line.send(b"GET", b"/turn", [])).status == 200
        with pytest.raises(ReplyBroken):
            await line.send(b"GET", b"/turn", [], once=True)
        assert upstream.requests == ["/turn", "/turn"]
        await line.close()
