"""Plain curl against the gateway: what people type, and the corners of HTTP that curl can produce."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.journeys.stock_clients import CALL_ID, CLERK_KEY, GUEST_KEY, PERSON_TOKEN, stage
from tests.support.process import ROOT, Gateway
from tests.support.standins import Standins, only

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

CLERK = ["-H", f"authorization: Bearer {CLERK_KEY}", "-H", "content-type: application/json"]
HELLO = '{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello there"}]}'
STREAMED = '{"stream":true,"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello there"}]}'


def curl(*arguments: str, stdin: bytes = b"") -> bytes:
    """What curl writes on standard output; fails where curl itself does."""
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "20", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the last response that `curl -i` printed."""
    head, _, body = answer.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers, body


def test_a_chat_is_answered(gateway: Gateway) -> None:
    status, headers, body = split(curl("-i", f"{gateway.url}/v1/chat/completions", *CLERK, "-d", HELLO))
    assert status == 200
    assert CALL_ID.fullmatch(headers["x-weighbridge-call"])
    assert json.loads(body)["choices"][0]["message"]["content"].endswith("You said: Hello there")


def test_a_chat_is_streamed(gateway: Gateway) -> None:
    status, headers, body = split(curl("-i", "-N", f"{gateway.url}/v1/chat/completions", *CLERK, "-d", STREAMED))
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_denial_can_be_read_with_bare_eyes(gateway: Gateway, standins: Standins) -> None:
    guest = ["-H", f"authorization: Bearer {GUEST_KEY}"]
    denied = HELLO.replace("gpt-4o-mini", "gpt-4o")
    status, headers, body = split(curl("-i", f"{gateway.url}/v1/chat/completions", *guest, "-d", denied))
    error = json.loads(body)["error"]
    assert (status, headers["x-weighbridge-decision"], error["code"]) == (403, "DENY", "policy_denied")
    assert set(error) == {"message", "type", "param", "code"}
    assert standins.openai.requests == []


@pytest.mark.parametrize(
    "credentials",
    [
        [],
        ["-H", "authorization: Bearer "],
        ["-H", "authorization: Basic bmlnaHQ6Y2xlcms="],
        ["-H", "x-api-key;"],
        ["-H", f"authorization: Bearer {CLERK_KEY}x"],
        ["-H", f"authorization: {CLERK_KEY}"],
        ["-H", f"authorization: Bearer {CLERK_KEY}", "-H", f"x-api-key: {GUEST_KEY}"],
    ],
)
def test_missing_empty_wrong_and_contradictory_keys_are_all_unauthenticated(
    gateway: Gateway, standins: Standins, credentials: list[str]
) -> None:
    status, _, body = split(curl("-i", f"{gateway.url}/v1/chat/completions", *credentials, "-d", HELLO))
    assert (status, json.loads(body)["error"]["code"]) == (401, "unauthenticated")
    assert standins.openai.requests == []


@pytest.mark.parametrize(
    ("path", "arguments", "status"),
    [
        ("/v1/nothing", ["-d", "{}"], 404),
        ("/", [], 404),
        ("/v1/chat/completions/", ["-d", HELLO], 404),
        ("/v1/../v1/chat/completions", ["--path-as-is", "-d", HELLO], 404),
        ("/v1/chat/completions", [], 405),
        ("/v1/chat/completions", ["-X", "DELETE"], 405),
        ("/v1/chat/completions", ["-d", "{not json"], 400),
        ("/v1/chat/completions", ["-d", '{"model":"gpt-4o-mini","model":"gpt-4o","messages":[]}'], 400),
        ("/v1/chat/completions", ["-d", '{"model":"gpt-4o-mini","messages":[],"temperature":NaN}'], 400),
        ("/v1/chat/completions", ["-d", '{"model":["gpt-4o-mini"],"messages":[]}'], 400),
        ("/v1/chat/completions", ["-d", '{"model":"gpt-4o-mini","messages":[],"stream":"yes"}'], 400),
        ("/v1/chat/completions", ["-d", '{"model":"gpt-4o-mini","messages":"\\ud800"}'], 400),
        ("/v1/chat/completions", ["-d", "[]"], 400),
        ("/v1/chat/completions", ["-X", "POST"], 400),
        ("/v1/messages", ["-d", "{}"], 400),
    ],
)
def test_what_makes_no_sense_is_clearly_refused(
    gateway: Gateway, standins: Standins, path: str, arguments: list[str], status: int
) -> None:
    answered, headers, body = split(curl("-i", gateway.url + path, *CLERK, *arguments))
    assert answered == status
    assert json.loads(body)["error"]["message"]
    assert CALL_ID.fullmatch(headers["x-weighbridge-call"])
    assert standins.openai.requests == []


def test_deep_nesting_is_refused_and_nothing_else_breaks(gateway: Gateway) -> None:
    deep = b'{"model":"gpt-4o-mini","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = curl("-i", f"{gateway.url}/v1/chat/completions", *CLERK, "--data-binary", "@-", stdin=deep)
    assert split(answer)[0] == 400
    assert split(curl("-i", f"{gateway.url}/v1/chat/completions", *CLERK, "-d", HELLO))[0] == 200


def test_a_large_body_waits_for_permission_and_arrives_whole(
    gateway: Gateway, standins: Standins, tmp_path: Path
) -> None:
    large: dict[str, Any] = json.loads(HELLO)
    large["messages"][0]["content"] = "word " * 400_000
    body = json.dumps(large).encode()
    (tmp_path / "body.json").write_bytes(body)
    arguments = ["-H", "expect: 100-continue", "--data-binary", f"@{tmp_path / 'body.json'}"]
    status, _, answer = split(curl("-i", f"{gateway.url}/v1/chat/completions", *CLERK, *arguments))
    assert status == 200
    assert json.loads(answer)["usage"]["prompt_tokens"] == 400_000
    assert only(standins.openai.requests).body == body


