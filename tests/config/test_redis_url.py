"""`config.redis_url`: what may stand at `state` for a shared one, and that no password of it is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.load import load
from config.redis_url import RedisUrl
from config.secrets import Secret

FILE = """\
policy: {{paths: [policy.rego]}}
state: {state}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://127.0.0.1", RedisUrl((("127.0.0.1", 6379),))),
        ("redis://127.0.0.1:6380/3", RedisUrl((("127.0.0.1", 6380),), database=3)),
        ("redis://[::1]:6380/", RedisUrl((("::1", 6380),))),
        ("rediss://cache.example.com", RedisUrl((("cache.example.com", 6379),), tls=True)),
        (
            "rediss://h?ssl_ca_certs=/etc/ca.pem",
            RedisUrl((("h", 6379),), tls=True, ca=Path("/etc/ca.pem")),
        ),
        ("redis+cluster://a:1,b:2,[::1]", RedisUrl((("a", 1), ("b", 2), ("::1", 6379)), cluster=True)),
        ("rediss+cluster://a/0", RedisUrl((("a", 6379),), tls=True, cluster=True)),
        ("redis://:p%40ss@h", RedisUrl((("h", 6379),), password="p@ss")),
        ("redis://me:pass@h", RedisUrl((("h", 6379),), username="me", password="pass")),
    ],
)
def test_a_url_names_servers_and_how_to_be_let_in(text: str, expected: RedisUrl) -> None:
    assert RedisUrl.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "redis:",
        "redis://",
        "redis:///0",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:port",
        "redis://h/zero",
        "redis://h/0/1",
        "redis://h h",
        "redis://a,b",
        "redis+cluster://a/1",
        "redis://h?db=1",
        "redis://h?ssl_ca_certs=/ca.pem",
        "rediss://h?ssl_ca_certs=ca.pem",
        "rediss://h?ssl_cert_reqs=none",
        "redis://a:b@c@d",
        "redis://h#1",
        "redis+sentinel://h",
        "http://h",
        "\nredis://h",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|names|has) ") as caught:
        RedisUrl.parse(text)
    assert text not in str(caught.value)


@given(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8).map("p0".__add__),  # no word of a repr
    st.sampled_from(["redis://:{}@h", "redis://{}@h:1/2", "rediss://me:{}@h", "redis+cluster://me:{}@a,b"]),
)
def test_a_password_is_in_no_text_of_a_url_and_the_rest_can_be_read_again(password: str, form: str) -> None:
    url = RedisUrl.parse(form.format(password))
    assert url.is_secret
    assert password not in f"{url} {url!r}"
    shown = RedisUrl.parse(str(url))
    assert not shown.is_secret
    assert (shown.servers, shown.tls, shown.cluster, shown.database) == (
        url.servers,
        url.tls,
        url.cluster,
        url.database,
    )


def loaded(
    folder: Path, state: str, environ: dict[str, str] | None = None
) -> tuple[object, list[str], frozenset[Path]]:
    """The state that a file names, what is warned of, and the files that are watched."""
    (folder / "policy.rego").write_text("package weighbridge")
    path = folder / "gateway.yaml"
    path.write_text(FILE.format(state=state))
    found = load(path, environ or {})
    return found.settings.state, [str(each) for each in found.warnings if each.path == "state"], found.files


def test_a_url_without_credentials_is_no_secret(tmp_path: Path) -> None:
    state, warnings, _ = loaded(tmp_path, "redis://127.0.0.1:6379/0")
    assert state == "redis://127.0.0.1:6379/0"
    assert warnings == []


def test_credentials_that_stand_in_the_file_are_warned_of(tmp_path: Path) -> None:
    state, [warning], _ = loaded(tmp_path, "redis://:hunter22@127.0.0.1:6379/0")
    assert isinstance(state, Secret)
    assert state.reveal() == "redis://:hunter22@127.0.0.1:6379/0"
    assert "env:NAME" in warning
    assert "hunter22" not in f"{warning} {state!r}"


def test_a_url_can_be_kept_in_the_environment_or_in_a_file_of_its_own(tmp_path: Path) -> None:
    url = "redis://:hunter22@127.0.0.1:6379/0"
    state, warnings, _ = loaded(tmp_path, "env:STATE", {"STATE": url})
    assert isinstance(state, Secret)
    assert state.reveal() == url
    assert warnings == []
    (tmp_path / "state").write_text(f"{url}\n")
    state, warnings, files = loaded(tmp_path, "file:state")
    assert isinstance(state, Secret)
    assert state.reveal() == url
    assert warnings == []
    assert tmp_path / "state" in files
