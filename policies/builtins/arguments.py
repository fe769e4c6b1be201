"""What the builtins share: how arguments are judged before any work is done on them, so that every cost has a bound."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

import orjson

LONGEST_TEXT: Final = 1024 * 1024
DEEPEST: Final = 128
"""How deep JSON may nest that becomes a value of the policy: as deep as the interpreter lets an input nest."""


_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*={0,2}")


def text(builtin: str, *values: Any, longest: int = LONGEST_TEXT) -> None:
    """Raises ValueError unless all `values` are texts of at most `longest` characters."""
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{builtin} takes a text where it was given {_kind(value)}")
        if len(value) > longest:
            raise ValueError(f"{builtin} takes at most {longest} characters")


def whole(builtin: str, *values: Any) -> None:
    """Raises ValueError unless all `values` are whole numbers."""
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{builtin} takes whole numbers")


def from_base64url(builtin: str, value: str) -> bytes:
    """The bytes of base64url (RFC 4648 section 5), whole padding allowed. Raises ValueError for anything else."""
    padded = value if "=" in value else value + "=" * (-len(value) % 4)
    if len(padded) % 4 or not _BASE64URL.fullmatch(padded):
        raise ValueError(f"{builtin} was given a part that is not base64url")
    return base64.b64decode(padded, b"-_")


def to_base64url(value: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def from_base64(builtin: str, value: str) -> bytes:
    """The bytes of standard base64, lines allowed. Raises ValueError."""
    try:
        return base64.b64decode(value.replace("\r", "").replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{builtin} was given what is neither PEM nor base64") from None


def json_object(builtin: str, value: bytes) -> dict[str, Any]:
    """The JSON object that `value` is. Raises ValueError for what is none, for bad UTF-8 and for deep nesting.

    The strict parser matters: a lone surrogate in a text that a builtin returns would end the process.
    """
    try:
        found = orjson.loads(value)
    except ValueError:
        raise ValueError(f"{builtin} was given what is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{builtin} was given JSON that is no object")
    if value.count(b"[") + value.count(b"{") > DEEPEST and not _is_shallow(found):
        raise ValueError(f"{builtin} was given JSON that nests too deep")
    return found


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False


def _kind(value: Any) -> str:
    kinds = ((bool, "a boolean"), ((int, float), "a number"), (dict, "an object"), (list, "an array"), (str, "a text"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null" if value is None else "a set")
