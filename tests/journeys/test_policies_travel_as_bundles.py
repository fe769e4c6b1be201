"""Policies built, signed and published as bundles, from a shell to the next decision of a running gateway."""

import asyncio
import os
import re
import shlex
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from config.load import load
from gateway.cli import main
from policies import bundle as bundles
from tests.policies.bundles import RULE
from tests.policies.support import ENVELOPES, ROOT, SHIPPED
from tests.support.bundle_server import bundle_server
from tests.support.process import Gateway, serving_beside

AGENT_KEY = "bundled-agents-own-key"
PERSON = {"authorization": "Bearer bundled-persons-token"}
ALLOW, DENY = RULE, RULE.replace("ALLOW", "DENY")
SERVER_TOKEN = "the-bundle-servers-token"
WITHIN = 1.0
"""Seconds, as promised; see `eventually` for what a loaded machine is allowed."""


def new_key(folder: Path, name: str = "key") -> None:
    """Writes `NAME.pem` and `NAME.pub`."""
    private = ed25519.Ed25519PrivateKey.generate()
    (folder / f"{name}.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public = private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(pem)


async def published(folder: Path, rule: str, revision: str, name: str = "key") -> bytes:
    """What the command line builds and signs of one rule and some data."""
    return await asyncio.to_thread(_published, folder, rule, revision, name)


def _published(folder: Path, rule: str, revision: str, name: str) -> bytes:
    source = folder / "source"
    source.mkdir(exist_ok=True)
    (source / "main.rego").write_text(rule)
    (source / "main_test.rego").write_text("package main_test\n\ntest_it if true\n")
    (source / "limits.yaml").write_text("limits: {calls: 10}\n")
    made = str(folder / "made.tar.gz")
    assert main(["policy", "build", str(source), "-o", made, "--revision", revision]) == 0
    key = ["--algorithm", "EdDSA", "--key-id", "ci"]
    assert main(["policy", "sign", made, "--key", str(folder / f"{name}.pem"), *key]) == 0
    assert main(["policy", "verify", made, "--key", str(folder / f"{name}.pub"), *key]) == 0
    return Path(made).read_bytes()


def put(file: Path, content: bytes) -> None:
    """As deployments do it: whole, or not at all."""
    beside = file.with_name(".coming")
    beside.write_bytes(content)
    beside.rename(file)


def config(**policy: Any) -> dict[str, Any]:
    return {
        "admin": {"people": [{"name": "dana", "token": "bundled-persons-token", "roles": ["admin"]}]},
        "policy": {"keys": [{"id": "ci", "algorithm": "EdDSA", "key": "file:key.pub"}], **policy},
        "agents": [{"name": "bundled", "tenant": "acme", "key": AGENT_KEY}],
    }


class Desk:
    """Asks a gateway as an agent and as a person."""

    def __init__(self, gateway: Gateway, client: httpx2.AsyncClient) -> None:
        self.gateway, self.client = gateway, client

    async def ask(self) -> int:
        headers = {"authorization": f"Bearer {AGENT_KEY}"}
        return (await self.client.get(f"{self.gateway.url}/v1/models", headers=headers)).status_code

    async def decides(self, status: int) -> None:
        async def so() -> bool:
            return await self.ask() == status

        await eventually(so)

    async def policy(self) -> Any:
        return (await self.client.get(f"{self.gateway.admin}/policy", headers=PERSON)).json()

    async def reports(self, text: str) -> None:
        async def so() -> bool:
            return text in str((await self.policy())["loading"])

        await eventually(so)


async def eventually(true: Callable[[], Awaitable[bool]], within: float = WITHIN) -> None:
    """Polls from outside, as an agent would; several times the promise is allowed where other tests share the cores."""
    began = time.monotonic()
    while not await true():
        assert time.monotonic() - began < 5 * within, "it was not in force in time"
        await asyncio.sleep(0.02)


async def test_a_signed_bundle_that_is_replaced_decides_the_next_call(tmp_path: Path) -> None:
    new_key(tmp_path)
    new_key(tmp_path, "thief")
    policy = tmp_path / "policy.tar.gz"
    allow, deny = await published(tmp_path, ALLOW, "1"), await published(tmp_path, DENY, "2")
    stolen = await published(tmp_path, ALLOW, "3", "thief")
    put(policy, allow)
    async with httpx2.AsyncClient() as client, serving_beside(config(paths=["policy.tar.gz"]), tmp_path) as gateway:
        desk = Desk(gateway, client)
        assert await desk.ask() == 200
        first = (await desk.policy())["revision"]
        put(policy, deny)
        await desk.decides(403)
        second = (await desk.policy())["revision"]
        assert first != second
        assert (await desk.policy())["bundles"] == {"policy": "2"}
        for bad, told in (
            (stolen, "was not signed with the key `ci`"),
            (allow[:-20], "ends too early"),
            (b"", "is empty"),
            ((tmp_path / "source" / "main.rego").read_bytes(), "is not a .tar.gz archive"),
        ):
            put(policy, bad)
            await desk.reports(told)
            assert await desk.ask() == 403, "the last good one stays"
            assert (await desk.policy())["revision"] == second
        # The thief becomes the signer: a key that is replaced is a reason to look again.
        put(policy, stolen)
        await desk.reports("was not signed with the key `ci`")
        put(tmp_path / "key.pub", (tmp_path / "thief.pub").read_bytes())
        await desk.decides(200)
        assert (await desk.policy())["loading"]["errors"] == []


async def test_a_bundle_from_a_server_decides_when_it_has_come_and_stays_when_the_server_goes(tmp_path: Path) -> None:
    new_key(tmp_path)
    new_key(tmp_path, "thief")
    allow, deny = await published(tmp_path, ALLOW, "1"), await published(tmp_path, DENY, "2")
    async with httpx2.AsyncClient() as client, bundle_server() as server:
        server.token = SERVER_TOKEN
        server.holds = True
        bundle = {"url": f"{server.address}/bundle.tar.gz", "token": "file:token", "poll": "100ms", "long_poll": "20s"}
        (tmp_path / "token").write_text("a-token-of-another-time")
        async with serving_beside(config(bundle=bundle), tmp_path) as gateway:
            desk = Desk(gateway, client)
            await desk.reports("answers 401")
            assert await desk.ask() == 403
            assert (await client.get(f"{gateway.admin}/readyz")).status_code == 503
            await server.publish(allow)
            (tmp_path / "token").write_text(SERVER_TOKEN)
            await desk.decides(200)
            assert (await client.get(f"{gateway.admin}/readyz")).status_code == 200
            assert (await desk.policy())["loading"]["errors"] == []
            await server.asked(len(server.requests))
            await server.publish(deny)
            await desk.decides(403)
            await server.publish(await published(tmp_path, ALLOW, "3", "thief"))
            await desk.reports("was not signed with the key `ci`")
            assert await desk.ask() == 403
            server.token = "a-new-token"
            await server.publish(deny)  # ends the question that is being held
            await desk.reports("answers 401")
            await server.publish(allow)
            assert await desk.ask() == 403
            server.token = SERVER_TOKEN
            await desk.decides(200)
            said = gateway.stderr()
        assert said.count("answers 401") == 2, "what stays wrong is told once"
        assert SERVER_TOKEN not in said


async def test_what_was_kept_of_an_unsigned_policy_does_not_decide_where_signatures_are_wanted(tmp_path: Path) -> None:
    new_key(tmp_path)
    (tmp_path / "main.rego").write_text(ALLOW)
    async with httpx2.AsyncClient() as client:
        for name, settings, status, ready in (
            ("first", config(paths=["main.rego"], keys=[]), 200, 200),
            ("gone", config(paths=["gone.rego"], keys=[]), 200, 200),
            ("signed", config(paths=["main.rego"]), 403, 503),
        ):
            folder = tmp_path / name
            folder.mkdir()
            settings |= {"ledger": {"path": str(tmp_path / "ledger")}, "state": f"sqlite:///{tmp_path}/state.db"}
            for file in ("main.rego", "key.pub"):
                (folder / file).write_bytes((tmp_path / file).read_bytes())
            async with serving_beside(settings, folder) as gateway:
                assert await Desk(gateway, client).ask() == status
                assert (await client.get(f"{gateway.admin}/readyz")).status_code == ready


@pytest.mark.parametrize("signed", [False, True])
async def test_a_gateway_starts_on_its_last_policy_while_the_bundle_server_is_away(
    signed: bool, tmp_path: Path
) -> None:
    new_key(tmp_path)
    allow, deny = await published(tmp_path, ALLOW, "1"), await published(tmp_path, DENY, "2")
    if not signed:
        allow, deny = (bundles.build({"main.rego": rule}, {}, "") for rule in (ALLOW, DENY))
    async with httpx2.AsyncClient() as client, bundle_server() as server:
        settings = config(bundle={"url": f"{server.address}/bundle.tar.gz", "poll": "100ms"})
        settings["policy"]["keys"] = settings["policy"]["keys"] if signed else []
        settings |= {"ledger": {"path": str(tmp_path / "ledger")}, "state": f"sqlite:///{tmp_path}/state.db"}

        def beside(name: str) -> Path:
            (tmp_path / name).mkdir()
            (tmp_path / name / "key.pub").write_bytes((tmp_path / "key.pub").read_bytes())
            return tmp_path / name

        await server.publish(allow)
        async with serving_beside(settings, beside("first")) as gateway:
            await Desk(gateway, client).decides(200)
        server.token = "nobody-has-it"
        async with serving_beside(settings, beside("second")) as gateway:
            desk = Desk(gateway, client)
            await desk.decides(200)
            await desk.reports("answers 401")
            assert (await desk.policy())["fallen_back"]
            server.token = None
            await server.publish(deny)
            await desk.decides(403)
            assert not (await desk.policy())["fallen_back"]
        if signed:
            server.token = "nobody-has-it"
            for kept in (tmp_path / "ledger" / "bundles").iterdir():
                kept.write_bytes(bundles.build({"main.rego": ALLOW}, {}, ""))
            async with serving_beside(settings, beside("third")) as gateway:
                desk = Desk(gateway, client)
                await desk.reports("answers 401")
                assert await desk.ask() == 403, "what somebody put in its place is not signed"
                assert not (await desk.policy())["fallen_back"]


def test_the_commands_of_the_manual_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manual = (ROOT / "docs" / "policy.md").read_text().partition("\n## Bundles\n")[2].partition("\n## ")[0]
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", manual, re.DOTALL | re.MULTILINE)
    alone, fetched = re.findall(r"^```yaml\n(.*?)^```$", manual, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUNDLE_TOKEN", "x" * 20)
    (tmp_path / "policies").mkdir()
    shutil.copytree(SHIPPED, tmp_path / "policies" / "rego")
    shutil.copy(ENVELOPES, tmp_path / "envelopes.yaml")
    ours = 0
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        if program == "weighbridge":
            assert main(arguments) == 0, line
            ours += 1
        elif "genpkey" in arguments:
            new_key(tmp_path, "signing")
    assert ours == 3
    (tmp_path / "weighbridge.yaml").write_text(fetched)
    assert load(tmp_path / "weighbridge.yaml").warnings == []
    (tmp_path / "weighbridge.yaml").write_text(alone)
    assert main(["check", "--config", "weighbridge.yaml"]) == 0


@pytest.mark.parametrize(
    "paths", [["."], ["./rules/", "limits.yaml"], ["../here/rules", "limits.yaml"], ["rules/a.rego"]]
)
def test_modules_are_named_by_where_they_lie_below_what_was_named(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "rules").mkdir(parents=True)
    (here / "rules" / "a.rego").write_text(ALLOW)
    (here / "limits.yaml").write_text("limits: {}")
    monkeypatch.chdir(here)
    assert main(["policy", "build", *paths, "-o", "x.tar.gz"]) == 0
    found = bundles.unpack((here / "x.tar.gz").read_bytes(), "x")
    assert [name for name, _ in found.modules] == ["x/rules/a.rego" if paths == ["."] else "x/a.rego"]
    assert len(found.revision) == 64, "the hash of what it was built from"


def test_a_file_whose_name_is_not_utf8_is_built_under_a_name_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / os.fsdecode(b"b\xff.rego")).write_text(ALLOW)
    assert main(["policy", "build", "rules", "-o", "x.tar.gz"]) == 1, "no name that everyone could read"
    (tmp_path / "rules" / "data.yaml").write_text("a: 1")
    (tmp_path / "rules" / os.fsdecode(b"b\xff.rego")).rename(tmp_path / "rules" / "b.rego")
    (tmp_path / "rules" / os.fsdecode(b"d\xff.yaml")).write_text("b: 1")
    assert main(["policy", "build", "rules", "-o", "x.tar.gz"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["build", "broken.rego", "-o", "x.tar.gz"], 1, "broken.rego"),
        (["build", "absent", "-o", "x.tar.gz"], 1, "absent: does not exist"),
        (["build", "main.rego", "-o", "absent/x.tar.gz"], 2, "absent/x.tar.gz: No such file"),
        (["build", "main.rego", "main.rego/../other/main.rego", "-o", "x.tar.gz"], 1, "other/main.rego"),
        (["sign", "made.tar.gz", "--key", "key.pem"], 1, "another kind than RS256"),
        (["sign", "made.tar.gz", "--key", "absent.pem"], 2, "absent.pem is not a file"),
        (["sign", "made.tar.gz", "--key", "env:NOBODY_SET_THIS", "--algorithm", "HS256"], 2, "env:NOBODY_SET_THIS"),
        (["sign", "absent.tar.gz", "--key", "key.pem", "--algorithm", "EdDSA"], 2, "absent.tar.gz"),
        (["verify", "made.tar.gz", "--key", "key.pub"], 2, "another kind than RS256"),
        (["verify", "made.tar.gz", "--key", "key.pem", "--algorithm", "EdDSA"], 2, "is a private key"),
        (["verify", "made.tar.gz", "--key", "thief.pub", "--algorithm", "EdDSA"], 1, "or was changed since"),
        (["verify", "made.tar.gz", "--key", "key.pub", "--algorithm", "EdDSA", "--key-id", "x"], 1, "not configured"),
        (["verify", "main.rego", "--key", "key.pub", "--algorithm", "EdDSA"], 1, "is not a .tar.gz archive"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(
    arguments: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    new_key(tmp_path)
    new_key(tmp_path, "thief")
    _published(tmp_path, ALLOW, "1", "key")
    (tmp_path / "main.rego").write_text(ALLOW)
    (tmp_path / "broken.rego").write_text("package x\nnonsense(")
    before = (tmp_path / "made.tar.gz").read_bytes()
    capsys.readouterr()
    assert main(["policy", *arguments]) == code
    said = capsys.readouterr()
    assert told in said.err
    assert "PRIVATE KEY" not in said.out + said.err
    assert (tmp_path / "made.tar.gz").read_bytes() == before
    assert not (tmp_path / "x.tar.gz").exists()
    assert not list(tmp_path.glob(".*"))
