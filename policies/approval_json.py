"""Approvals, grants and what goes with them as JSON text, for the stores: what is written is read back equal.

An object has the members of its dataclass; those that have their default are left out, so that gateways before and
after an upgrade read each other. Bytes are base64 (RFC 4648), times and amounts exact integers.
"""

from __future__ import annotations

import enum
import json
import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from types import UnionType
from typing import Any, Final, Protocol, get_args, get_origin, get_type_hints

from policies.approval_store import Answer, Message, Standing
from policies.approvals import Approval
from policies.grants import Grant


class _Form(Protocol):
    """How values of one type are written, and read. Both raise ValueError for what is no such value."""

    def write(self, value: Any) -> Any: ...

    def read(self, found: Any) -> Any: ...


class _Itself:
    """A value that JSON has, too."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def write(self, value: Any) -> Any:
        return value

    def read(self, found: Any) -> Any:
        if type(found) is not self.kind:  # a bool is no number here
            raise ValueError(f"{found!r:.40} is no {self.kind.__name__}")
        return found


class _Word:
    """One of the words of an enumeration."""

    def __init__(self, kind: type[enum.StrEnum]) -> None:
        self.kind = kind

    def write(self, value: enum.StrEnum) -> str:
        return value.value

    def read(self, found: Any) -> enum.StrEnum:
        return self.kind(found)


class _Bytes:
    def write(self, value: bytes) -> str:
        return b64encode(value).decode("ascii")

    def read(self, found: Any) -> bytes:
        if not isinstance(found, str):
            raise ValueError(f"{found!r:.40} is no base64")
        return b64decode(found, validate=True)


class _Optional:
    """A value, or null."""

    def __init__(self, form: _Form) -> None:
        self.form = form

    def write(self, value: Any) -> Any:
        return None if value is None else self.form.write(value)

    def read(self, found: Any) -> Any:
        return None if found is None else self.form.read(found)


class _Several:
    """A tuple: of any length where all items are of one form, otherwise of exactly these."""

    def __init__(self, forms: tuple[_Form, ...], many: bool) -> None:
        self.forms = forms
        self.many = many

    def write(self, value: tuple[Any, ...]) -> list[Any]:
        forms = self.forms * len(value) if self.many else self.forms
        return [form.write(item) for form, item in zip(forms, value, strict=True)]

    def read(self, found: Any) -> tuple[Any, ...]:
        if not isinstance(found, list):
            raise ValueError(f"{found!r:.40} is no list")
        forms = self.forms * len(found) if self.many else self.forms
        return tuple(form.read(item) for form, item in zip(forms, found, strict=True))


class _Object:
    """A dataclass, form by form."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        hints = get_type_hints(kind)
        self.forms = {field.name: _form(hints[field.name]) for field in fields(kind)}
        self.defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}

    def write(self, value: Any) -> dict[str, Any]:
        return {
            name: form.write(item)
            for name, form in self.forms.items()
            if (item := getattr(value, name)) != self.defaults.get(name, MISSING)
        }

    def read(self, found: Any) -> Any:
        if not isinstance(found, dict):
            raise ValueError(f"{found!r:.40} is no object")
        unknown = found.keys() - self.forms.keys()
        lacking = self.forms.keys() - found.keys() - self.defaults.keys()
        if unknown or lacking:
            raise ValueError(f"no {self.kind.__name__}: unknown {sorted(unknown)}, lacking {sorted(lacking)}")
        return self.kind(**{name: self.forms[name].read(item) for name, item in found.items()})


def _form(hint: Any) -> _Form:
    """The form of an annotated type; anything this module does not know is a mistake of who added it."""
    if isinstance(hint, UnionType):
        (one,) = (part for part in get_args(hint) if part is not type(None))
        return _Optional(_form(one))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        many = parts[-1] is Ellipsis
        return _Several(tuple(map(_form, parts[:1] if many else parts)), many)
    if get_origin(hint) is Mapping:
        return _Itself(dict)
    if hint is bytes:
        return _Bytes()
    if is_dataclass(hint) and isinstance(hint, type):
        return _Object(hint)
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        return _Word(hint)
    if hint in (str, int, bool):
        return _Itself(hint)
    raise TypeError(f"{hint} has no form in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _to_json(form: _Object, value: Any) -> bytes:
    try:
        written = json.dumps(form.write(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"this {form.kind.__name__} has no form in JSON: {error}") from None
    return written.encode()


def _from_json(form: _Object, text: bytes | str) -> Any:
    try:
        return form.read(json.loads(text, parse_float=_finite, parse_constant=_constant))
    except RecursionError:
        raise ValueError("it nests too deep") from None


_approval: Final = _Object(Approval)
_grant: Final = _Object(Grant)
_answer: Final = _Object(Answer)
_message: Final = _Object(Message)
_standing: Final = _Object(Standing)

# Written: UTF-8, without white space; ValueError for a text with a lone surrogate, and for values in a grant's `where`
# or a message's `facts` that JSON does not have. Read: ValueError for whatever is no such object.
approval_to_json: Final[Callable[[Approval], bytes]] = partial(_to_json, _approval)
approval_from_json: Final[Callable[[bytes | str], Approval]] = partial(_from_json, _approval)
grant_to_json: Final[Callable[[Grant], bytes]] = partial(_to_json, _grant)
grant_from_json: Final[Callable[[bytes | str], Grant]] = partial(_from_json, _grant)
answer_to_json: Final[Callable[[Answer], bytes]] = partial(_to_json, _answer)
answer_from_json: Final[Callable[[bytes | str], Answer]] = partial(_from_json, _answer)
message_to_json: Final[Callable[[Message], bytes]] = partial(_to_json, _message)
message_from_json: Final[Callable[[bytes | str], Message]] = partial(_from_json, _message)
standing_to_json: Final[Callable[[Standing], bytes]] = partial(_to_json, _standing)
standing_from_json: Final[Callable[[bytes | str], Standing]] = partial(_from_json, _standing)
