"""What the embedded engine knows, as a capabilities file of OPA's: `opa check --capabilities` then refuses the rest.

Made by `python -m policies.capabilities` from the capabilities of an installed OPA: the builtins that are here too, as
OPA declares them, and of its features those that the interpreter has.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson

from policies.builtins import FORBIDDEN
from policies.interpreter import builtins

FILE: Final = Path(__file__).with_name("capabilities.json")

_OPERATORS: Final = frozenset(
    "and assign div eq equal gt gte internal.member_2 internal.member_3 internal.print lt lte minus mul neq or plus"
    " rem".split()
)
"""Builtins in whose place policies write operators, `in` and `print`."""

_FEATURES: Final = frozenset(("rego_v1",))
"""Not among them: words of the language as names, texts with expressions inside, `and`, `or` and `not` with bodies."""


def current(opa: str) -> dict[str, Any]:
    """The capabilities that the engine shares with an OPA program. Raises OSError or CalledProcessError."""
    told = subprocess.run([opa, "capabilities", "--current"], check=True, capture_output=True)
    theirs: dict[str, Any] = orjson.loads(told.stdout)
    ours = (builtins() | _OPERATORS) - FORBIDDEN.keys()
    return {
        "builtins": [_bare(each) for each in theirs["builtins"] if each["name"] in ours],
        "future_keywords": [],
        "features": sorted(_FEATURES.intersection(theirs["features"])),
        "allow_net": [],
    }


_PROSE: Final = frozenset(("categories", "description", "introduced"))


def _bare(declared: Any) -> Any:
    """A declaration without its texts for people."""
    if isinstance(declared, list):
        return [_bare(each) for each in declared]
    if isinstance(declared, dict):
        return {name: _bare(each) for name, each in declared.items() if name not in _PROSE}
    return declared


def written(capabilities: Mapping[str, Any]) -> bytes:
    """As it stands in the file: a line for each builtin, so that a new OPA shows as few changed lines."""
    rest = {name: value for name, value in capabilities.items() if name != "builtins"}
    lines = [orjson.dumps(each, option=orjson.OPT_SORT_KEYS) for each in capabilities["builtins"]]
    return b'{"builtins":[\n' + b",\n".join(lines) + b"\n]," + orjson.dumps(rest)[1:] + b"\n"


@cache
def arities() -> Mapping[str, int]:
    """How many arguments each builtin takes; those of which the file tells nothing are left out."""
    told = orjson.loads(FILE.read_bytes())
    return {
        each["name"]: len(each["decl"].get("args", ())) for each in told["builtins"] if "variadic" not in each["decl"]
    }


def main() -> None:
    """Writes the file anew, from `opa` on PATH or the program named."""
    FILE.write_bytes(written(current(sys.argv[1] if len(sys.argv) > 1 else "opa")))


if __name__ == "__main__":
    main()
