"""The official MCP conformance suite, run against a server of the official SDK directly and through a gateway: the same
verdicts, check by check."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support import node
from tests.support.everything import everything
from tests.support.keyed import keyed
from tests.support.process import serving

pytestmark = pytest.mark.skipif(node.NODE is None, reason="Node 22 and the suite are not installed; see make node")

AGENT_KEY = "inspector-3f61c0"
POLICY = """
package weighbridge

default decision := {"decision": "DENY"}

decision := {"decision": "ALLOW"} if input.agent.name == "inspector"
"""
REVISIONS = {"2026-07-28": 169, "2025-11-25": 84}
"""Requirements of the suite -> how many of their checks the server meets itself."""

NAMED = re.compile(r"server-(.+)-[0-9]{4}-[0-9]{2}-[0-9]{2}T.+")
"""The folder in which the suite writes of one scenario."""
REBINDING = ("localhost-host-rebinding-rejected", "localhost-host-valid-accepted")

Verdicts = Counter[tuple[str, str, str]]
"""(scenario, check, verdict) -> how often."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URLs of two servers that are the same: one to be asked directly, one through a gateway."""
    folder = tmp_path_factory.mktemp("conformance")
    policy = folder / "allow.rego"
    policy.write_text(POLICY, encoding="utf-8")
    with everything(folder / "direct.log") as direct, everything(folder / "behind.log") as behind:
        config: dict[str, Any] = {
            "ledger": {"path": "ledger"},
            "policy": {"paths": [str(policy)]},
            "agents": [{"name": "inspector", "key": AGENT_KEY}],
            "tools": [{"name": "everything", "kind": "mcp", "url": behind, "server_tasks": "carried"}],
        }
        with serving(config, folder) as gateway, keyed(urlsplit(gateway.url).port or 0, AGENT_KEY) as port:
            yield direct, f"http://localhost:{port}/mcp/everything"


def verdicts(url: str, revision: str, folder: Path) -> Verdicts:
    """What the suite says of the server at `url`; it has to come to its end."""
    done = node.run(node.CONFORMANCE, "server", "--url", url, "--requirements", revision, "--output-dir", str(folder))
    found: Verdicts = Counter()
    for written in folder.glob("*/checks.json"):
        scenario = NAMED.fullmatch(written.parent.name)
        assert scenario, written
        found.update((scenario[1], check["id"], check["status"]) for check in json.loads(written.read_text()))
    assert "Total: " in done.stdout, f"the suite ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr}"
    return found


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_server_passes_through_the_gateway_what_it_passes_directly(
    servers: tuple[str, str], revision: str, tmp_path: Path
) -> None:
    folders = tmp_path / "direct", tmp_path / "through"
    with ThreadPoolExecutor(2) as both:
        direct, through = both.map(verdicts, servers, (revision, revision), folders)
    assert sum(number for (_, _, verdict), number in direct.items() if verdict == "SUCCESS") == REVISIONS[revision]
    assert direct - through == Counter(), "verdicts that the gateway has changed"
    assert through - direct == Counter(), "and what they have become"
    assert all(through["dns-rebinding-protection", check, "SUCCESS"] for check in REBINDING), (
        "the upstream sees no Host"
    )
