"""How commands talk to a running gateway: one request to its admin API, as one of the people who may use it."""

from __future__ import annotations

import argparse
import json
import os
from decimal import Decimal
from typing import Any, Final

import httpx2
import orjson

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


def ask(admin: str, method: str, path: str, body: Any = None, *, exact: bool = False) -> dict[str, Any]:
    """The answer to one request. The token goes to `admin` and nowhere else. Raises Refused.

    An `exact` answer has fractions as Decimals, and `as_json` writes them as they came.
    """
    token = os.environ.get(TOKEN, "")
    if not token:
        raise Refused(f"Set {TOKEN} to the token of one of `admin.people`.")
    if not token.isascii() or not token.isprintable():
        raise Refused(f"{TOKEN} holds characters that no HTTP header can carry. Copy it again.")
    if "@" in admin:
        raise Refused("The address must not carry a user and password. Write it as http://HOST:PORT.")
    try:
        with httpx2.Client(timeout=_PATIENCE, trust_env=False, follow_redirects=False) as client:
            content = as_json(body).encode() if body is not None else None
            answer = client.request(
                method, admin.rstrip("/") + path, content=content, headers={"authorization": f"Bearer {token}"}
            )
            facts = json.loads(answer.content, parse_float=_decimal if exact else None)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError):
        raise Refused(f"{admin!r} is no address. Write it as http://HOST:PORT.") from None
    except httpx2.HTTPError as error:
        raise Refused(
            f"Nothing answers at {admin} ({type(error).__name__}). Is the gateway running? Another admin address is "
            f"given with --admin URL, or in {ADMIN}."
        ) from None
    except (ValueError, RecursionError):
        raise Refused(f"What answers at {admin} is no gateway's admin API. Check the port.") from None
    if not isinstance(facts, dict) or (answer.status_code != 200 and "detail" not in facts):
        raise Refused(f"What answers at {admin} is no gateway's admin API. Check the port.")
    if answer.status_code == 401:
        raise Refused(f"The gateway at {admin} does not know the token in {TOKEN}: it takes those of `admin.people`.")
    if answer.status_code != 200:
        raise Refused(str(facts["detail"]))
    return facts


def _decimal(written: str) -> Decimal:
    """Raises ValueError for one whose digits would fill the memory once they are written out."""
    number = Decimal(written)
    if abs(number.adjusted()) > _MOST_DIGITS:
        raise ValueError("a number is out of all proportion")
    return number


def as_json(facts: Any) -> str:
    """One line. Decimals become numbers with all their digits."""
    return orjson.dumps(facts, default=_digits).decode()


def _digits(amount: object) -> orjson.Fragment:
    if isinstance(amount, Decimal):
        return orjson.Fragment(f"{amount:f}".encode())
    raise TypeError
