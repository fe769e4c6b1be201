"""The stand-in for Parallax does what the real one was seen to do: asked by the stock client, and byte by byte."""

import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from deploy.demo.parallax_like import BEHAVIOURS, MODEL, NODE_REFUSES
from tests.support.parallax import Cluster, running_parallax
from tests.support.standins import only

HELLO: Any = [{"role": "user", "content": "Hello there, model"}]
CALL: dict[str, Any] = {"model": "gpt-4o-mini", "messages": HELLO}
STREAM: dict[str, Any] = {**CALL, "stream": True}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
SCALE = 0.005
"""Five seconds of Parallax's are 25 ms here, and ten minutes are three seconds."""


@pytest.fixture(scope="module")
def served() -> Iterator[Cluster]:
    with running_parallax(scale=SCALE) as cluster:
        yield cluster


@pytest.fixture
def cluster(served: Cluster) -> Cluster:
    served.standin.forget()
    return served


@pytest.fixture(scope="module")
def stock(served: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="nobody asks", max_retries=0) as client:
        yield client


@pytest.fixture
def client(cluster: Cluster, stock: openai.OpenAI) -> openai.OpenAI:
    return stock


@pytest.fixture(scope="module")
def plain(served: Cluster) -> Iterator[httpx2.Client]:
    with browser(served) as client:
        yield client


@pytest.fixture
def http(cluster: Cluster, plain: httpx2.Client) -> httpx2.Client:
    return plain


@pytest.fixture(scope="module")
def chat_node() -> Iterator[Cluster]:
    with running_parallax(scale=SCALE, chat_node=True) as cluster:
        yield cluster


def browser(cluster: Cluster) -> httpx2.Client:
    return httpx2.Client(base_url=cluster.url, trust_env=False, timeout=20, verify=False)


def ask(http: httpx2.Client, **more: Any) -> httpx2.Response:
    return http.post("/v1/chat/completions", json={**CALL, **more})


