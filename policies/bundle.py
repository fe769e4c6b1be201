"""A bundle as Open Policy Agent builds them, read and made: an archive of modules and data that owns a part of `data`.

https://www.openpolicyagent.org/docs/management-bundles says what is in one. Differences from OPA: `*_test.rego` files
are tests and never decide, delta bundles and compiled ones (WebAssembly, plans) are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import orjson

from policies import archive
from policies import data as datafile
from policies.errors import PolicyError, Problem

if TYPE_CHECKING:
    from policies.signatures import Key, SigningKey

LARGEST_MODULE: Final = 1024 * 1024
ALL_MODULES: Final = 8 * 1024 * 1024
"""Bytes of one `.rego` file in a bundle, and of all of them. `policies.archive` limits the rest."""

MANIFEST: Final = ".manifest"
_SIGNATURES: Final = ".signatures.json"
_MODULE: Final = ".rego"
_TEST: Final = "_test.rego"
_DATA: Final = ("data.json", "data.yaml", "data.yml")
_COMPILED: Final = ("policy.wasm", "plan.json", "plan.pb")
_BUILD_AGAIN: Final = "Build it again with `weighbridge policy build`, or `opa build` for Rego 1."

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds.

    `modules` and `tests` are (file, text), the file being `BUNDLE/path/in/it`. `data` is mounted where its files lie.
    `roots` are the paths below `data` that are the bundle's alone; the empty path is everything. `revision` is what its
    manifest says, for people and for the record. `print` is a SHA-256 over the names and contents of all that decides.
    `signed_by` is the id of a configured key, or None.
    """

    name: str
    modules: tuple[tuple[str, str], ...]
    tests: tuple[tuple[str, str], ...]
    data: dict[str, Any]
    roots: tuple[Path, ...]
    revision: str
    print: bytes
    files: tuple[str, ...]
    signed_by: str | None


def unpack(content: bytes, name: str, keys: Sequence[Key] = ()) -> Bundle:
    """The bundle in `content`, called `name` in problems. With `keys`, it must be signed with one of them.

    No module, data or manifest is understood before the signature and all digests have proven right (but see
    `policies.signatures.verify`). Blocks for as long as reading takes. Raises PolicyError.
    """
    members = read(content, name)
    signed_by = _verified(members, name, keys)
    problems: list[Problem] = []
    revision, roots = _manifest(members, name, problems)
    modules, tests = _modules(members, name, problems)
    data = _data(members, name, problems)
    if not problems:
        problems += _strays(modules, data, roots, name)
    if problems:
        raise PolicyError(problems[:_MOST_PROBLEMS])
    decides = sorted(each for each in members if _is_data(each) or (_is_module(each) and not each.endswith(_TEST)))
    prints = (hashlib.sha256(f"bundle:{each}".encode()).digest() + _sha256(members[each]) for each in decides)
    return Bundle(
        name,
        tuple(modules),
        tuple(tests),
        data,
        roots,
        revision,
        hashlib.sha256(b"".join(prints)).digest(),
        tuple(sorted(members)),
        signed_by,
    )


def read(content: bytes, name: str) -> dict[str, memoryview]:
    """The files of a bundle, none of them understood. Raises PolicyError."""
    try:
        return archive.unpack(content)
    except archive.Unreadable as unreadable:
        place = f"{name}/{unreadable.member}" if unreadable.member else name
        raise PolicyError([Problem(place, None, str(unreadable), unreadable.remedy)]) from None


def build(modules: Mapping[str, str], data: Mapping[str, Any], revision: str) -> bytes:
    """A bundle of these modules (by file name) and this data. The same input gives the same bytes.

    Its roots are the packages of its modules and the keys of its data. Raises PolicyError.
    """
    problems: list[Problem] = []
    packages = [_package(name, text, problems) for name, text in sorted(modules.items())]
    for name in modules:
        if name.rpartition("/")[2] in (MANIFEST, _SIGNATURES, *_DATA):
            problems.append(Problem(name, None, "has a name that means something else in bundles", "Rename it."))
    if problems:
        raise PolicyError(problems)
    owned = {*packages, *((key,) for key in data)}
    inner = {root for root in owned if any(root[:length] in owned for length in range(len(root)))}
    roots = sorted(owned - inner, key=lambda root: (len(root), root))
    manifest = {"revision": revision, "roots": ["/".join(root) for root in roots], "rego_version": 1}
    members: dict[str, bytes | memoryview] = {MANIFEST: orjson.dumps(manifest)}
    members["data.json"] = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    members |= {name: text.encode() for name, text in sorted(modules.items())}
    return archive.pack(members)


