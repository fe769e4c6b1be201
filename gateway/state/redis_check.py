"""What `weighbridge check` says of the Redis servers that are to keep the state."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from config.redis_url import RedisUrl
from gateway.state.redis_scripts import packed
from gateway.state.redis_servers import RedisServers

REACH: Final = 2.0
"""Seconds in which servers have to be reached."""

_INFO: Final = packed("INFO")


async def complaints(url: RedisUrl) -> list[str]:
    """Why the state cannot be kept there now, and what of it would be forgotten: a sentence each."""
    servers = RedisServers(url)
    servers.begin()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REACH):
                while servers.failure is not None:
                    await asyncio.sleep(0.01)
        if servers.failure is not None:
            return [f"state: {url} cannot be used: {servers.failure}."]
        told = [(name, _facts(info)) for name, info in await servers.each(_INFO)]
    finally:
        await servers.close()
    return [complaint for name, facts in told for complaint in _of_one(name, facts)]


def _of_one(name: str, facts: dict[str, str]) -> list[str]:
    found = []
    policy = facts.get("maxmemory_policy", "noeviction")
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        found.append(
            f"state: {name} evicts keys when its memory is full ({policy}), and with them what was spent. "
            "Set maxmemory-policy noeviction."
        )
    if facts.get("aof_enabled") == "0":
        found.append(
            f"state: {name} keeps no append-only file, so a restart forgets what was spent since its last snapshot. "
            "Set appendonly yes."
        )
    return found


def _facts(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
