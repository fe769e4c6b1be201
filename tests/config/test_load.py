"""`config.load`: a file is either fit to serve with, or each of its mistakes is named with place and remedy."""

from __future__ import annotations

import datetime
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.document import LARGEST, MOST_NODES
from config.errors import ConfigError, Mistake
from config.load import SECRETS, Loaded, load
from config.secrets import Secret
from config.settings import Section, Settings

CONTRACT = (Path(__file__).parents[2] / "config" / "examples" / "contract.yaml").read_text()

GOOD = """\
listen: {host: 127.0.0.1, port: 8080}
admin:
  people:
    - {name: dana, token: env:DANA, roles: [admin]}
policy:
  paths: [policy.rego]
agents:
  - {name: support-bot, tenant: acme, key: env:BOT}
  - name: intern-bot
    tenant: acme
    key: env:INTERN
targets:
  - {name: openai, kind: openai, url: https://api.openai.com/v1}
  - {name: parallax, kind: parallax, url: http://127.0.0.1:3001}
routes:
  - name: chat
    models: ["gpt-*"]
    arms:
      - {target: openai, weight: 90}
      - {target: parallax, weight: 10, model: other}
"""
ENVIRON = {"DANA": "dana-token", "BOT": "bot-key-1", "INTERN": "intern-key"}


def mistakes_of(folder: Path, text: str | bytes, environ: dict[str, str] | None = None) -> list[Mistake]:
    """The mistakes of a file with this text; fails when it has none."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load(path, ENVIRON if environ is None else environ)
    assert caught.value.mistakes
    return caught.value.mistakes


def loaded(folder: Path, text: str) -> Loaded:
    return load(write(folder, text), ENVIRON)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "gateway.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def edited(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_an_opa_server_reads_its_own_policies(tmp_path: Path) -> None:
    written = "policy:\n  engine: opa\n  opa: {url: 'unix:///run/opa.sock', token: env:BOT}\n"
    assert loaded(tmp_path, edited("policy:\n  paths: [policy.rego]\n", written)).warnings == []
    [warning] = loaded(tmp_path, edited("policy:\n", written)).warnings
    assert (warning.path, warning.message) == ("policy.paths", "not read with engine: opa")


SIGNED = """policy:
  paths: [policy.tar.gz]
  keys:
    - {id: one, algorithm: EdDSA, key: "file:one.pub"}
    - {id: two, algorithm: HS256, key: env:BOT, scope: write}
  bundle: {url: "https://bundles.example.com/policy.tar.gz", token: env:INTERN, poll: 30s}
