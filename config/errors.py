"""What can be wrong with what the operator wrote; raised before any call is accepted, never on the way of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to correct: where it stands, what is wrong, what to write instead.

    `line` and `column` count from 1, and are 0 for a file that cannot be read at all. `path` is like
    `routes[2].arms[0].weight`, empty for the file as a whole.
    `message` and `remedy` never contain a secret, nor any text of the file that could be one.
    """

    file: Path
    line: int
    column: int
    path: str
    message: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        subject = f"{self.path}: " if self.path else ""
        remedy = f" {_sentence(self.remedy)}" if self.remedy else ""
        return f"{where}{subject}{_full_stop(self.message)}{remedy}"


class ConfigError(Exception):
    """The configuration cannot be used; carries every mistake found, in the order of the file.

    `files` are the files whose change may cure it: the configuration and the secrets it points at.
    """

    def __init__(self, mistakes: Iterable[Mistake], files: frozenset[Path] = frozenset()) -> None:
        self.mistakes = list(mistakes)
        self.files = files
        super().__init__(self.mistakes)

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)


class SecretMissing(Exception):
    """A secret cannot be used; names the reference (`env:OPENAI_API_KEY`) and the reason, never the value."""

    def __init__(self, reference: str, reason: str) -> None:
        self.reference = reference
        self.reason = reason
        super().__init__(reference, reason)

    def __str__(self) -> str:
        return f"{self.reference}: {self.reason}"


def _full_stop(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."


def _sentence(text: str) -> str:
    return _full_stop(text[:1].upper() + text[1:])
