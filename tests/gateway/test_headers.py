"""Which headers pass, as tables."""

import pytest

from gateway.headers import homeward, onward, replaced

CREDENTIALS = [(b"authorization", b"Bearer ours")]


@pytest.mark.parametrize(
    "name",
    [
        b"accept",
        b"user-agent",
        b"anthropic-version",
        b"anthropic-beta",
        b"openai-beta",
        b"traceparent",
        b"x-stainless-retry-count",
    ],
)
def test_what_a_target_needs_to_know_is_passed_on(name: bytes) -> None:
    assert (name, b"v") in onward([(name, b"v")], CREDENTIALS)


@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"cookie",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"te",
        b"upgrade",
        b"expect",
        b"forwarded",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-real-ip",
        b"x-weighbridge-session",
        b"x-weighbridge-anything",
        b"openai-organization",
        b"proxy-authorization",
        b"accept-encoding",
        b"content-type",
        b"x-anything-else",
    ],
)
def test_everything_else_stays_here(name: bytes) -> None:
    assert (name, b"theirs") not in onward([(name, b"theirs")], CREDENTIALS)


def test_the_operators_credentials_are_added_and_no_encoding_is_asked_for() -> None:
    always = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
    assert onward([], CREDENTIALS) == [*always, *CREDENTIALS]


def test_an_answer_keeps_its_headers_but_those_of_the_connection_and_the_account() -> None:
    kept = [(b"content-type", b"application/json"), (b"request-id", b"r"), (b"retry-after", b"3")]
    left = [
        (name, b"x")
        for name in (b"set-cookie", b"server", b"date", b"connection", b"transfer-encoding", b"openai-organization")
    ]
    assert homeward([*kept, *left, (b"x-weighbridge-call", b"forged")]) == kept


def test_a_line_of_our_own_stands_in_place_of_all_of_its_name() -> None:
    theirs = [(b"x-ratelimit-limit-requests", b"9"), (b"x-ratelimit-limit-tokens", b"8"), (b"a", b"1"), (b"a", b"2")]
    ours = [(b"x-ratelimit-limit-requests", b"7"), (b"a", b"3")]
    assert replaced(theirs, ours) == [(b"x-ratelimit-limit-tokens", b"8"), *ours]
