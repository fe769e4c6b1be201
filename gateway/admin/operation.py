"""One row of the admin API's table, and what all rows share: who asks, how an answer and a problem look."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, Field, PlainSerializer, WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.admin.news import News
from gateway.app import App
from gateway.explanations import Explainer
from gateway.identity import Person
from gateway.reload import Reload
from policies.budgets import StoreUnavailable
from policies.money import usd_text

LONGEST: Final = 1024 * 1024
"""Bytes of a request's body."""

_MOST_DIGITS: Final = 15
"""Digits of a length that is worth reading as a number."""


def exact(amount: int) -> orjson.Fragment:
    """Nano-dollars -> dollars as a JSON number with all its digits, which no binary fraction has."""
    return orjson.Fragment(usd_text(amount).encode())


Usd = Annotated[int, PlainSerializer(exact, return_type=Any), WithJsonSchema({"type": "number"})]
"""An amount: nano-dollars here, dollars in JSON. Views that have one are `shown_exactly`."""


class View(BaseModel):
    """What the admin API answers or takes. Its JSON schema is what /openapi.json shows."""


class Loading(View):
    loaded_at: float = Field(description="When the one in use was loaded, seconds since the epoch; 0 is never.")
    tried_at: float = Field(description="When loading was last tried.")
    errors: list[str] = Field(description="What was wrong with the last try; empty when it succeeded.")

    @classmethod
    def of(cls, reload: Reload) -> Loading:
        return cls(loaded_at=reload.loaded_at, tried_at=reload.tried_at, errors=list(reload.errors))


class Problem(View):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


@dataclass(frozen=True, slots=True)
class Desk:
    """The gateway that people ask about, and what is kept from one request to the next."""

    app: App
    explainer: Explainer
    news: News
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a limit is changed, so that what is recorded as the old one is what the change before has set."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request, and who makes it: None where nobody has to show a token."""

    desk: Desk
    request: Request
    visitor: Person | None

    @property
    def app(self) -> App:
        return self.desk.app

    @property
    def query(self) -> dict[str, str]:
        return dict(self.request.query_params)

    @property
    def person(self) -> Person:
        assert self.visitor is not None, "only an open operation is carried out for nobody"
        return self.visitor


@dataclass(frozen=True, slots=True)
class Parameter:
    """What may stand in an operation's query, once."""

    name: str
    summary: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A method and a path, their documentation, who may ask, and what is done.

    `answer` is None for what is no JSON of ours, `also` another form in which it can be had; `role` is what a person
    must have; `open` asks for no token at all.
    """

    method: str
    path: str
    summary: str
    answer: type[View] | None
    handle: Callable[[Visit], Awaitable[Response]]
    role: str | None = None
    open: bool = False
    query: tuple[Parameter, ...] = ()
    takes: type[View] | None = None
    also: str | None = None

    def check(self, request: Request) -> None:
        """Raises HTTPException for a query that is not understood: what is misspelt must not go unheeded."""
        known = [each.name for each in self.query]
        names = [name for name, _ in request.query_params.multi_items()]
        for name in names:
            if name not in known:
                there_are = f"It takes {', '.join(known)}." if known else "It takes none."
                raise HTTPException(400, f"{self.method} {self.path} has no parameter {name[:64]!r}. {there_are}")
            if names.count(name) > 1:
                raise HTTPException(400, f"`{name}` is given more than once.")


AFTER: Final = Parameter("after", "`next` of the page before this one.")


def page_size(query: Mapping[str, str], usual: int, most: int) -> int:
    """What a query wants of a page. Raises HTTPException."""
    written = query.get("page_size", str(usual))
    if not (written.isascii() and written.isdecimal() and len(written) < _MOST_DIGITS and 1 <= int(written) <= most):
        raise HTTPException(400, f"`page_size` is no number from 1 to {most}.")
    return int(written)


@contextmanager
def asking() -> Iterator[None]:
    """While the store of budgets is asked something: that it does not answer is the asker's to know."""
    try:
        yield
    except StoreUnavailable:
        raise HTTPException(503, "The store of budgets does not answer. Ask again later.") from None


def shown(view: View, status: int = 200) -> Response:
    return Response(view.model_dump_json(), status, media_type="application/json")


def shown_exactly(view: View) -> Response:
    """A view with amounts of money."""
    return Response(orjson.dumps(view.model_dump()), media_type="application/json")


async def body(request: Request, longest: int = LONGEST) -> bytes:
    """What was sent. What is too long is refused before it is read, or as soon as it is."""
    too_long = HTTPException(413, f"The body is longer than {longest} bytes.")
    announced = request.headers.get("content-length", "").lstrip("0")
    if len(announced) > _MOST_DIGITS or int(announced or 0) > longest:
        raise too_long
    received = bytearray()
    try:
        async for piece in request.stream():
            received += piece
            if len(received) > longest:
                raise too_long
    except ClientDisconnect:
        raise HTTPException(400, "The body did not arrive as a whole.") from None
    return bytes(received)