def sign(content: bytes, name: str, key: SigningKey) -> bytes:
    """The bundle in `content` signed by `key`, which replaces any signature it had. Raises PolicyError."""
    from policies import signatures  # imports cryptography, which takes 40 ms of every proving child

    members: dict[str, bytes | memoryview] = dict(read(content, name))
    members[_SIGNATURES] = signatures.sign(name, members, key)
    return archive.pack(members)


_MOST_PROBLEMS: Final = 20
_MOST_SHOWN: Final = 10


def _verified(members: Mapping[str, memoryview], name: str, keys: Sequence[Key]) -> str | None:
    signed = _SIGNATURES in members
    if not keys and signed:
        remedy = "Give its key under policy.keys, or build it without a signature."
        raise PolicyError([Problem(name, None, "is signed, and no key is configured to verify it with", remedy)])
    if not keys:
        return None
    if not signed:
        remedy = "Sign it with `weighbridge policy sign`, or remove policy.keys."
        raise PolicyError([Problem(name, None, "is not signed, and policy.keys asks for a signature", remedy)])
    from policies import signatures  # imports cryptography, which takes 40 ms of every proving child

    return signatures.verify(name, members, keys)


def _manifest(members: Mapping[str, memoryview], name: str, problems: list[Problem]) -> tuple[str, tuple[Path, ...]]:
    """The manifest's revision and roots; what it says of things we do not have is refused."""
    for file in members:
        base = file.rpartition("/")[2]
        if base == "patch.json":
            problems.append(_wrong(name, file, "makes this a delta bundle, a change to another", "Send whole bundles."))
        elif base in _COMPILED:
            problems.append(_wrong(name, file, "is compiled policy", "Build with `opa build -t rego`, the default."))
        elif base.endswith(".manifest.pb"):
            problems.append(_wrong(name, file, "is a manifest in Protocol Buffers", "Build it with a JSON .manifest."))
        elif (base.endswith(MANIFEST) and file != MANIFEST) or (base == _SIGNATURES and file != _SIGNATURES):
            problems.append(_wrong(name, file, "belongs at the top of the bundle", _BUILD_AGAIN))
    if MANIFEST not in members:
        return "", ((),)
    place = f"{name}/{MANIFEST}"
    manifest, wrong = datafile.read(f"{place}.json", bytes(members[MANIFEST]))
    problems += (Problem(place, each.line, each.message, each.remedy) for each in wrong)
    for key in manifest:
        # Go finds a field whatever its letters' case; a manifest must not say one thing here and another there.
        if key not in _FIELDS and key.casefold() in _FIELDS:
            problems.append(_wrong(name, MANIFEST, f"has `{key}` for `{key.casefold()}`", "Write it in lower case."))
    revision = manifest.get("revision", "")
    if not isinstance(revision, str) or len(revision) > _LONGEST_REVISION or not revision.isprintable():
        problems.append(_wrong(name, MANIFEST, "has a revision that is no short text", _BUILD_AGAIN))
        revision = ""
    problems += _versions(manifest, name)
    if manifest.get("wasm") not in (None, []):
        problems.append(_wrong(name, MANIFEST, "asks for WebAssembly", "Build with `opa build -t rego`, the default."))
    if manifest.get("metadata") is not None and not isinstance(manifest["metadata"], dict):
        problems.append(_wrong(name, MANIFEST, "has metadata that is no object", _BUILD_AGAIN))
    return revision, _roots(manifest.get("roots"), name, problems)