"""


def test_keys_of_bundles_may_have_several_lines_and_are_watched(tmp_path: Path) -> None:
    text = edited("policy:\n  paths: [policy.rego]\n", SIGNED)
    [mistake] = mistakes_of(tmp_path, text)
    assert (mistake.path, "cannot be read" in mistake.message or "is not a file" in mistake.message) == (
        "policy.keys[0].key",
        True,
    )
    (tmp_path / "one.pub").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    found = loaded(tmp_path, text)
    assert found.warnings == []
    assert tmp_path / "one.pub" in found.files
    assert [key.scope for key in found.settings.policy.keys] == [None, "write"]
    assert found.settings.policy.keys[0].key.reveal_text().count("\n") == 2


def test_two_keys_of_bundles_cannot_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "one.pub").write_text("-----BEGIN")
    [mistake] = mistakes_of(tmp_path, edited("policy:\n  paths: [policy.rego]\n", SIGNED.replace("id: two", "id: one")))
    assert (mistake.path, mistake.message) == ("policy.keys[1].id", "is the same as policy.keys[0].id")


def test_a_bundle_from_a_server_is_a_policy(tmp_path: Path) -> None:
    text = edited("policy:\n  paths: [policy.rego]\n", 'policy: {bundle: {url: "http://127.0.0.1:9/b.tar.gz"}}\n')
    assert loaded(tmp_path, text).warnings == []


def test_a_good_file_loads_without_a_warning(tmp_path: Path) -> None:
    found = loaded(tmp_path, GOOD)
    assert found.warnings == []
    assert [each.name for each in found.settings.agents] == ["support-bot", "intern-bot"]


MISTAKES = {
    "an unknown section": ("listen:", "listne:", "listne", "listne", "Did you mean listen?"),
    "an unknown key": (
        "{target: openai, weight",
        "{target: openai, wieght",
        "wieght",
        "routes[0].arms[0].wieght",
        "weight?",
    ),
    "a number too large": (
        "weight: 90",
        "weight: 130",
        "130",
        "routes[0].arms[0].weight",
        "Write a number from 0 to 100",
    ),
    "a number too small": (
        "weight: 90",
        "weight: -1",
        "-1",
        "routes[0].arms[0].weight",
        "Write a number from 0 to 100",
    ),
    "a port out of range": ("port: 8080", "port: 65536", "65536", "listen.port", "from 0 to 65535"),
    "a quoted number": ("port: 8080", 'port: "8080"', "8080", "listen.port", "without quotes"),
    "a fraction of a port": ("port: 8080", "port: 80.5", "80.5", "listen.port", "or a point"),
    "a tool's price as a bare number": (
        "routes:",
        "tools:\n  - {name: crm, kind: http, url: 'http://crm.test', price: 0.01}\nroutes:",
        "0.01",
        "tools[0].price",
        "Write {usd_per_call: 0.01}.",
    ),
    "an unquoted number as key": ("key: env:INTERN", "key: 12345678", "12345678", "agents[1].key", "Quote it"),
    "a boolean as name": ("name: intern-bot", "name: no", "name: no", "agents[1].name", '"no"'),
    "another boolean as name": ("name: chat", "name: On", "name: On", "routes[0].name", '"On"'),
    "a boolean as port": ("port: 8080", "port: true", "true", "listen.port", "plain digits"),
    "an unusable name": ("name: intern-bot", "name: intern bot", "intern bot", "agents[1].name", "1 to 63 letters"),
    "an empty name": ("name: intern-bot", 'name: ""', '""', "agents[1].name", "1 to 63 letters"),
    "no value": ("key: env:INTERN", "key:", "key:\n", "agents[1].key", "remove the key"),
    "an empty key": ("key: env:INTERN", 'key: ""', '""', "agents[1].key", "env:NAME"),
    "a template as key": ("key: env:INTERN", "key: ${INTERN}", "INTERN", "agents[1].key", "env:NAME"),
    "a malformed reference": ("key: env:INTERN", 'key: "env: INTERN"', "INTERN", "agents[1].key", "env:NAME"),
    "a short key": ("key: env:INTERN", "key: short", "short", "agents[1].key", "8 characters"),
    "an absent variable": ("key: env:INTERN", "key: env:ABSENT", "ABSENT", "agents[1].key", "Provide"),
    "an absent file": ("key: env:INTERN", "key: file:absent", "absent", "agents[1].key", "Provide"),
    "a key and its digest": (
        "key: env:INTERN",
        f"key: env:INTERN\n    key_sha256: {'ab' * 32}",
        "- name: intern-bot",
        "agents[1]",
        "exactly one",
    ),
    "neither key nor digest": ("    key: env:INTERN\n", "", "- name: intern-bot", "agents[1]", "exactly one"),
    "a digest too short": ("key: env:INTERN", "key_sha256: abcd", "abcd", "agents[1].key_sha256", "64"),
    "a shared key": ("key: env:INTERN", "key: env:BOT", "    key: env:BOT", "agents[1].key", "its own"),
    "a key that is a token": (
        "key: env:INTERN",
        "key: env:DANA",
        "    key: env:DANA",
        "agents[1].key",
        "its own",
    ),
    "a name used twice": ("name: intern-bot", "name: support-bot", "- name: support", "agents[1].name", "its own"),
    "a target used twice": (
        "routes:",
        "  - {name: openai, kind: openai, url: http://127.0.0.1:1}\nroutes:",
        "127.0.0.1:1}",
        "targets[2].name",
        "its own",
    ),
    "an arm used twice": ("target: parallax", "target: openai", "other", "routes[0].arms[1].target", "its own"),
    "a target misspelt": ("target: parallax", "target: paralax", "paralax", "routes[0].arms[1].target", "parallax?"),
    "a target invented": ("target: parallax", "target: zzz", "zzz", "routes[0].arms[1].target", "openai, parallax"),
    "a canary that is no arm": (
        "    arms:",
        "    rollout: {canary: opena, steps: [{weight: 1, hold: 1d, max_error_rate: 0.1}]}\n    arms:",
        "canary",
        "routes[0].rollout.canary",
        "openai?",
    ),
    "a mirror that is no target": (
        "    arms:\n",
        "    mirror: {target: paralax, share: 0.1}\n    arms:\n",
        "mirror",
        "routes[0].mirror.target",
        "Did you mean parallax?",
    ),
    "a mirror of per cent": (
        "    arms:\n",
        "    mirror: {target: parallax, share: 5}\n    arms:\n",
        "mirror",
        "routes[0].mirror.share",
        "1",
    ),
    "no URL": (", url: https://api.openai.com/v1", "", "name: openai", "targets[0]", "exactly one"),
    "url and urls": (".com/v1}", ".com/v1, urls: [http://h]}", "name: openai", "targets[0]", "exactly one"),
    "a node that is no URL": (
        "url: http://127.0.0.1:3001",
        "urls: [http://a, b]",
        "urls",
        "targets[1].urls[1]",
        "https://",
    ),
    "a node written twice": (
        "url: http://127.0.0.1:3001",
        "urls: [http://a/, http://a]",
        "urls",
        "targets[1]",
        "once",
    ),
    "a ca with a node without TLS": (
        "url: https://api.openai.com/v1",
        "urls: [https://a, http://b], ca: ca.pem",
        "name: openai",
        "targets[0]",
        "in urls",
    ),
    "an ejection that gets shorter": (
        ".com/v1}",
        ".com/v1, health: {ejected_for: 10m}}",
        "health",
        "targets[0].health",
        "Raise ejected_at_most",
    ),
    "more retries than calls": (
        "    arms:\n",
        "    retry: {share: 20}\n    arms:\n",
        "retry",
        "routes[0].retry.share",
        "1",
    ),
    "a word misspelt": ("kind: openai", "kind: opanai", "opanai", "targets[0].kind", "Did you mean openai?"),
    "a word invented": ("kind: openai", "kind: cohere", "cohere", "targets[0].kind", "anthropic"),
    "no kind": ("kind: openai, ", "", "api.openai", "targets[0].kind", "Add it"),
    "not a URL": ("https://api.openai.com/v1", "api.openai.com", "api.openai", "targets[0].url", "https://"),
    "another protocol": ("https://api", "ftp://api", "ftp://", "targets[0].url", "http"),
    "a URL with credentials": ("https://api", "https://u:pw@api", "u:pw", "targets[0].url", "key: env:NAME"),
    "a URL with a query": ("/v1}", '/v1?a=b"}', "a=b", "targets[0].url", "base URL"),
    "a URL with a bad port": (".com/v1", ".com:99999/v1", "99999", "targets[0].url", "https://"),
    "an unclosed IPv6 address": ("https://api.openai.com/v1", '"http://[::1"', "::1", "targets[0].url", "https://"),
    "a host with a stray character": (
        "http://127.0.0.1:3001",
        '"http://ho!st:1"',
        "ho!st",
        "targets[1].url",
        "https://",
    ),
    "a host with an endless label": (
        "http://127.0.0.1:3001",
        f'"http://{"a" * 64}.example"',
        "aaa",
        "targets[1].url",
        "https://",
    ),
    "an empty label in a host": ("http://127.0.0.1:3001", '"http://a..b"', "a..b", "targets[1].url", "https://"),
    "an IPv6 address with a zone": (
        "http://127.0.0.1:3001",
        '"http://[fe80::1%eth0]"',
        "fe80",
        "targets[1].url",
        "https://",
    ),
    "an IPv6 address that is none": (
        "http://127.0.0.1:3001",
        '"http://[1::2::3]"',
        "1::2",
        "targets[1].url",
        "https://",
    ),
    "words beside an IPv6 address": (
        "http://127.0.0.1:3001",
        '"http://[::1]x:80"',
        "::1",
        "targets[1].url",
        "https://",
    ),
    "a ca without TLS": (
        "http://127.0.0.1:3001",
        "http://127.0.0.1:3001, ca: ca.pem",
        "3001",
        "targets[1]",
        "https",
    ),
    "a ca without certificates": (".com/v1", ".com/v1, ca: gateway.yaml", "ca: g", "targets[0].ca", "PEM"),
    "a ca that is a folder": (".com/v1", ".com/v1, ca: .", "ca: .", "targets[0].ca", "PEM"),
    "a ca that is absent": (".com/v1", ".com/v1, ca: no.pem", "no.pem", "targets[0].ca", "PEM"),
    "not a duration": ("port: 8080", "port: 8080, drain: 5 weeks", "weeks", "listen.drain", "14d"),
    "a negative duration": ("port: 8080", "port: 8080, drain: -5s", "-5s", "listen.drain", "14d"),
    "an instant timeout": ("port: 8080", "port: 8080, keep_alive: 0", "keep_alive", "listen.keep_alive", "above 0"),
    "an eternal timeout": ("port: 8080", "port: 8080, keep_alive: 99999d", "99999d", "listen.keep_alive", "14d"),
    "not a size": ("port: 8080", "port: 8080, max_body: much", "much", "listen.max_body", "32MiB"),
    "half a byte": ("port: 8080", "port: 8080, max_body: 1.5", "max_body", "listen.max_body", "32MiB"),
    "weights of nothing": (
        "- {target: openai, weight: 90}\n      - {target: parallax, weight: 10, model: other}",
        "- {target: openai, weight: 0}",
        "arms:",
        "routes[0].arms",
        "above 0",
    ),
    "no arms": (
        "\n      - {target: openai, weight: 90}\n      - {target: parallax, weight: 10, model: other}",
        " []",
        "arms:",
        "routes[0].arms",
        "at least one",
    ),
    "a text for a list": ('["gpt-*"]', "gpt-4", "models", "routes[0].models", "[a, b]"),
    "a list for a section": ("{host: 127.0.0.1, port: 8080}", "[1]", "listen", "listen", "key: value"),
    "not a number": ("weight: 90", "weight: .nan", ".nan", "routes[0].arms[0].weight", "ordinary number"),
    "an infinite number": ("weight: 90", "weight: .inf", ".inf", "routes[0].arms[0].weight", "ordinary number"),
    "a number beyond floats": ("weight: 90", "weight: 1e999", "1e999", "routes[0].arms[0].weight", "ordinary number"),
    "an octal number": ("port: 8080", "port: 08080", "08080", "listen.port", "without quotes"),
    "a hexadecimal number": ("port: 8080", "port: 0x50", "0x50", "listen.port", "decimal"),
    "a number in base 60": ("port: 8080", "port: 80:80", "80:80", "listen.port", "plain digits"),
    "a huge number": ("port: 8080", f"port: {'9' * 5000}", "999", "listen.port", "decimal"),
    "a key written twice": ("policy:\n", "policy:\n  paths: []\n", "paths: [policy", "policy.paths", "Keep one"),
    "a name written twice": (
        "{name: support-bot, tenant",
        "{name: support-bot, name: other, tenant",
        "name: other",
        "agents[0].name",
        "Keep one",
    ),
    "an anchor": ("paths: [policy.rego]", "paths: &a [policy.rego]", "&a", "policy.paths", "Remove it"),
    "a tag": ("port: 8080", "port: !!int 8080", "!!int", "listen.port", "Remove it"),
    "a tag that runs code": (
        "port: 8080",
        "port: !!python/object/apply:os.getpid []",
        "!!p",
        "listen.port",
        "Remove it",
    ),
    "OPA nowhere": ("policy:\n", "policy:\n  engine: opa\n", "policy:", "policy", "opa: {url:"),
    "OPA at a socket that is no path": (
        "policy:\n",
        "policy:\n  opa: {url: unix://opa.sock}\n",
        "unix:",
        "policy.opa.url",
        "unix:///run",
    ),
    "OPA at a socket with too long a path": (
        "policy:\n",
        f"policy:\n  opa: {{url: unix:///{'x' * 103}}}\n",
        "unix:",
        "policy.opa.url",
        "unix:///run",
    ),
    "OPA with credentials in its URL": (
        "policy:\n",
        "policy:\n  opa: {url: 'http://me:hunter2@opa'}\n",
        "'http:",
        "policy.opa.url",
        "Remove",
    ),
    "OPA with authorities that are not there": (
        "policy:\n",
        "policy:\n  opa: {url: https://opa, ca: absent.pem}\n",
        "absent.pem",
        "policy.opa.ca",
        "PEM file",
    ),
    "Redis on a port that cannot be": ("policy:\n", "state: redis://h:99999/0\npolicy:\n", "redis", "state", "6379"),
    "several Redis servers": ("policy:\n", "state: 'redis://a,b'\npolicy:\n", "redis", "state", "6379"),
    "a database of a cluster": ("policy:\n", "state: redis+cluster://a,b/1\npolicy:\n", "redis", "state", "6379"),
    "Redis with a query": ("policy:\n", "state: 'redis://h/0?password=x'\npolicy:\n", "redis", "state", "6379"),
    "a state that is not there": ("policy:\n", "state: env:ABSENT\npolicy:\n", "state", "state", "Provide"),
    "a state elsewhere": ("policy:\n", "state: env:DANA\npolicy:\n", "state", "state", "redis://:PASSWORD"),
    "a state that is a number": ("policy:\n", "state: 6379\npolicy:\n", "state", "state", "Quote"),
    "state nowhere": ("policy:\n", "state: 'sqlite://'\npolicy:\n", "sqlite", "state", "sqlite:///var"),
    "a budget of nobody": (
        "policy:\n",
        "budgets: [{node: acme/suport-bot, window: day, limit_usd: 1}]\npolicy:\n",
        "budgets",
        "budgets[0].node",
        "acme/support-bot?",
    ),
    "a limit given twice": (
        "policy:\n",
        "limits: [{node: acme, concurrent: 1}, {node: acme, concurrent: 2}]\npolicy:\n",
        "limits",
        "limits[1].node",
        "Keep one",
    ),
    "a limit of nothing": ("policy:\n", "limits: [{node: acme}]\npolicy:\n", "limits", "limits[0]", "concurrent"),
    "a peer and an environment of one name": (
        "policy:\n",
        "peers: [{name: a, url: http://h}]\nenvironments: [{name: a, url: http://h}]\npolicy:\n",
        "environments",
        "environments[0].name",
        "Rename",
    ),
    "one port for agents and operators": ("port: 8080", "port: 8081", "admin", "admin.listen.port", "its own"),
    "one port of all addresses": (
        "{host: 127.0.0.1, port: 8080}",
        "{host: 0.0.0.0, port: 8081}",
        "admin",
        "admin.listen.port",
        "its own",
    ),
    "not a JSON pointer": ("policy:\n", "ledger: {mask: [messages]}\npolicy:\n", "mask", "ledger.mask[0]", "/messages"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_line_path_and_remedy(case: str, tmp_path: Path) -> None:
    old, new, line_with, path, remedy = MISTAKES[case]
    (tmp_path / "ca.pem").write_bytes(certificate())
    text = edited(old, new)
    found = mistakes_of(tmp_path, text)
    wanted = [each for each in found if each.path == path and remedy in each.remedy]
    assert wanted, [str(each) for each in found]
    lines = text.splitlines()
    assert line_with.rstrip("\n") in lines[wanted[0].line - 1], (wanted[0].line, lines[wanted[0].line - 1])
    assert len(found) == 1, [str(each) for each in found]


def test_a_mistake_reads_as_one_sentence_and_its_remedy(tmp_path: Path) -> None:
    [mistake] = mistakes_of(tmp_path, edited("weight: 90", "weight: 130"))
    line = line_of(GOOD, "weight: 90")
    assert str(mistake) == (
        f"{tmp_path}/gateway.yaml:{line}: routes[0].arms[0].weight: 130 is more than 100. Write a number from 0 to 100."
    )
    assert mistake.column == GOOD.splitlines()[line - 1].index("90") + 1


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("limit_usd: -1", "-1 is less than 0. Write a number from 0 to 9000000."),
        ("limit_usd: 1e10", "10000000000 is more than 9000000. Write a number from 0 to 9000000."),
        ("limit_usd: 1, mode: hard", "is not one of the possible words. Write strict, adaptive, soft or shadow."),
    ],
)
def test_a_mistake_in_a_budget_is_told_in_plain_numbers_and_guesses_nothing_that_would_not_refuse(
    budget: str, said: str, tmp_path: Path
) -> None:
    [mistake] = mistakes_of(tmp_path, GOOD + f"budgets: [{{node: acme, window: day, {budget}}}]\n")
    assert str(mistake).endswith(f": {said}")


def test_all_mistakes_are_named_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD
    for old, new in (
        ("port: 8080", "port: many"),
        ("name: intern-bot", "name: support-bot"),
        ("kind: parallax", "kind: other"),
        ("weight: 90", "weight: 130"),
        ("target: parallax", "target: paralax"),
        ("env:DANA", "env:ABSENT"),
    ):
        text = text.replace(old, new, 1)
    assert [each.path for each in mistakes_of(tmp_path, text)] == [
        "listen.port",
        "admin.people[0].token",
        "agents[1].name",
        "targets[1].kind",
        "routes[0].arms[0].weight",
        "routes[0].arms[1].target",
    ]


@functools.cache
def certificate() -> bytes:
    """The PEM file of an authority that nobody asks."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    return builder.sign(key, None).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:3001",
        "http://[::1]:3001/v1",
        "https://API.example.com./v1/",
        "http://my_service:80",
        f"http://{'a' * 63}.example",
        "http://h:",
    ],
)
def test_a_host_that_can_exist_is_taken(url: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, edited("http://127.0.0.1:3001", f'"{url}"')).settings.targets[1].url == url


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "only a comment": (b"# nothing\n", "is empty"),
    "a list": (b"- a\n- b\n", "does not have sections"),
    "a text": (b"hello", "does not have sections"),
    "two documents": (b"listen: {}\n---\nlisten: {}\n", "second document"),
    "a tab": (b"listen:\n\tport: 1\n", "is not YAML"),
    "an open bracket": (b"agents: [\n", "is not YAML"),
    "an open quote": (b'agents: "abc\n', "is not YAML"),
    "not UTF-8": (b"listen: {}\n\xff\xfe: 1\n", "is not UTF-8"),
    "UTF-16": ("listen: {}\n".encode("utf-16"), "is not UTF-8"),
    "a null byte": (b"listen: {}\na: \x00\n", "control character"),
    "an escape": (b"listen: {}\na: \x1b[31m\n", "control character"),
    "too long": (b"#" * (LARGEST + 1), "is larger than"),
    "too deep": (b"a: " + b"[" * 100_000, "nested too deep"),
    "too many values": (b"a: [" + b"1," * MOST_NODES + b"]", "too many values"),
    "a key that is a list": (b"? [a, b]\n: 1\n", "not plain text"),
    "a key that is an alias": (b"a: &x 1\n*x : 2\n", "alias"),
    "an alias bomb": (b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b, *b]\n", "anchor"),
    "an unknown alias": (b"a: *nowhere\n", "alias"),
    "a merge": (b"<<: {listen: {}}\n", "unknown key"),
    "an unknown tag handle": (b"a: !x!y 1\n", "is not YAML"),
    "a directive": (b"%YAML 9.9\n---\na: 1\n", ""),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_configuration_is_refused_with_a_line(case: str, tmp_path: Path) -> None:
    content, message = FILES[case]
    found = mistakes_of(tmp_path, content)
    assert any(message in each.message for each in found), [str(each) for each in found]
    assert all(each.line >= 1 and each.column >= 1 for each in found)


