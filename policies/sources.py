"""What the operator's policy paths hold, read whole and checked for size before anything interprets it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from policies import archive, bundle
from policies import data as datafile
from policies.bundle import ALL_MODULES, LARGEST_MODULE, Bundle
from policies.errors import PolicyError, Problem

if TYPE_CHECKING:
    from policies.signatures import Key

ALL_DATA: Final = 64 * 1024 * 1024
MOST_FILES: Final = 10_000
"""Bytes of all data files outside bundles; number of files. A `.rego` file's size is limited as in a bundle."""

_TRIES: Final = 5
"""How often files are read that change meanwhile."""

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
    folders stand. `bundles` has the revision that each bundle's manifest gives it, by the bundle's name; `data_files`
    the file outside of bundles that each top-level key of the data comes from, or each `key.key` where files share one.
    """

    modules: tuple[Module, ...]
    tests: tuple[Module, ...]
    data: dict[str, Any]
    revision: str
    files: tuple[str, ...]
    bundles: Mapping[str, str] = field(default_factory=dict)
    data_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A bundle that came over the network: where it came from, and its bytes."""

    name: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Places:
    """Where policies are to be read from, and the keys that all of them have to be signed with, if there are any."""

    paths: tuple[str | os.PathLike[str], ...]
    keys: tuple[Key, ...] = ()
    fetched: tuple[Fetched, ...] = ()


_Seen = tuple[object, ...]
"""What a file was when it was looked at."""


@dataclass(frozen=True, slots=True)
class _Found:
    file: Path
    name: str
    """The path below the configured folder: what the revision is made of."""


def read(paths: Sequence[str | os.PathLike[str]], keys: Sequence[Key] = (), fetched: Sequence[Fetched] = ()) -> Sources:
    """Reads bundles, `.rego` files, data files, and folders of the latter two (all below; hidden entries and others
    are passed over), besides the bundles that were `fetched`. With `keys`, all must be bundles that one of them signed.

    What changes meanwhile is read again, so that files that were swapped together are never read apart.
    Blocks on the disk. Raises PolicyError with every problem found.
    """
    for _ in range(_TRIES):
        before, opened = _look(paths), list[_Seen]()
        try:
            sources = _read(paths, keys, fetched, opened)
        except PolicyError:
            if _stayed(paths, before, opened):
                raise
        else:
            if _stayed(paths, before, opened):
                return sources
    raise PolicyError([Problem(str(paths[0]), None, "changes while it is read", "Move it into place as a whole.")])


def _stayed(paths: Sequence[str | os.PathLike[str]], before: list[_Seen], opened: Sequence[_Seen]) -> bool:
    """Whether all files are as they were, and were so when they were opened: two swaps lead back to where one began."""
    return set(before).issuperset(opened) and _look(paths) == before


def _look(paths: Sequence[str | os.PathLike[str]]) -> list[_Seen]:
    """What tells a file that stayed from one that was replaced or rewritten, for each file there is."""
    found: list[_Found] = []
    for path in paths:
        if len(found) <= MOST_FILES:
            _find(Path(path), [], found, None, [])
    seen: list[_Seen] = []
    for each in found:
        try:
            seen.append(_seen(each.file, each.file.stat()))
        except OSError:
            seen.append((each.file,))
    return seen


def _seen(file: Path, status: os.stat_result) -> _Seen:
    return file, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(
    paths: Sequence[str | os.PathLike[str]], keys: Sequence[Key], fetched: Sequence[Fetched], opened: list[_Seen]
) -> Sources:
    problems: list[Problem] = []
    found: list[_Found] = []
    packed: list[Fetched] = list(fetched)
    for path in paths:
        if keys and not _is_bundle(Path(path)):
            message = "is no bundle, and policy.keys asks for signed ones"
            problems.append(Problem(str(path), None, message, "Build and sign one, or remove policy.keys."))
            continue
        _find(Path(path), problems, found, packed, opened)
        if len(found) > MOST_FILES:
            raise PolicyError(
                [*problems, Problem(str(path), None, f"holds more than {MOST_FILES} files", "Use fewer.")]
            )
    if not paths and not fetched:
        problems.append(Problem("policy", None, "has no paths", "Name folders or files under policy.paths."))
    return _load(_once(found), _unpacked(packed, keys, problems), problems, opened)


def _is_bundle(path: Path) -> bool:
    return path.name.lower().endswith(_BUNDLE)


def _unpacked(packed: Sequence[Fetched], keys: Sequence[Key], problems: list[Problem]) -> list[Bundle]:
    bundles: list[Bundle] = []
    for each in packed:
        try:
            bundles.append(bundle.unpack(each.content, each.name, keys))
        except PolicyError as error:
            problems += error.problems
    return bundles


