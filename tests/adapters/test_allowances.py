"""`adapters.allowances`: what is left of limits, as each SDK's users read it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.allowances import duration
from adapters.anthropic import Anthropic
from adapters.openai import OpenAI
from policies.limits import Limit, Standing
from tests.adapters.stock import JSON, Answers

NOW = 1_795_235_400 * 10**9  # 2026-11-21 04:30:00 UTC

CALLS = Standing(Limit("acme", "calls_per_minute", 600), 599, 0.1)
TOKENS = Standing(Limit("acme", "tokens_per_minute", 90_000), 0, 75.2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, b"0s"),
        (0.0001, b"1ms"),
        (0.02, b"20ms"),
        (0.999, b"999ms"),
        (0.9991, b"1s"),
        (1.0, b"1s"),
        (1.2, b"2s"),
        (59.01, b"1m0s"),
        (75.2, b"1m16s"),
        (360.0, b"6m0s"),
        (3600.0, b"1h0m0s"),
        (3661.0, b"1h1m1s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 4000))
def test_a_duration_is_never_shorter_than_the_time_it_stands_for(seconds: float) -> None:
    found = re.fullmatch(rb"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)|(\d+)ms", duration(seconds))
    assert found is not None
    hours, minutes, whole, milliseconds = (int(each or 0) for each in found.groups())
    said = hours * 3600 + minutes * 60 + whole + milliseconds / 1000
    assert 0 <= said - seconds < (1 if seconds > 0.999 else 0.001 + 1e-9)


def test_an_openai_client_reads_what_is_left() -> None:
    headers = OpenAI().limit_headers(CALLS, TOKENS, NOW)
    raw = Answers(200, JSON + headers, b"{}").openai().chat.completions.with_raw_response.create(model="m", messages=[])
    assert {name: value for name, value in raw.headers.items() if "ratelimit" in name} == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "90000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m16s",
    }


def test_an_anthropic_client_reads_what_is_left() -> None:
    headers = Anthropic().limit_headers(CALLS, TOKENS, NOW)
    client = Answers(200, JSON + headers, b"{}").anthropic()
    raw = client.messages.with_raw_response.create(model="m", messages=[], max_tokens=1)
    assert {name: value for name, value in raw.headers.items() if "ratelimit" in name} == {
        "anthropic-ratelimit-requests-limit": "600",
        "anthropic-ratelimit-requests-remaining": "599",
        "anthropic-ratelimit-requests-reset": "2026-11-21T04:30:01Z",
        "anthropic-ratelimit-tokens-limit": "90000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2026-11-21T04:31:16Z",
    }


@given(now=st.integers(NOW, NOW + 10**15), resets_in=st.floats(0, 4000))
def test_no_time_of_reset_is_before_the_reset(now: int, resets_in: float) -> None:
    calls = CALLS._replace(resets_in=resets_in)
    reset = dict(Anthropic().limit_headers(calls, None, now))[b"anthropic-ratelimit-requests-reset"]
    said = datetime.strptime(reset.decode(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    assert -1e-5 < said - (now / 10**9 + resets_in) < 1 + 1e-5


@pytest.mark.parametrize("adapter", [OpenAI(), Anthropic()])
def test_nothing_is_said_of_a_limit_there_is_not(adapter: OpenAI | Anthropic) -> None:
    assert adapter.limit_headers(None, None, NOW) == []
    assert all(b"requests" in name for name, _ in adapter.limit_headers(CALLS, None, NOW))
    assert all(b"tokens" in name for name, _ in adapter.limit_headers(None, TOKENS, NOW))