def test_what_follows_a_key_written_twice_is_still_checked(tmp_path: Path) -> None:
    text = edited("{name: support-bot, tenant: acme", "{name: support-bot, name: other, tenant: a b")
    assert [each.path for each in mistakes_of(tmp_path, text)] == ["agents[0].name", "agents[0].tenant"]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path, Path("with\0null")):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path)


def test_what_is_wrong_with_a_file_as_a_whole_names_no_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "absent.yaml")
    assert str(caught.value) == f"{tmp_path}/absent.yaml: cannot be read: No such file or directory. Name a file."


def test_paths_are_written_as_short_as_they_can_be(tmp_path: Path) -> None:
    (tmp_path / "rego").mkdir()
    (tmp_path / "site").mkdir()
    found = loaded(tmp_path / "site", "policy: {paths: [../rego/./x/../main.rego, ../nowhere], shadow: {paths: [..]}}")
    assert found.settings.policy.paths == (tmp_path / "rego" / "main.rego", tmp_path / "nowhere")
    assert found.settings.policy.shadow is not None
    assert found.settings.policy.shadow.paths == (tmp_path,)


def test_a_path_up_from_a_link_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "releases" / "one").mkdir(parents=True)
    (tmp_path / "now").symlink_to(tmp_path / "releases" / "one")
    found = loaded(tmp_path / "now", "policy: {paths: [../main.rego, main.rego]}")
    up, beside = found.settings.policy.paths
    assert up.resolve() == (tmp_path / "releases" / "main.rego").resolve()
    assert beside == tmp_path / "now" / "main.rego"


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ('policy: {bundle: {url: "https://b.example/x.tar.gz?X-Signature=s3cret"}}', "policy.bundle.url"),
        ('decision_log: {url: "https://b.example/logs?X-Signature=s3cret"}', "decision_log.url"),
    ],
)
def test_what_is_wrong_with_a_presigned_url_is_said_of_what_it_is(tmp_path: Path, section: str, place: str) -> None:
    [mistake] = mistakes_of(tmp_path, section)
    assert mistake.path == place
    assert "s3cret" not in str(mistake)
    assert "base URL" not in str(mistake)
    assert "token" in mistake.remedy


