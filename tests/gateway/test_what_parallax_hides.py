"""Nothing that goes wrong behind a Parallax scheduler, or a chat node, is a success in the end: over real sockets,
with the carrier, the sniffers, the meter and the table of outcomes together."""

from collections.abc import Iterator

import orjson
import pytest

from adapters.base import Endpoint
from adapters.parallax import SOUND, UNDECIDED, Failure, Sniffer, hidden
from adapters.registry import OPENAI, endpoint
from deploy.demo.parallax_like import BEHAVIOURS
from gateway.carrier import Carrier, CarrierError, Origin, Reply, Timeouts
from routing.outcomes import Facts, classify
from tests.support.parallax import Cluster, running_parallax

CHAT: Endpoint = endpoint(OPENAI, "POST", "/v1/chat/completions")[0]

# Behaviour -> the class of a whole answer, and of a stream.
SCHEDULER = {
    "answer": ("ok", "ok"),
    "slow-first-token": ("ok", "ok"),
    "routing-stalls": ("ok", "ok"),
    "routing-not-ready": ("upstream_5xx", "upstream_5xx"),
    "routing-error": ("upstream_5xx", "upstream_5xx"),
    "not-ready": ("upstream_5xx", "upstream_5xx"),
    "full": ("capacity", "capacity"),
    "forwarding-fails": ("upstream_5xx", "stream_cut"),
    "node-refuses": ("rejected", "rejected"),
    "node-fails": ("upstream_5xx", "stream_cut"),
    "node-unreachable": ("upstream_5xx", "stream_cut"),
    "node-error": ("protocol", "stream_cut"),
    "node-says-nothing": ("upstream_5xx", "stream_cut"),
    "node-dies": ("upstream_5xx", "stream_cut"),
    "node-breaks": ("upstream_5xx", "stream_cut"),
    "node-error-in-stream": ("protocol", "stream_cut"),
    "node-stalls": ("upstream_5xx", "stream_cut"),
}
CHAT_NODE = {
    **SCHEDULER,
    "routing-not-ready": ("protocol", "stream_cut"),
    "routing-error": ("protocol", "stream_cut"),
    "not-ready": ("protocol", "stream_cut"),
    "forwarding-fails": ("protocol", "stream_cut"),
    "node-fails": ("protocol", "stream_cut"),
    "node-unreachable": ("protocol", "stream_cut"),
    "node-error": ("upstream_5xx", "stream_cut"),
    "node-says-nothing": ("protocol", "stream_cut"),
    "node-dies": ("protocol", "stream_cut"),
    "node-breaks": ("protocol", "stream_cut"),
    "node-error-in-stream": ("upstream_5xx", "stream_cut"),
    "node-stalls": ("protocol", "stream_cut"),
}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Cluster]:
    with running_parallax(scale=0.0001) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def chat_node() -> Iterator[Cluster]:
    with running_parallax(scale=0.0001, chat_node=True) as cluster:
        yield cluster


def content_type(reply: Reply) -> bytes:
    return dict(reply.headers)[b"content-type"].partition(b";")[0]


def found_in(failure: Failure) -> Facts:
    return Facts("parallax", "headed", failure.status, hidden=failure.kind)


async def facts(carrier: Carrier, *, stream: bool) -> tuple[Facts, bytes]:
    """What became of one call, and what an agent would have seen of it."""
    body = orjson.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "Hello"}]})
    call = OPENAI.read(CHAT, body, "")
    reply = await carrier.send(b"POST", b"/v1/chat/completions", [(b"content-type", b"application/json")], body)
    try:
        if reply.status != 200:
            return Facts("parallax", "headed", reply.status), b""
        if not stream:
            whole = b""
            while piece := await reply.read():
                whole += piece
            failure = hidden("chat", reply.status, content_type(reply), whole)
            return (Facts("parallax", "begun", 200), whole) if failure is None else (found_in(failure), b"")
        sniffer = Sniffer("openai", reply.status, content_type(reply))
        verdict = UNDECIDED
        while verdict is UNDECIDED and (piece := await reply.read()):
            said = sniffer.feed(piece)
            if isinstance(said, Failure):
                return found_in(said), b""
            verdict = said
        last = sniffer.end()
        if isinstance(last, Failure):
            return found_in(last), b""
        assert last is SOUND
        meter = OPENAI.meter(call)
        seen = meter.feed(sniffer.held)
        while piece := await reply.read():
            seen += meter.feed(piece)
        seen += meter.rest()
        return Facts("parallax", "begun", 200, complete=meter.complete and not meter.failed), seen
    except CarrierError as error:
        return Facts("parallax", "headed", reply.status, error=type(error).__name__), b""
    finally:
        reply.close()


async def became(cluster: Cluster, behaviour: str, *, stream: bool) -> tuple[str, bytes]:
    cluster.standin.forget()
    cluster.standin.will(behaviour)
    carrier = Carrier(Origin("http", "127.0.0.1", cluster.port), timeouts=Timeouts(first_byte=20, idle=20))
    try:
        known, seen = await facts(carrier, stream=stream)
    finally:
        await carrier.close()
    return classify(known).name, seen


@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS))
async def test_what_a_scheduler_hides_is_found(scheduler: Cluster, behaviour: str) -> None:
    whole, streamed = SCHEDULER[behaviour]
    assert (await became(scheduler, behaviour, stream=False))[0] == whole
    assert (await became(scheduler, behaviour, stream=True))[0] == streamed


@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS))
async def test_what_a_chat_node_hides_is_found(chat_node: Cluster, behaviour: str) -> None:
    whole, streamed = CHAT_NODE[behaviour]
    assert (await became(chat_node, behaviour, stream=False))[0] == whole
    assert (await became(chat_node, behaviour, stream=True))[0] == streamed


@pytest.mark.parametrize("behaviour", ["node-dies", "node-breaks", "node-error-in-stream", "node-stalls"])
async def test_of_a_stream_that_dies_nothing_passes_that_is_no_event(scheduler: Cluster, behaviour: str) -> None:
    _, seen = await became(scheduler, behaviour, stream=True)
    assert seen.endswith(b"\n\n"), "an error event can be put behind it"
    assert all(event.startswith(b"data: {") for event in seen.split(b"\n\n")[:-1])
    assert b"__parallax" not in seen