_FIELDS: Final = ("revision", "roots", "wasm", "rego_version", "file_rego_versions", "metadata")
_LONGEST_REVISION: Final = 256


def _versions(manifest: Mapping[str, Any], name: str) -> Iterator[Problem]:
    given = manifest.get("rego_version")
    versions = manifest.get("file_rego_versions")
    of_files = versions.values() if isinstance(versions, dict) else ()
    if versions is not None and not isinstance(versions, dict):
        yield _wrong(name, MANIFEST, "has file_rego_versions that are no object", _BUILD_AGAIN)
    for version in (*(() if given is None else (given,)), *of_files):
        if version is True or version != 1:
            yield _wrong(name, MANIFEST, "is for another version of Rego than 1", "Rewrite it with `opa fmt --v0-v1`.")
            return


def _roots(written: Any, name: str, problems: list[Problem]) -> tuple[Path, ...]:
    if written is None:
        return ((),)
    if not isinstance(written, list) or not all(isinstance(root, str) for root in written):
        problems.append(_wrong(name, MANIFEST, "has roots that are no list of texts", _BUILD_AGAIN))
        return ((),)
    roots = tuple(tuple(root.strip("/").split("/")) if root.strip("/") else () for root in written)
    # In this order, what lies within a root comes right behind it.
    for outer, inner in pairwise(sorted(roots)):
        if _holds(outer, inner):
            message = f"has the roots `{shown(outer)}` and `{shown(inner)}`, one within the other"
            problems.append(_wrong(name, MANIFEST, message, "Keep the outer one."))
    return roots


