"""The operators' listener, over a real connection."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from config.load import load
from gateway.admin import OPERATIONS, admin_app
from gateway.admin.description import openapi
from gateway.admin.operation import Operation
from gateway.app import App
from tests.support.door import connected, door

POLICY = (
    'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW", "explanation": input.call.target}\n'
)
DANA = {"authorization": "Bearer danas-own-token"}
SAM = {"authorization": "Bearer sams-own-token"}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    (tmp_path / "main.rego").write_text(POLICY)
    config = {
        "admin": {
            "people": [
                {"name": "dana", "token": "danas-own-token", "roles": ["admin"]},
                {"name": "sam", "token": "sams-own-token"},
            ]
        },
        "state": f"sqlite:///{tmp_path}/state.db",
        "ledger": {"path": str(tmp_path / "ledger")},
        "policy": {"paths": ["main.rego"]},
        "agents": [{"name": "support-bot", "key": "support-bots-own-key"}],
        "targets": [
            {"name": "big", "kind": "openai", "url": "http://127.0.0.1:9/v1", "key": "the-operators-own-key"},
            {"name": "small", "kind": "parallax", "url": "http://127.0.0.1:9"},
        ],
        "routes": [
            {
                "name": "chat",
                "models": ["gpt-*"],
                "arms": [{"target": "big", "weight": 90}, {"target": "small", "weight": 10, "model": "q"}],
            }
        ],
    }
    path = tmp_path / "w.yaml"
    path.write_text(yaml.safe_dump(config))
    async with App(path, load(path)) as app, door(admin_app(app)) as port:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield client


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def somewhere(operation: Operation) -> str:
    return re.sub(r"\{\w+\}", "none", operation.path)


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
async def test_only_people_get_in_where_a_token_is_needed(client: httpx2.AsyncClient, operation: Operation) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer support-bots-own-key"}):
        answer = await client.request(operation.method, somewhere(operation), headers=headers)
        if operation.open:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == 401


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.role], ids=named)
async def test_what_needs_a_role_is_refused_to_people_without_it(
    client: httpx2.AsyncClient, operation: Operation
) -> None:
    answer = await client.request(operation.method, somewhere(operation), headers=SAM)
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    assert answer.json()["detail"] == f"This needs the role `{operation.role}`, which sam does not have."
    assert (await client.request(operation.method, somewhere(operation), headers=DANA)).status_code != 403


def test_whatever_changes_something_needs_a_role() -> None:
    harmless = {"POST /policy/evaluate"}
    says_itself_who = {
        "POST /routes/{route}/rollout/promote",
        "POST /approvals/{id}/approve",
        "POST /approvals/{id}/deny",
        "POST /approvals/{id}/change",
        "POST /grants",
        "DELETE /grants/{id}",
        "POST /tools/{server}/{tool}/accept",
        "POST /tools/{server}/{tool}/refuse",
    }
    assert {named(each) for each in OPERATIONS if each.method != "GET" and not each.role} == harmless | says_itself_who


async def test_the_policy_in_force_is_shown(client: httpx2.AsyncClient) -> None:
    shown = (await client.get("/policy", headers=DANA)).json()
    assert shown["engine"] == "embedded"
    assert len(shown["revision"]) == 64
    assert shown["files"][0].endswith("main.rego")
    assert shown["loading"]["errors"] == []


async def test_routes_show_arms_and_weights(client: httpx2.AsyncClient) -> None:
    (route,) = (await client.get("/routes", headers=DANA)).json()["items"]
    told = [(arm["target"], arm["weight"], arm["model"], arm["health"], arm["calls"]) for arm in route["arms"]]
    assert told == [("big", 90, None, "ok", 0), ("small", 10, "q", "ok", 0)]
    assert (await client.get("/routes/chat", headers=DANA)).json()["arms"] == route["arms"]
    assert (await client.get("/routes/none", headers=DANA)).status_code == 404


async def test_an_input_can_be_tried_without_a_call(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/policy/evaluate", json={"call": {"target": "gpt-4o"}}, headers=SAM)
    assert answer.json()["decision"] == "ALLOW"
    assert answer.json()["explanation"] == "gpt-4o"
    undefined = await client.post("/policy/evaluate", json={}, headers=SAM)
    assert undefined.status_code == 422
    broken = await client.post("/policy/evaluate", content=b"{", headers=SAM)
    assert broken.status_code == 400


async def test_an_input_too_long_is_refused_before_it_is_sent(client: httpx2.AsyncClient) -> None:
    for length in ("1048577", "1" + "0" * 17):
        async with connected(client.base_url.port or 0) as raw:
            await raw.say(evaluation(f"content-length: {length}"))
            status, headers, _ = await raw.answer()
            assert (status, headers[b"content-type"]) == (413, b"application/problem+json")
    longest = b'{"call":{"target":"gpt-4o"}}'.ljust(2**20)
    assert (await client.post("/policy/evaluate", content=longest, headers=SAM)).status_code == 200


async def test_an_input_of_no_stated_length_is_read_no_further_than_allowed(client: httpx2.AsyncClient) -> None:
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    async with connected(client.base_url.port or 0) as raw:
        await raw.say(evaluation("transfer-encoding: chunked"))
        for _ in range(17):
            await raw.say(piece)
        assert (await raw.answer())[0] == 413


async def test_a_person_who_leaves_in_the_middle_of_an_input_is_no_news(
    client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(client.base_url.port or 0) as raw:
        await raw.say(evaluation("content-length: 100", "expect: 100-continue"))
        await raw.reader.readuntil(b"100 Continue\r\n\r\n")  # the input is waited for
        raw.hang_up()
    await client.get("/healthz")
    assert caplog.records == []


def evaluation(*headers: str) -> bytes:
    lines = ["POST /policy/evaluate HTTP/1.1", "host: gateway", f"authorization: {SAM['authorization']}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def test_reloading_needs_the_role_and_is_recorded(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    assert (await client.post("/policy/reload", headers=SAM)).status_code == 403
    before = (await client.get("/policy", headers=DANA)).json()["revision"]
    (tmp_path / "main.rego").write_text(POLICY + "x := 1\n")
    after = (await client.post("/policy/reload", headers=DANA)).json()
    assert after["revision"] != before
    assert '"who":"dana"' in (tmp_path / "ledger" / "calls.jsonl").read_text()


async def test_the_configuration_is_shown_without_its_secrets(client: httpx2.AsyncClient) -> None:
    shown = await client.get("/config", headers=DANA)
    assert shown.json()["loading"]["errors"] == []
    everything = shown.text + (await client.get("/routes", headers=DANA)).text + (await client.get("/metrics")).text
    for secret in ("danas-own-token", "the-operators-own-key", "support-bots-own-key"):
        assert secret not in everything


async def test_metrics_are_prometheus_text(client: httpx2.AsyncClient) -> None:
    names = {family.name for family in text_string_to_metric_families((await client.get("/metrics")).text)}
    assert {"weighbridge_calls", "weighbridge_overhead_seconds", "weighbridge_reloads"} <= names


async def test_unknown_paths_and_methods_are_problems(client: httpx2.AsyncClient) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("DELETE", "/policy", 405), ("GET", "/v1/models", 404)):
        answer = await client.request(method, path, headers=DANA)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_a_misspelt_parameter_is_not_passed_over(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/policy/promote?revison=4b02", headers=DANA)
    assert answer.status_code == 400
    said = "POST /policy/promote has no parameter 'revison'. It takes revision."
    assert answer.json()["detail"] == said
    assert (await client.get("/config?x=1", headers=SAM)).json()["detail"].endswith("It takes none.")
    assert (await client.get("/metrics?x=1")).status_code == 200, "scrapers and probes add what they like"


async def test_the_description_names_every_operation(client: httpx2.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    assert described == openapi(OPERATIONS)
    assert {(method.upper(), path) for path, methods in described["paths"].items() for method in methods} == {
        (operation.method, operation.path) for operation in OPERATIONS
    }
    promote = described["paths"]["/policy/promote"]["post"]
    assert promote["security"] == [{"token": ["admin"]}]
    assert [(each["name"], each["in"]) for each in promote["parameters"]] == [("revision", "query")]
    assert described["components"]["schemas"]["RouteView"]["properties"]["arms"]["items"]["$ref"].endswith("/ArmView")
