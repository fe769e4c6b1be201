"""A running gateway that holds what its calls ask to be held for: its listeners, its target and its state are real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from config.load import load
from gateway.admin import admin_app
from gateway.app import App
from gateway.worker import data_app
from tests.support.bridge import HeldClock
from tests.support.door import door
from tests.support.target import Target

POLICY = """package weighbridge

default decision := {"decision": "ALLOW"}

decision := {
    "decision": "NEEDS_APPROVAL",
    "risk_level": "high",
    "required_approvals": input.call.arguments.needs,
    "explanation": "Money would move.",
} if {
    input.call.arguments.needs
    not input.call.arguments.forbidden
}

decision := {"decision": "DENY", "explanation": "Not that."} if input.call.arguments.forbidden
"""
KEY = "support-bots-own-key"
PEOPLE = {
    "dana": ["admin"],
    "finn": ["finance"],
    "fay": ["finance"],
    "sean": ["security"],
    "both": ["finance", "security"],
    "olga": ["finance", "admin"],
    "sam": [],
}
"""Their roles. `olga` is the owner of `support-bot`."""


def token(person: str) -> dict[str, str]:
    return {"authorization": f"Bearer {person}s-own-token"}


def written(folder: Path, url: str, **sections: Any) -> Path:
    """A configuration with one target, which is at `url`."""
    (folder / "main.rego").write_text(POLICY)
    config = {
        "admin": {
            "people": [{"name": name, "token": f"{name}s-own-token", "roles": roles} for name, roles in PEOPLE.items()]
        },
        "state": f"sqlite:///{folder}/state.db",
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": ["main.rego"]},
        "agents": [
            {"name": "support-bot", "tenant": "acme", "key": KEY, "owner": "olga"},
            {"name": "other-bot", "tenant": "globex", "key": "other-bots-own-key"},
        ],
        "targets": [{"name": "model", "kind": "openai", "url": f"{url}/v1", "key": "models-own-key"}],
        "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "model"}]}],
        "tools": [
            {"name": "github", "kind": "mcp", "url": "http://127.0.0.1:9/mcp"},
            {"name": "vault", "kind": "mcp", "url": "http://127.0.0.1:9/mcp", "no_grant": True},
        ],
        **sections,
    }
    path = folder / "w.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass
class Held:
    """`url` is where agents call; `admin` asks the admin API, at `address`."""

    app: App
    url: str
    address: str
    agent: httpx2.AsyncClient
    admin: httpx2.AsyncClient

    @staticmethod
    def ran(model: Target) -> list[bytes]:
        """The bodies of the calls that have reached the model."""
        return [each.body for each in model.received if each.path == "/v1/chat/completions"]

    async def call(self, *, agent: str = "support-bot", session: str | None = "s-1", **body: Any) -> httpx2.Response:
        """A call that does not wait for people."""
        wanted = {"model": "gpt-4o", "messages": [{"role": "user", "content": "pay"}], **body}
        headers = {
            "authorization": f"Bearer {agent}s-own-key",
            "prefer": "respond-async",
            "content-type": "application/json",
            **({"x-weighbridge-session": session} if session is not None else {}),
        }
        return await self.agent.post("/v1/chat/completions", content=json.dumps(wanted), headers=headers)

    async def hold(self, *needs: str, **body: Any) -> str:
        """The id of a new approval, of a call that needs these roles, or `finance`."""
        answer = await self.call(needs=list(needs or ("finance",)), **body)
        assert answer.status_code == 202, answer.text
        return answer.headers["location"].removeprefix("/approvals/")

    async def get(self, path: str, who: str = "sam", status: int = 200) -> Any:
        answer = await self.admin.get(path, headers=token(who))
        assert answer.status_code == status, answer.text
        return answer.json()

    async def post(self, path: str, who: str, status: int = 200, **body: Any) -> Any:
        answer = await self.admin.post(path, content=json.dumps(body), headers=token(who))
        assert answer.status_code == status, answer.text
        return answer.json()

    async def listed(self, query: str = "", who: str = "sam") -> list[str]:
        return [each["id"] for each in (await self.get(f"/approvals{query}", who))["items"]]

    async def end_grant(self, grant: str, who: str) -> int:
        return (await self.admin.delete(f"/grants/{grant}", headers=token(who))).status_code

    def recorded(self, kind: str) -> list[dict[str, Any]]:
        self.app.ledger.flush()
        lines = self.app.ledger.path.read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["record"] == kind]


@asynccontextmanager
async def holding(path: Path, clock: HeldClock | None = None) -> AsyncIterator[Held]:
    """With a clock that is held the state's time is the clock's."""
    now: Mapping[str, Callable[[], int]] = {"clock": clock.now_ns} if clock is not None else {}
    ending = asyncio.Event()

    async def serve(application: Any, port: asyncio.Future[int]) -> None:
        async with door(application) as number:
            port.set_result(number)
            await ending.wait()

    async with App(path, load(path), **now) as app, asyncio.TaskGroup() as doors:
        ports: list[asyncio.Future[int]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
        for application, port in zip((data_app(app), admin_app(app)), ports, strict=True):
            doors.create_task(serve(application, port))
        url, address = [f"http://127.0.0.1:{await port}" for port in ports]
        try:
            async with (
                httpx2.AsyncClient(base_url=url, timeout=30, verify=False) as agent,
                httpx2.AsyncClient(base_url=address, timeout=30, verify=False) as admin,
            ):
                yield Held(app, url, address, agent, admin)
        finally:
            ending.set()