def _modules(
    members: Mapping[str, memoryview], name: str, problems: list[Problem]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    modules: list[tuple[str, str]] = []
    tests: list[tuple[str, str]] = []
    left = ALL_MODULES
    for file in sorted(filter(_is_module, members)):
        content = members[file]
        left -= len(content)
        if len(content) > LARGEST_MODULE or left < 0:
            message = f"is too large: a .rego file may have {LARGEST_MODULE} bytes, all of them {ALL_MODULES}"
            problems.append(_wrong(name, file, message, "Split it; keep bulk data in data.json."))
            break
        try:
            text = bytes(content).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = bytes(content).count(b"\n", 0, error.start) + 1
            problems.append(Problem(f"{name}/{file}", line, "is not UTF-8 text", "Save the file as UTF-8."))
            continue
        (tests if file.endswith(_TEST) else modules).append((f"{name}/{file}", text))
    return modules, tests


def _data(members: Mapping[str, memoryview], name: str, problems: list[Problem]) -> dict[str, Any]:
    """All data files, each mounted at the path of its folder."""
    mounted: dict[str, Any] = {}
    # Outer folders first, so that what is deeper finds its place already there.
    for file in sorted(filter(_is_data, members), key=lambda each: (each.count("/"), each)):
        value, wrong = datafile.anything(f"{name}/{file}", bytes(members[file]))
        problems += wrong
        folders = file.split("/")[:-1]
        if wrong or (value is None and file.endswith(("yaml", "yml"))):
            continue
        if not folders and not isinstance(value, dict):
            problems.append(_wrong(name, file, "holds no object", "Write keys at the top."))
            continue
        if len(folders) > datafile.DEEPEST // 2:
            problems.append(_wrong(name, file, "lies too deep", "Use fewer folders."))
            continue
        for folder in reversed(folders):
            value = {folder: value}
        taken = merge(mounted, value)
        if taken is not None:
            problems.append(_wrong(name, file, f"holds `{'.'.join(taken)}`, as another data file does", "Keep one."))
    return mounted


def merge(into: dict[str, Any], more: Mapping[str, Any]) -> Path | None:
    """Puts `more` into `into`; gives the first path at which both hold something that is not an object."""
    todo: list[tuple[Path, dict[str, Any], Mapping[str, Any]]] = [((), into, more)]
    while todo:
        path, here, added = todo.pop()
        for key, value in added.items():
            if key not in here:
                here[key] = value
            elif isinstance(here[key], dict) and isinstance(value, dict):
                todo.append(((*path, key), here[key], value))
            else:
                return (*path, key)
    return None


def _strays(
    modules: Iterable[tuple[str, str]], data: Mapping[str, Any], roots: Sequence[Path], name: str
) -> Iterator[Problem]:
    """What lies outside the bundle's roots, as OPA judges it: rules of a package, and every value in the data."""
    if () in roots:
        return
    owned = ", ".join(f"`{shown(root)}`" for root in roots[:_MOST_SHOWN]) or "none"
    owned += f" and {len(roots) - _MOST_SHOWN} more" if len(roots) > _MOST_SHOWN else ""
    whole = set(roots)
    around = {root[:length] for root in roots for length in range(len(root))}
    problems: list[Problem] = []
    for file, text in modules:
        package = _package(file, text, problems)
        if not problems and not _within(whole, package):
            message = f"its package `{'.'.join(package)}` is outside the bundle's roots, {owned}"
            yield Problem(file, None, message, "Correct the package or the manifest.")
    yield from problems
    todo: list[tuple[Path, Any]] = [((key,), value) for key, value in data.items()]
    while todo:
        path, value = todo.pop()
        if _within(whole, path):
            continue
        if not isinstance(value, dict) or path not in around:
            message = f"its data at `{shown(path)}` is outside the bundle's roots, {owned}"
            yield Problem(name, None, message, "Move the data or correct the manifest.")
        else:
            todo += (((*path, key), inner) for key, inner in value.items())


def _within(roots: Set[Path], path: Path) -> bool:
    """Whether one of `roots` is `path` or around it."""
    return any(path[:length] in roots for length in range(len(path) + 1))


def packages(modules: Iterable[tuple[str, str]]) -> list[tuple[str, Path]]:
    """(file, package) of each (file, text). Raises PolicyError for a file whose package cannot be told at a glance."""
    problems: list[Problem] = []
    found = [(file, _package(file, text, problems)) for file, text in modules]
    if problems:
        raise PolicyError(problems)
    return found


_PACKAGE: Final = re.compile(
    r"""(?:\s|\#[^\n]*(?:\n|\Z))*package[ \t]+
    (?P<path>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\["(?:[^"\\\n]|\\["\\/])*"\])*)
    [ \t\r]*(?:\#[^\n]*)?(?:\n|\Z)(?!(?:\s|\#[^\n]*\n)*[.\[])""",
    re.VERBOSE | re.ASCII,
)
"""How every file begins. What continues in ways that readers might understand differently does not match."""
_STEP: Final = re.compile(r'\.?(\w+)|\["((?:[^"\\]|\\.)*)"\]', re.ASCII)


def _package(file: str, text: str, problems: list[Problem]) -> Path:
    found = _PACKAGE.match(text)
    if found is None:
        message = "does not begin with its package on a line of its own, such as `package weighbridge`"
        problems.append(Problem(file, None, message, "Write it so; a bundle owns packages."))
        return ()
    steps = _STEP.findall(found["path"])
    return tuple(word or re.sub(r"\\(.)", r"\1", quoted) for word, quoted in steps)


def _holds(outer: Path, inner: Path) -> bool:
    return inner[: len(outer)] == outer


def overlap(one: Iterable[Path], other: Iterable[Path]) -> Path | None:
    """A root of `one` that lies within one of `other` or around it, the inner of the two."""
    others = list(other)
    for root in one:
        for against in others:
            if _holds(root, against) or _holds(against, root):
                return max(root, against, key=len)
    return None


def shown(root: Path) -> str:
    """A root as manifests write it; `/` for everything."""
    return "/".join(root) or "/"


def _is_module(file: str) -> bool:
    return file.endswith(_MODULE)


def _is_data(file: str) -> bool:
    return file.rpartition("/")[2] in _DATA


def _sha256(content: memoryview) -> bytes:
    return hashlib.sha256(content).digest()


def _wrong(name: str, file: str, message: str, remedy: str) -> Problem:
    return Problem(f"{name}/{file}", None, message, remedy)