def test_a_named_pipe_is_refused_and_nobody_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.yaml")
    with pytest.raises(ConfigError, match="cannot be read: not a regular file"):
        load(tmp_path / "w.yaml")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert load(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()), ENVIRON).warnings == []


def test_windows_line_ends_are_no_mistake(tmp_path: Path) -> None:
    assert loaded(tmp_path, GOOD.replace("\n", "\r\n")).settings == loaded(tmp_path, GOOD).settings


@pytest.mark.parametrize("text", ['"true"', "'on'", "!!str no", "2026-01-01", "gpt-4o"])
def test_a_text_is_what_was_written(text: str, tmp_path: Path) -> None:
    found = loaded(tmp_path, edited("model: other", f"model: {text}"))
    assert found.settings.routes[0].arms[1].model == text.removeprefix("!!str ").strip("'\"")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("250ms", 0.25),
        ("50s", 50),
        ("15m", 900),
        ("1h", 3600),
        ("14d", 1209600),
        ("7", 7),
        ("1.5", 1.5),
        ("1.5h", 5400),
    ],
)
def test_a_duration_is_in_seconds(written: str, expected: float, tmp_path: Path) -> None:
    found = loaded(tmp_path, edited("port: 8080", f"drain: {written}"))
    assert found.settings.listen.drain == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [("32MiB", 2**25), ("64KiB", 2**16), ("10MB", 10**7), ("4096", 4096), ("1GiB", 2**30), ("1.5KiB", 1536), ("9B", 9)],
)
def test_a_size_is_in_bytes(written: str, expected: int, tmp_path: Path) -> None:
    found = loaded(tmp_path, edited("port: 8080", f"max_body: {written}"))
    assert found.settings.listen.max_body == expected


