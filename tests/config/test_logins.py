"""What a file may say of logging in: of agents at the gateway, and of the gateway at tools."""

from pathlib import Path

import pytest

from config.errors import ConfigError
from config.load import Loaded, load

GOOD = """\
listen:
  hosts: [Gateway, "gw.example.com:8443", "[::1]"]
  origins: ["https://App.example.com:443", "http://localhost:3000"]
policy: {paths: [policy.rego]}
agents:
  - {name: a, subject: a-client, issuer: "https://one.test"}
  - {name: b, subject: a-client, issuer: "https://two.test/", key: env:KEY}
oauth:
  resource: https://gw.example.com/
  scopes: [mcp:tools]
  issuers:
    - {issuer: "https://one.test", jwks_url: "https://one.test/jwks"}
    - {issuer: "https://two.test/", jwks_file: keys.json}
tools:
  - name: github
    kind: mcp
    url: https://mcp.test
    oauth: {token_url: "https://one.test/token", client_id: gw, client_secret: env:KEY}
"""
KEYS = '{"keys": [{"kty": "EC"}]}'


def read(folder: Path, text: str, keys: str | None = KEYS) -> Loaded:
    (folder / "policy.rego").write_text("package weighbridge\n")
    if keys is not None:
        (folder / "keys.json").write_text(keys)
    (folder / "gateway.yaml").write_text(text)
    return load(folder / "gateway.yaml", {"KEY": "the-key-itself"})


def mistakes(folder: Path, before: str, after: str, keys: str | None = KEYS) -> list[str]:
    assert before in GOOD
    with pytest.raises(ConfigError) as refused:
        read(folder, GOOD.replace(before, after, 1), keys)
    assert "the-key-itself" not in str(refused.value)
    return [f"{each.path}: {each.message} {each.remedy}" for each in refused.value.mistakes]


def test_names_are_taken_as_clients_write_them_and_files_are_watched(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert found.warnings == []
    assert found.settings.listen.hosts == ("gateway", "gw.example.com:8443", "[::1]")
    assert found.settings.listen.origins == ("https://app.example.com", "http://localhost:3000")
    assert found.settings.oauth is not None
    assert found.settings.oauth.resource == "https://gw.example.com"
    assert tmp_path / "keys.json" in found.files


@pytest.mark.parametrize(
    "host", ["http://gateway", "gateway/x", "a b", "gateway:0", "gateway:http", "u@gateway", "", ":80"]
)
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    [mistake] = mistakes(tmp_path, "[Gateway,", f'["{host}",')
    assert mistake.startswith("listen.hosts[0]: is not the name of a host")


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "https://a.test/x", "null", "*"])
def test_what_is_no_origin_is_refused(tmp_path: Path, origin: str) -> None:
    [mistake] = mistakes(tmp_path, "https://App.example.com:443", origin)
    assert mistake.startswith("listen.origins[0]: ")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (', issuer: "https://one.test"}', "}", "agents[0]: does not say which issuer"),
        ('"https://one.test"}', '"https://one.test/"}', "agents[0].issuer: names no issuer"),
        (
            'issuer: "https://two.test/", key: env:KEY',
            'issuer: "https://one.test"',
            "agents[1].subject: is the same as",
        ),
        ("subject: a-client, issuer", "issuer", "agents[0]: has neither key"),
        ('"https://two.test/", jwks', '"https://one.test", jwks', "oauth.issuers[1].issuer: is the same as"),
        (", jwks_file: keys.json", "", "oauth.issuers[1]: does not say where its keys are"),
        ("jwks_file: keys.json", "jwks_file: absent.json", "oauth.issuers[1].jwks_file: cannot be read"),
        (
            "jwks_file: keys.json",
            "jwks_file: keys.json, algorithms: [HS256]",
            "oauth.issuers[1].algorithms[0]: is not one",
        ),
        (
            "jwks_file: keys.json",
            "jwks_file: keys.json, algorithms: [none]",
            "oauth.issuers[1].algorithms[0]: is not one",
        ),
        ("jwks_file: keys.json", "jwks_file: keys.json, algorithms: []", "oauth.issuers[1].algorithms: is empty"),
        ("[mcp:tools]", '["mcp:tools all"]', "oauth.scopes[0]: is not a scope"),
        ("[mcp:tools]", "['a\"b']", "oauth.scopes[0]: is not a scope"),
        ("  resource: https://gw.example.com/\n", "", "oauth.resource: is missing"),
        ("https://mcp.test\n", "https://mcp.test\n    key: env:KEY\n", "tools[0]: has oauth beside another"),
    ],
)
def test_a_login_that_cannot_work_is_a_mistake(tmp_path: Path, before: str, after: str, told: str) -> None:
    assert any(each.startswith(told) for each in mistakes(tmp_path, before, after))


@pytest.mark.parametrize("keys", ["", "[]", "{}", '{"keys": []}', "\xff"])
def test_a_file_without_keys_is_a_mistake(tmp_path: Path, keys: str) -> None:
    [mistake] = mistakes(tmp_path, "a", "a", keys)
    assert mistake.startswith("oauth.issuers[1].jwks_file: holds no JWK set")


def test_subjects_need_somebody_who_knows_them(tmp_path: Path) -> None:
    text = "policy: {paths: [policy.rego]}\nagents: [{name: a, subject: a-client}]\n"
    with pytest.raises(ConfigError, match="none are taken"):
        read(tmp_path, text)


@pytest.mark.parametrize("place", ["one.test/jwks", "one.test/token"])
def test_what_is_trusted_and_not_encrypted_is_warned_of(tmp_path: Path, place: str) -> None:
    found = read(tmp_path, GOOD.replace(f"https://{place}", f"http://{place}"))
    assert ["is not encrypted" in each.message for each in found.warnings] == [True]
    local = "localhost:8080/" + place.partition("/")[2]
    assert read(tmp_path, GOOD.replace(f"https://{place}", f"http://{local}")).warnings == []
