"""The admin API of a gateway that keeps its budgets in a purse, for tests of those who look after them."""

import dataclasses
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from config.load import load
from gateway.admin import admin_app
from gateway.app import App
from tests.support.door import door
from tests.support.purse import Purse

DANA = {"authorization": "Bearer danas-own-token"}
SAM = {"authorization": "Bearer sams-own-token"}
"""People with the role `admin`, and without."""

BUDGETS = [
    {"node": "acme", "window": "month", "limit_usd": 500},
    {"node": "acme/support-bot", "window": "day", "limit_usd": 5, "mode": "strict"},
    {"node": "acme/support-bot", "window": "session", "limit_usd": 0.1},
    {"node": "globex", "window": "day", "limit_usd": 0.3, "mode": "soft", "warn_at": 50},
]


@dataclass
class Office:
    """`url` is where the admin API is; `client` asks it; `purse` is what it tells of."""

    app: App
    purse: Purse
    url: str
    client: httpx2.AsyncClient

    async def get(self, path: str) -> Any:
        """What Sam is shown."""
        answer = await self.client.get(path, headers=SAM)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def put(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        """Dana's change; a text is sent as it is."""
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        return await self.client.put(path, content=content, headers={**DANA, **headers})

    def recorded(self) -> list[dict[str, Any]]:
        lines = self.app.ledger.path.read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["record"] == "budget"]


def written(folder: Path, budgets: Sequence[Any] = BUDGETS) -> Path:
    """A configuration with these budgets."""
    config = {
        "admin": {
            "people": [
                {"name": "dana", "token": "danas-own-token", "roles": ["admin"]},
                {"name": "sam", "token": "sams-own-token"},
            ]
        },
        "state": f"sqlite:///{folder}/state.db",
        "ledger": {"path": str(folder / "ledger")},
        "agents": [
            {"name": "support-bot", "tenant": "acme", "key": "support-bots-own-key"},
            {"name": "intern-bot", "tenant": "globex", "key": "intern-bots-own-key"},
        ],
        "budgets": list(budgets),
    }
    path = folder / "w.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@asynccontextmanager
async def open_office(folder: Path) -> AsyncIterator[Office]:
    path = written(folder)
    async with AsyncExitStack() as stack:
        app = App(path, load(path))
        stack.push_async_exit(app)  # it need not begin: no policy is asked here
        purse = Purse()
        await app.state.close()
        app.state = dataclasses.replace(app.state, budgets=purse)
        url = f"http://127.0.0.1:{await stack.enter_async_context(door(admin_app(app)))}"
        yield Office(app, purse, url, await stack.enter_async_context(httpx2.AsyncClient(base_url=url)))