def test_what_is_not_given_has_a_default(tmp_path: Path) -> None:
    settings = load(write(tmp_path, "listen: {}\n"), {}).settings
    assert (settings.listen.host, settings.listen.port, settings.listen.max_body) == ("127.0.0.1", 8080, 32 * 2**20)
    assert (settings.admin.listen.host, settings.admin.listen.port) == ("127.0.0.1", 8081)
    assert settings.state == f"sqlite:///{Path.cwd()}/var/weighbridge.db"
    assert settings.ledger.path == Path.cwd() / "var" / "ledger"
    assert settings.policy.paths == ()


def test_a_target_is_one_node_or_several(tmp_path: Path) -> None:
    nodes = ("http://10.0.0.1:3001", "http://10.0.0.2:3001")
    found = loaded(tmp_path, edited("url: http://127.0.0.1:3001", f"urls: [{', '.join(nodes)}], max_concurrent: 8"))
    assert [target.nodes for target in found.settings.targets] == [("https://api.openai.com/v1",), nodes]
    assert [target.max_concurrent for target in found.settings.targets] == [None, 8]


def test_health_and_retries_have_defaults_and_a_mirror_has_none(tmp_path: Path) -> None:
    found = loaded(tmp_path, GOOD).settings
    health, retry, timeouts = found.targets[1].health, found.routes[0].retry, found.targets[1].timeouts
    assert (health.failures, health.dead_streams, health.ejected_for, health.ejected_at_most) == (5, 3, 30, 300)
    assert (health.probe_every, health.probe_timeout) == (10, 8)
    assert (retry.attempts, retry.share) == (3, 0.2)
    assert timeouts.first_token == 30
    assert found.routes[0].mirror is None
    assert [arm.fallback for arm in found.routes[0].arms] == [None, None]


