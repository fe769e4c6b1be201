"""The Rego interpreter, fenced in: the one file that imports it, and the table of builtins that policies do not get.

Nothing can interrupt an evaluation and an allocation failure ends the process, so builtins whose cost a caller's text
could drive without bound are bounded or refused, and those that would make a decision depend on anything but its input.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

# An error otherwise costs ten times as much and carries the interpreter's own stack, whatever the environment says.
os.environ["RUST_LIB_BACKTRACE"] = "0"

import orjson
import regorus  # type: ignore[import-untyped]  # compiled, without stubs; Interpreter below is what we use of it

from policies.errors import Problem

LONGEST_RANGE: Final = 10_000
LONGEST_TEXT: Final = 1024 * 1024
MOST_SHIFT: Final = 63
DEEPEST_INPUT: Final = 128
LONGEST_LINE: Final = 1024


class Interpreter(Protocol):
    """What we use of the interpreter. It belongs to the thread that made it."""

    def clone(self) -> Interpreter: ...
    def add_policy(self, path: str, rego: str) -> str: ...
    def add_data_json(self, data: str) -> None: ...
    def set_input_json(self, input: str) -> None: ...
    def eval_rule_as_json(self, rule: str) -> str: ...
    def get_ast_as_json(self) -> str: ...


FORBIDDEN: Final[Mapping[str, tuple[int, str]]] = {
    "http.send": (1, "a decision must not wait for the network; bring what it needs as data"),
    "net.cidr_expand": (1, "one short text expands to billions of addresses; use net.cidr_contains"),
    "net.lookup_ip_addr": (1, "a decision must not wait for the network"),
    "opa.runtime": (0, "it shows the gateway's process; bring what the policy needs as data"),
    "rand.intn": (2, "the same call must get the same decision"),
    "uuid.rfc4122": (1, "the same call must get the same decision"),
    "graph.reachable_paths": (2, "its cost grows exponentially; use graph.reachable"),
    "units.parse": (1, "an exponent in a short text takes minutes; compare plain numbers"),
    "units.parse_bytes": (1, "an exponent in a short text takes minutes; compare plain numbers"),
    "yaml.unmarshal": (1, "aliases in a short text expand without bound; use json.unmarshal"),
}
"""Builtins no policy may call: how many arguments they take, and why. The linter names them, the interpreter raises."""

LITERAL: Final[Mapping[str, tuple[int, str]]] = {
    "sprintf": (0, "a width in a format from elsewhere can ask for any amount of memory"),
    "regex.replace": (2, "a replacement from elsewhere multiplies the text"),
}
"""Builtins one of whose arguments (by position, from 0) must be written out in the policy, and why."""

_WIDTH: Final = re.compile(r"%[-+# 0-9.\[\]]*(?:\d{4}|\*)")


def sprintf_is_bounded(template: str) -> bool:
    """Whether a format's widths and precisions are below a thousand and not taken from an argument."""
    return _WIDTH.search(template) is None


def _range(start: Any, stop: Any) -> list[int]:
    return _steps(start, stop, 1)


def _steps(start: Any, stop: Any, step: Any) -> list[int]:
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in (start, stop, step)) or step <= 0:
        raise ValueError("numbers.range takes whole numbers and a positive step")
    if abs(stop - start) // step >= LONGEST_RANGE:
        raise ValueError(f"a range has at most {LONGEST_RANGE} numbers")
    return list(range(start, stop + 1, step) if start <= stop else range(start, stop - 1, -step))


def _shift(number: Any, places: Any) -> int:
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in (number, places)):
        raise ValueError("bits.lsh takes whole numbers")
    if not 0 <= places <= MOST_SHIFT or number.bit_length() + places > MOST_SHIFT:
        raise ValueError(f"bits.lsh gives at most {MOST_SHIFT} bits")
    return int(number << places)


def _count(text: Any, part: Any) -> int:
    if not isinstance(text, str) or not isinstance(part, str) or not part:
        raise ValueError("strings.count takes two texts, the second not empty")
    return text.count(part)


def _replace(text: Any, old: Any, new: Any) -> str:
    if not all(isinstance(each, str) for each in (text, old, new)) or not old:
        raise ValueError("replace takes three texts, the second not empty")
    if len(text) + text.count(old) * (len(new) - len(old)) > LONGEST_TEXT:
        raise ValueError(f"replace gives at most {LONGEST_TEXT} characters")
    return str(text.replace(old, new))


def _replace_n(patterns: Any, text: Any) -> str:
    if not isinstance(patterns, dict):
        raise ValueError("strings.replace_n takes an object of texts")
    # At each place of the text the first pattern that fits wins; what was put in is not looked at again.
    ordered = sorted(patterns.items())
    if not all(isinstance(each, str) for pair in ordered for each in pair) or not all(patterns):
        raise ValueError("strings.replace_n takes an object of texts, its keys not empty")
    if not isinstance(text, str):
        raise ValueError("strings.replace_n takes a text")
    if not ordered:
        return text
    if len(text) * max(1, *(len(new) for _, new in ordered)) > LONGEST_TEXT:
        raise ValueError(f"strings.replace_n gives at most {LONGEST_TEXT} characters")
    return re.sub("|".join(re.escape(old) for old, _ in ordered), lambda found: patterns[found[0]], text)


BOUNDED: Final[Mapping[str, tuple[int, Callable[..., Any]]]] = {
    "numbers.range": (2, _range),
    "numbers.range_step": (3, _steps),
    "bits.lsh": (2, _shift),
    "strings.count": (2, _count),
    "replace": (3, _replace),
    "strings.replace_n": (2, _replace_n),
}
"""Builtins that are ours: the same answers, but a limit instead of exhaustion, an error instead of a panic."""


class Clock:
    """The time of the call being decided, in Unix nanoseconds: what `time.now_ns()` gives."""

    def __init__(self) -> None:
        self.now_ns = 0


def create(clock: Clock) -> Interpreter:
    """An interpreter without policies and data. It, its clones and `clock` stay in this thread."""
    engine = regorus.Engine()
    # `print` would otherwise write callers' arguments to our standard error.
    engine.set_gather_prints(True)
    for name, (arity, why) in FORBIDDEN.items():
        engine.add_extension(name, arity, _refusal(name, why))
    for name, (arity, function) in BOUNDED.items():
        engine.add_extension(name, arity, function)
    engine.add_extension("time.now_ns", 0, lambda: clock.now_ns)
    made: Interpreter = engine
    return made


def _refusal(name: str, why: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise PermissionError(f"{name} may not be called: {why}")

    return refuse


_PLACE: Final = re.compile(r"--> (?P<file>.*):(?P<line>[0-9]+):[0-9]+$", re.MULTILINE)
_REASON: Final = re.compile(r"^error: (?P<reason>.*)$", re.MULTILINE)


def problem(error: BaseException, file: str, remedy: str) -> Problem:
    """What the interpreter complains about, at the line it names; `file` where it names none."""
    text = str(error)
    place, reason = _PLACE.search(text), _REASON.search(text)
    return Problem(
        place["file"] if place else file,
        int(place["line"]) if place else None,
        (reason["reason"] if reason else text.strip().partition("\n")[0]).rstrip("."),
        remedy,
    )


def builtins() -> frozenset[str]:
    """The names of all builtins the interpreter has, forbidden ones included."""
    engine = regorus.Engine()
    engine.add_policy("builtins.rego", "package builtins\nnames := opa.runtime().builtins")
    names: list[str] = orjson.loads(engine.eval_rule_as_json("data.builtins.names"))
    return frozenset((*names, "print", *FORBIDDEN))
