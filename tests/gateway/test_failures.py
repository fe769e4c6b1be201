"""What the log says of calls that the policy could not decide, and how often."""

import pytest

from gateway.failures import Failures
from policies.errors import Undecided
from tests.support.door import connected, post
from tests.support.gate import AUTHORIZED, gate


def test_each_place_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [5.0]
    failures = Failures(lambda: now[0])
    for second, call, place in (
        (5.0, "C1", "p.rego:3: conflict"),
        (6.0, "C2", "p.rego:3: conflict"),
        (7.0, "C3", "p.rego:9: conflict"),
        (64.9, "C4", "p.rego:3: conflict"),
        (65.0, "C5", "p.rego:3: conflict"),
    ):
        now[0] = second
        failures.tell(call, Undecided(place))
    assert [record.message.split()[1] for record in caplog.records] == ["C1:", "C3:", "C5:"]


def test_ever_new_failures_take_no_more_room(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(lambda: 0.0)
    for number in range(2500):
        failures.tell("C", Undecided(f"p.rego:{number}: conflict"))
    assert len(failures._told) <= 1000
    assert len(caplog.records) == 2500


async def test_a_call_that_the_policy_cannot_decide_leaves_a_warning_without_its_values(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Undecided("weighbridge.rego:3: cannot add secret", "weighbridge.rego:3: cannot add")
    async with gate(script=script) as g, connected(g.port) as client:
        for _ in range(3):
            await client.say(post("/v1/chat/completions", b'{"model":"m","messages":[]}', AUTHORIZED))
            await client.answer()
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.message.endswith(": weighbridge.rego:3: cannot add")
    assert "secret" not in caplog.text
