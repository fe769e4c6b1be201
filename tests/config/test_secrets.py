"""`config.secrets`: a secret is resolved when it is used, and shows itself nowhere else."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from config.errors import ConfigError, SecretMissing
from config.load import Loaded, load
from config.secrets import LONGEST, Secret
from config.settings import AgentSettings, Settings, TargetSettings

LITERAL = "sk-Wq7Zx9Kj"


def test_a_secret_of_the_environment_is_read_when_it_is_used() -> None:
    environ: dict[str, str] = {}
    secret = Secret("env:KEY", environ=environ)
    with pytest.raises(SecretMissing, match="env:KEY"):
        secret.reveal()
    environ["KEY"] = "one"
    assert secret.reveal() == "one"
    environ["KEY"] = "two"
    assert secret.reveal() == "two"


def test_without_another_environment_it_is_the_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_TEST_KEY", "from-the-process")
    assert Secret("env:WEIGHBRIDGE_TEST_KEY").reveal() == "from-the-process"


def test_a_secret_of_a_file_starts_at_the_folder_and_loses_its_last_line_end(tmp_path: Path) -> None:
    secret = Secret("file:key", folder=tmp_path)
    for written in ("from-a-file", "from-a-file\n", "from-a-file\r\n"):
        (tmp_path / "key").write_bytes(written.encode())
        assert secret.reveal() == "from-a-file"
    assert Secret(f"file:{tmp_path}/key", folder=Path("/elsewhere")).reveal() == "from-a-file"


def test_a_key_in_pem_has_several_lines_and_no_header_will_carry_it() -> None:
    environ = {"KEY": "-----BEGIN\n-----END\n", "EMPTY": " \n", "BYTES": os.fsdecode(b"\xff" * 40)}
    assert Secret("env:KEY", environ=environ).reveal_text() == "-----BEGIN\n-----END\n"
    with pytest.raises(SecretMissing):
        Secret("env:KEY", environ=environ).reveal()
    for name, reason in (("EMPTY", "is empty"), ("BYTES", "is not UTF-8 text"), ("GONE", "no variable")):
        with pytest.raises(SecretMissing, match=f"env:{name}.*{reason}"):
            Secret(f"env:{name}", environ=environ).reveal_text()


def test_a_literal_is_itself() -> None:
    assert Secret(LITERAL).reveal() == LITERAL
    assert Secret(LITERAL).is_literal


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "\n",
        "two\nlines",
        "two\r\nlines",
        "a\tb",
        "a\x00b",
        "a\x7fb",
        "a\x85b",
        "snow\N{SNOWMAN}man",
        " leading",
        "trailing ",
    ],
)
def test_what_no_header_can_carry_is_refused_naming_only_the_reference(value: str) -> None:
    with pytest.raises(SecretMissing) as caught:
        Secret("env:KEY", environ={"KEY": value}).reveal()
    assert str(caught.value).startswith("env:KEY: ")
    assert not value.strip() or value not in str(caught.value)


def test_a_latin_1_secret_is_fit_for_a_header() -> None:
    assert Secret("env:KEY", environ={"KEY": "clé-secrète"}).reveal() == "clé-secrète"


def unreadable(folder: Path) -> Iterator[Path]:
    yield folder / "absent"
    yield folder
    (folder / "binary").write_bytes(b"\xff\xfe secret")
    yield folder / "binary"
    (folder / "long").write_bytes(b"x" * (LONGEST + 1))
    yield folder / "long"
    (folder / "empty").write_bytes(b"")
    yield folder / "empty"
    (folder / "lines").write_bytes(b"one\ntwo\n")
    yield folder / "lines"
    os.mkfifo(folder / "pipe")
    yield folder / "pipe"


def test_a_file_that_cannot_be_a_secret_is_refused_naming_the_reference(tmp_path: Path) -> None:
    for path in unreadable(tmp_path):
        with pytest.raises(SecretMissing) as caught:
            Secret(f"file:{path}").reveal()
        assert caught.value.reference == f"file:{path}"
        shown = everything_about(caught.value)
        assert "xxxx" not in shown
        assert "two" not in shown
        assert "\\xff" not in shown


@pytest.mark.parametrize(
    "written",
    ["", " ", "env:", "env:AB CD", "env: XYZ", "env:9a", "file:", "file: ", "file:a\nb", "${KEY}", "{{ key }}"],
)
def test_a_malformed_reference_is_refused_without_repeating_it(written: str) -> None:
    with pytest.raises(ValueError, match=r"is empty|does not name|template") as caught:
        Secret(written)
    rest = written.removeprefix("env:").removeprefix("file:").strip()
    assert not rest or rest not in str(caught.value).replace("after env:", "")


def test_a_secret_shows_its_reference_and_nothing_else() -> None:
    environ = {"KEY": LITERAL}
    shown = {
        Secret("env:KEY", environ=environ): "Secret(env:KEY)",
        Secret("file:key"): "Secret(file:key)",
        Secret(LITERAL): "Secret(literal)",
    }
    for secret, text in shown.items():
        assert {repr(secret), str(secret), f"{secret}", f"{secret!r}", "%s" % secret, secret.__format__("")} == {text}  # noqa: UP031  # % is one of the ways
        assert f"{secret:>40}".strip() == text
        assert f"{[secret]} { ({'key': secret}) }".count(LITERAL) == 0


def test_a_secret_is_copied_as_itself_and_never_pickled() -> None:
    secret = Secret(LITERAL)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled") as caught:
            pickle.dumps(secret, protocol)
        assert LITERAL not in str(caught.value)


def test_secrets_written_the_same_are_equal_and_others_are_not() -> None:
    assert Secret("env:A") == Secret("env:A")
    assert hash(Secret("env:A")) == hash(Secret("env:A"))
    assert Secret("env:A") != Secret("env:B")
    assert Secret("file:a", folder=Path("/x")) != Secret("file:a", folder=Path("/y"))
    assert Secret(LITERAL) != LITERAL


def test_a_model_with_a_secret_dumps_its_reference() -> None:
    agent = AgentSettings(name="bot", key=Secret(LITERAL))
    assert agent.model_dump()["key"] == "Secret(literal)"
    assert json.loads(agent.model_dump_json())["key"] == "Secret(literal)"
    assert LITERAL not in repr(agent) + str(agent) + repr(agent.__dict__)
    copied = agent.model_copy(deep=True)
    assert copied.key is agent.key


def test_a_validation_error_of_pydantics_own_does_not_show_what_was_written() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(
            {"targets": [{"name": "a b", "kind": LITERAL, "url": LITERAL, "key": LITERAL, "x": LITERAL}]}
        )
    assert LITERAL not in str(caught.value)
    assert LITERAL not in repr(caught.value)
    with pytest.raises(ValidationError) as caught:
        TargetSettings.model_validate(LITERAL)
    assert LITERAL not in str(caught.value) + repr(caught.value)


def everything_about(error: BaseException) -> str:
    """What logs and crash reports make of an error, and of every error that travels along with it."""
    stream = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    logger.error("refused: %s %r", error, error, exc_info=error)
    shown = [stream.getvalue(), str(error), repr(error), repr(error.args), repr(vars(error))]
    current: BaseException | None = error
    while current is not None:
        shown += [repr(current), repr(current.args), *traceback.format_exception_only(current)]
        shown += [repr(getattr(current, "object", "")), repr(getattr(current, "doc", ""))]
        current = current.__cause__ or current.__context__
    return "\n".join(shown)


def everything_loaded(found: Loaded) -> str:
    return "\n".join(
        [
            repr(found),
            str(found.settings),
            repr(found.settings.model_dump()),
            found.settings.model_dump_json(),
            repr(vars(found.settings)),
            *(f"{each} {each!r}" for each in found.warnings),
        ]
    )


ODD = """\
admin:
  people:
    - {name: dana, token: SECRET}
