"""Archives for tests of bundles: good ones, and those that nobody sends by accident."""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from policies.bundle import Bundle, unpack
from policies.errors import PolicyError, Problem
from policies.signatures import Key

RULE: Final = 'package weighbridge\n\ndecision := {"decision": "ALLOW"}\n'


def manifest(**fields: Any) -> bytes:
    return orjson.dumps(fields)


def packed(
    *members: tuple[str | tarfile.TarInfo, bytes | str] | tarfile.TarInfo, format: int = tarfile.USTAR_FORMAT
) -> bytes:
    """An archive of these members as they come: (name or header, content), or any header without content."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, text = member
            content = text.encode() if isinstance(text, str) else text
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(tarred.getvalue(), compresslevel=1)


def bundle(files: Mapping[str, bytes | str] | None = None, **fields: Any) -> bytes:
    """An archive with these files, one rule if there are none, and a manifest if it is to say something."""
    members: dict[str, bytes | str] = {"main.rego": RULE} if files is None else dict(files)
    if fields:
        members[".manifest"] = manifest(**fields)
    return packed(*members.items())


def header(name: str, kind: bytes, **facts: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for fact, value in facts.items():
        setattr(made, fact, value)
    return made


def read(content: bytes, keys: Sequence[Key] = ()) -> Bundle:
    return unpack(content, "b.tar.gz", keys)


def refused(content: bytes, keys: Sequence[Key] = ()) -> Problem:
    """The one problem that a bundle is refused with."""
    try:
        read(content, keys)
    except PolicyError as error:
        (only,) = error.problems
        assert only.remedy
        return only
    raise AssertionError("it was accepted")
