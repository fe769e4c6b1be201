"""The OpenAPI document of a tool, from its file: what the operator wrote, with each mistake at its line."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import orjson

from adapters.mcp.offered import offered
from adapters.openapi import Operations, UnusableDocument, operations, pointer
from config import document
from config.document import Document
from config.errors import ConfigError, Mistake
from config.settings import ToolSettings

LARGEST: Final = 16 * 2**20
"""Bytes of a document; one in YAML has at most what a configuration may have."""

_NO_VALUE: Final = "has no value"
_FREE_FORM: Final = frozenset({"example", "examples", "default", "enum"})
"""Members whose values are shown, or are whatever an API has: YAML may be in two minds about them."""


class Described:
    """The operations of one document, and what tells it from another that has its place."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError, OSError."""
        content = _content(path)
        self.digest = sha256(content).hexdigest()
        self.operations = _operations(path, content)


def current(path: Path, digest: str) -> bool:
    """Whether the file still holds what it held. Raises OSError."""
    return sha256(_content(path)).hexdigest() == digest


def mistakes(tools: Iterable[ToolSettings]) -> list[Mistake]:
    """Everything wrong with the documents of tools."""
    found: list[Mistake] = []
    read: dict[Path, Described | None] = {}
    for tool in tools:
        path = tool.openapi
        if path is None:
            continue
        if path not in read:
            read[path] = None
            try:
                read[path] = Described(path)
            except ConfigError as error:
                found += error.mistakes
        described = read[path]
        if tool.offer_as_mcp and described is not None and not any(map(offered, described.operations.all)):
            message = "has no operation that could be a tool of MCP"
            found.append(Mistake(path, 0, 0, "", message, "Give them an operationId, and a body of JSON or none."))
    return found


def _content(path: Path) -> bytes:
    """Raises ConfigError."""
    try:
        if not path.is_file():  # a pipe would keep its reader waiting
            raise _unusable(path, "is not a file")
        if path.stat().st_size > LARGEST:
            raise _unusable(path, f"is larger than {LARGEST} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from None


def _operations(path: Path, content: bytes) -> Operations:
    read = Document()
    if content.lstrip()[:1] == b"{":
        try:
            data: Any = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise ConfigError(
                [Mistake(path, error.lineno, error.colno, "", "is not JSON", "Check brackets and commas here.")],
                frozenset({path}),
            ) from None
    else:
        read = document.read(content)
        faults = [each for each in read.faults if not _harmless(each)]
        if faults or read.data is None:
            wrong = [
                Mistake(path, *each.mark, pointer(each.path) if each.path else "", each.message, each.remedy)
                for each in faults
            ]
            raise ConfigError(wrong or [Mistake(path, 1, 1, "", "is empty", "")], frozenset({path}))
        data = read.data
    try:
        return operations(data)
    except UnusableDocument as error:
        raise ConfigError(
            [
                Mistake(path, *(read.mark(each.place) if read.marks else (0, 0)), pointer(each.place), each.message, "")
                for each in error.mistakes
            ],
            frozenset({path}),
        ) from None


def _harmless(fault: document.Fault) -> bool:
    shown = any(part in _FREE_FORM or str(part).startswith("x-") for part in fault.path)
    return fault.message == _NO_VALUE or shown


def _unusable(path: Path, message: str) -> ConfigError:
    return ConfigError([Mistake(path, 0, 0, "", message, "Name an OpenAPI document.")], frozenset({path}))
