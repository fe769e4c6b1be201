"""Paths and queries of plain HTTP requests, read so that nobody reads them otherwise: what two servers could understand
differently is refused, and what passes is written anew from what was read.

Sources: RFC 3986 (URIs), the URL standard's application/x-www-form-urlencoded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from adapters.body import without_case
from adapters.errors import MalformedCall

Pairs = tuple[tuple[str, str | None], ...]
"""Names and values of a query or a form, in order; None for a name without an equals sign."""

_USUAL: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~!$&'()*+,=:@-]*)*/?")
_SAFE_IN_PATH: Final = "/!$&'()*+,=:@~"
_SAFE_IN_QUERY: Final = "/:,@*~"
_MEANINGFUL: Final = frozenset("/\\;?#%.")
_BARE_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED_TWICE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_REPLACED: Final = "\ufffd"
"""What an undecodable byte of a path has become."""
_MOST_PAIRS: Final = 1000
_MANGLED: Final = str.maketrans(". [", "___")
"""PHP makes underscores of these where it makes variables of parameters."""


def check_raw(path: bytes) -> None:
    """Refuses a path as it came whose decoded form would hide something. Raises MalformedCall."""
    if b"%" not in path:
        return
    if _BARE_PERCENT.search(path):
        raise MalformedCall("The path has a percent sign that begins no encoded byte; write %25.")
    if b"%2f" in path.lower():
        raise MalformedCall("The path has an encoded slash, which some servers take for a plain one.")


def check_path(path: str) -> None:
    """Refuses a decoded path that begins with a slash and that servers could understand differently.

    Raises MalformedCall.
    """
    if _USUAL.fullmatch(path):
        return
    for letter, name in ((";", "a semicolon"), ("\\", "a backslash"), ("?", "an encoded ?"), ("#", "an encoded #")):
        if letter in path:
            raise MalformedCall(f"The path has {name}, which servers understand differently.")
    if _ENCODED_TWICE.search(path):
        raise MalformedCall("The path is encoded twice.")
    if _REPLACED in path or not path.isprintable():
        raise MalformedCall("The path has bytes that are no UTF-8 text, or characters that nobody sees.")
    if not path.isascii():
        look_alike = unicodedata.normalize("NFKC", "".join(char for char in path if not char.isascii()))
        if _MEANINGFUL & set(look_alike):
            raise MalformedCall("The path has a character that some servers take for a slash, a dot or the like.")
    *inner, last = path.split("/")[1:]
    if "" in inner:
        raise MalformedCall("The path has an empty segment (//).")
    if any(segment and not segment.strip(". ") for segment in (*inner, last)):
        raise MalformedCall("The path has a segment of dots, which some servers resolve.")


def encoded(path: str) -> str:
    """A checked path as it stands in a request."""
    return path if _USUAL.fullmatch(path) else quote(path, safe=_SAFE_IN_PATH)


def pairs(text: bytes, what: str) -> Pairs:
    """The pairs of a query or of a form, which `what` names. Raises MalformedCall."""
    found = []
    for piece in text.split(b"&"):
        if not piece:
            continue
        name, equals, value = piece.partition(b"=")
        decoded = _decoded(name, what)
        if not decoded or not decoded.isprintable() or decoded != decoded.strip(" "):
            raise MalformedCall(
                f"The {what} has a parameter whose name is empty, not to be seen or begins with a space."
            )
        found.append((decoded, _decoded(value, what) if equals else None))
    if len(found) > _MOST_PAIRS:
        raise MalformedCall(f"The {what} has more than {_MOST_PAIRS} parameters.")
    return tuple(found)


def plain(name: str) -> str:
    """What a name of a query or a form is to those servers that read the most into it: `user.id`, `user id`, `User_ID`,
    `user_id[]` and `user_id[x]` are all one parameter to some."""
    root, bracket, rest = name.partition("[")
    if bracket and "]" not in rest:
        root = name
    return without_case(root.translate(_MANGLED))


def written(found: Iterable[tuple[str, str | None]]) -> bytes:
    """The one text for these pairs: `pairs` reads the same from it."""
    return "&".join(
        quote(name, safe=_SAFE_IN_QUERY) + ("" if value is None else "=" + quote(value, safe=_SAFE_IN_QUERY))
        for name, value in found
    ).encode("ascii")


def _decoded(text: bytes, what: str) -> str:
    if _BARE_PERCENT.search(text):
        raise MalformedCall(f"The {what} has a percent sign that begins no encoded byte; write %25.")
    try:
        decoded = unquote_to_bytes(text.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise MalformedCall(f"The {what} has bytes that are no UTF-8 text.") from None
    if "\0" in decoded:
        raise MalformedCall(f"The {what} has a zero byte, at which some servers stop reading.")
    return decoded