def _find(
    path: Path, problems: list[Problem], found: list[_Found], packed: list[Fetched] | None, opened: list[_Seen]
) -> None:
    """Adds what stands at `path`: bundles to `packed`, already read; without it, they count as found."""
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
    elif _is_bundle(path) and packed is not None:
        content = _content(path, archive.LARGEST_PACKED, problems, opened)
        if content is not None and all(each.name != str(path) for each in packed):
            packed.append(Fetched(str(path), content))
    elif name.endswith((_REGO, *_DATA)) or _is_bundle(path):
        found.append(_Found(path, path.name))
    else:
        problems.append(
            Problem(
                str(path),
                None,
                "is neither policy nor data",
                "Its name must end in .rego, .yaml, .yml or .json, or .tar.gz for a bundle.",
            )
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


def _load(found: Iterator[_Found], bundles: Sequence[Bundle], problems: list[Problem], opened: list[_Seen]) -> Sources:
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
        content = _content(each.file, limit, problems, opened)
        if content is None:
            continue
        shown = name.encode("utf-8", "backslashreplace").decode()
        files.append(shown)
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
            value, wrong = datafile.read(shown, content)
            problems += wrong
            _mount(mounted, origin, shown, value, problems)
    if not problems:
        problems += _trespasses(modules, mounted, bundles)
    if problems:
        raise PolicyError(problems)
    for each_bundle in bundles:
        files.append(each_bundle.name)
        prints.append(each_bundle.print)
        modules += (Module(name, text) for name, text in each_bundle.modules)
        tests += (Module(name, text) for name, text in each_bundle.tests)
        bundle.merge(mounted, each_bundle.data)
    if not modules:
        raise PolicyError([Problem("policy", None, "has no .rego file", "Name one under policy.paths.")])
    return Sources(
        tuple(sorted(modules, key=lambda module: module.name)),
        tuple(sorted(tests, key=lambda module: module.name)),
        mounted,
        hashlib.sha256(b"".join(sorted(prints))).hexdigest(),
        tuple(sorted(files)),
        _revisions(bundles),
        _data_files(origin),
    )


def _data_files(origin: Mapping[tuple[str, str | None], str]) -> dict[str, str]:
    shared = {root for (root, key), name in origin.items() if name != origin[root, None]}
    return {
        root if key is None else f"{root}.{key}": name
        for (root, key), name in origin.items()
        if (key is None) != (root in shared)
    }


def _trespasses(modules: Sequence[Module], mounted: Mapping[str, Any], bundles: Sequence[Bundle]) -> Iterator[Problem]:
    """What lies within a bundle's roots and is not of it: what a bundle owns, nothing else may say."""
    if not bundles:
        return
    loose: list[tuple[str, bundle.Path]] = [("the data", (key,)) for key in mounted]
    loose += bundle.packages((module.name, module.text) for module in modules)
    taken: list[tuple[str, bundle.Path]] = []
    remedy = "Give bundles roots in their manifests (`weighbridge policy build` does) that do not overlap."
    for each in bundles:
        for place, path in (*loose, *taken):
            inner = bundle.overlap(each.roots, [path])
            if inner is not None:
                message = f"and {place} both have to do with `{bundle.shown(inner)}`"
                yield Problem(each.name, None, message, remedy)
                break
        taken += ((each.name, root) for root in each.roots)


def _revisions(bundles: Sequence[Bundle]) -> dict[str, str]:
    """By the bundle's file name without ending; by all of its name where two share that."""
    revisions: dict[str, str] = {}
    for each in bundles:
        short = each.name.rpartition("/")[2]
        for ending in _BUNDLE:
            short = short.removesuffix(ending)
        revisions[each.name if short in revisions else short] = each.revision
    return revisions


def _content(file: Path, limit: int, problems: list[Problem], seen: list[_Seen]) -> bytes | None:
    try:
        # A named pipe in the folder must not make us wait for someone to write into it.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            seen.append(_seen(file, status))
            if not stat.S_ISREG(status.st_mode):
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
            f"is too large: a .rego file may have {LARGEST_MODULE} bytes, all of them {ALL_MODULES}, "
            f"data {ALL_DATA}, a bundle {archive.LARGEST_PACKED}"
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
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if path.is_symlink():
            return Problem(str(path), None, "is a link to what does not exist", "Correct the link, or remove it.")
        return Problem(str(path), None, "does not exist", "Correct the path.")
    if isinstance(error, OSError):
        reason = (error.strerror or "input/output error").lower()
        return Problem(str(path), None, f"cannot be read: {reason}", "Check the path and its permissions.")
    return Problem(str(path), None, "is not a path", "Correct it.")
