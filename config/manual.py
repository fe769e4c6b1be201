"""Prints `docs/configuration.md` from the models, so that the manual cannot say other than what the file may hold.

`python -m config.manual > docs/configuration.md`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from config import crosscheck, document, settings
from config.load import NOT_YET
from config.secrets import Secret
from config.settings import Section, Settings

OPENING: Final = """\
# Configuration

One YAML file says everything: `weighbridge serve --config gateway.yaml`. This page lists every key it may have; it is
printed from the code that reads the file (`python -m config.manual`), and a test keeps the two the same. Whole files
to start from are in `config/examples/`: `minimal.yaml`, `demo.yaml` (what `make run` serves), `contract.yaml` (every
section).

## How the file is read

- **Strictly.** An unknown key, a wrong type, a name that leads nowhere or one used twice is refused, all mistakes at
  once, each with its line and what to write instead:
  `gateway.yaml:41: routes[2].arms[0].weight: 130 is more than 100. Write a number from 0 to 100.`
- **One document, plain values.** Anchors, aliases, tags, merge keys and duplicate keys are refused, and so are numbers
  that YAML readers understand differently (`0x50`, `010`). A text that looks like a number or like `no`, `on`, `yes`
  needs quotes. At most {largest}; UTF-8.
- **Durations** are seconds, or a number with a unit: `250ms`, `50s`, `15m`, `1h`, `14d`. **Sizes** are bytes, or a
  number with a unit: `64KiB`, `32MiB`, `10MB`.
- **Names** have 1 to 63 letters, digits, dots, dashes or underscores, and begin with a letter or digit. Agents, people,
  targets, routes, tools, peers and environments each have names of their own; a peer and an environment may not share
  one, for both are served at `/a2a/NAME`.
- **Relative paths.** A file that is *read* (`policy.paths`, `file:` secrets, `ca`) is relative to the configuration
  file's folder; one that is *written* (`ledger.path`, `state`) is relative to the directory the gateway is started in.
- **While serving.** An edit of the file, of a policy or of a `file:` secret takes effect within a second, without
  dropping a call. A file with a mistake is reported and the last good one stays in force.

## Secrets

A secret is written `env:NAME` (a variable of the gateway's environment), `file:PATH` (the file's text without its last
line end) or as a literal, which `weighbridge check` warns of. It has to be there when the gateway starts, must fit into
an HTTP header (no line breaks or control characters), and is never printed: logs and errors show `Secret(env:NAME)` or
`Secret(literal)`. Agents' keys and people's tokens have {shortest} characters or more, and no two holders may share
one.
"""

CLOSING: Final = """\
## Read, but not acted on by this version

These are checked like everything else, and `weighbridge check` and the log warn of each: {not_yet}.
"""


def manual() -> str:
    """The whole page, as Markdown."""
    pages = [
        OPENING.format(largest=f"{document.LARGEST >> 20} MiB", shortest=crosscheck.SHORTEST_CREDENTIAL),
        "## Keys\n",
    ]
    pages += ["\n".join(_section(path, model)) for path, model in _sections("", Settings)]
    not_yet = ", ".join(f"`{_dotted(path)}`" for path in NOT_YET)
    pages.append(CLOSING.format(not_yet=not_yet))
    return "\n".join(pages)


def _sections(path: str, model: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Every model with the place it stands at, outer ones first, in the order of the file."""
    yield path, model
    for name, info in model.model_fields.items():
        inner, several = _model(info.annotation)
        if inner is not None:
            yield from _sections(f"{path}.{name}".removeprefix(".") + ("[]" if several else ""), inner)


