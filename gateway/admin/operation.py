"""One row of the admin API's table, and what all rows share: who asks, how an answer and a problem look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.app import App
from gateway.explanations import Explainer
from gateway.identity import Person
from gateway.reload import Reload

LONGEST: Final = 1024 * 1024
"""Bytes of a request's body."""

_MOST_DIGITS: Final = 15
"""Digits of a length that is worth reading as a number."""


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
class Visit:
    """One request, the gateway that it is about, and who asks: None where nobody has to show a token."""

    app: App
    request: Request
    visitor: Person | None
    explainer: Explainer

    @property
    def person(self) -> Person:
        assert self.visitor is not None, "only an open operation is carried out for nobody"
        return self.visitor


@dataclass(frozen=True, slots=True)
class Parameter:
    """What may stand in an operation's query."""

    name: str
    summary: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A method and a path, their documentation, who may ask, and what is done.

    `answer` is None for what is no JSON of ours; `role` is what a person must have; `open` asks for no token at all.
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


def shown(view: View, status: int = 200) -> Response:
    return Response(view.model_dump_json(), status, media_type="application/json")


async def body(request: Request) -> bytes:
    """What was sent. What is too long is refused before it is read, or as soon as it is."""
    too_long = HTTPException(413, f"The body is longer than {LONGEST} bytes.")
    announced = request.headers.get("content-length", "").lstrip("0")
    if len(announced) > _MOST_DIGITS or int(announced or 0) > LONGEST:
        raise too_long
    received = bytearray()
    try:
        async for piece in request.stream():
            received += piece
            if len(received) > LONGEST:
                raise too_long
    except ClientDisconnect:
        raise HTTPException(400, "The body did not arrive as a whole.") from None
    return bytes(received)
