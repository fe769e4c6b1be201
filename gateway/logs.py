"""The operator's log: one line an event on standard error, as text or as JSON."""

import logging
import sys
import time
from typing import Any

import orjson


def _utc(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))


def printable(text: str) -> str:
    """The same text for a terminal: what could move its cursor, hide, or begin another line shows as its number."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "at": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().encode("utf-8", "backslashreplace").decode(),
        }
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(facts).decode()


class _Text(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _utc(record)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


def configure(level: str, style: str) -> None:
    """Sends every logger of this process to standard error; `style` is `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # An exchange with a bundle server or a collector is a line each, every few seconds.
    logging.getLogger("httpx2").setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    # uvicorn warns of every malformed request: lines of an attacker's making. watchfiles tells of every event it sees,
    # and a log in a watched folder would tell of itself.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