def test_a_body_above_the_limit_is_refused_before_it_is_read(gateway: Gateway, tmp_path: Path) -> None:
    with (tmp_path / "body.json").open("wb") as huge:
        huge.truncate(50_000_000)
    url = f"{gateway.url}/v1/chat/completions"
    upload = ["-X", "POST", "-H", "expect: 100-continue", "-T", str(tmp_path / "body.json")]
    command = ["curl", "-s", "-i", "--noproxy", "*", "--max-time", "20", url, *CLERK, *upload]
    # curl stops sending when it is answered early; whether it then complains about the rest is its own affair.
    answer = subprocess.run(command, capture_output=True, check=False).stdout
    status, _, body = split(answer)
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


def test_a_body_in_chunks_is_accepted(gateway: Gateway, standins: Standins) -> None:
    chunked = ["-H", "transfer-encoding: chunked", "--data-binary", "@-"]
    answer = curl("-i", f"{gateway.url}/v1/chat/completions", *CLERK, *chunked, stdin=HELLO.encode())
    assert split(answer)[0] == 200
    seen = only(standins.openai.requests)
    assert seen.body == HELLO.encode()
    assert seen.header("content-length") == str(len(HELLO))


def test_an_old_http_version_is_served_too(gateway: Gateway) -> None:
    answer = curl("-0", f"{gateway.url}/v1/chat/completions", *CLERK, "-d", HELLO)
    assert json.loads(answer)["object"] == "chat.completion"
    assert curl("-0", f"{gateway.url}/v1/chat/completions", *CLERK, "-d", STREAMED).endswith(b"data: [DONE]\n\n")


def test_several_calls_share_one_connection(gateway: Gateway) -> None:
    url = f"{gateway.url}/v1/chat/completions"
    written = curl("-w", "\n%{num_connects}\n", url, url, *CLERK, "-d", HELLO)
    assert written.decode().split("\n")[1::2] == ["1", "0"]


def test_every_call_is_recorded_once_whatever_came_of_it(gateway: Gateway) -> None:
    url = f"{gateway.url}/v1/chat/completions"
    guest = ["-H", f"authorization: Bearer {GUEST_KEY}"]
    asked = {
        "ok": [url, *CLERK, "-d", HELLO],
        "policy_denied": [url, *guest, "-d", HELLO.replace("gpt-4o-mini", "gpt-4o")],
        "unauthenticated": [url, "-d", HELLO],
        "no_route": [url, *CLERK, "-d", HELLO.replace("gpt-4o-mini", "unheard-of")],
        "malformed_call": [url, *CLERK, "-d", "{not json"],
        "target_failed": [url, *CLERK, "-d", HELLO.replace("gpt-4o-mini", "cut-stream")],
    }
    calls = {code: split(curl("-i", *arguments))[1]["x-weighbridge-call"] for code, arguments in asked.items()}
    command = [sys.executable, "-m", "gateway.cli", "ledger", "tail", "--path", str(gateway.folder / "ledger")]
    told = subprocess.run([*command, "--json", "-n", "50"], cwd=ROOT, capture_output=True, check=True).stdout
    outcomes = [record for record in map(json.loads, told.splitlines()) if record.get("record") == "outcome"]
    recorded = {call: [each["code"] for each in outcomes if each["call"] == call] for call in calls.values()}
    assert recorded == {call: [code] for code, call in calls.items()}
    assert CLERK_KEY.encode() not in told
    assert b"Hello there" not in told, "what was said is masked"


def test_health_needs_no_key(gateway: Gateway) -> None:
    for listener in (gateway.url, gateway.admin):
        for path in ("/healthz", "/readyz"):
            assert split(curl("-i", listener + path))[0] == 200


def test_operators_see_policy_and_numbers_with_the_right_token(gateway: Gateway) -> None:
    curl(f"{gateway.url}/v1/chat/completions", *CLERK, "-d", HELLO)
    person = ["-H", f"authorization: Bearer {PERSON_TOKEN}"]
    policy = json.loads(curl(f"{gateway.admin}/policy", *person))
    assert policy["engine"] == "embedded"
    assert b"weighbridge_" in curl(f"{gateway.admin}/metrics")
    for token in ([], ["-H", f"authorization: Bearer {CLERK_KEY}"]):
        assert split(curl("-i", f"{gateway.admin}/policy", *token))[0] == 401


def test_the_admin_api_is_not_on_the_agents_listener_nor_theirs_on_admin(gateway: Gateway) -> None:
    person = ["-H", f"authorization: Bearer {PERSON_TOKEN}"]
    for path in ("/metrics", "/policy", "/routes"):
        assert split(curl("-i", gateway.url + path, *person))[0] in (401, 404)
        assert split(curl("-i", gateway.url + path, *CLERK))[0] == 404
    assert split(curl("-i", f"{gateway.admin}/v1/chat/completions", *CLERK, "-d", HELLO))[0] in (401, 404)


def test_clients_that_vanish_at_once_leave_nothing_that_keeps_it_from_stopping(
    standins: Standins, tmp_path: Path
) -> None:
    body = HELLO.replace("gpt-4o-mini", "slow-first-byte").encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: gate\r\nauthorization: Bearer {CLERK_KEY}\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with stage(standins, tmp_path) as gateway:
        address = urlsplit(gateway.url)
        assert address.hostname is not None
        assert address.port is not None
        for _ in range(20):
            with socket.create_connection((address.hostname, address.port), timeout=10) as client:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)  # the end of the client arrives together with its call
                assert client.recv(1) == b""
        gateway.stop()
    assert all(seen.over.wait(5) for seen in standins.openai.requests)
