"""What both directions of a translation read of a call and write of it, and how they say that something cannot go."""

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final, Never

import jiter
import orjson

from adapters.errors import MalformedCall

Json = dict[str, Any]

_EXCERPT: Final = 60
"""Characters of an agent's own words that an error message may show."""
_MOST: Final = 2**53
"""More tokens than this nobody can mean; other readers lose digits of larger numbers."""


def refuse(where: str, remedy: str) -> Never:
    raise MalformedCall(f"`{where}` {remedy}.")


def check(
    given: Mapping[str, Any],
    known: Set[str],
    neutral: Mapping[str, Sequence[object]],
    remedies: Mapping[str, str],
    where: str,
    otherwise: str,
) -> None:
    """Refuses members that are none of the `known`, unless they are null or one of their `neutral` values, which ask
    for nothing. A remedy goes by the member's name; `otherwise` is for those without one of their own."""
    if known >= given.keys():
        return
    for name in given.keys() - known:
        value = given[name]
        if value is not None and value not in neutral.get(name, ()):
            refuse(where + excerpt(name), remedies.get(name, otherwise))


def excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."


def objects(value: object, where: str) -> Sequence[Json]:
    """A list of objects."""
    if type(value) is not list:
        refuse(where, "must be a list")
    for index, each in enumerate(value):
        if type(each) is not dict:
            refuse(f"{where}[{index}]", "must be an object")
    return value


def text(value: object, where: str) -> str:
    if type(value) is not str:
        refuse(where, "must be a string")
    return value


def name_in(given: object, where: str) -> str:
    """The `name` of an object, which must not be empty."""
    name = given.get("name") if isinstance(given, dict) else None
    if type(name) is not str or not name:
        refuse(f"{where}.name", "must be a string that is not empty")
    return name


def number(value: object, least: float, most: float, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        refuse(where, f"must be a number from {least:g} to {most:g}")
    return value


def tokens(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        refuse(where, "must be a whole number of at least 1")
    return value


def flag(value: object, where: str) -> bool:
    """A boolean; what is missing or null counts as false."""
    if value is not None and type(value) is not bool:
        refuse(where, "must be true or false")
    return bool(value)


def arguments_of(said: str) -> Json:
    """The arguments of a tool call, which OpenAI writes as a JSON text; an empty one stands for none.

    Raises ValueError for all that is not one JSON object, or names a member of it twice.
    """
    if not said.strip():
        return {}
    # Unlike others this reader keeps integers of more than 64 bits as what they are.
    value = jiter.from_json(said.encode(), allow_inf_nan=False, catch_duplicate_keys=True)
    if type(value) is not dict:
        raise ValueError("not an object")
    return value


def written(value: object) -> bytes:
    """A JSON text. Raises ValueError for what cannot be written: nested too deeply, numbers too long."""
    try:
        return orjson.dumps(value)
    except TypeError:  # integers of more than 64 bits, among others
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from None


def sent(value: object) -> bytes:
    """`written` as the body of a call. Raises MalformedCall."""
    try:
        return written(value)
    except ValueError:
        raise MalformedCall("The body is nested too deeply, or holds a number that is too long.") from None
