"""A `.tar.gz` from anyone, taken apart in memory: nothing is extracted, and nothing costs more than was agreed.

Read are plain files and folders as `opa build`, `tar` and Python write them: POSIX ustar and pax headers (IEEE 1003.1,
pax, "Interchange Formats") and GNU's long names. Everything else that the format can express is refused.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from typing import Final

LARGEST_PACKED: Final = 32 * 1024 * 1024
LARGEST_UNPACKED: Final = 80 * 1024 * 1024
MOST_MEMBERS: Final = 10_000
LONGEST_NAME: Final = 1024
LONGEST_PAX: Final = 64 * 1024
"""Bytes before and after inflating, members of any kind, and bytes of a member's name and of its pax header."""

_BLOCK: Final = 512
_PIECE: Final = 64 * 1024
_LONGEST_LENGTH: Final = 8
_FILE, _FOLDER = (b"0", b"\0"), b"5"
_PAX, _PAX_FOR_ALL, _GNU_NAME = b"x", b"g", b"L"
_KINDS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"7": "a contiguous file",
    b"S": "a sparse file",
    b"K": "a link with a long name",
}


class Unreadable(Exception):
    """An archive that is broken, too large, or holds what no bundle may hold. `member` is the place, where known."""

    def __init__(self, message: str, remedy: str, member: str = "") -> None:
        super().__init__(message)
        self.remedy, self.member = remedy, member


def unpack(content: bytes) -> dict[str, memoryview]:
    """The files of an archive, by their names without a leading `/` or `./`. Raises Unreadable."""
    return _members(memoryview(_inflated(content)))


def pack(members: Mapping[str, bytes | memoryview], level: int = 9) -> bytes:
    """An archive of these files, in their order; the same files give the same bytes. `level` is zlib's."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(tarred.getvalue(), compresslevel=level, mtime=0)


def _inflated(content: bytes) -> bytearray:
    if len(content) > LARGEST_PACKED:
        raise Unreadable(f"is larger than {LARGEST_PACKED} bytes", "Keep bulk data elsewhere.")
    if not content:
        raise Unreadable("is empty", "Fetch or build it again.")
    tarred = bytearray()
    packed = memoryview(content)
    inflating = zlib.decompressobj(wbits=31)
    for start in range(0, len(packed), _PIECE):
        if inflating.eof:
            break
        try:
            tarred += inflating.decompress(packed[start : start + _PIECE], LARGEST_UNPACKED + 1 - len(tarred))
        except zlib.error:
            raise Unreadable("is not a .tar.gz archive, or is damaged", "Fetch or build it again.") from None
        if len(tarred) > LARGEST_UNPACKED:
            raise Unreadable(f"inflates to more than {LARGEST_UNPACKED} bytes", "Keep bulk data elsewhere.")
    if not inflating.eof:
        raise Unreadable("ends too early", "Fetch or build it again.")
    if len(inflating.unused_data) or start + _PIECE < len(packed):
        raise Unreadable("goes on after its end", "Build it again; archives cannot be joined.")
    return tarred


def _members(tarred: memoryview) -> dict[str, memoryview]:
    found: dict[str, memoryview] = {}
    at = count = 0
    long_name: str | None = None
    while at < len(tarred):
        header = tarred[at : at + _BLOCK]
        if len(header) < _BLOCK:
            raise Unreadable("ends within a header", "Fetch or build it again.")
        if not any(header):
            if bytes(tarred[at:]).strip(b"\0"):
                raise Unreadable("goes on after its end", "Build it again; archives cannot be joined.")
            break
        count += 1
        if count > MOST_MEMBERS:
            raise Unreadable(f"holds more than {MOST_MEMBERS} members", "Use fewer files.")
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 0x20:
            raise Unreadable("has a header with a wrong checksum", "Fetch or build it again.")
        size = _number(header[124:136])
        start, end = at + _BLOCK, at + _BLOCK + size
        if end > len(tarred):
            raise Unreadable("ends within a member", "Fetch or build it again.")
        body, kind = tarred[start:end], bytes(header[156:157])
        at = start + -(-size // _BLOCK) * _BLOCK
        if kind in (_PAX, _PAX_FOR_ALL, _GNU_NAME):
            if long_name is not None:
                raise Unreadable("gives a member two names", "Build it again.")
            long_name = _text(bytes(body).removesuffix(b"\0")) if kind == _GNU_NAME else _pax(body, kind)
            continue
        name = _own_name(header) if long_name is None else long_name
        long_name = None
        if kind == _FOLDER and size == 0:
            continue
        if kind not in _FILE:
            what = _KINDS.get(kind, "of a kind that is not known here")
            raise Unreadable(f"is {what}", "A bundle holds plain files and folders only.", _shown(name))
        name = _checked(name)
        if name in found:
            raise Unreadable("is there twice", "Build it again, each file once.", name)
        found[name] = body
    if long_name is not None:
        raise Unreadable("ends after a name", "Fetch or build it again.")
    return found


def _own_name(header: memoryview) -> str:
    name, prefix = (bytes(part).partition(b"\0")[0] for part in (header[:100], header[345:500]))
    # GNU's older format keeps times where POSIX's has the beginning of the name.
    return _text(prefix + b"/" + name if prefix and bytes(header[257:263]) == b"ustar\0" else name)


def _pax(body: memoryview, kind: bytes) -> str | None:
    """The name that a pax header gives; what else would change how the member is read is refused."""
    if len(body) > LONGEST_PAX:
        raise Unreadable(f"has a pax header of more than {LONGEST_PAX} bytes", "Build it again.")
    name: str | None = None
    records, at = bytes(body).rstrip(b"\0"), 0
    while at < len(records):
        digits, _, _ = records[at : at + _LONGEST_LENGTH].partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < _LONGEST_LENGTH else 0
        record = records[at + len(digits) + 1 : at + length]
        keyword, separator, value = record.partition(b"=")
        if not separator or len(record) + len(digits) + 1 != length or record[-1:] != b"\n":
            raise Unreadable("has a damaged pax header", "Fetch or build it again.")
        at += length
        if keyword == b"path" and kind == _PAX and name is None:
            name = _text(value[:-1])
        elif keyword in (b"path", b"linkpath", b"size", b"hdrcharset") or keyword.startswith(b"GNU.sparse"):
            raise Unreadable(
                f"has a pax header with `{_shown(keyword.decode('utf-8', 'backslashreplace'))}`",
                "Build it with `weighbridge policy build` or `opa build`.",
            )
    return name


def _number(field: memoryview) -> int:
    digits = bytes(field).strip(b" \0")
    if not all(0x30 <= each <= 0x37 for each in digits):
        raise Unreadable("has a header that is not understood", "Build it with `opa build` or `tar czf`.")
    return int(digits or b"0", 8)


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise Unreadable("has a name that is not UTF-8", "Rename the file.") from None


def _checked(name: str) -> str:
    """A name relative to the bundle's root, such that every reader takes it for the same file. Raises Unreadable."""
    if len(name) > LONGEST_NAME:
        raise Unreadable(f"has a name of more than {LONGEST_NAME} characters", "Rename the file.", _shown(name))
    relative = name.removeprefix("/").removeprefix("./")
    parts = relative.split("/")
    if not relative.isprintable() or "\\" in relative or ":" in relative:
        raise Unreadable("has a name that not everyone could read", "Rename the file.", _shown(name))
    if any(part in ("", ".", "..") for part in parts):
        raise Unreadable("has a name that leads elsewhere", "Build it again, from within its folder.", _shown(name))
    return relative


def _shown(name: str) -> str:
    return name[:200].encode("unicode_escape").decode("ascii")
