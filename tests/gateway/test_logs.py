"""The operator's log: one line an event, whatever a caller or a file put into it."""

import logging
from collections.abc import Iterator

import orjson
import pytest

from gateway.logs import configure, printable

log = logging.getLogger("weighbridge.test")

MOVES = "a\nb\r\x1b[31mred\x07\u202eback\x00\ud800"


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, client = root.handlers[:], root.level, logging.getLogger("httpx2").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("httpx2").setLevel(client)


def test_what_can_be_printed_stays_as_it_is() -> None:
    assert printable("größe 模型 ok \\n") == "größe 模型 ok \\n"


def test_what_could_move_a_cursor_shows_as_its_number() -> None:
    assert printable(MOVES) == r"a\nb\r\x1b[31mred\x07\u202eback\x00\ud800"


def test_a_message_is_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    log.error("%s", MOVES)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable()


def test_an_error_cannot_write_to_the_terminal_through_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    try:
        raise ValueError(MOVES)
    except ValueError:
        log.exception("it failed")
    said = capsys.readouterr().err
    assert all(line.isprintable() for line in said.split("\n"))
    assert "Traceback" in said


@pytest.mark.parametrize(("level", "shown"), [("info", False), ("warning", False), ("debug", True)])
def test_exchanges_with_other_servers_are_news_only_to_who_wants_everything(
    level: str, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(level, "text")
    logging.getLogger("httpx2").info("HTTP Request: GET http://127.0.0.1:9/bundle.tar.gz")
    assert ("HTTP Request" in capsys.readouterr().err) is shown


def test_a_message_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    log.error("%s", MOVES)
    (line,) = capsys.readouterr().err.splitlines()
    assert orjson.loads(line)["message"].startswith("a\nb")