def test_files_that_are_read_start_at_the_configurations_folder_and_written_ones_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "started-here").mkdir()
    (tmp_path / "conf" / "key").write_text("a-key-of-openai\n")
    (tmp_path / "conf" / "ca.pem").write_bytes(certificate())
    monkeypatch.chdir(tmp_path / "started-here")
    write(
        tmp_path / "conf",
        edited("https://api.openai.com/v1", "https://api.openai.com/v1, ca: ca.pem, key: file:key")
        + "state: sqlite:///here.db\nledger: {path: records}\n",
    )
    found = load(Path("../conf/gateway.yaml"), ENVIRON)
    assert [path.resolve() for path in found.settings.policy.paths] == [tmp_path / "conf" / "policy.rego"]
    assert all(path.is_absolute() for path in found.settings.policy.paths)
    assert found.settings.ledger.path == tmp_path / "started-here" / "records"
    assert found.settings.state == f"sqlite:///{tmp_path}/started-here/here.db"
    key = found.settings.targets[0].key
    assert key is not None
    assert key.reveal() == "a-key-of-openai"
    names = ["ca.pem", "gateway.yaml", "key"]
    assert sorted(path.resolve() for path in found.files) == [tmp_path / "conf" / name for name in names]


def test_a_refused_file_still_says_what_to_watch_for_its_cure(tmp_path: Path) -> None:
    path = write(tmp_path, edited("env:INTERN", "file:intern-key"))
    with pytest.raises(ConfigError) as caught:
        load(path, ENVIRON)
    assert caught.value.files == {path, tmp_path / "intern-key"}


