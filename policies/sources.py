"""What the operator's policy paths hold, read whole and checked for size before anything interprets it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies import data as datafile
from policies.errors import PolicyError, Problem

LARGEST_MODULE: Final = 1024 * 1024
ALL_MODULES: Final = 8 * 1024 * 1024
ALL_DATA: Final = 64 * 1024 * 1024
MOST_FILES: Final = 10_000
"""Bytes of one `.rego` file, of all of them, and of all data files; number of files."""

_REGO: Final = ".rego"
_TEST: Final = "_test.rego"
_DATA: Final = (".yaml", ".yml", ".json")
_BUNDLE: Final = (".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True)
class Module:
    """One Rego file; `name` is its path as the operator would type it, and appears in messages."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything the policy paths hold.

    `modules` decide, `tests` are the `*_test.rego` files, `data` is mounted at its top-level keys. `revision` is 64
    hexadecimal digits over the names and contents of what decides, whatever the order of the paths and wherever the
    folders stand.
    """

    modules: tuple[Module, ...]
    tests: tuple[Module, ...]
    data: dict[str, Any]
    revision: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    file: Path
    name: str
    """The path below the configured folder: what the revision is made of."""


def read(paths: Sequence[str | os.PathLike[str]]) -> Sources:
    """Reads `.rego` files, data files, and folders of them (all below; hidden entries and other files are passed over).

    Blocks on the disk. Raises PolicyError with every problem found.
    """
    problems: list[Problem] = []
    found: list[_Found] = []
    for path in paths:
        _find(Path(path), problems, found)
        if len(found) > MOST_FILES:
            raise PolicyError(
                [*problems, Problem(str(path), None, f"holds more than {MOST_FILES} files", "Use fewer.")]
            )
    if not paths:
        problems.append(Problem("policy", None, "has no paths", "Name folders or files under policy.paths."))
    return _load(_once(found), problems)


def _find(path: Path, problems: list[Problem], found: list[_Found]) -> None:
    name = path.name.lower()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        problems.append(_unreadable(path, error))
        return
    if stat.S_ISDIR(mode):
        before = len(found)
        _walk(path, path, (), problems, found)
        if len(found) == before and not problems:
            problems.append(
                Problem(str(path), None, "holds no policy and no data", "Put .rego files there, or remove it.")
            )
    elif name.endswith(_BUNDLE):
        problems.append(Problem(str(path), None, "is a bundle; bundles come with a later version", "Unpack it."))
    elif name.endswith((_REGO, *_DATA)):
        found.append(_Found(path, path.name))
    else:
        problems.append(
            Problem(str(path), None, "is neither policy nor data", "Its name must end in .rego, .yaml, .yml or .json.")
        )


def _walk(
    root: Path, folder: Path, above: tuple[tuple[int, int], ...], problems: list[Problem], found: list[_Found]
) -> None:
    try:
        itself = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError as error:
        problems.append(_unreadable(folder, error))
        return
    identity = (itself.st_dev, itself.st_ino)
    if identity in above or len(above) > 40:
        problems.append(Problem(str(folder), None, "leads back to a folder above it", "Remove the symbolic link."))
        return
    for entry in entries:
        # Hidden entries include the generations of a mounted ConfigMap, whose visible links lead into them.
        if entry.name.startswith(".") or len(found) > MOST_FILES:
            continue
        try:
            is_folder = stat.S_ISDIR(entry.stat().st_mode)
        except OSError as error:
            problems.append(_unreadable(entry, error))
            continue
        if is_folder:
            _walk(root, entry, (*above, identity), problems, found)
        elif entry.name.lower().endswith((_REGO, *_DATA)):
            found.append(_Found(entry, entry.relative_to(root).as_posix()))


def _once(found: list[_Found]) -> Iterator[_Found]:
    seen: set[str] = set()
    for each in found:
        real = os.path.realpath(each.file)
        if real not in seen:
            seen.add(real)
            yield each


def _load(found: Iterator[_Found], problems: list[Problem]) -> Sources:
    modules: list[Module] = []
    tests: list[Module] = []
    mounted: dict[str, Any] = {}
    origin: dict[tuple[str, str | None], str] = {}
    prints: list[bytes] = []
    files: list[str] = []
    rego_left, data_left = ALL_MODULES, ALL_DATA
    for each in found:
        name = str(each.file)
        is_rego = each.name.lower().endswith(_REGO)
        limit = min(LARGEST_MODULE, rego_left) if is_rego else data_left
        content = _content(each.file, limit, problems)
        if content is None:
            continue
        files.append(name)
        is_test = each.name.lower().endswith(_TEST)
        if not is_test:
            prints.append(
                hashlib.sha256(each.name.encode("utf-8", "surrogateescape")).digest() + hashlib.sha256(content).digest()
            )
        if is_rego:
            rego_left -= len(content)
            module = _module(name, content, problems)
            if module is not None:
                (tests if is_test else modules).append(module)
        else:
            data_left -= len(content)
            value, wrong = datafile.read(name, content)
            problems += wrong
            _mount(mounted, origin, name, value, problems)
    if problems:
        raise PolicyError(problems)
    if not modules:
        raise PolicyError([Problem("policy", None, "has no .rego file", "Name one under policy.paths.")])
    return Sources(
        tuple(sorted(modules, key=lambda module: module.name)),
        tuple(sorted(tests, key=lambda module: module.name)),
        mounted,
        hashlib.sha256(b"".join(sorted(prints))).hexdigest(),
        tuple(sorted(files)),
    )


def _content(file: Path, limit: int, problems: list[Problem]) -> bytes | None:
    try:
        # A named pipe in the folder must not make us wait for someone to write into it.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                problems.append(
                    Problem(str(file), None, "is not a regular file", "Remove it from the policy's folder.")
                )
                return None
            content = opened.read(limit + 1)
    except OSError as error:
        problems.append(_unreadable(file, error))
        return None
    if len(content) > limit:
        message = (
            f"is too large: a .rego file may have {LARGEST_MODULE} bytes, all of them {ALL_MODULES}, data {ALL_DATA}"
        )
        problems.append(Problem(str(file), None, message, "Split policies into files; keep bulk data elsewhere."))
        return None
    return content


def _module(name: str, content: bytes, problems: list[Problem]) -> Module | None:
    try:
        return Module(name.encode("utf-8", "backslashreplace").decode(), content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.append(Problem(name, line, "is not UTF-8 text", "Save the file as UTF-8."))
        return None


def _mount(
    mounted: dict[str, Any],
    origin: dict[tuple[str, str | None], str],
    name: str,
    value: dict[str, Any],
    problems: list[Problem],
) -> None:
    """Puts a file's top-level keys in place; two files may share one when both hold objects with different keys."""
    for root, inner in value.items():
        if root not in mounted:
            mounted[root] = inner
            origin[root, None] = name
            if isinstance(inner, dict):
                origin.update({(root, key): name for key in inner})
            continue
        whole = mounted[root]
        if not isinstance(whole, dict) or not isinstance(inner, dict):
            message = f"`{root}` is also in {origin[root, None]}"
            problems.append(Problem(name, None, message, "Keep it in one file, or make both objects."))
            continue
        for key, part in inner.items():
            if key in whole:
                message = f"`{root}.{key}` is also in {origin[root, key]}"
                problems.append(Problem(name, None, message, "Keep one of them."))
            else:
                whole[key] = part
                origin[root, key] = name


def _unreadable(path: Path, error: Exception) -> Problem:
    if isinstance(error, OSError):
        reason = (error.strerror or "input/output error").lower()
        return Problem(str(path), None, f"cannot be read: {reason}", "Check the path and its permissions.")
    return Problem(str(path), None, "is not a path", "Correct it.")
