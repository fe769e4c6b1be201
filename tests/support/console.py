"""The console of a gateway that holds calls: real pages, people with roles, and calls as a test wants them."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any, Final

import httpx2
import yaml

from config.load import load
from gateway.admin import admin_app
from gateway.app import App
from policies.approval_store import ApprovalStore
from policies.approvals import Approval, HeldCall, State
from policies.binding import binding, hold_key
from tests.support.door import door

SECOND: Final = 1_000_000_000
TOKENS: Final = {"dana": "danas-own-token", "sam": "sams-own-token", "kim": "kims-own-token"}
"""Dana is of finance, and an admin; Sam is of security; Kim has no role that matters."""
POLICY: Final = (
    'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "NEEDS_APPROVAL", '
    '"required_approvals": ["finance"], "explanation": "a refund"}\n'
)

_FORM: Final = re.compile(r'name="form" value="([^"]*)"')


@dataclass
class Offices:
    """`url` is the admin listener's."""

    app: App
    url: str
    path: Path
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def held(self, body: bytes = b'{"amount":100,"to":"ada"}', **facts: Any) -> Approval:
        """A call that waits: `facts` are of the approval, `call` those of its call."""
        now, number = self.app.holds.store.now_ns(), next(self._numbers)
        said: dict[str, Any] = {
            "tenant": "acme",
            "agent": "bot",
            "session": "s-1",
            "kind": "llm",
            "protocol": "openai",
            "target": "gpt-4o",
            "operation": "chat",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query": b"",
            "headers": ((b"content-type", b"application/json"),),
            "body": body,
            "stream": False,
            **facts.pop("call", {}),
        }
        call = HeldCall(**said)
        bound = binding(call)
        plain: dict[str, Any] = {
            "id": f"apr_{number:026d}",
            "version": 1,
            "state": State.PENDING,
            "call": call,
            "call_id": f"{number:026d}",
            "binding": bound,
            "key": f"{hold_key(call, bound)}-{number}",
            "needs": ("finance",),
            "requesters": ("bot",),
            "risk_level": "high",
            "explanation": "A refund of more than 50.",
            "revision": "r-1",
            "created": now,
            "decide_by": now + 3600 * SECOND,
            "use_within": 900 * SECOND,
            "changed": now,
        }
        return await self.app.holds.store.open(Approval(**{**plain, **facts}))

    async def clear(self) -> None:
        """Takes back what waits, and ends what is allowed."""
        store = self.app.holds.store
        for each in await store.listed([State.PENDING]):
            await self.app.holds.cancel(each.id, "nobody")
        for grant in await store.grants():
            await store.revoke(grant.id)

    async def now(self, approval: Approval) -> Approval:
        found = await self.app.holds.store.get(approval.id)
        assert found is not None, "it was opened"
        return found


@asynccontextmanager
async def open_offices(
    folder: Path, store: ApprovalStore | None = None, clock: Callable[[], int] = time.time_ns, **settings: Any
) -> AsyncIterator[Offices]:
    """`settings` are sections of the configuration; approvals are kept in `store`, or as the configuration has it, by
    the Unix nanoseconds of `clock`."""
    (folder / "main.rego").write_text(POLICY)
    roles = {"dana": ["admin", "finance"], "sam": ["security"], "kim": []}
    config = {
        "admin": {"people": [{"name": each, "token": TOKENS[each], "roles": roles[each]} for each in TOKENS]},
        "state": f"sqlite:///{folder}/state.db",
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": ["main.rego"]},
        "agents": [{"name": "bot", "tenant": "acme", "key": "bots-own-key"}],
        "targets": [{"name": "big", "kind": "openai", "url": "http://127.0.0.1:9/v1", "key": "the-operators-own-key"}],
        "routes": [{"name": "chat", "models": ["gpt-*"], "arms": [{"target": "big"}]}],
        **settings,
    }
    path = folder / "w.yaml"
    path.write_text(yaml.safe_dump(config))
    async with AsyncExitStack() as stack:
        app = App(path, load(path), clock)
        if store is not None:
            app.holds.store = store
        await stack.enter_async_context(app)
        port = await stack.enter_async_context(door(admin_app(app)))
        yield Offices(app, f"http://127.0.0.1:{port}", path)


@dataclass
class Visitor:
    """A browser without eyes: it keeps cookies, and sends forms as the page has them."""

    client: httpx2.AsyncClient
    form: str = ""

    async def see(self, path: str, **headers: str) -> httpx2.Response:
        """A page; its form's token is the one that is sent from now on."""
        answer = await self.client.get(path, headers={"accept": "text/html", **headers})
        found = _FORM.search(answer.text)
        if found is not None:
            self.form = unescape(found[1])
        return answer

    async def send(
        self,
        path: str,
        fields: Mapping[str, str] | None = None,
        /,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> httpx2.Response:
        """A form of ours with these fields, as a browser sends it."""
        data = {"form": self.form, **(fields or {}), **more}
        return await self.client.post(path, data=data, headers={"sec-fetch-site": "same-origin", **(headers or {})})

    async def log_in(self, name: str, to: str = "") -> httpx2.Response:
        await self.see("/console/login")
        answer = await self.send("/console/login", token=TOKENS.get(name, name), to=to)
        if answer.status_code == 303:
            await self.see("/console/approvals")
        return answer


@asynccontextmanager
async def visiting(offices: Offices, name: str = "") -> AsyncIterator[Visitor]:
    """Somebody before the console's pages; logged in where a name is given."""
    async with httpx2.AsyncClient(base_url=offices.url) as client:
        visitor = Visitor(client)
        if name:
            assert (await visitor.log_in(name)).status_code == 303
        yield visitor
