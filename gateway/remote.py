"""How commands talk to a running gateway: one request to its admin API, as one of the people who may use it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, Final

import httpx2
import orjson

from gateway.approval_view import Number, json_text, parsed

TOKEN: Final = "WEIGHBRIDGE_ADMIN_TOKEN"
"""The environment variable that holds the token: on a command line everybody on the machine could read it."""

ADMIN: Final = "WEIGHBRIDGE_ADMIN"
"""The environment variable that holds the address, where a command is not given one."""

_USUAL: Final = "http://127.0.0.1:8081"
_PATIENCE: Final = 30.0
_MOST_DIGITS: Final = 400
"""Before the point of a number, or behind it: a little more than any binary fraction has."""


class Refused(Exception):
    """The gateway did not do what was asked, or could not be asked. The text says why, and what to do."""


def takes_admin(command: argparse.ArgumentParser, forms: argparse._MutuallyExclusiveGroup | None = None) -> None:
    """`forms` are the other forms that an answer can be had in."""
    command.add_argument(
        "--admin",
        default=os.environ.get(ADMIN) or _USUAL,
        metavar="URL",
        help=f"the gateway's admin address (else {ADMIN}, else {_USUAL}); the token is taken from {TOKEN}",
    )
    (forms or command).add_argument("--json", action="store_true", help="for scripts")


def ask(
    admin: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    exact: bool = False,
    verbatim: bool = False,
    patience: float = _PATIENCE,
) -> dict[str, Any]:
    """The answer to one request. The token goes to `admin` and nowhere else. Raises Refused.

    An `exact` answer has fractions as Decimals, a `verbatim` one all numbers as `approval_view.Number`; `as_json`
    writes both as they came.
    """
    headers = _headers(admin)
    with _reaching(admin):
        with httpx2.Client(timeout=patience, trust_env=False, follow_redirects=False) as client:
            content = as_json(body).encode() if body is not None else None
            answer = client.request(method, admin.rstrip("/") + path, content=content, headers=headers)
            if verbatim and answer.status_code == 200:
                facts = parsed(answer.content)
            else:
                facts = json.loads(answer.content, parse_float=_decimal if exact else None)
    return _answered(admin, answer.status_code, facts)


@contextlib.contextmanager
def follow(admin: str, path: str, silence: float) -> Iterator[Iterator[tuple[str, Any]]]:
    """The events of a stream, each with its name and its facts, until it ends. Raises Refused, also where nothing comes
    for so many seconds, not even a sign of life."""
    headers = _headers(admin)
    timeout = httpx2.Timeout(_PATIENCE, read=silence)
    with _reaching(admin), httpx2.Client(timeout=timeout, trust_env=False, follow_redirects=False) as client:
        with client.stream("GET", admin.rstrip("/") + path, headers=headers) as answer:
            if answer.status_code != 200:
                _answered(admin, answer.status_code, json.loads(answer.read()))
            yield _events(answer.iter_lines())


def _events(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    name = data = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = value
        elif not line and name:
            yield name, json.loads(data)
            name = data = ""


def _headers(admin: str) -> dict[str, str]:
    token = os.environ.get(TOKEN, "")
    if not token:
        raise Refused(f"Set {TOKEN} to the token of one of `admin.people`.")
    if not token.isascii() or not token.isprintable():
        raise Refused(f"{TOKEN} holds characters that no HTTP header can carry. Copy it again.")
    if "@" in admin:
        raise Refused("The address must not carry a user and password. Write it as http://HOST:PORT.")
    return {"authorization": f"Bearer {token}"}


@contextlib.contextmanager
def _reaching(admin: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError):
        raise Refused(f"{admin!r} is no address. Write it as http://HOST:PORT.") from None
    except httpx2.HTTPError as error:
        raise Refused(
            f"Nothing answers at {admin} ({type(error).__name__}). Is the gateway running? Another admin address is "
            f"given with --admin URL, or in {ADMIN}."
        ) from None
    except (ValueError, RecursionError):
        raise Refused(f"What answers at {admin} is no gateway's admin API. Check the port.") from None


def _answered(admin: str, status: int, facts: Any) -> dict[str, Any]:
    if not isinstance(facts, dict) or (status != 200 and "detail" not in facts):
        raise Refused(f"What answers at {admin} is no gateway's admin API. Check the port.")
    if status == 401:
        raise Refused(f"The gateway at {admin} does not know the token in {TOKEN}: it takes those of `admin.people`.")
    if status != 200:
        raise Refused(str(facts["detail"]))
    return facts


def _decimal(written: str) -> Decimal:
    """Raises ValueError for one whose digits would fill the memory once they are written out."""
    number = Decimal(written)
    if abs(number.adjusted()) > _MOST_DIGITS:
        raise ValueError("a number is out of all proportion")
    return number


def as_json(facts: Any) -> str:
    """One line. Decimals and `Number`s become numbers with all their digits."""
    return orjson.dumps(facts, default=_digits).decode()


def _digits(amount: object) -> orjson.Fragment:
    if isinstance(amount, Decimal):
        return orjson.Fragment(f"{amount:f}".encode())
    if isinstance(amount, Number):
        return orjson.Fragment(json_text(amount))
    raise TypeError