def _section(path: str, model: type[Section]) -> Iterator[str]:
    yield f"### `{path}`" if path else "### The file"
    yield ""
    yield (model.__doc__ or "").strip()
    yield ""
    yield "| key | type | default | what it is for |"
    yield "|---|---|---|---|"
    for name, info in model.model_fields.items():
        cells = (f"`{name}`", _type(info), _default(info), info.description or "")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _model(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section inside an annotation, and whether there may be several."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for inner in get_args(annotation):
        found, _ = _model(inner)
        if found is not None:
            return found, get_origin(annotation) is tuple
    return None, False


_KINDS: Final[dict[Any, str]] = {
    settings.Seconds: "duration",
    settings.Bytes: "size",
    settings.Name: "name",
    settings.Node: "tenant or tenant/agent",
    settings.Url: "URL",
    settings.WholeUrl: "URL",
    settings.Number: "number",
    settings.InputPath: "path (read)",
    settings.OutputPath: "path (written)",
    settings.State: "URL, or secret",
    settings.Pointer: "JSON pointer",
    settings.Text: "text",
    settings.Method: "method",
    settings.HeaderName: "header name",
    settings.PathPattern: "path pattern",
    settings.Network: "network",
    settings.CalledHost: "host",
    settings.WebOrigin: "origin",
    settings.Scope: "scope",
    settings.Algorithm: "algorithm",
    Secret: "secret",
    bool: "true or false",
    int: "whole number",
    str: "text",
}


def _type(info: FieldInfo) -> str:
    """The kind of value in the operator's words, with its bounds."""
    bounds = {
        name: value
        for constraint in info.metadata
        for name in ("gt", "ge", "le")
        if (value := getattr(constraint, name, None)) is not None
    }
    words = _words(_typed(info))
    if "ge" in bounds and "le" in bounds:
        words += f", {bounds['ge']:g} to {bounds['le']:g}" if bounds["le"] < 10**5 else f", from {bounds['ge']:g}"
    elif "gt" in bounds:
        words += f", above {bounds['gt']:g}"
    return words


def _typed(info: FieldInfo) -> Any:
    """The field's type as it was written; pydantic keeps what was in Annotated apart from it."""
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


def _words(annotation: Any) -> str:
    kind = _kind(annotation)
    if kind is not None:
        return kind
    if get_origin(annotation) is Annotated:
        return _words(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return f"list of {_words(get_args(annotation)[0])}s".replace(" (read)s", "s (read)")
    if get_origin(annotation) in (Union, UnionType):
        return _words(next(each for each in get_args(annotation) if each is not NoneType))
    if get_origin(annotation) is Literal:
        *words, last = (f"`{word}`" for word in get_args(annotation))
        return f"{', '.join(words)} or {last}"
    return "section"


def _kind(annotation: Any) -> str | None:
    """The row of the table whose type this is, whatever bounds were added to it."""
    if get_origin(annotation) is not Annotated:
        return _KINDS.get(annotation)
    base, *metadata = get_args(annotation)
    for known, word in _KINDS.items():
        if get_origin(known) is Annotated:
            wanted, *marks = get_args(known)
            if wanted == base and all(mark in metadata for mark in marks):
                return word
    return None


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if value is PydanticUndefined or isinstance(value, Section):
        return "see below"
    if isinstance(value, tuple) and any(isinstance(each, Section) for each in value):
        return "see there"
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    kind = _words(_typed(info))
    if kind == "size":
        return f"`{_in_units(value, {'GiB': 2**30, 'MiB': 2**20, 'KiB': 2**10})}`"
    if kind == "duration":
        return f"`{_in_units(value, {'h': 3600, 'm': 60, 's': 1})}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _in_units(value: float, units: dict[str, int]) -> str:
    for unit, factor in units.items():
        if value >= factor and value % factor == 0:
            return f"{value / factor:g}{unit}"
    return f"{value:g}{'s' if 's' in units else ''}"


def _dotted(path: document.Path) -> str:
    return ".".join(str(part) for part in path).replace(".*", "[]")


PAGE: Final = Path(__file__).parents[1] / "docs" / "configuration.md"

if __name__ == "__main__":
    sys.stdout.write(manual())
