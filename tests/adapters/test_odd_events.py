"""Whatever JSON a target answers with, reading what it has used does not fail."""

from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.base import Adapter, AgentCall
from adapters.registry import ANTHROPIC, OPENAI, endpoint

NAMES = """
    type response usage choices delta content item part index output_index finish_reason error message text id status
    output arguments input_tokens output_tokens prompt_tokens completion_tokens total_tokens prompt_tokens_details
    cache_creation server_tool_use iterations service_tier speed action num_requests tool_usage web_search
    content_block sequence_number summary name input thinking
""".split()
WORDS = """
    response.completed response.created response.output_item.added response.output_item.done response.failed
    response.content_part.added response.content_part.done response.output_text.delta message_start message_delta
    message_stop content_block_start content_block_stop content_block_delta error compaction function_call message
    stop web_search_call fast refusal tool_use
""".split()
CALLS: list[tuple[Adapter, str, dict[str, Any]]] = [
    (OPENAI, "/v1/chat/completions", {"messages": []}),
    (OPENAI, "/v1/completions", {"prompt": "x", "echo": True}),
    (OPENAI, "/v1/responses", {"input": "x"}),
    (ANTHROPIC, "/v1/messages", {"messages": [], "max_tokens": 9}),
]

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
answers = st.dictionaries(st.sampled_from(NAMES), values, max_size=5).flatmap(
    lambda members: st.sampled_from(WORDS).map(lambda word: {"type": word, **members})
)
bounds = st.sampled_from([0, 1, 40, 2**62])


def read(adapter: Adapter, path: str, members: dict[str, Any]) -> AgentCall:
    body = orjson.dumps({"model": "m", "stream": True, **members})
    return adapter.read(endpoint(adapter, "POST", path)[0], body, "")


@given(st.sampled_from(CALLS), st.lists(answers, max_size=6), st.none() | st.tuples(bounds, bounds))
@example(CALLS[2], [{"type": ["response.completed"]}], None)
@example(CALLS[2], [{"type": {"x": "response.created"}}], (1, 1))
def test_no_event_keeps_a_stream_from_being_metered_and_cut(
    call: tuple[Adapter, str, dict[str, Any]], said: list[Any], bound: tuple[int, int] | None
) -> None:
    meter = call[0].meter(read(*call))
    if bound is not None:
        meter.stop_beyond(*bound)
    for each in said:
        meter.feed(b"data: %b\n\n" % orjson.dumps(each))
    meter.rest()
    if bound is not None:
        meter.cut()
    spent = meter.spent()
    assert min(spent.input_tokens, spent.output_tokens, meter.produced) >= 0


@given(st.sampled_from(CALLS), answers)
def test_no_answer_keeps_what_it_has_used_from_being_read(
    call: tuple[Adapter, str, dict[str, Any]], answer: Any
) -> None:
    asked, body = read(*call), orjson.dumps(answer)
    usage = call[0].usage(asked, body)
    assert usage is None or min(usage.input_tokens, usage.output_tokens) >= 0
    assert call[0].counted(asked, body) >= 0
