"""What a scrape sees."""

from typing import Any

import orjson
from prometheus_client.parser import text_string_to_metric_families

from adapters import registry
from adapters.base import Usage
from adapters.mcp import messages
from config.settings import MirrorSettings, TargetSettings
from gateway.callids import CallIds
from gateway.exchange import Exchange
from gateway.mirroring import Mirrors
from gateway.telemetry import Histogram, Telemetry
from gateway.traffic import Traffic
from policies.reuse import Reuse
from routing.health import Fleet, State
from tests.support.exchanges import assembly, exchange
from tests.support.till import Till
from tests.support.tried import NOON, Counted, Try, routes, tried


def samples(telemetry: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(telemetry.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_a_finished_call_is_counted_by_protocol_decision_and_code() -> None:
    telemetry = Telemetry()
    telemetry.observe(exchange())
    telemetry.observe(exchange())
    labels = (("code", "ok"), ("decision", "ALLOW"), ("protocol", "openai"))
    assert samples(telemetry)["weighbridge_calls_total", labels] == 2


def test_decisions_are_counted_by_revision_and_revisions_do_not_pile_up() -> None:
    telemetry = Telemetry()
    for number in range(100):
        x = exchange()
        x.asked[0].revision = f"{number:02}" * 32
        telemetry.observe(x)
    counts = {
        dict(labels)["revision"]: count
        for (name, labels), count in samples(telemetry).items()
        if name == "weighbridge_decisions_total"
    }
    assert sum(counts.values()) == 100
    assert len(counts) < 12
    assert counts["99" * 6] == 1


def test_a_call_that_was_never_decided_is_counted_too() -> None:
    telemetry = Telemetry()
    x = exchange()
    x.decision, x.code = None, "unauthenticated"
    telemetry.observe(x)
    labels = (("code", "unauthenticated"), ("decision", "none"), ("protocol", "openai"))
    assert samples(telemetry)["weighbridge_calls_total", labels] == 1


def test_times_and_tokens_are_those_of_the_target() -> None:
    telemetry = Telemetry()
    x = exchange()
    x.assembly = assembly(
        targets=[{"name": "t", "kind": "openai", "url": "http://127.0.0.1:9"}],
        routes=[{"name": "r", "models": ["*"], "arms": [{"target": "t"}]}],
    )
    x.route = x.assembly.table.match("gpt-4o-mini")
    x.arm = x.route.order("openai", "chat", 0)[0]
    x.read_at, x.sent_at, x.first_byte_at, x.ended = 1.0, 1.0002, 1.5, 3.0
    x.usage = Usage(input_tokens=11, output_tokens=5)
    telemetry.observe(x)
    seen = samples(telemetry)
    assert seen["weighbridge_overhead_seconds_bucket", (("le", "0.00025"), ("protocol", "openai"))] == 1
    assert seen["weighbridge_overhead_seconds_bucket", (("le", "0.0001"), ("protocol", "openai"))] == 0
    assert seen["weighbridge_target_seconds_sum", (("target", "t"),)] == 3.0 - 1.0002
    assert seen["weighbridge_first_byte_seconds_count", (("target", "t"),)] == 1
    assert seen["weighbridge_tokens_total", (("direction", "input"), ("target", "t"))] == 11
    assert seen["weighbridge_tokens_total", (("direction", "output"), ("target", "t"))] == 5


def test_a_histogram_is_cumulative_and_ends_in_infinity() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    assert histogram.cumulative() == [("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]


def test_an_empty_gateway_can_be_scraped() -> None:
    assert samples(Telemetry())["weighbridge_in_flight", ()] == 0


def test_decisions_are_counted_by_where_they_come_from() -> None:
    telemetry = Telemetry()
    assert not any(name.startswith("weighbridge_policy_decisions") for name, _ in samples(telemetry))
    telemetry.reuse = Reuse()
    telemetry.reuse.hits, telemetry.reuse.misses, telemetry.reuse.unsuited = 7, 2, 1
    assert samples(telemetry)["weighbridge_policy_decisions_total", (("source", "reused"),)] == 7
    assert samples(telemetry)["weighbridge_policy_decisions_total", (("source", "evaluated"),)] == 3


def test_attempts_retries_and_overflow_are_told_by_route_and_target() -> None:
    telemetry, under = Telemetry(), routes()
    telemetry.traffic = traffic = Traffic(Counted(), NOON)
    traffic.observe(tried(under, Try("parallax", "connect"), Try("openai")))
    traffic.observe(tried(under, Try("openai"), meant="parallax", full=True))
    seen = samples(telemetry)
    here = ("route", "chat")
    for target, outcome, count in (("parallax", "connect", 1), ("openai", "ok", 2)):
        labels = (("outcome", outcome), here, ("target", target))
        assert seen["weighbridge_attempts_total", labels] == count
    assert seen["weighbridge_retries_total", (here,)] == 1
    assert seen["weighbridge_overflow_total", (here, ("target", "parallax"))] == 1
    assert seen["weighbridge_overflow_total", (here, ("target", "openai"))] == 0


def test_nodes_are_told_by_state_as_they_are_at_the_scrape() -> None:
    telemetry, fleet = Telemetry(), Fleet()
    urls = ("http://127.0.0.1:9", "http://127.0.0.1:10")
    fleet.under([TargetSettings(name="t", kind="openai", urls=urls)], [])
    telemetry.fleet = fleet
    pool = fleet.pools["t"]
    target = ("target", "t")

    def nodes() -> dict[str, float]:
        seen = samples(telemetry)
        return {state: seen["weighbridge_nodes", (("state", state), target)] for state in ("used", "ejected", "trying")}

    assert nodes() == {"used": 2, "ejected": 0, "trying": 0}
    pool.nodes[0].state, pool.in_flight = State.EJECTED, 3
    assert nodes() == {"used": 1, "ejected": 1, "trying": 0}
    assert samples(telemetry)["weighbridge_target_in_flight", (target,)] == 3


def test_each_target_is_charged_with_its_own_attempts() -> None:
    telemetry = Telemetry()
    failed, good = Usage(input_tokens=10), Usage(input_tokens=20, output_tokens=5)
    x = tried(
        routes(), Try("parallax", "stream_cut", cost=10**9, usage=failed), Try("openai", cost=2 * 10**9, usage=good)
    )
    x.sent_at, x.cost, x.usage = x.began, 3 * 10**9, good
    telemetry.observe(x)
    seen = samples(telemetry)
    for target, dollars, tokens in (("parallax", 1, 10), ("openai", 2, 20)):
        assert seen["weighbridge_cost_usd_total", (("target", target),)] == dollars
        assert seen["weighbridge_tokens_total", (("direction", "input"), ("target", target))] == tokens


def test_a_mirror_that_had_several_models_is_told_once() -> None:
    telemetry = Telemetry()
    telemetry.mirrors = mirrors = Mirrors(Till(), Fleet(), lambda kind, facts: None)
    for model, dropped in (("small", 2), ("large", 3)):
        mirrors._about("chat", MirrorSettings(target="second", model=model, share=1.0)).dropped = dropped
    text = telemetry.render().decode()
    (line,) = [
        each for each in text.splitlines() if each.startswith("weighbridge_mirrored_total") and "dropped" in each
    ]
    assert line.endswith(" 5.0")


def mcp(method: str, tool: str = "", *, code: str = "ok", failed: bool = False, session: str = "") -> Exchange:
    """A message of MCP that has just ended, half a second after it came."""
    x = exchange()
    params: dict[str, Any] = {"name": tool, "arguments": {}} if method == "tools/call" else {}
    body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    call = messages.read("up", body, "", free=True)
    call.session = session
    x.call, x.adapter, x.code, x.tool_error = call, registry.MCP.answering(call), code, failed
    return x


def test_messages_of_mcp_are_timed_by_method_tool_and_what_went_wrong() -> None:
    telemetry = Telemetry()
    for x in (
        mcp("tools/call", "echo"),
        mcp("tools/call", "echo", failed=True),
        mcp("tools/call", "echo", code="policy_denied"),
        mcp("tools/list"),
        mcp("made/up"),
    ):
        telemetry.observe(x)
    counts = {
        (labels["mcp_method_name"], labels["gen_ai_tool_name"], labels["error_type"]): value
        for (name, pairs), value in samples(telemetry).items()
        if name == "mcp_server_operation_duration_seconds_count" and (labels := dict(pairs))["server"] == "up"
    }
    assert counts == {
        ("tools/call", "echo", ""): 1,
        ("tools/call", "echo", "tool_error"): 1,
        ("tools/call", "echo", "policy_denied"): 1,
        ("tools/list", "", ""): 1,
        ("_OTHER", "", ""): 1,
    }


def test_names_that_an_agent_makes_up_do_not_become_labels() -> None:
    telemetry = Telemetry()
    for number in range(1000):
        telemetry.observe(mcp("tools/call", f"tool-{number}", code="policy_denied"))
    for number in range(1000):
        telemetry.observe(mcp("tools/call", f"tool-{number}"))
    assert len({labels[2] for labels in telemetry.operations}) == 257


def test_a_session_is_timed_when_its_client_ends_it() -> None:
    telemetry = Telemetry()
    x = mcp("ping", session=CallIds().next(0))
    assert isinstance(x.call, messages.McpCall)
    x.call.session, x.call.method, x.arrived_ns = CallIds().next(x.arrived_ns - 90 * 10**9), "DELETE", x.arrived_ns
    telemetry.observe(x)
    total = samples(telemetry)["mcp_server_session_duration_seconds_sum", (("server", "up"),)]
    assert 89.9 < total < 90.1
