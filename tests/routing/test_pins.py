"""`routing.pins`: what only one target can go on with comes back to it."""

from hypothesis import given
from hypothesis import strategies as st

from routing.pins import Pin, Pins

HERE, THERE = Pin("parallax", "http://10.0.0.1"), Pin("openai", "https://api.example.com/v1")


def test_a_call_that_brings_back_what_a_target_gave_goes_to_that_target() -> None:
    pins = Pins()
    pins.keep("acme", "bot", ["resp_1", "conv_1"], HERE, 0.0)
    pins.keep("acme", "bot", ["resp_2"], THERE, 1.0)
    assert pins.find("acme", "bot", ["resp_1"], 2.0) == HERE
    assert pins.find("acme", "bot", ["conv_1"], 2.0) == HERE
    assert pins.find("acme", "bot", ["resp_2"], 2.0) == THERE
    assert pins.find("acme", "bot", ["resp_3"], 2.0) is None
    assert pins.find("acme", "bot", [], 2.0) is None


def test_nobody_learns_of_the_pins_of_another_agent_or_tenant() -> None:
    pins = Pins()
    pins.keep("acme", "bot", ["resp_1"], HERE, 0.0)
    for tenant, agent in (("acme", "other"), ("other", "bot"), ("acm", "ebot")):
        assert pins.find(tenant, agent, ["resp_1"], 0.0) is None


def test_of_several_the_last_that_is_known_decides() -> None:
    pins = Pins()
    pins.keep("acme", "bot", ["old"], HERE, 0.0)
    pins.keep("acme", "bot", ["new"], THERE, 0.0)
    assert pins.find("acme", "bot", ["old", "new", "unknown"], 0.0) == THERE


def test_a_pin_lasts_for_a_time_after_its_last_use() -> None:
    pins = Pins(kept=10.0)
    pins.keep("acme", "bot", ["resp_1"], HERE, 0.0)
    assert pins.find("acme", "bot", ["resp_1"], 9.0) == HERE
    assert pins.find("acme", "bot", ["resp_1"], 18.0) == HERE
    assert pins.find("acme", "bot", ["resp_1"], 28.0) is None
    assert len(pins) == 0


def test_what_is_given_again_by_another_target_is_there_now() -> None:
    pins = Pins()
    for pin in (HERE, THERE):
        pins.keep("acme", "bot", ["conv_1"], pin, 0.0)
    assert pins.find("acme", "bot", ["conv_1"], 0.0) == THERE
    assert len(pins) == 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.floats(0, 5)), max_size=80))
def test_memory_is_bounded_and_what_was_used_last_is_kept(steps: list[tuple[bool, int, float]]) -> None:
    pins, now, most, kept = Pins(most=4, kept=10.0), 0.0, 4, 10.0
    known: dict[int, float] = {}
    for keeps, number, pause in steps:
        now += pause
        if keeps:
            pins.keep("acme", "bot", [str(number)], HERE, now)
            known.pop(number, None)
            known[number] = now
        else:
            alive = number in list(known)[-most:] and now - known[number] < kept
            assert pins.find("acme", "bot", [str(number)], now) == (HERE if alive else None)
            if alive:
                known.pop(number)
                known[number] = now
        known = dict(list(known.items())[-most:])
        assert len(pins) <= most
