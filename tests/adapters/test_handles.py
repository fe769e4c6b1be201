"""What calls of the responses API refer to, and what its answers hand out."""

import orjson
import pytest

from adapters import registry
from adapters.handles import MOST, made, referred
from adapters.openai_streams import ResponsesMeter

RESPONSE = {
    "id": "resp_2",
    "conversation": {"id": "conv_1"},
    "output": [
        {"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAAA"},
        {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "hi"}]},
    ],
}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"input": "hi"}, []),
        ({"previous_response_id": "resp_1"}, ["resp_1"]),
        ({"conversation": "conv_1"}, ["conv_1"]),
        ({"conversation": {"id": "conv_1"}}, ["conv_1"]),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, ["msg_1"]),
        ({"input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAAA"}]}, ["gAAAA"]),
        ({"input": [{"role": "user", "content": "hi"}, 3, None]}, []),
        ({"previous_response_id": None, "conversation": 3, "input": {"id": "x"}}, []),
        ({"previous_response_id": ""}, []),
    ],
)
def test_a_call_refers_to_what_only_its_maker_has(arguments: dict[str, object], names: list[str]) -> None:
    assert list(referred(arguments)) == names


def test_a_response_hands_out_its_id_its_conversation_and_its_items() -> None:
    assert list(made(RESPONSE)) == ["resp_2", "conv_1", "rs_1", "gAAAA", "msg_1"]
    assert list(made({"id": 3, "output": "none"})) == []


def test_what_a_streamed_response_hands_out_is_in_its_last_event() -> None:
    endpoint, _ = registry.endpoint(registry.OPENAI, "POST", "/v1/responses")
    call = registry.OPENAI.read(endpoint, b'{"model": "m", "input": "hi", "stream": true}', "")
    meter = registry.OPENAI.meter(call)
    assert isinstance(meter, ResponsesMeter)
    assert list(meter.made) == []
    meter.feed(b"data: " + orjson.dumps({"type": "response.completed", "response": RESPONSE}) + b"\n\n")
    assert list(meter.made) == list(made(RESPONSE))


def test_who_writes_countless_handles_is_heard_of_some() -> None:
    """Each takes time to look up, and they are kept beside those of all other agents."""
    items = [{"type": "item_reference", "id": f"msg_{number}"} for number in range(2 * MOST)]
    found = list(referred({"previous_response_id": "resp_1", "input": items}))
    assert (len(found), found[0], found[-1]) == (MOST + 1, "resp_1", f"msg_{2 * MOST - 1}")
    given = list(made({"id": "resp_2", "output": items}))
    assert (len(given), given[0]) == (MOST, "resp_2")