agents:
  - name: bot
    key: SECRET
targets:
  - {name: openai, kind: openai, url: https://api.example.com, key: SECRET}
routes:
  - {name: chat, models: ["*"], arms: [{target: openai}]}
approvals: {webhook: {url: SECRET, secret: SECRET, previous_secret: SECRET}}
"""
SLIPS = [
    ("key: SECRET", "key:SECRET"),
    ("key: SECRET", "kye: SECRET"),
    ("key: SECRET", "key_sha256: SECRET"),
    ("key: SECRET", "key: [SECRET]"),
    ("key: SECRET", "key: {env: SECRET}"),
    ("key: SECRET", "key: {SECRET}"),
    ("key: SECRET", "SECRET: key"),
    ("key: SECRET", "SECRET"),
    ("key: SECRET", "key: &SECRET x"),
    ("key: SECRET", "key: *SECRET"),
    ("key: SECRET", "key: !SECRET x"),
    ("key: SECRET", "key: !<SECRET> x"),
    ("key: SECRET", "key: %SECRET"),
    ("key: SECRET", "key: @SECRET"),
    ("key: SECRET", "key: 'SECRET"),
    ("key: SECRET", 'key: "SECRET\\q"'),
    ("key: SECRET", "key: env:SECRET x"),
    ("key: SECRET", "key: $SECRET"),
    ("key: SECRET", "key: ${SECRET}"),
    ("key: SECRET", 'key: "SECRET\\n"'),
    ("key: SECRET", 'key: "SECRET\\0"'),
    ("key: SECRET", "key: SECRET\N{SNOWMAN}"),
    ("key: SECRET", "key: SECRET\n    key: SECRET"),
    ("key: SECRET", "key: SECRET: SECRET"),
    ("key: SECRET", "? [SECRET, SECRET]\n    : SECRET"),
    ("key: SECRET", "key: SECRET\n\tname: x"),
    ("key: SECRET", "autonomy_tier: SECRET"),
    ("key: SECRET", "tenant: [SECRET]"),
    ("key: SECRET", "tenant: SECRET/x"),
    ("{target: openai}", "{target: SECRET}"),
    ("{target: openai}", "{target: openai, weight: SECRET}"),
    ("kind: openai", "kind: SECRET"),
    ("https://api", "https://SECRET@api"),
    ("https://api", "https://SECRET:SECRET@api"),
    ("https://api.example.com", "https://api.example.com?key=SECRET"),
    ("https://api.example.com", "SECRET"),
    ("agents:", "state: redis://:SECRET@h/0\nagents:"),
    ("agents:", "state: redis://SECRET:SECRET@h/0\nagents:"),
    ("agents:", "state: redis://:SECRET@h/SECRET\nagents:"),
    ("agents:", "state: redis://:SECRET@h:SECRET/0\nagents:"),
    ("agents:", "state: redis:SECRET@h\nagents:"),
    ("agents:", "state: redis://h/0?password=SECRET\nagents:"),
    ("agents:", "state: SECRET\nagents:"),
    ("agents:", "listen: {drain: SECRET, max_body: SECRET, port: SECRET}\nagents:"),
    ("agents:", "ledger: {mask: [SECRET]}\nagents:"),
    ("agents:", "log: {level: SECRET}\nagents:"),
    ("agents:", "budgets: [{node: SECRET, window: SECRET, limit_usd: SECRET}]\nagents:"),
    ("agents:", "SECRET:\n  SECRET: SECRET\nagents:"),
    ("agents:", "SECRET\nagents:"),
    ("agents:", "%SECRET\n---\nagents:"),
    ("agents:", "--- SECRET\nagents:"),
    ("approvals: {webhook: {", "approvals: {webhook: {SECRET, "),
    ("", ""),
]
SECRETS = st.builds(
    lambda start, rest: f"{start}Zq{rest}",
    st.sampled_from(["sk-", "", "key", "X", "9", "a.b-", "tok_"]),
    st.text("ZQXJWK7", min_size=8, max_size=24),
)


def shown_for(folder: Path, text: str, secret: str) -> str:
    path = folder / "gateway.yaml"
    path.write_text(text.replace("SECRET", secret))
    try:
        return everything_loaded(load(path, {}))
    except ConfigError as error:
        return everything_about(error) + "\n".join(f"{each} {each!r}" for each in error.mistakes)


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip[1].replace("\n", " ") or "none")
def test_a_secret_beside_or_inside_a_mistake_is_not_shown(slip: tuple[str, str], tmp_path: Path) -> None:
    assert slip[0] in ODD
    assert LITERAL not in shown_for(tmp_path, ODD.replace(*slip, 1), LITERAL)


@settings(max_examples=300, deadline=None)
@given(
    secret=SECRETS,
    slips=st.lists(st.sampled_from(SLIPS), max_size=3),
    cut=st.none() | st.integers(0, len(ODD)),
    noise=st.sampled_from(
        ["", ":", "\n", "\t", "[", "}", '"', "'", "#", "- ", "\0", "&", "*", "!", "|", ">", "?", "\ufeff"]
    ),
    at=st.integers(0, len(ODD)),
)
@example(  # what is no name must not be offered as one
    secret="sk-Zq77777777",
    slips=[
        ("key: SECRET", "tenant: SECRET/x"),
        ("agents:", "budgets: [{node: SECRET, window: SECRET, limit_usd: SECRET}]\nagents:"),
    ],
    cut=None,
    noise="",
    at=0,
)
def test_no_secret_is_shown_whatever_is_wrong_around_it(
    secret: str,
    slips: list[tuple[str, str]],
    cut: int | None,
    noise: str,
    at: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = ODD
    for slip in slips:
        text = text.replace(*slip, 1)
    text = (text[:at] + noise + text[at:])[:cut]
    assert secret not in shown_for(tmp_path_factory.getbasetemp(), text, secret)


def test_the_hunt_for_secrets_would_find_one(tmp_path: Path) -> None:
    """The name is shown by design, so a secret written there must be found."""
    assert LITERAL in shown_for(tmp_path, ODD.replace("name: bot", "name: SECRET", 1), LITERAL)
