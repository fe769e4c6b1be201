"""The user that docs/operating.md gives a gateway on a Redis server is enough for all that it does there."""

import re
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai

from tests.journeys.test_agents_are_stopped import HELLO, code, put, within
from tests.journeys.test_budgets_hold import DIME, KEY, TOKEN, ask, configuration
from tests.support.process import ROOT, serving
from tests.support.redis_server import needs_redis, redis_server
from tests.support.standins import running_standins

pytestmark = needs_redis

HELD = """package weighbridge

decision := {"decision": "NEEDS_APPROVAL", "required_approvals": ["admin"]} if {
	input.call.arguments.max_tokens == 7
} else := {"decision": "ALLOW"}
"""
TITLE = "### A user of its own on Redis"


def documented() -> list[str]:
    """The line `user weighbridge ...` of the manual."""
    section = (ROOT / "docs/operating.md").read_text(encoding="utf-8").split(TITLE)[1]
    found = re.search(r"^user (weighbridge .*)$", section, re.MULTILINE)
    assert found is not None
    return found[1].replace("PASSWORD", "secret").split()


def test_a_gateway_lends_limits_holds_and_stops_with_the_rights_that_the_manual_gives_it(tmp_path: Path) -> None:
    rights = ("--user", *documented(), "--user", "default", "on", "nopass", "~*", "&*", "+@all")
    with running_standins() as standins, redis_server(tmp_path, *rights) as redis:
        url = redis.url.replace("redis://", "redis://weighbridge:secret@")
        config: dict[str, Any] = configuration(
            standins, tmp_path, DIME, {"node": "acme/bot", "window": "day", "limit_usd": 50}
        )
        config["limits"] = [{"node": "acme/bot", "calls_per_minute": 100, "concurrent": 10}]
        config["routes"][-1]["arms"] = [{"target": "gpt", "weight": 100}, {"target": "claude", "weight": 0}]
        (tmp_path / "main.rego").write_text(HELD)
        with (
            serving(config | {"state": url}, tmp_path) as gateway,
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as gpt,
            httpx2.Client(base_url=gateway.admin, headers={"authorization": f"Bearer {TOKEN}"}) as admin,
        ):
            assert code(ask(gateway)) == "ok"
            answers: list[Any] = []

            def held() -> None:
                answers.append(gpt.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=7))

            asking = threading.Thread(target=held)
            asking.start()
            pending = "/approvals?state=pending"
            within(10.0, lambda: bool(admin.get(pending).json()["items"]))
            (waiting,) = admin.get(pending).json()["items"]
            admin.post(f"/approvals/{waiting['id']}/approve", json={}).raise_for_status()
            asking.join(30)
            assert answers
            weights = {"weights": {"gpt": 50, "claude": 50}}
            admin.put("/routes/chat/weights", json=weights).raise_for_status()
            admin.put("/budgets/acme/bot", json={"window": "day", "limit_usd": 40}).raise_for_status()
            assert put(gateway, "quarantined").status_code == 200
            assert code(ask(gateway)) == "agent_quarantined"
            assert put(gateway, "active").status_code == 200
            assert code(ask(gateway)) == "ok"
        assert redis.command("ACL", "LOG") == []  # what it was refused, said or not