def test_secrets_need_not_be_there_when_only_the_file_is_checked(tmp_path: Path) -> None:
    found = load(write(tmp_path, GOOD), {}, resolve=False)
    assert found.settings.agents[0].key == Secret("env:BOT")


def test_a_digest_and_the_key_it_belongs_to_are_the_same_credential(tmp_path: Path) -> None:
    digest = "08DB11B8F8B4CB19B4E4D9C4D7A3E1E05A4A3D1B4C1F6F0F6D5E3C2B1A098765"
    same = edited("key: env:INTERN", f"key_sha256: {digest}").replace("key: env:BOT", f"key_sha256: {digest.lower()}")
    [mistake] = mistakes_of(tmp_path, same)
    assert "agent intern-bot has the same credential as agent support-bot" in mistake.message


def test_weights_that_do_not_add_up_are_warned_of(tmp_path: Path) -> None:
    [warning] = loaded(tmp_path, edited("weight: 90", "weight: 80")).warnings
    assert (warning.path, warning.line) == ("routes[0].arms", line_of(GOOD, "arms:"))
    assert "90" in warning.message


@pytest.mark.parametrize(
    ("kind", "url", "found"),
    [
        ("openai", "https://api.openai.com/v1", ""),
        ("openai", "https://gateway.example.com/openai", ""),
        ("openai", "http://127.0.0.1:9000", "has no path"),
        ("openai", "http://127.0.0.1:9000/", "has no path"),
        ("parallax", "http://127.0.0.1:3001", ""),
        ("parallax", "http://127.0.0.1:3001/v1/", "ends in /v1"),
        ("anthropic", "https://api.anthropic.com", ""),
        ("anthropic", "https://gateway.example.com/anthropic", ""),
        ("anthropic", "https://api.anthropic.com/v1", "ends in /v1"),
    ],
)
def test_a_url_whose_path_is_most_likely_wrong_is_warned_of(tmp_path: Path, kind: str, url: str, found: str) -> None:
    old = "{name: parallax, kind: parallax, url: http://127.0.0.1:3001}"
    for key, new in (("url", f"url: '{url}'"), ("urls[1]", f"urls: ['{url}/a', '{url}']")):
        text = edited(old, f"{{name: parallax, kind: {kind}, {new}}}")
        told = [(each.path, each.line, each.message) for each in loaded(tmp_path, text).warnings]
        if found:
            [(path, line, message)] = told
            assert (path, line) == (f"targets[1].{key}", line_of(text, "name: parallax"))
            assert found in message
        else:
            assert told == []


def test_a_step_with_a_mistake_does_not_make_its_list_empty(tmp_path: Path) -> None:
    steps = "[{weight: 10, hold: 1h, max_error_rate: 5}, {weight: 20, hold: 1h, max_error_rate: 0.1}]"
    for written in (steps, steps.replace("weight: 10", "wait: 10"), "[{weight: 10, hold: 1h, max_error_rate: 5}]"):
        text = f"{GOOD}    rollout: {{canary: parallax, steps: {written}}}\n"
        told = mistakes_of(tmp_path, text)
        assert {each.path.rpartition("]")[0] for each in told} == {"routes[0].rollout.steps[0"}
        limit = next(each for each in told if each.path.endswith("max_error_rate"))
        assert (limit.message, limit.remedy) == ("5 is not below 1", "Write a number above 0 and below 1.")
    [empty] = mistakes_of(tmp_path, f"{GOOD}    rollout: {{canary: parallax, steps: []}}\n")
    assert (empty.path, empty.message) == ("routes[0].rollout.steps", "is empty")


def test_a_warning_below_one_per_cent_of_a_limit_is_warned_of(tmp_path: Path) -> None:
    budgets = "budgets:\n  - {node: acme, window: day, limit_usd: 1, warn_at: 0.85}\n"
    [warning] = loaded(tmp_path, GOOD + budgets).warnings
    assert (warning.path, warning.remedy) == ("budgets[0].warn_at", "Write 85 for 85 per cent.")
    assert loaded(tmp_path, GOOD + budgets.replace("0.85", "0")).warnings == []
    assert loaded(tmp_path, GOOD + budgets.replace("0.85", "1")).warnings == []


def test_a_rollout_that_nobody_can_promote_is_warned_of(tmp_path: Path) -> None:
    text = GOOD + "    rollout: {canary: parallax, approval: [finance, risk]}\n"
    [warning] = loaded(tmp_path, text).warnings
    assert (warning.path, warning.message) == (
        "routes[0].rollout.approval",
        "nobody has one of these roles, so nobody can promote",
    )
    assert loaded(tmp_path, text.replace("roles: [admin]", "roles: [admin, risk]")).warnings == []


