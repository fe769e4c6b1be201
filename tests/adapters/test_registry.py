"""`adapters.registry`: which protocol and which operation a path belongs to."""

import pytest

from adapters.base import Adapter
from adapters.errors import MethodNotAllowed, UnknownEndpoint
from adapters.registry import ADAPTERS, ANTHROPIC, OPENAI, endpoint, speaking

SERVED: list[tuple[str, str, Adapter, str, bool]] = [
    ("POST", "/v1/chat/completions", OPENAI, "chat", True),
    ("POST", "/v1/completions", OPENAI, "completions", True),
    ("POST", "/v1/embeddings", OPENAI, "embeddings", False),
    ("POST", "/v1/responses", OPENAI, "responses", True),
    ("GET", "/v1/models", OPENAI, "models", False),
    ("POST", "/v1/messages", ANTHROPIC, "messages", True),
    ("POST", "/v1/messages/count_tokens", ANTHROPIC, "count_tokens", False),
]


@pytest.mark.parametrize(("method", "path", "adapter", "operation", "streams"), SERVED)
def test_every_endpoint_of_the_contract_is_served(
    method: str, path: str, adapter: Adapter, operation: str, streams: bool
) -> None:
    found, argument = endpoint(adapter, method, path)
    assert speaking(path, anthropic_version=False) is adapter
    assert (found.operation, found.streams, argument) == (operation, streams, "")
    assert found.answered_here is (operation == "models")
    assert found.answered_here or "/v1" + found.suffix == path


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("path", [path for _, path, *_ in SERVED if path != "/v1/models"])
def test_a_path_of_one_protocol_speaks_it_whatever_the_headers_say(path: str, header: bool) -> None:
    assert speaking(path, header) is speaking(path, not header)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/models/claude", "/nowhere", "/"])
def test_a_shared_or_unknown_path_speaks_what_the_version_header_says(path: str) -> None:
    assert speaking(path, anthropic_version=True) is ANTHROPIC
    assert speaking(path, anthropic_version=False) is OPENAI


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batches", "/v1/messages/count_tokens/x"])
def test_what_stands_below_messages_is_refused_as_anthropic_would(path: str) -> None:
    assert speaking(path, anthropic_version=False) is ANTHROPIC


@pytest.mark.parametrize("adapter", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize(
    "model", ["gpt-4o", "ft:gpt-4o:org::id", "Qwen/Qwen3-0.6B", "a b", "a%2Fb", "..", "/", "mod\u00e8le"]
)
def test_a_model_of_any_name_can_be_asked_after(adapter: Adapter, model: str) -> None:
    """The door has decoded the path already, once; names hold slashes and colons."""
    found, argument = endpoint(adapter, "GET", "/v1/models/" + model)
    assert (found.operation, argument) == ("models", model)
    call = adapter.read(found, b"", argument)
    assert (call.target, call.operation, call.stream, call.arguments) == (model, "models", None, {})


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1/Chat/Completions",
        "/v1/chat/completions/chatcmpl-1",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/files",
        "/v1/messages/batches",
        "/v1/messagesx",
        "/v1/model",
        "/v1/modelsx",
        "/chat/completions",
        "/v1/chat/../models",
        "/v1/models\x00",
    ],
)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_path_that_is_not_served_is_unknown(adapter: Adapter, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        with pytest.raises(UnknownEndpoint, match="Nothing is served at"):
            endpoint(adapter, method, path)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "post", "", "X" * 5000])
def test_a_wrong_method_is_told_the_right_one(method: str) -> None:
    for right, path, adapter, *_ in SERVED:
        if method != right:
            with pytest.raises(MethodNotAllowed, match=f"^Use {right} here") as refused:
                endpoint(adapter, method, path)
            assert refused.value.allowed == right


def test_a_refused_path_is_quoted_shortly_and_printably() -> None:
    with pytest.raises(UnknownEndpoint) as refused:
        endpoint(OPENAI, "GET", "/\n\x1b" + "x" * 100_000)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def test_an_endpoint_of_the_other_protocol_is_unknown() -> None:
    with pytest.raises(UnknownEndpoint):
        endpoint(ANTHROPIC, "POST", "/v1/chat/completions")
    with pytest.raises(UnknownEndpoint):
        endpoint(OPENAI, "POST", "/v1/messages")