def raw(cluster: Cluster, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """A connection on which a call was just made; nothing of the answer is read."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", cluster.port), timeout=20)
    connection.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(content)))
    connection.sendall(content)
    return connection


def head(connection: socket.socket) -> bytes:
    """All up to the end of an answer's head; nothing of the body must have come with it."""
    said = b""
    while not said.endswith(b"\r\n\r\n"):
        said += connection.recv(1)
    return said


def error(answer: httpx2.Response) -> tuple[int, str, str]:
    """(status, type, code) of an error in the one shape that all of the scheduler's have."""
    assert answer.headers["content-type"] == "application/json"
    (name,) = answer.json()
    told = answer.json()[name]
    assert name == "error"
    assert list(told) == ["message", "type", "param", "code"]
    assert told["param"] is None
    return answer.status_code, told["type"], told["code"]


# What it answers.


def test_an_answer_names_the_model_of_the_cluster_whatever_was_asked_for(
    client: openai.OpenAI, cluster: Cluster
) -> None:
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert answer.model == MODEL
    assert answer.choices[0].message.content == f"This is the stand-in for {MODEL}. You said: Hello there, model"
    assert answer.choices[0].finish_reason == "stop"
    assert only(cluster.standin.requests).json()["model"] == "gpt-4o-mini"
    assert {chunk.model for chunk in client.chat.completions.create(model="any", messages=HELLO, stream=True)} == {
        MODEL
    }


def test_an_unstreamed_answer_tells_its_usage(http: httpx2.Client) -> None:
    usage = ask(http).json()["usage"]
    assert list(usage) == ["prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_tells_its_usage_only_when_asked_in_a_last_chunk_without_choices(client: openai.OpenAI) -> None:
    silent = list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    assert [chunk.usage for chunk in silent] == [None] * len(silent)
    assert all(chunk.choices for chunk in silent)
    asked: Any = {"include_usage": True}
    *others, last = client.chat.completions.create(model="m", messages=HELLO, stream=True, stream_options=asked)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 11
    assert all(chunk.usage is None for chunk in others)


def test_a_stream_consists_of_data_lines_and_nothing_else(http: httpx2.Client) -> None:
    answer = ask(http, stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(chunk.startswith("data: {") and "\n" not in chunk for chunk in chunks)
    assert {json.loads(chunk[6:])["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_tools_are_called_streamed_and_not(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "use the weather tool"}]
    answer: Any = client.chat.completions.create(model="m", messages=question, tools=TOOLS).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls"
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "stand-in"}
    with client.chat.completions.stream(model="m", messages=question, tools=TOOLS) as stream:
        final: Any = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert [each.function.arguments for each in final.message.tool_calls] == [call.function.arguments]


def test_max_tokens_shorten_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_node_gets_all_that_was_asked_but_what_the_scheduler_replaces(http: httpx2.Client, cluster: Cluster) -> None:
    assert ask(http, rid="x", routing_table=["y"], unheard_of=1, tools=TOOLS, vllm_xargs={"a": 1}).status_code == 200
    assert ask(http, request_id="mine", vllm_xargs="no object").status_code == 200
    first, second = cluster.standin.forwarded
    assert first["model"] == MODEL
    assert "rid" not in first
    assert "routing_table" not in first
    assert (first["unheard_of"], first["tools"]) == (1, TOOLS)
    assert set(first["vllm_xargs"]) == {"a", "parallax_routing_table", "parallax_scheduler_request_id"}
    assert first["request_id"]
    assert second["request_id"] == "mine"
    assert set(second["vllm_xargs"]) == {"parallax_routing_table", "parallax_scheduler_request_id"}


def test_nobody_is_asked_for_a_key(http: httpx2.Client) -> None:
    assert ask(http).status_code == 200
    assert http.get("/v1/models", headers={"authorization": "Bearer whoever"}).status_code == 200
    assert http.post("/scheduler/init", json={"model_name": MODEL, "init_nodes_num": 1}).status_code == 200
    assert http.get("/node/join/command").status_code == 200


def test_any_page_may_ask_it_from_a_browser(http: httpx2.Client) -> None:
    answer = http.get("/v1/models", headers={"origin": "http://anywhere.test"})
    assert answer.headers["access-control-allow-origin"] == "*"


# How it is.


def test_models_are_listed_whether_or_not_it_is_ready(client: openai.OpenAI, cluster: Cluster) -> None:
    for cluster.standin.available in (True, False):
        (model,) = client.models.list().data
        assert (model.id, model.owned_by, model.created, model.object) == (MODEL, "parallax", 0, "model")


def test_a_model_can_be_switched_and_there_may_be_none() -> None:
    with running_parallax(model=None) as cluster, browser(cluster) as http:
        assert http.get("/v1/models").json() == {"object": "list", "data": []}
        assert http.post("/scheduler/init", json={}).status_code == 400
        assert http.post("/scheduler/init", json={"model_name": "another"}).status_code == 200
        assert http.get("/v1/models").json()["data"][0]["id"] == "another"


def test_the_status_says_whether_it_is_ready(http: httpx2.Client, cluster: Cluster) -> None:
    for cluster.standin.available, word in ((True, "available"), (False, "waiting")):
        status = http.get("/cluster/status_json").json()
        assert status["type"] == "cluster_status"
        assert status["data"]["status"] == word
        assert status["data"]["model_name"] == MODEL
        assert set(status["data"]) == {
            "status",
            "model_name",
            "init_nodes_num",
            "node_join_command",
            "node_list",
            "need_more_nodes",
            "max_running_request",
        }
        assert set(status["data"]["node_list"][0]) == {"node_id", "status", "gpu_num", "gpu_name", "gpu_memory"}


def test_the_streamed_status_has_a_line_a_second_and_no_end(http: httpx2.Client, cluster: Cluster) -> None:
    with http.stream("GET", "/cluster/status") as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        began, words = time.monotonic(), []
        for line in answer.iter_lines():
            words.append(json.loads(line)["data"]["status"])
            cluster.standin.available = len(words) < 50
            if len(words) == 100:
                break
    assert time.monotonic() - began >= 98 * SCALE
    assert words[0] == "available"
    assert words[-1] == "waiting"


def test_there_is_no_health_and_no_other_way_to_ask(http: httpx2.Client) -> None:
    for path in ("/health", "/v1/chat/completions", "/v1/responses", "/cluster"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    for path in ("/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models", "/health", "/"):
        answer = http.post(path, json=CALL)
        assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})
    assert http.get("/").headers["content-type"] == "text/html"


# How it fails, and says so.


def test_without_a_full_pipeline_calls_are_refused_at_once(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.available = False
    for stream in (True, False):
        began = time.monotonic()
        assert error(ask(http, stream=stream)) == (503, "server_unavailable", "server_not_ready")
        assert time.monotonic() - began < 2
    cluster.standin.available = True
    cluster.standin.will("not-ready")
    assert ask(http).status_code == 503
    assert ask(http).status_code == 200


@pytest.mark.parametrize("behaviour", ["routing-not-ready", "routing-stalls"])
@pytest.mark.parametrize("path", ["/v1/models", "/cluster/status_json"])
def test_while_it_looks_for_a_route_it_answers_nobody(behaviour: str, path: str) -> None:
    with running_parallax(scale=0.1) as cluster, browser(cluster) as http:
        cluster.standin.will(behaviour)
        began = time.monotonic()
        with raw(cluster, CALL) as connection:
            while not cluster.standin.requests:  # another thread's list tells nobody when it grows
                time.sleep(0.001)
            assert http.get(path).status_code == 200
            assert time.monotonic() - began >= 0.48, "the probe has waited as well"
            connection.settimeout(20)
            said = head(connection)
    assert said.startswith(b"HTTP/1.1 503" if behaviour == "routing-not-ready" else b"HTTP/1.1 200")


def test_an_undecided_route_is_a_503(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.will("routing-not-ready", "routing-error")
    assert error(ask(http)) == (503, "server_unavailable", "routing_not_ready")
    assert error(ask(http)) == (500, "server_error", "routing_table_error")


def test_a_full_cluster_says_so_after_a_long_silence_and_not_when_to_come_back(
    http: httpx2.Client, cluster: Cluster
) -> None:
    cluster.standin.will("full")
    began = time.monotonic()
    with raw(cluster, STREAM) as connection:
        assert http.get("/cluster/status_json").status_code == 200
        assert time.monotonic() - began < 95 * SCALE, "others are answered meanwhile"
        said = head(connection)
    assert time.monotonic() - began >= 95 * SCALE
    assert said.startswith(b"HTTP/1.1 429")
    assert b"retry-after" not in said.lower()
    cluster.standin.will("full")
    assert error(ask(http)) == (429, "rate_limit_error", "rate_limit_exceeded")


def test_a_full_cluster_takes_the_call_once_there_is_room() -> None:
    with running_parallax(scale=SCALE, capacity=1) as cluster:
        cluster.standin.will("slow-first-token")
        began = time.monotonic()
        with raw(cluster, STREAM) as first:
            assert head(first).startswith(b"HTTP/1.1 200")
            with raw(cluster, STREAM) as second:
                assert head(second).startswith(b"HTTP/1.1 200")
                assert time.monotonic() - began >= 60 * SCALE, "not before the first was over"
        with browser(cluster) as http:
            assert http.get("/cluster/status_json").json()["data"]["max_running_request"] == 1


def test_what_cannot_be_forwarded_is_a_502_after_a_long_silence(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.will("forwarding-fails")
    began = time.monotonic()
    assert error(ask(http)) == (502, "upstream_error", "upstream_error")
    assert time.monotonic() - began >= 90 * SCALE


def test_what_cannot_be_forwarded_of_a_stream_breaks_the_connection(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.will("forwarding-fails")
    with http.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            answer.read()


@pytest.mark.parametrize(
    ("body", "message"), [(b"{", "Invalid request body"), (b"[1]", "Request body must be a JSON object")]
)
def test_what_is_no_call_is_refused_at_once(http: httpx2.Client, body: bytes, message: str) -> None:
    answer = http.post("/v1/chat/completions", content=body)
    assert error(answer) == (400, "invalid_request_error", "invalid_request_error")
    assert answer.json()["error"]["message"] == message


def test_a_nodes_own_refusal_keeps_its_status_where_nothing_streams(client: openai.OpenAI, cluster: Cluster) -> None:
    cluster.standin.will("node-refuses", "node-fails", "node-unreachable")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="m", messages=HELLO)
    assert refused.value.response.content == NODE_REFUSES
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="m", messages=HELLO)
    with pytest.raises(openai.InternalServerError) as lost:
        client.chat.completions.create(model="m", messages=HELLO)
    assert lost.value.status_code == 502
    assert lost.value.code == "upstream_error"


# How it fails behind a 200.


def test_a_nodes_own_refusal_of_a_stream_is_a_bare_error_under_a_streams_200(
    http: httpx2.Client, cluster: Cluster
) -> None:
    cluster.standin.will("node-refuses", "node-fails")
    for status in (400, 500):
        answer = ask(http, stream=True)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.json()["error"]["code"] == status
        assert b"data:" not in answer.content


def test_an_unreachable_node_is_an_envelope_under_a_streams_200(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.will("node-unreachable")
    answer = ask(http, stream=True)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = answer.json()
    assert told["__parallax_http_response__"] is True
    assert (told["status_code"], told["content_type"]) == (502, "application/json")
    assert json.loads(base64.b64decode(told["body_base64"]))["error"]["code"] == "upstream_error"


def test_an_exception_is_its_bytes_under_200(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.will("node-error", "node-error")
    for stream in (True, False):
        answer = ask(http, stream=stream)
        assert (answer.status_code, answer.content) == (200, b"internal server error")


def test_a_node_that_dies_just_ends_its_stream(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.will("node-dies", "node-says-nothing")
    answer = ask(http, stream=True)
    assert answer.status_code == 200
    assert answer.content.startswith(b"data: {")
    assert answer.content.endswith(b"\n\n")
    assert b"[DONE]" not in answer.content
    assert b'"finish_reason":"' not in answer.content
    assert ask(http, stream=True).content == b""


def test_a_node_that_breaks_tells_so_in_the_middle_of_its_stream(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.will("node-breaks", "node-error-in-stream")
    for last in (b'{"__parallax_http_response__":true', b"internal server error"):
        *events, rest = ask(http, stream=True).content.split(b"\n\n")
        assert len(events) > 1
        assert all(event.startswith(b"data: {") for event in events)
        assert rest.startswith(last)


@pytest.mark.parametrize(
    "behaviour", ["node-refuses", "node-fails", "node-unreachable", "node-error", "node-says-nothing"]
)
def test_a_stock_client_takes_a_failure_behind_200_for_an_empty_stream(
    client: openai.OpenAI, cluster: Cluster, behaviour: str
) -> None:
    cluster.standin.will(behaviour)
    assert list(client.chat.completions.create(model="m", messages=HELLO, stream=True)) == []


@pytest.mark.parametrize("behaviour", ["node-dies", "node-breaks", "node-error-in-stream"])
def test_a_stock_client_takes_half_a_stream_for_a_short_answer(
    client: openai.OpenAI, cluster: Cluster, behaviour: str
) -> None:
    cluster.standin.will(behaviour)
    chunks = list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    assert chunks
    assert {chunk.choices[0].finish_reason for chunk in chunks} == {None}


def test_headers_come_long_before_the_first_token(cluster: Cluster) -> None:
    cluster.standin.will("slow-first-token")
    began = time.monotonic()
    with raw(cluster, STREAM) as connection:
        assert head(connection).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began < 50 * SCALE
        assert connection.recv(1)
        assert time.monotonic() - began >= 60 * SCALE


def test_a_node_that_stalls_is_given_up_after_ten_minutes(cluster: Cluster) -> None:
    with running_parallax(scale=0.001) as quick, browser(quick) as http:
        quick.standin.will("node-stalls", "node-stalls")
        for stream, mark in ((True, b"__parallax_http_response__"), (False, b"upstream_error")):
            began = time.monotonic()
            assert mark in ask(http, stream=stream).content
            assert time.monotonic() - began >= 0.6


# How clients leave.


@pytest.mark.parametrize("behaviour", ["slow-first-token", "node-stalls"])
def test_a_client_that_leaves_its_stream_cancels_it_at_the_node(cluster: Cluster, behaviour: str) -> None:
    cluster.standin.will(behaviour)
    with raw(cluster, STREAM) as connection:
        head(connection)
        (seen,) = cluster.standin.requests
        assert not seen.over.is_set()
    assert seen.over.wait(10)
    assert cluster.standin.cancellations == 1
    assert seen.client_gone
    assert not seen.finished


def test_a_client_that_leaves_while_events_come_cancels_them() -> None:
    with running_parallax(pace=0.05) as cluster:
        with raw(cluster, STREAM) as connection:
            head(connection)
            connection.recv(10)
        (seen,) = cluster.standin.requests
        assert seen.over.wait(10)
        assert cluster.standin.cancellations == 1


def test_a_client_that_leaves_an_unstreamed_call_is_not_noticed(cluster: Cluster) -> None:
    cluster.standin.will("slow-first-token")
    with raw(cluster, CALL):
        while not cluster.standin.requests:  # another thread's list tells nobody when it grows
            time.sleep(0.001)
        (seen,) = cluster.standin.requests
    assert seen.over.wait(10)
    assert cluster.standin.cancellations == 0


def test_what_was_read_to_its_end_was_not_cancelled(http: httpx2.Client, cluster: Cluster) -> None:
    ask(http, stream=True)
    assert only(cluster.standin.requests).over.wait(10)
    assert cluster.standin.cancellations == 0


# A chat node.


def test_a_chat_node_answers_like_its_scheduler(chat_node: Cluster) -> None:
    with openai.OpenAI(base_url=f"{chat_node.url}/v1", api_key="x", max_retries=0) as client:
        assert client.chat.completions.create(model="m", messages=HELLO).model == MODEL
        assert len(list(client.chat.completions.create(model="m", messages=HELLO, stream=True))) > 3


def test_a_chat_nodes_own_error_is_a_string(chat_node: Cluster) -> None:
    chat_node.standin.will("node-error", "node-error")
    with browser(chat_node) as http:
        answer = ask(http)
        assert (answer.status_code, answer.json()) == (500, {"error": "Internal server error"})
        answer = ask(http, stream=True)
        assert (answer.status_code, answer.content) == (200, b"internal server error")


@pytest.mark.parametrize("behaviour", ["not-ready", "routing-not-ready", "routing-error", "full", "node-refuses"])
def test_a_chat_node_loses_the_status_of_every_other_error(chat_node: Cluster, behaviour: str) -> None:
    chat_node.standin.will(behaviour, behaviour)
    with browser(chat_node) as http:
        for stream in (True, False):
            answer = ask(http, stream=stream)
            assert answer.status_code == 200
            assert answer.json()["error"]["message"]


def test_a_chat_node_knows_no_models_and_ends_its_status_after_a_minute(chat_node: Cluster) -> None:
    with browser(chat_node) as http:
        assert http.get("/v1/models").status_code == 404
        assert http.get("/cluster/status_json").status_code == 404
        assert len(http.get("/cluster/status").text.splitlines()) == 60


# How a test tells it what to do.


def test_behaviours_come_in_the_order_they_were_named(http: httpx2.Client, cluster: Cluster) -> None:
    cluster.standin.will("not-ready", "routing-error")
    cluster.standin.always("node-refuses")
    assert [ask(http).status_code for _ in range(4)] == [503, 500, 400, 400]
    assert ask(http, vllm_xargs={"standin": "not-ready"}).status_code == 503, "a call may say it for itself"
    cluster.standin.forget()
    assert ask(http).status_code == 200


def test_a_behaviour_that_it_does_not_have_is_refused(cluster: Cluster) -> None:
    for tell in (cluster.standin.will, cluster.standin.always):
        with pytest.raises(ValueError, match="no behaviour 'node-sings'"):
            tell("node-sings")


@pytest.fixture(scope="module")
def hasty() -> Iterator[Cluster]:
    with running_parallax(scale=0.0001) as cluster:
        yield cluster


@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS))
@pytest.mark.parametrize("call", [CALL, STREAM])
def test_every_behaviour_comes_to_an_end(hasty: Cluster, behaviour: str, call: dict[str, Any]) -> None:
    hasty.standin.forget()
    hasty.standin.will(behaviour)
    with raw(hasty, call) as connection:
        assert head(connection).startswith(b"HTTP/1.1 ")
        assert only(hasty.standin.requests).over.wait(10)


def test_it_is_a_program_of_its_own() -> None:
    command = [sys.executable, "-m", "deploy.demo.parallax_like", "--port", "0", "--always", "not-ready"]
    with subprocess.Popen(
        [*command, "--until-stdin-closes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        _, name, url = process.stdout.readline().split()[-3:]
        assert name == "parallax"
        assert httpx2.post(f"{url}/v1/chat/completions", json=CALL, trust_env=False, verify=False).status_code == 503
        process.communicate(timeout=20)
    assert process.returncode == 0
