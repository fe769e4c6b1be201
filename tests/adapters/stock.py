"""The official SDKs in front of an adapter's words: what the adapter writes is what they are answered."""

from collections.abc import Sequence
from typing import Any

import anthropic
import httpx2
import openai

from adapters.base import Headers

EVENTS: Headers = [(b"content-type", b"text/event-stream")]
JSON: Headers = [(b"content-type", b"application/json")]


class Answers:
    """Answers every request alike and counts them."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.requests: list[httpx2.Request] = []
        self._answer = status, headers, body

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        status, headers, body = self._answer
        lines: Sequence[tuple[bytes, bytes]] = headers
        return httpx2.Response(status, headers=list(lines), content=body)

    def _options(self) -> dict[str, Any]:
        return {
            "api_key": "key",
            "max_retries": 1,
            "http_client": httpx2.Client(transport=httpx2.MockTransport(self)),
        }

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url="http://gateway.test/v1", **self._options())

    def anthropic(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url="http://gateway.test", **self._options())