def test_no_policy_is_warned_of(tmp_path: Path) -> None:
    [warning] = loaded(tmp_path, edited("paths: [policy.rego]", "paths: []")).warnings
    assert "every call is refused" in warning.message


def test_ten_thousand_agents_fit_and_their_literal_keys_do_not_fill_the_log(tmp_path: Path) -> None:
    agents = [f"  - {{name: agent-{number}, tenant: acme, key: key-of-{number:08}}}\n" for number in range(5000)]
    agents += [f"  - {{name: agent-{number}, key_sha256: a{number:063x}}}\n" for number in range(5000, 10_000)]
    found = load(write(tmp_path, "policy: {paths: [x]}\nagents:\n" + "".join(agents)), {})
    assert len(found.settings.agents) == 10_000
    assert len(found.warnings) == 20
    assert "as do 4980 more" in found.warnings[-1].message


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    found = loaded(tmp_path, GOOD).settings
    with pytest.raises(ValueError, match="frozen"):
        found.listen.port = 1


def test_the_table_of_secrets_names_every_secret_of_the_models() -> None:
    assert set(secrets_of(Settings)) == set(SECRETS)


def secrets_of(model: type[Section], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        yield from _secrets_in(info.annotation, (*path, name))


def _secrets_in(annotation: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if annotation is Secret:
        yield path
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        yield from secrets_of(annotation, path)
    else:
        several = ("*",) if getattr(annotation, "__origin__", None) is tuple else ()
        for inner in get_args(annotation):
            yield from _secrets_in(inner, path + several)


PIECES = [
    *sorted(set(re.findall(r"[\w./-]+|[^\w\s]|\n *", CONTRACT))),
    "\t",
    "\0",
    "\r",
    "---\n",
    "&a ",
    "*a",
    "!x ",
    "? ",
]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """The contract's example after a few edits by someone careless."""
    text = CONTRACT
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 2, 10, 200])))
        piece = draw(st.sampled_from(PIECES) | st.text(max_size=5))
        text = text[:start] + piece + text[end:]
    content = text.encode("utf-8", "surrogatepass")
    cut = draw(st.none() | st.integers(0, len(content)))
    return content[:cut]


def loads_or_says_where(folder: Path, content: bytes) -> None:
    path = write(folder, content)
    refusals: list[ConfigError] = []
    try:
        load(path, {}, resolve=len(content) % 2 == 0)
    except ConfigError as error:
        refusals.append(error)
    for refusal in refusals:
        assert refusal.mistakes
        assert str(refusal)
        for each in refusal.mistakes:
            assert each.file == path
            assert 1 <= each.line <= content.count(b"\n") + content.count(b"\r") + 2
            assert each.column >= 1
            assert each.message
            assert each.remedy


@settings(max_examples=300, deadline=None)
@given(content=mutations())
def test_any_edit_of_the_contracts_example_loads_or_is_refused_with_a_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loads_or_says_where(tmp_path_factory.getbasetemp(), content)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
@example(content=b"\x80")
@example(content=b"? ")
@example(content=b"a: {b: &c *c}")
@example(content=b"{{{}: 1}: 2}: 3")
def test_any_bytes_load_or_are_refused_with_a_line(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    loads_or_says_where(tmp_path_factory.getbasetemp(), content)


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("openai"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "target", "weight", "key", "url", "arms", "people", "node"]), inner)
    ),
    max_leaves=12,
)


@st.composite
def reshaped(draw: st.DrawFn) -> bytes:
    """The contract's example with some of its values replaced by anything."""
    data = yaml.safe_load(CONTRACT)
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = data
        key: Any = draw(st.sampled_from(sorted(Settings.model_fields)))
        while isinstance(inner := holder[key] if isinstance(holder, list) else holder.get(key), dict | list) and inner:
            if draw(st.booleans()):
                break
            holder, key = inner, draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
        holder[key] = draw(SHAPES)
    return json.dumps(data).encode()


@settings(max_examples=300, deadline=None)
@given(content=reshaped())
@example(content=b'{"peers": [{"name": "a"}], "environments": [{"name": ["a"]}]}')
@example(content=b'{"listen": {"host": ["::"], "port": [1]}, "admin": {"listen": {"host": {}, "port": [1]}}}')
def test_any_shape_at_any_place_loads_or_is_refused_with_a_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loads_or_says_where(tmp_path_factory.getbasetemp(), content)


def test_loading_does_not_touch_the_process_environment(tmp_path: Path) -> None:
    before = dict(os.environ)
    loaded(tmp_path, GOOD)
    assert dict(os.environ) == before


def test_a_collector_of_decisions_needs_a_buffer_that_holds_a_batch(tmp_path: Path) -> None:
    text = edited(
        "policy:\n",
        'decision_log: {url: "http://127.0.0.1:9/logs", token: env:BOT, max_batch: 2MiB, buffer: 1MiB}\npolicy:\n',
    )
    [mistake] = mistakes_of(tmp_path, text)
    assert (mistake.path, mistake.message) == ("decision_log", "buffer is less than max_batch")
    found = loaded(tmp_path, text.replace("buffer: 1MiB", "buffer: 2MiB")).settings.decision_log
    assert found is not None
    assert (found.max_delay, found.max_batch) == (5.0, 2 * 1024 * 1024)
