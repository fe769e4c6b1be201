"""Secrets as the operator names them: resolved at the moment of use, masked everywhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from config.errors import SecretMissing

LONGEST: Final = 64 * 1024
"""Bytes of the longest secret file that is read; a mistaken path to something huge must not fill memory."""

_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Codes 0-31 and 127-159 end or split a header line; above 255 a header cannot carry them at all.
_UNFIT_FOR_A_HEADER: Final = re.compile(r"[^\x20-\x7e\xa0-\xff]")


class Secret:
    """A reference to a secret: `env:NAME`, `file:PATH`, or the secret itself (a literal).

    Its repr, str, format, dump and JSON show the reference (`Secret(env:OPENAI_API_KEY)`), for a literal only
    `Secret(literal)`. Two secrets are equal when they are written the same. `file:` paths start at `folder`.
    """

    __slots__ = ("_environ", "_folder", "_written")

    def __init__(self, written: str, *, folder: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        """Raises ValueError, without repeating `written`, when it is empty or a malformed reference."""
        reason = _why_malformed(written)
        if reason is not None:
            raise ValueError(reason)
        self._written = written
        self._folder = folder if folder is not None else Path.cwd()
        self._environ: Mapping[str, str] = environ if environ is not None else os.environ

    @property
    def reference(self) -> str:
        """What may be shown: `env:NAME`, `file:PATH` or the word `literal`."""
        return "literal" if self.is_literal else self._written

    @property
    def is_literal(self) -> bool:
        """True when the secret itself stands in the configuration file."""
        return not self._written.startswith(("env:", "file:"))

    @property
    def file(self) -> Path | None:
        """The absolute path behind `file:PATH`; None for the other kinds."""
        if not self._written.startswith("file:"):
            return None
        return self._folder.absolute() / self._written.removeprefix("file:")

    def reveal(self) -> str:
        """The secret itself, read afresh: non-empty, and fit to be sent in an HTTP header.

        Raises SecretMissing naming the reference.
        """
        value = self._read()
        if not value.strip():
            raise SecretMissing(self.reference, "is empty")
        if _UNFIT_FOR_A_HEADER.search(value):
            raise SecretMissing(
                self.reference, "contains a line break, a control character or one that no HTTP header can carry"
            )
        if value != value.strip():
            raise SecretMissing(self.reference, "begins or ends with a space, which an HTTP header would lose")
        return value

    def reveal_text(self) -> str:
        """The secret itself, read afresh, where it may have several lines, as keys in PEM do.

        Raises SecretMissing naming the reference.
        """
        value = self._read()
        if not value.strip():
            raise SecretMissing(self.reference, "is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in value):  # as the environment gives other bytes
            raise SecretMissing(self.reference, "is not UTF-8 text")
        return value

    def _read(self) -> str:
        path = self.file
        if path is not None:
            return _read_file(path, self.reference)
        if self.is_literal:
            return self._written
        name = self._written.removeprefix("env:")
        value = self._environ.get(name)
        if value is None:
            raise SecretMissing(self.reference, "the environment has no variable of this name")
        return value

    def __repr__(self) -> str:
        return f"Secret({self.reference})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self._written == other._written and self.file == other.file

    def __hash__(self) -> int:
        return hash((Secret, self._written))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{self!r} is not pickled: a pickle would carry it in the clear")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            checked_secret,
            serialization=core_schema.plain_serializer_function_ser_schema(
                repr, return_schema=core_schema.str_schema()
            ),
        )


def checked_secret(value: object, info: core_schema.ValidationInfo[Any]) -> Secret:
    """What was written -> Secret. Raises PydanticCustomError, without repeating it."""
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError(
            "mistake",
            "{message}",
            {"message": "is not text", "remedy": "Quote it, or better write env:NAME or file:PATH."},
        )
    reason = _why_malformed(value)
    if reason is not None:
        raise PydanticCustomError(
            "mistake", "{message}", {"message": reason, "remedy": "Write env:NAME, file:PATH or the secret in quotes."}
        )
    context = info.context or {}
    return Secret(value, folder=context.get("folder"), environ=context.get("environ"))


def _why_malformed(written: str) -> str | None:
    if not written.strip():
        return "is empty"
    if written.startswith("env:") and not _ENVIRONMENT_NAME.fullmatch(written.removeprefix("env:")):
        return "does not name an environment variable after env:"
    if written.startswith("file:") and (not written.removeprefix("file:").strip() or not written.isprintable()):
        return "does not name a file after file:"
    # A literal `${KEY}` is a template that nothing fills in: the gateway would accept these six characters as a key.
    if written.startswith(("$", "{{")):
        return "is a template, which is not filled in here"
    return None


def _read_file(path: Path, reference: str) -> str:
    try:
        if not path.is_file():
            raise SecretMissing(reference, f"{path} is not a file")
        with path.open("rb") as stream:
            content = stream.read(LONGEST + 1)
    except (OSError, ValueError) as error:
        raise SecretMissing(reference, f"{path} cannot be read ({type(error).__name__})") from None
    if len(content) > LONGEST:
        raise SecretMissing(reference, f"{path} is longer than {LONGEST} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        unreadable = True
    else:
        unreadable = False
    if unreadable:
        # Raised out here: the decoding error holds the file's bytes and would travel along as the context.
        raise SecretMissing(reference, f"{path} is not UTF-8 text")
    return text.removesuffix("\n").removesuffix("\r")
