"""A stand-in for a plain HTTP tool: a customer service's tickets, which are the same again after each start."""

from typing import Any
from urllib.parse import parse_qs

import orjson

from deploy.demo.standin import App, Receive, Send

TICKETS = {
    1: {"id": 1, "title": "Invoice is wrong", "state": "open", "paid_usd": 120.0},
    2: {"id": 2, "title": "Parcel never came", "state": "open", "paid_usd": 35.5},
    3: {"id": 3, "title": "Thank you", "state": "closed", "paid_usd": 0.0},
}


def tool_standin(key: str | None) -> App:
    """Answers only who shows the key."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        if key is not None and shown != f"Bearer {key}".encode():
            await _say(send, 401, {"error": "This key is not known here."})
            return
        body = b""
        while (message := await receive()).get("more_body") or message["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = parse_qs(scope["query_string"].decode())
        await _say(send, *_answer(scope["method"], scope["path"].strip("/").split("/"), query, body))

    return app


def _answer(method: str, where: list[str], query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
    if method == "GET" and where == ["tickets"]:
        words = query.get("q", [""])[0].lower()
        return 200, {"items": [each for each in TICKETS.values() if words in str(each["title"]).lower()]}
    ticket = TICKETS.get(int(where[1])) if len(where) > 1 and where[1].isdecimal() else None
    if ticket is None:
        return 404, {"error": "There is no such ticket."}
    if method == "GET" and len(where) == 2:
        return 200, ticket
    if method == "POST" and where[2:] == ["refund"]:
        return 200, {"ticket": ticket["id"], "refunded_usd": orjson.loads(body)["amount"]}
    return 405, {"error": "Nothing of that kind can be done here."}


async def _say(send: Send, status: int, document: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(document)})
