"""Policies as an interpreter takes them: Rego texts, and data as JSON texts small enough to be taken between calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from policies.sources import Module, Sources

SLICE: Final = 32 * 1024
"""Bytes of data that an interpreter is handed at once: half a millisecond of work, and several while memory is new."""


@dataclass(frozen=True, slots=True)
class Packed:
    """`slices` merge to the whole data; `widest` is the number of keys of the largest object that was cut.

    For the rest see `policies.sources.Sources`.
    """

    modules: tuple[Module, ...]
    slices: tuple[str, ...]
    widest: int
    revision: str
    files: tuple[str, ...]
    bundles: Mapping[str, str] = field(default_factory=dict)


def pack(sources: Sources) -> Packed:
    """What decides, without the tests."""
    return Packed(
        sources.modules,
        tuple(slices(sources.data)),
        _widest(sources.data, SLICE),
        sources.revision,
        sources.files,
        sources.bundles,
    )


def describe(packed: Packed) -> dict[str, Any]:
    """All but the texts, which `texts` gives, as values that JSON has; `unpack` puts both together again."""
    return {
        "modules": [module.name for module in packed.modules],
        "widest": packed.widest,
        "revision": packed.revision,
        "files": packed.files,
        "bundles": packed.bundles,
    }


def texts(packed: Packed) -> Iterator[str]:
    """Modules, then data."""
    yield from (module.text for module in packed.modules)
    yield from packed.slices


def unpack(described: dict[str, Any], given: Sequence[str]) -> Packed:
    """What `describe` and `texts` were made of."""
    modules = tuple(map(Module, described["modules"], given))
    data = tuple(given[len(modules) :])
    files = tuple(described["files"])
    return Packed(modules, data, described["widest"], described["revision"], files, described["bundles"])


def slices(data: dict[str, Any], size: int = SLICE) -> Iterator[str]:
    """The data as JSON texts that merge to the whole, each of about `size` bytes.

    Only objects can be cut: a longer list or text is a slice of its own.
    """
    return _cut(data, b"", b"", size)


def _cut(whole: dict[str, Any], before: bytes, after: bytes, size: int) -> Iterator[str]:
    parts: list[bytes] = []
    length = 0

    def taken() -> str:
        text = b"%b{%b}%b" % (before, b",".join(parts), after)
        parts.clear()
        return text.decode()

    for key, value in whole.items():
        name = orjson.dumps(key)
        text = orjson.dumps(value)
        if value and len(text) > size and isinstance(value, dict):
            yield from _cut(value, b"%b{%b:" % (before, name), b"}" + after, size)
            continue
        if parts and length + len(text) > size:
            yield taken()
            length = 0
        parts.append(b"%b:%b" % (name, text))
        length += len(parts[-1]) + 1
    if parts:
        yield taken()


def _widest(whole: dict[str, Any], size: int) -> int:
    """Keys of the largest object that does not fit into one slice."""
    if len(orjson.dumps(whole)) <= size:
        return 0
    return max(len(whole), *(_widest(value, size) for value in whole.values() if isinstance(value, dict)), 0)
