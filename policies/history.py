"""Revisions that were put to use, kept as bundles.

A start without a sound policy falls back on the last one; an old decision is explained with the one that took it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from policies import archive
from policies.errors import PolicyError, Problem
from policies.sources import Module, Sources

MOST: Final = 20
"""Revisions that are kept; the one that was put to use longest ago goes first."""

_ENDING: Final = ".tar.gz"
ON_TRIAL: Final = "trial"
"""The folder within for policies on trial. Only one that was promoted falls back on what is in there."""
_REVISION: Final = re.compile(r"[0-9a-f]{64}")
_QUICKLY: Final = 1
"""The level of compression: data of this kind gains little from more, which takes three times as long."""
_UNREADABLE: Final = "Remove the file."


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept revision, by its file."""

    file: Path


class History:
    """A folder with the last revisions that were put to use. Nobody but the gateway's own user may read it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.failure: str | None = None
        """Why the last revision could not be kept, for the operator."""

    def keep(self, revision: str, bundle: bytes) -> None:
        """Makes this the newest. Blocks on the disk; a failure is told in `failure`."""
        kept = self._folder / f"{revision}{_ENDING}"
        unfinished = self._folder / f".{revision}.{os.getpid()}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as stream:
                stream.write(bundle)
                stream.flush()
                os.fsync(descriptor)
            unfinished.replace(kept)
            for old in self._kept()[MOST:]:
                old.unlink(missing_ok=True)
            self.failure = None
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            self.failure = error.strerror or type(error).__name__

    def newest(self) -> Kept | None:
        """The revision that was put to use last."""
        kept = self._kept()
        return Kept(kept[0]) if kept else None

    def find(self, revision: str) -> Kept | None:
        """The revision of this name, 64 hexadecimal digits, where it is still kept, those on trial included."""
        if not _REVISION.fullmatch(revision):
            return None
        for folder in (self._folder, self._folder / ON_TRIAL):
            file = folder / f"{revision}{_ENDING}"
            if file.is_file():
                return Kept(file)
        return None

    def _kept(self) -> list[Path]:
        """The newest first."""
        found: list[tuple[int, Path]] = []
        with suppress(OSError):
            for entry in os.scandir(self._folder):
                if entry.name.endswith(_ENDING) and not entry.name.startswith("."):
                    with suppress(OSError):
                        found.append((entry.stat().st_mtime_ns, Path(entry.path)))
        return [path for _, path in sorted(found, reverse=True)]


def pack(sources: Sources) -> bytes | None:
    """What decides, as a bundle that OPA reads as well; None when it is larger than a bundle may be."""
    names = {f"modules/{number:03}-{_plain(each.name)}": each for number, each in enumerate(sources.modules)}
    own = {
        "names": {member: module.name for member, module in names.items()},
        "files": sources.files,
        "bundles": sources.bundles,
    }
    manifest = {"revision": sources.revision, "roots": [""], "rego_version": 1, "metadata": {"weighbridge": own}}
    members: dict[str, bytes | memoryview] = {".manifest": orjson.dumps(manifest)}
    members["data.json"] = orjson.dumps(sources.data)
    members |= {member: module.text.encode() for member, module in names.items()}
    packed = archive.pack(members, level=_QUICKLY)
    return packed if len(packed) <= archive.LARGEST_PACKED else None


def read(kept: Kept) -> Sources:
    """What was put to use, with the revision it had then. Raises PolicyError."""
    try:
        return _sources(archive.unpack(_content(kept.file)))
    except OSError as error:
        message = f"cannot be read: {(error.strerror or type(error).__name__).lower()}"
    except (archive.Unreadable, LookupError, TypeError, ValueError) as error:
        message = f"is no kept revision: {error}"
    raise PolicyError([Problem(str(kept.file), None, message, _UNREADABLE)])


def _sources(members: Mapping[str, memoryview]) -> Sources:
    manifest: dict[str, Any] = orjson.loads(members[".manifest"])
    own = manifest["metadata"]["weighbridge"]
    modules = tuple(Module(name, bytes(members[member]).decode()) for member, name in own["names"].items())
    data = orjson.loads(members["data.json"])
    return Sources(modules, (), data, manifest["revision"], tuple(own["files"]), own["bundles"])


def _content(file: Path) -> bytes:
    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("not a regular file")
        return stream.read(archive.LARGEST_PACKED + 1)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", Path(name).name)[-100:]
