"""The Rego interpreter, fenced in: the one file that imports it. `policies.builtins` says what policies may call.

An allocation failure ends the process, so builtins whose cost a caller's text could drive without bound are bounded or
refused, and those that would make a decision depend on anything but its input.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

# An error otherwise costs ten times as much and carries the interpreter's own stack, whatever the environment says.
os.environ["RUST_LIB_BACKTRACE"] = "0"

import orjson
import regorus  # type: ignore[import-untyped]  # compiled, without stubs; Interpreter below is what we use of it

from policies.builtins import BOUNDED, FORBIDDEN, SUPPLIED, TIMED
from policies.errors import Problem

DEEPEST_INPUT: Final = 128
LONGEST_LINE: Final = 1024


class Interpreter(Protocol):
    """What we use of the interpreter. It belongs to the thread that made it."""

    def clone(self) -> Interpreter: ...
    def add_policy(self, path: str, rego: str) -> str: ...
    def add_data_json(self, data: str) -> None: ...
    def set_input_json(self, input: str) -> None: ...
    def eval_rule_as_json(self, rule: str) -> str: ...
    def eval_query_as_json(self, query: str) -> str: ...
    def get_ast_as_json(self) -> str: ...
    def get_policies(self) -> str: ...
    def set_enable_coverage(self, enable: bool) -> None: ...
    def get_coverage_report_as_json(self) -> str: ...


_WIDTH: Final = re.compile(r"%[-+# 0-9.\[\]]*(?:\d{4}|\*)")


def sprintf_is_bounded(template: str) -> bool:
    """Whether a format's widths and precisions are below a thousand and not taken from an argument."""
    return _WIDTH.search(template) is None


class Clock:
    """The time of the call being decided, in Unix nanoseconds: what `time.now_ns()` gives."""

    def __init__(self) -> None:
        self.now_ns = 0


def create(clock: Clock, texts: Collection[str] | None = None) -> Interpreter:
    """An interpreter without policies and data. It, its clones and `clock` stay in this thread.

    Every builtin that is ours costs each clone some 40 ns: given the `texts` of the policies it will hold, it gets only
    those that they name.
    """
    engine = regorus.Engine()
    # `print` would otherwise write callers' arguments to our standard error.
    engine.set_gather_prints(True)
    # A name may be written with an escape. What stands in for a builtin of the interpreter's must then be there.
    named = texts if texts is None or not any("\\u" in each for each in texts) else None
    for name, (arity, why) in FORBIDDEN.items():
        if _is_named(name, named):
            engine.add_extension(name, arity, _refusal(name, why))
    for name, (arity, function) in BOUNDED.items():
        if _is_named(name, named):
            engine.add_extension(name, arity, function)
    for name, (arity, made) in TIMED.items():
        if _is_named(name, named):
            engine.add_extension(name, arity, made(lambda: clock.now_ns))
    for name, (arity, function) in SUPPLIED.items():
        if _is_named(name, texts):
            engine.add_extension(name, arity, function)
    return _as_interpreter(engine)


def _as_interpreter(engine: Interpreter) -> Interpreter:
    return engine


def _is_named(name: str, texts: Collection[str] | None) -> bool:
    last = name.rpartition(".")[2]
    return texts is None or any(last in each for each in texts)


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
    told = (reason["reason"] if reason else text.strip().partition("\n")[0]).rstrip(".")
    return Problem(
        place["file"] if place else file,
        int(place["line"]) if place else None,
        _other_rule(told, place["file"] if place else file),
        remedy,
    )


def _other_rule(reason: str, file: str) -> str:
    """A reason that names another rule, without what is known already: the file, where it is the same."""
    found = _CONFLICT.fullmatch(reason)
    if found is None:
        return reason
    where = f"line {found['line']}" if found["file"] == file else f"{found['file']}:{found['line']}"
    return f"{found['what']} the rule at {where}"


def failure(error: BaseException) -> str:
    """Where and why evaluation failed, in one line. It may quote values of the input."""
    told = problem(error, "", "")
    place = f"{told.file}:{told.line}: " if told.file else ""
    return f"{place}{told.message}" if told.message else type(error).__name__


_CONFLICT: Final = re.compile(r"(?P<what>[a-z ]*conflicts with) rule at (?P<file>[^\n]*):(?P<line>[0-9]+):[0-9]+")
_VALUELESS: Final = re.compile(
    r"`some \.\. in collection` expects [a-z/]+"
    r"|[a-z ]*conflicts with the rule at [^\n`\"]*"
    r"|`[\w.]+` (?:expects|requires) [a-z/ ]+ argument"
    r"|divide by zero|modulo on floating-point number"
    r"|(?:functions must|complete rules should) not produce multiple outputs[a-z ]*"
    r"|extension '[\w.]+' raises Python error: (?:ValueError|PermissionError): .*",
    re.ASCII,
)
"""Beginnings of complaints that hold none of the input's values. Our own builtins quote none either."""


def without_values(error: BaseException) -> str:
    """Where evaluation failed, and why as far as that can be said without a value of the input."""
    text = str(error).strip()
    place = _PLACE.match(text)  # elsewhere it may be a text of the caller's
    reason = _REASON.search(text) if place else None
    known = _VALUELESS.match(_other_rule(reason["reason"], place["file"])) if place and reason else None
    told = known[0] if known else "the policy failed on this call"
    return f"{place['file']}:{place['line']}: {told}" if place else told


def builtins() -> frozenset[str]:
    """The names of all builtins there are, forbidden ones included."""
    engine = regorus.Engine()
    engine.add_policy("builtins.rego", "package builtins\nnames := opa.runtime().builtins")
    names: list[str] = orjson.loads(engine.eval_rule_as_json("data.builtins.names"))
    return frozenset((*names, "print", *FORBIDDEN, *SUPPLIED, *TIMED))
