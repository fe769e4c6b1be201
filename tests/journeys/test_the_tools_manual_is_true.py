"""The examples of docs/tools.md: a server behind the gateway as its first page says, and what is said of results."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.mcp.results import redacted
from gateway.remote import TOKEN
from policies.prove import prove
from tests.policies.support import sources
from tests.support.mcp_clients import Someone, client
from tests.support.process import ROOT, Gateway, serving

MANUAL = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
PAGE = MANUAL.partition("## Put a server behind the gateway")[2].partition("\n## ")[0]
RESULTS = MANUAL.partition("### Results")[2].partition("\n### ")[0]
SECRETS = {"HELPER_KEY": "helpers-own-key", "DANA_TOKEN": "danas-own-token", TOKEN: "danas-own-token"}


def blocks(kind: str, text: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


def command(gateway: Gateway, *arguments: str) -> str:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments, "--admin", gateway.admin],
        env={**os.environ, **SECRETS, "PYTHONPATH": path},
        capture_output=True,
        check=True,
        timeout=30,
    )
    return done.stdout.decode()


@pytest.mark.timeout(120)
def test_a_server_is_put_behind_the_gateway_as_the_first_page_says(tmp_path: Path) -> None:
    (program,), (config, envelopes) = blocks("python", PAGE), blocks("yaml", PAGE)
    (tmp_path / "notes.py").write_text(program)
    (tmp_path / "envelopes.yaml").write_text(envelopes)
    written = yaml.safe_load(config)
    written["policy"]["paths"][0] = str(ROOT / written["policy"]["paths"][0])
    written["tools"][0]["command"][0] = sys.executable
    with serving(written, tmp_path, env=SECRETS) as gateway:

        async def talk() -> None:
            url = f"{gateway.url}/mcp/notes"
            async with client(url, SECRETS["HELPER_KEY"], "auto", Someone()) as agent:
                assert [each.name for each in (await agent.list_tools()).tools] == ["add", "publish"]
                assert [str(each.uri) for each in (await agent.list_resources()).resources] == ["memo://rules"]
                assert [each.name for each in (await agent.list_prompts()).prompts] == ["summary"]
                assert not (await agent.call_tool("add", {"text": "hello"})).is_error
                assert (await agent.call_tool("add", {"text": "x" * 201})).is_error
                assert (await agent.call_tool("wipe", {})).is_error
                assert (await agent.read_resource("memo://rules")).contents
                assert (await agent.get_prompt("summary", {"about": "tea"})).messages
                waiting = asyncio.create_task(agent.call_tool("publish", {"title": "w1"}))
                while not (
                    held := json.loads(await asyncio.to_thread(command, gateway, "approvals", "list", "--json"))[
                        "items"
                    ]
                ):
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(command, gateway, "approvals", "approve", held[0]["id"])
                assert not (await waiting).is_error

        asyncio.run(talk())
        (pins,) = blocks("sh", PAGE)
        printed = yaml.safe_load(command(gateway, *pins.split()[1:]))
        assert [each["tool"] for each in printed] == ["add", "publish", "wipe"]
        shown = command(gateway, "tools", "show", "notes", "add")
        assert printed[0]["sha256"] in shown
        assert '"inputSchema": {' in shown


def test_a_result_is_redacted_as_the_manual_shows() -> None:
    before, after = [json.loads(each) for each in blocks("json", RESULTS)]
    (rule,) = blocks("rego", RESULTS)
    pointer = re.findall(r'"redact": \["/result/([^"]+)"\]', rule)[0].split("/")
    answer: dict[str, Any] = json.loads(
        redacted(json.dumps({"jsonrpc": "2.0", "id": 1, "result": before}).encode(), [pointer])
    )
    assert answer["result"] == after


async def test_its_policies_can_be_used() -> None:
    policies = [each for each in blocks("rego", MANUAL) if each.startswith("package")]
    assert len(policies) == 2
    for each in policies:
        await prove(sources(each), 20)
