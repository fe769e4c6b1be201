"""A running gateway with a route that has a canary: its listeners, its targets and its state are real."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
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

ALLOW = 'package weighbridge\n\ndecision := {"decision": "ALLOW"}\n'
KEY = "support-bots-own-key"
DANA = {"authorization": "Bearer danas-own-token"}
SAM = {"authorization": "Bearer sams-own-token"}
FINN = {"authorization": "Bearer finns-own-token"}
"""People with the role `admin`, with none, and with `finance`."""

ROLLOUT: Mapping[str, Any] = {
    "canary": "own",
    "steps": [
        {"weight": 50, "hold": "10m", "max_error_rate": 0.01},
        {"weight": 80, "hold": "10m", "max_error_rate": 0.005},
    ],
}


def written(
    folder: Path,
    url: str,
    *,
    state: str = "",
    canary: str = "",
    weights: tuple[float, float] = (90, 10),
    rollout: Mapping[str, Any] | None = ROLLOUT,
    **sections: Any,
) -> Path:
    """A configuration with the targets `hosted` and `own`, which are at `url` or, the canary, at `canary`."""
    folder.mkdir(exist_ok=True)
    (folder / "main.rego").write_text(ALLOW)
    arms = [{"target": "hosted", "weight": weights[0]}, {"target": "own", "weight": weights[1]}]
    route: dict[str, Any] = {"name": "chat", "models": ["gpt-*"], "arms": arms}
    if rollout is not None:
        route["rollout"] = dict(rollout)
    config = {
        "admin": {
            "people": [
                {"name": "dana", "token": "danas-own-token", "roles": ["admin"]},
                {"name": "sam", "token": "sams-own-token"},
                {"name": "finn", "token": "finns-own-token", "roles": ["finance"]},
            ]
        },
        "state": state or f"sqlite:///{folder}/state/state.db",
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": ["main.rego"]},
        "agents": [{"name": "support-bot", "tenant": "acme", "key": KEY}],
        "targets": [
            {"name": "hosted", "kind": "openai", "url": f"{url}/v1", "key": "hosteds-own-key"},
            {"name": "own", "kind": "openai", "url": f"{canary or url}/v1", "key": "owns-own-key"},
        ],
        "routes": [route],
        **sections,
    }
    path = folder / "w.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass
class Steered:
    """`url` is where agents call; `admin` asks the admin API, at `address`."""

    app: App
    url: str
    address: str
    agent: httpx2.AsyncClient
    admin: httpx2.AsyncClient

    async def call(self, session: str) -> str:
        """The target that has answered a call of this session."""
        answer = await self.asked(session)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-weighbridge-target"]

    async def asked(self, session: str) -> httpx2.Response:
        """What a call of this session is answered, whatever it is."""
        return await self.agent.post(
            "/v1/chat/completions",
            json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]},
            headers={"authorization": f"Bearer {KEY}", "x-weighbridge-session": session},
        )

    async def calls(self, sessions: int, prefix: str = "s") -> Counter[str]:
        """How many of so many sessions each target has answered."""
        return Counter([await self.call(f"{prefix}-{number}") for number in range(sessions)])

    async def weigh(self, hosted: float, own: float, who: Mapping[str, str] = DANA, **more: Any) -> httpx2.Response:
        body = {"weights": {"hosted": hosted, "own": own}, **more}
        return await self.admin.put("/routes/chat/weights", json=body, headers=who)

    async def step(self, what: str, who: Mapping[str, str] = DANA, **body: Any) -> httpx2.Response:
        return await self.admin.post(f"/routes/chat/rollout/{what}", json=body, headers=who)

    async def rollout(self) -> dict[str, Any]:
        """As Sam is shown it."""
        answer = await self.admin.get("/routes/chat/rollout", headers=SAM)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def recorded(self, kind: str) -> list[dict[str, Any]]:
        self.app.ledger.flush()
        lines = self.app.ledger.path.read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["record"] == kind]


@asynccontextmanager
async def steered(path: Path, clock: HeldClock | None = None) -> AsyncIterator[Steered]:
    """With a clock that is held the state's time is the clock's."""
    now: dict[str, Callable[[], int]] = {"clock": clock.now_ns} if clock is not None else {}
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(App(path, load(path), **now))
        url = f"http://127.0.0.1:{await stack.enter_async_context(door(data_app(app)))}"
        address = f"http://127.0.0.1:{await stack.enter_async_context(door(admin_app(app)))}"
        agent = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=30))
        admin = await stack.enter_async_context(httpx2.AsyncClient(base_url=address, timeout=30))
        yield Steered(app, url, address, agent, admin)
