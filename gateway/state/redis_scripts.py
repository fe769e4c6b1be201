"""What a Redis server is told to do: one script a step, each atomic, the text of each beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any, Final, cast

import hiredis
import orjson

_HERE: Final = Path(__file__).parent
_READS: Final = ("look", "counted", "held", "held_in", "versions", "granted")
"""Scripts that only read, and can be run where nothing can be written."""


def packed(*words: str | bytes | int) -> bytes:
    """A command as a server reads it."""
    return cast(bytes, hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub knows one word only


class Script:
    """One step. A server knows it by its digest once it was loaded."""

    __slots__ = ("_digest", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._digest = sha1(text.encode(), usedforsecurity=False).hexdigest().encode()

    @classmethod
    def read(cls, name: str, *rules: str) -> Script:
        """The step `name`, after the rules that it needs."""
        flags = " flags=no-writes" if name in _READS else ""
        files = (_HERE / f"{each}.lua" for each in ("clock", *rules, name))
        return cls(name, f"#!lua{flags}\n" + "\n".join(file.read_text(encoding="utf-8") for file in files))

    def load(self) -> bytes:
        """The command that makes a server know it."""
        return packed("SCRIPT", "LOAD", self.text)

    def call(self, keys: Sequence[str], ask: dict[str, Any], bulk: bytes | None = None) -> bytes:
        """The command that runs it. All `keys` are of one slot. `bulk` is what the script takes besides, as it is."""
        rest = () if bulk is None else (bulk,)
        return packed(b"EVALSHA", self._digest, len(keys), *keys, orjson.dumps(ask), *rest)


class Scripts:
    """Every step there is."""

    def __init__(self) -> None:
        self.tell = Script.read("tell")
        self.reserve = Script.read("reserve", "books")
        self.extend = Script.read("extend", "books")
        self.settle = Script.read("settle", "books")
        self.post = Script.read("post", "books")
        self.void = Script.read("void", "books")
        self.renew = Script.read("renew")
        self.expire = Script.read("expire", "books")
        self.look = Script.read("look", "books")
        self.enter = Script.read("enter", "rates")
        self.leave = Script.read("leave", "rates")
        self.stay = Script.read("stay")
        self.steer = Script.read("steer")
        self.flush = Script.read("flush", "bucket")
        self.counted = Script.read("counted", "bucket")
        self.hold = Script.read("hold", "approval_keys", "approvals")
        self.change = Script.read("change", "approval_keys", "approvals")
        self.held = Script.read("held", "approval_keys", "approvals")
        self.held_in = Script.read("held_in", "approval_keys", "approvals")
        self.overdue = Script.read("overdue", "approval_keys", "approvals")
        self.versions = Script.read("versions", "approval_keys")
        self.bring = Script.read("bring", "approval_keys")
        self.take = Script.read("take", "approval_keys")
        self.taken = Script.read("taken", "approval_keys")
        self.postpone = Script.read("postpone", "approval_keys")
        self.grant = Script.read("grant", "approval_keys")
        self.granted = Script.read("granted", "approval_keys")
        self.use = Script.read("use", "approval_keys")
        self.give_back = Script.read("give_back", "approval_keys")
        self.revoke = Script.read("revoke", "approval_keys")
        self.pin = Script.read("pin")

    def all(self) -> list[Script]:
        return list(vars(self).values())
