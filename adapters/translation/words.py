"""Words that the two protocols have for the same: why an answer ended, and what went wrong."""

from collections.abc import Mapping, Sequence
from typing import Final

from adapters.base import Headers

ANTHROPIC_HEADERS: Final[Headers] = [(b"anthropic-version", b"2023-06-01")]
"""Since 2026-10-21 no version takes a temperature, `top_p` or `top_k`; this one takes all that a translation writes."""

OPENAI_HEADERS: Final[Headers] = []

WITHHELD: Final[Sequence[bytes]] = (b"anthropic-beta", b"anthropic-version", b"openai-beta")

IMAGE_TYPES: Final = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})

FINISH_REASONS: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Anthropic's `stop_reason` -> OpenAI's `finish_reason`."""

STOP_REASONS: Final[Mapping[str, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""OpenAI's `finish_reason` -> Anthropic's `stop_reason`."""

OPENAI_ERRORS: Final[Mapping[str, str]] = {
    "api_error": "server_error",
    "billing_error": "insufficient_quota",
    "not_found_error": "invalid_request_error",
    "overloaded_error": "server_error",
    "request_too_large": "invalid_request_error",
    "timeout_error": "server_error",
}
"""Anthropic's error types -> OpenAI's. The others are called the same; what is lost is kept as the `code`."""

ANTHROPIC_ERRORS: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Status -> Anthropic's error type."""

ANTHROPIC_ERRORS_IN_STREAMS: Final[Mapping[str, str]] = {
    "authentication_error": "authentication_error",
    "insufficient_quota": "billing_error",
    "invalid_request_error": "invalid_request_error",
    "not_found_error": "not_found_error",
    "permission_error": "permission_error",
    "rate_limit_error": "rate_limit_error",
    "rate_limit_exceeded": "rate_limit_error",
    "server_unavailable": "overloaded_error",
    "tokens": "rate_limit_error",
    "requests": "rate_limit_error",
}
"""OpenAI's error types, where there is no status to tell -> Anthropic's. All else is an `api_error`."""


def error_type(status: int) -> str:
    """What Anthropic calls an error of this status."""
    return ANTHROPIC_ERRORS.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
