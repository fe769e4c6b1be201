"""The engine on an OPA server, before servers that lie, stall, break off and come back."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from config.secrets import Secret
from config.settings import OpaSettings, PolicySettings
from gateway.opa import OpaLine
from policies.decision import Effect
from policies.document import Question
from policies.errors import EngineUnavailable, InputRefused, PolicyError, Undecided
from policies.interpreter import Clock, create
from policies.load import load
from policies.opa import DECISION, MASK, NOBODY, POLICIES, PROBLEMS, OpaEngine, Reply, fit
from tests.gateway.test_carrier_tls import LOOPBACK, Authority
from tests.policies.support import NOW, ROOT, Purse, llm, rego
from tests.support.lying_opa import ALLOW, LISTING, LyingOpa, answers, breaks_off, of_bundle, reply
from tests.support.misbehaving import HEAD, Script, Wire, falls_silent, floods, never_answers, says
from tests.support.opa import OpaServer, needs_opa, opa_server
from tests.support.steps import longest_step

DEADLINE: Final = 0.25
DENY: Final = {"result": {"decision": "DENY", "explanation": "No."}}
TOKEN: Final = "opas-own-token"


@pytest.fixture
async def opa() -> AsyncIterator[LyingOpa]:
    async with LyingOpa() as server:
        yield server


@asynccontextmanager
async def asking(opa: LyingOpa, *, every: float = 60.0, again: float = 0.02, **more: Any) -> AsyncIterator[OpaEngine]:
    """An engine that asks this server, and that leaves no connection behind."""
    line = OpaLine(OpaSettings.model_validate({"url": opa.url, **more}))
    engine = OpaEngine(line, timeout=DEADLINE, every=every, again=again)
    await engine.begin()
    try:
        yield engine
    finally:
        await engine.retire()
        await opa.all_gone()


async def until(engine: OpaEngine, *, fails: bool) -> None:
    async with asyncio.timeout(10):
        while (engine.failure is not None) is not fails:
            await asyncio.sleep(0.005)


def error(*told: tuple[str, str], code: str = "internal_error", message: str = "error(s) occurred") -> dict[str, Any]:
    """An error as OPA's REST API words it."""
    where = {"file": "p.rego", "row": 7, "col": 1}
    return {
        "code": code,
        "message": message,
        "errors": [{"code": each, "message": text, "location": where} for each, text in told],
    }


async def test_a_decision_is_what_opa_says(opa: LyingOpa) -> None:
    opa.decides(answers({"result": {"decision": "DENY", "explanation": "Not today.", "risk_level": "high"}}))
    async with asking(opa) as engine:
        assert engine.failure is None
        decision = await engine.evaluate(b'{"a":1}', NOW)
    assert (decision.effect, decision.explanation, decision.risk_level) == (Effect.DENY, "Not today.", "high")
    assert decision.revision == engine.revision != NOBODY
    assert len(decision.revision) == 64


async def test_it_is_told_all_there_is_to_know_of_a_calls_money(opa: LyingOpa) -> None:
    purse = Purse(b'[{"state":"ok"}]', 1_200_000)
    call = Question(b"{}", "llm", "openai", "m", "chat", None, None, b"{}", {}, NOW, purse)
    heard: list[bytes] = []

    async def listens(wire: Wire) -> None:
        heard.append(await wire.body())
        await wire.send(reply(ALLOW))

    opa.decides(listens)
    async with asking(opa) as engine:
        await engine.decide(call)
        await engine.decide(call)
    told = orjson.loads(heard[-1])["input"]
    assert (told["budgets"], told["call"]["estimated_cost_usd"]) == ([{"state": "ok"}], 0.0012)
    assert purse.asked == ["budgets", "estimated_cost"]


def test_the_manuals_example_is_a_configuration() -> None:
    manual = (ROOT / "docs" / "policy.md").read_text()
    [example] = [
        text for text in re.findall(r"^```yaml\n(.*?)^```$", manual, re.DOTALL | re.MULTILINE) if "opa:" in text
    ]
    written = PolicySettings.model_validate(yaml.safe_load(example)["policy"]).opa
    assert written is not None
    assert written.model_fields_set == {"url", "token", "ca", "timeout"}


async def test_an_opa_server_is_not_asked_where_nobody_may() -> None:
    with pytest.raises(PolicyError, match="an OPA server is not asked here"):
        await load(PolicySettings.model_validate({"engine": "opa", "opa": {"url": "http://127.0.0.1:1"}}))


async def test_authorities_that_cannot_be_read_are_told_by_name(tmp_path: Path) -> None:
    opa = {"url": "https://127.0.0.1:1", "ca": str(tmp_path / "absent.pem")}
    with pytest.raises(PolicyError, match=r"policy\.opa\.ca: its authorities cannot be used: No such file"):
        await load(PolicySettings.model_validate({"engine": "opa", "opa": opa}), opa=OpaLine)


async def test_an_engine_is_made_without_holding_calls_up() -> None:
    """The trusted authorities are read then, which takes twenty milliseconds."""
    settings = PolicySettings.model_validate({"engine": "opa", "opa": {"url": "https://127.0.0.1:9"}})
    async with longest_step() as step:
        engine = await load(settings, opa=OpaLine)
    await engine.retire()
    assert step.seconds < 0.015


# What is not clearly a decision is none.

UNDECIDED: Mapping[str, tuple[Script, str]] = {
    "undefined": (answers({}), "undefined"),
    "undefined with a warning": (answers({"warning": {"code": "api_usage_warning"}}), "undefined"),
    "null": (answers({"result": None}), "undefined"),
    "another word": (answers({"result": {"decision": "MAYBE"}}), "not one of"),
    "a text": (answers({"result": "ALLOW"}), "not an object"),
    "true": (answers({"result": True}), "not an object"),
    "a mistyped field": (answers({"result": {"decision": "ALLOW", "required_approvals": "ops"}}), "role names"),
    "too long": (answers({"result": {"decision": "ALLOW", "explanation": "x" * 70_000}}), "longer than"),
    "too deep": (
        answers(b'{"result":{"decision":"ALLOW","x":' + b"[" * 300 + b"]" * 300 + b"}}"),
        "too deep",
    ),
    "a builtin that failed": (
        answers(error(("eval_builtin_error", "to_number: of x")), b"500 Internal Server Error"),
        "p.rego:7: eval_builtin_error: to_number: of x",
    ),
    "rules that conflict": (
        answers(error(("eval_conflict_error", "two values")), b"500 Internal Server Error"),
        "eval_conflict_error",
    ),
    "an input that OPA refuses": (
        answers({"code": "invalid_parameter", "message": "body is malformed"}, b"400 Bad Request"),
        "invalid_parameter: body is malformed",
    ),
}

UNANSWERED: Mapping[str, tuple[Script, str]] = {
    "an error of its own": (
        answers({"code": "internal_error", "message": "storage is gone"}, b"500 Internal Server Error"),
        "500 internal_error: storage is gone",
    ),
    "a mixture of errors": (
        answers(error(("eval_builtin_error", "x"), ("storage_error", "y")), b"500 Internal Server Error"),
        "storage_error",
    ),
    "a proxy's page": (answers(b"<html>Bad Gateway</html>", b"502 Bad Gateway"), "502 with something that is not"),
    "no such path": (answers(b"404 page not found", b"404 Not Found"), "404 with something"),
    "no permission": (answers({"code": "unauthorized"}, b"401 Unauthorized"), "see policy.opa.token"),
    "forbidden": (answers({"code": "forbidden"}, b"403 Forbidden"), "see policy.opa.token"),
    "another place": (answers({}, b"302 Found"), "302"),
    "too many": (answers({"code": "busy"}, b"429 Too Many Requests"), "429"),
    "a page": (answers(b"<html>Welcome</html>"), "not OPA's JSON"),
    "a list": (answers([ALLOW]), "not OPA's JSON"),
    "nothing": (answers(b""), "not OPA's JSON"),
    "half of it": (breaks_off, "closed the connection within its reply"),
    "JSON that was cut": (answers(orjson.dumps(ALLOW)[:-1]), "not OPA's JSON"),
    "no HTTP": (says(b"hello, who is there?"), "does not begin as HTTP"),
    "an end": (says(b"", Wire.close), "closed"),
    "a reset": (says(b"", Wire.reset), "before any reply"),
    "silence": (never_answers, "OPA gave no answer within 0.25 s"),
    "silence in the middle": (falls_silent, "OPA gave no answer within 0.25 s"),
    "interim replies without end": (floods, "interim"),
    "megabytes": (answers({"result": {"decision": "ALLOW"}, "x": "x" * 1_100_000}), "longer than 131072 bytes"),
}


async def refused(engine: OpaEngine, kind: type[Undecided] | type[EngineUnavailable], detail: str) -> None:
    with pytest.raises(kind) as caught:
        await engine.evaluate(llm(), NOW)
    assert detail in caught.value.internal
    for word in ("OPA", "p.rego", "127.0.0.1", "error"):
        assert word not in str(caught.value), "what went wrong within is for the operator alone"


@pytest.mark.parametrize("case", UNDECIDED)
async def test_what_is_no_decision_refuses_the_call_and_leaves_the_gateway_ready(opa: LyingOpa, case: str) -> None:
    script, detail = UNDECIDED[case]
    opa.decides(script)
    async with asking(opa) as engine:
        await refused(engine, Undecided, detail)
        assert engine.failure is None
        opa.decides(answers(ALLOW))
        assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW


@pytest.mark.parametrize("case", UNANSWERED)
async def test_what_is_no_answer_refuses_the_call_and_makes_the_gateway_unready(opa: LyingOpa, case: str) -> None:
    script, detail = UNANSWERED[case]
    async with asking(opa, again=60) as engine:
        opa.decides(script)
        await refused(engine, EngineUnavailable, detail)
        assert engine.failure is not None
        assert detail in engine.failure
        opa.decides(answers(ALLOW))
        assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW
        assert engine.failure is None


@pytest.mark.parametrize(
    ("code", "message", "recorded"),
    [
        ("eval_builtin_error", 'to_number: strconv.ParseFloat: parsing "secret": invalid syntax', "to_number"),
        ("eval_builtin_error", "upper: operand 1 must be string but got number", None),
        ("eval_builtin_error", "divide by zero", None),
        ("eval_conflict_error", "complete rules must not produce multiple outputs", None),
        ("eval_other_error", "secret is to blame", "the policy failed on this call"),
    ],
)
async def test_what_is_recorded_of_a_failure_holds_no_value_of_the_call(
    opa: LyingOpa, code: str, message: str, recorded: str | None
) -> None:
    async with asking(opa) as engine:
        opa.decides(answers(error((code, message)), b"500 Internal Server Error"))
        with pytest.raises(Undecided) as caught:
            await engine.evaluate(llm(), NOW)
    assert caught.value.internal == f"p.rego:7: {code}: {message}"
    assert caught.value.recorded == f"p.rego:7: {code}: {recorded or message}"


async def test_a_question_is_not_answered_by_what_was_left_of_the_one_before(opa: LyingOpa) -> None:
    """The answer to a second question that nobody asked arrives with the first."""
    opa.decides(says(reply(DENY) + reply(ALLOW)))
    async with asking(opa) as engine:
        for _ in range(3):
            assert (await engine.evaluate(llm(), NOW)).effect is Effect.DENY


# Deadlines.


async def test_no_call_waits_longer_than_the_deadline(opa: LyingOpa) -> None:
    async with asking(opa) as engine:
        opa.decides(never_answers)
        began = time.monotonic()
        results = await asyncio.gather(*(engine.evaluate(llm(), NOW) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(result, EngineUnavailable) for result in results)
        assert time.monotonic() - began < 4 * DEADLINE  # with the patience of a busy machine


async def test_an_answer_that_trickles_is_given_up_at_the_deadline(opa: LyingOpa) -> None:
    async def trickles(wire: Wire) -> None:
        await wire.body()
        await wire.trickle(reply(ALLOW), 0.02)

    async with asking(opa) as engine:
        opa.decides(trickles)
        await refused(engine, EngineUnavailable, "no answer within")


async def test_a_server_that_accepts_and_never_speaks_keeps_no_start_waiting(opa: LyingOpa) -> None:
    opa.names_problems(never_answers)
    began = time.monotonic()
    async with asking(opa) as engine:
        assert time.monotonic() - began < 3
        assert engine.failure == "OPA has not answered yet"
        assert engine.revision == NOBODY


# Recovery.


async def test_one_question_that_takes_too_long_makes_nobody_unready(opa: LyingOpa) -> None:
    """Whoever finds a call that the policy is slow about must not have the gateway taken out of service with it."""

    async def slow_about_one(wire: Wire) -> None:
        body = await wire.body()
        if b"slow" in body:
            await wire.reader.read()  # until it is given up
        await wire.send(reply(ALLOW))

    opa.decides(slow_about_one)
    async with asking(opa, again=60.0) as engine:
        slow = asyncio.create_task(engine.evaluate(b'{"slow":1}', NOW))
        while not slow.done():
            await engine.evaluate(b'{"a":1}', NOW)
            assert engine.failure is None
        with pytest.raises(EngineUnavailable) as caught:
            await slow
        assert "no answer within" in caught.value.internal
        assert engine.failure is None


async def test_a_server_that_answers_every_question_too_late_stays_unready_until_it_is_quick(
    opa: LyingOpa, caplog: pytest.LogCaptureFixture
) -> None:
    late = asyncio.Event()

    async def slow(wire: Wire) -> None:
        await wire.body()
        await asyncio.sleep(0 if late.is_set() else 2 * DEADLINE)
        await wire.send(reply(ALLOW))

    opa.decides(slow)
    async with asking(opa) as engine:
        with pytest.raises(EngineUnavailable):
            await engine.evaluate(llm(), NOW)
        began = time.monotonic()
        while time.monotonic() - began < 4 * DEADLINE:
            assert engine.failure is not None
            await asyncio.sleep(0.01)
        late.set()
        await until(engine, fails=False)
    assert len([each for each in caplog.records if "calls are refused" in each.message]) == 1


async def test_a_server_that_comes_back_is_noticed_without_a_call(opa: LyingOpa) -> None:
    opa.names_problems(answers({"code": "internal_error"}, b"500 Internal Server Error"))
    async with asking(opa) as engine:
        assert engine.failure == "OPA answers 500 internal_error"
        opa.names_problems(answers({}))
        await until(engine, fails=False)
    assert opa.questions() == 0


async def test_a_server_that_is_gone_is_noticed_without_a_call(opa: LyingOpa) -> None:
    async with asking(opa, every=0.02) as engine:
        opa.names_problems(says(b"", Wire.close))
        await until(engine, fails=True)
    assert opa.questions() == 0


async def test_a_server_may_be_started_after_the_gateway_and_restarted_under_it(tmp_path: Path) -> None:
    at = tmp_path / "s"
    engine = OpaEngine(OpaLine(OpaSettings(url=f"unix://{at}")), timeout=DEADLINE, again=0.02)
    await engine.begin()
    await refused(engine, EngineUnavailable, "no connection: No such file or directory")
    for effect in (Effect.ALLOW, Effect.DENY):
        at.unlink(missing_ok=True)
        async with LyingOpa(at=at) as opa:
            opa.decides(answers({"result": {"decision": effect}}))
            await until(engine, fails=False)
            assert (await engine.evaluate(llm(), NOW)).effect is effect
        at.unlink(missing_ok=True)
        await refused(engine, EngineUnavailable, "no connection")
        assert engine.failure is not None
    await engine.retire()


async def test_failing_and_recovering_are_logged_once_each(opa: LyingOpa, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "weighbridge.opa")
    async with asking(opa, again=60) as engine:
        caplog.clear()
        opa.decides(answers(b"", b"503 Service Unavailable"))
        for _ in range(3):
            await refused(engine, EngineUnavailable, "503")
        opa.decides(answers(ALLOW))
        for _ in range(3):
            await engine.evaluate(llm(), NOW)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


# Connections.


async def test_connections_are_kept(opa: LyingOpa) -> None:
    async with asking(opa) as engine:
        for _ in range(50):
            await engine.evaluate(llm(), NOW)
        assert opa.accepted == 1
        await asyncio.gather(*(engine.evaluate(llm(), NOW) for _ in range(10)))
        assert opa.accepted <= 10
    assert opa.questions() == 60


async def test_there_are_no_more_connections_than_configured(opa: LyingOpa) -> None:
    async with asking(opa, max_connections=3) as engine:
        await asyncio.gather(*(engine.evaluate(llm(), NOW) for _ in range(30)))
    assert opa.accepted <= 3


async def test_a_question_on_a_connection_that_was_closed_meanwhile_is_asked_once_more(opa: LyingOpa) -> None:
    async def closes_the_second(wire: Wire) -> None:
        await wire.body()
        if wire.turn > 3:  # after a look, which is two questions, and one for a decision
            wire.close()
        else:
            await wire.send(reply(ALLOW))

    opa.decides(closes_the_second)
    async with asking(opa) as engine:
        for _ in range(2):
            assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW
    assert opa.questions() == 3


async def test_a_question_that_was_answered_in_part_is_not_repeated(opa: LyingOpa) -> None:
    async with asking(opa) as engine:
        opa.decides(says(HEAD, Wire.close))
        await refused(engine, EngineUnavailable, "within the head")
    assert opa.questions() == 1


async def test_a_base_path_and_the_input_as_it_is(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def notes(wire: Wire) -> None:
        seen.append(await wire.body())
        await wire.send(reply(ALLOW))

    async with LyingOpa(base="/policy/opa") as opa:
        opa.decides(notes)
        async with asking(opa) as engine:
            await engine.evaluate(b'{"call": {"target": "\xc3\xa9"}, "n": [1, 2.5, 18446744073709551615]}', NOW)
    assert seen == [b'{"input":{"call":{"target":"\xc3\xa9"},"n":[1,2.5,18446744073709551615]}}']
    assert set(opa.requests) == {f"/policy/opa{path}" for path in (DECISION, PROBLEMS, POLICIES)}


async def test_a_server_on_a_unix_socket(tmp_path: Path) -> None:
    async with LyingOpa(at=tmp_path / "s") as opa, asking(opa) as engine:
        assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW


async def test_a_server_is_trusted_by_its_own_authority_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pem = tmp_path / "ca.pem"
    pem.write_text(authority.pem())
    async with LyingOpa(authority.server(LOOPBACK)) as opa:
        async with asking(opa, ca=str(pem)) as engine:
            assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW
        async with asking(opa) as engine:
            await refused(engine, EngineUnavailable, "TLS:")


async def test_the_token_is_shown_with_every_question_and_told_to_nobody(
    opa: LyingOpa, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with asking(opa, token=TOKEN) as engine:
        await engine.evaluate(llm(), NOW)
        assert opa.shown == [f"Bearer {TOKEN}"] * 3
        opa.decides(answers({"code": "unauthorized"}, b"401 Unauthorized"))
        with pytest.raises(EngineUnavailable) as caught:
            await engine.evaluate(llm(), NOW)
        told = f"{engine!r} {engine.failure} {caught.value!r} {caught.value.internal} {vars(engine)}"
    assert TOKEN not in told + caplog.text


async def test_without_a_token_none_is_shown(opa: LyingOpa) -> None:
    async with asking(opa) as engine:
        await engine.evaluate(llm(), NOW)
    assert set(opa.shown) == {None}


async def test_a_token_in_a_file_may_be_replaced(
    opa: LyingOpa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.opa._TOKEN_KEPT", 0.0)
    file = tmp_path / "token"
    file.write_text("the-first-token\n")
    async with asking(opa, token=Secret(f"file:{file}")) as engine:
        file.write_text("the-second-token\n")
        await engine.evaluate(llm(), NOW)
        assert opa.shown[-1] == "Bearer the-second-token"
        file.unlink()
        await refused(engine, EngineUnavailable, "is not a file")


# What decides there.


async def test_a_bundle_names_its_revision_with_every_answer(opa: LyingOpa) -> None:
    opa.names_problems(answers(of_bundle({}, main="1")))
    opa.decides(answers(of_bundle(ALLOW, main="1")))
    async with asking(opa) as engine:
        first = (await engine.evaluate(llm(), NOW)).revision
        assert opa.requests.count(PROBLEMS) == 1
        opa.names_problems(answers(of_bundle({}, main="2")))
        opa.decides(answers(of_bundle(DENY, main="2")))
        second = await engine.evaluate(llm(), NOW)
        assert second.effect is Effect.DENY
        assert second.revision == engine.revision != first
        assert opa.requests.count(PROBLEMS) == 2, "a revision is asked for its problems before it decides"
        await engine.evaluate(llm(), NOW)
        assert opa.requests.count(PROBLEMS) == 2


async def test_a_call_during_the_first_look_waits_for_it(opa: LyingOpa) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def later(wire: Wire) -> None:
        await wire.body()
        asked.set()
        await go_on.wait()
        await wire.send(reply({}))

    opa.names_problems(later)
    async with asking(opa) as engine:
        question = asyncio.create_task(engine.evaluate(llm(), NOW))
        await asked.wait()
        while not opa.questions():
            await asyncio.sleep(0)
        go_on.set()
        assert (await question).revision == engine.revision != NOBODY


async def test_a_known_bundle_is_not_judged_again_and_an_unknown_one_is_without_a_call(opa: LyingOpa) -> None:
    opa.names_problems(answers(of_bundle({}, main="1")))
    opa.decides(answers(of_bundle(ALLOW, main="1")))
    async with asking(opa, every=0.02) as engine:
        while opa.questions() < 3:
            await asyncio.sleep(0.005)
        assert (opa.requests.count(PROBLEMS), opa.requests.count(POLICIES)) == (1, 1)
        opa.names_problems(answers(of_bundle({"result": ["wrong"]}, main="2")))
        opa.decides(answers(of_bundle(ALLOW, main="2")))
        await until(engine, fails=True)
        assert engine.failure == "wrong"


async def test_a_new_revision_with_problems_decides_nothing_until_they_are_gone(opa: LyingOpa) -> None:
    opa.names_problems(answers(of_bundle({"result": []}, main="1")))
    opa.decides(answers(of_bundle(ALLOW, main="1")))
    async with asking(opa) as engine:
        await engine.evaluate(llm(), NOW)
        opa.names_problems(answers(of_bundle({"result": ["envelopes.a: dayly_cap is misspelt"]}, main="2")))
        opa.decides(answers(of_bundle(ALLOW, main="2")))
        await refused(engine, EngineUnavailable, "dayly_cap is misspelt")
        assert engine.failure == "envelopes.a: dayly_cap is misspelt"
        opa.names_problems(answers(of_bundle({"result": []}, main="3")))
        opa.decides(answers(of_bundle(ALLOW, main="3")))
        assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW
        assert engine.failure is None


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"result": "bad"}, "no set of texts"),
        ({"result": {"a": 1}}, "no set of texts"),
        ({"result": [1]}, "no set of texts"),
        ({"result": [f"problem {number}" for number in range(30)]}, "problem 19 (and 10 more)"),
    ],
)
async def test_problems_make_the_gateway_unready(opa: LyingOpa, told: Any, why: str) -> None:
    opa.names_problems(answers(told))
    async with asking(opa) as engine:
        assert engine.failure is not None
        assert why in engine.failure
        await refused(engine, EngineUnavailable, why)


async def test_problems_that_cannot_be_evaluated_are_problems(opa: LyingOpa) -> None:
    told = error(("eval_builtin_error", "to_number"))
    for bundle in ({}, {"main": "1"}):
        opa.names_problems(answers(told, b"500 Internal Server Error"))
        opa.decides(answers(of_bundle(ALLOW, **bundle)))
        async with asking(opa) as engine:
            await refused(engine, EngineUnavailable, "problems cannot be evaluated: p.rego:7: eval_builtin_error")


async def test_without_bundles_the_revision_is_that_of_the_policies_at_the_last_look(opa: LyingOpa) -> None:
    async with asking(opa, every=0.02) as engine:
        first = engine.revision
        assert (await engine.evaluate(llm(), NOW)).revision == first
        changed = orjson.loads(orjson.dumps(LISTING))
        changed["result"][0]["raw"] = "package weighbridge # changed"
        opa.lists(answers(changed))
        async with asyncio.timeout(10):
            while engine.revision == first:
                await asyncio.sleep(0.005)
        assert (await engine.evaluate(llm(), NOW)).revision == engine.revision


async def test_a_bundle_without_revision_is_known_by_its_policies(opa: LyingOpa) -> None:
    opa.names_problems(answers(of_bundle({}, main="")))
    opa.decides(answers(of_bundle(ALLOW, main="")))
    async with asking(opa) as engine:
        assert (await engine.evaluate(llm(), NOW)).revision == engine.revision
        assert POLICIES in opa.requests


async def test_a_server_without_our_package_decides_nothing(opa: LyingOpa) -> None:
    opa.lists(answers({"result": []}))
    async with asking(opa) as engine:
        await refused(engine, EngineUnavailable, "no policy of package weighbridge")
        assert engine.failure == "OPA has no policy of package weighbridge"


async def test_who_may_only_ask_for_decisions_need_not_be_shown_policies(opa: LyingOpa) -> None:
    opa.lists(answers({"code": "unauthorized"}, b"401 Unauthorized"))
    async with asking(opa) as engine:
        assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW


# The real one.


@asynccontextmanager
async def asking_really(server: OpaServer, **more: Any) -> AsyncIterator[OpaEngine]:
    line = OpaLine(OpaSettings.model_validate({"url": server.url, **more}))
    engine = OpaEngine(line, timeout=10, every=60, again=0.02)
    await engine.begin()
    yield engine
    await engine.retire()


@needs_opa
async def test_the_revision_of_a_real_bundle_changes_with_it_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "p.rego").write_text(rego('decision := {"decision": "ALLOW"}'))
    revisions = []
    for revision in ("1", "1", "2"):
        (folder / ".manifest").write_text(orjson.dumps({"revision": revision}).decode())
        with opa_server(folder, arguments=["--bundle"]) as server:
            async with asking_really(server) as engine:
                decision = await engine.evaluate(llm(), NOW)
                assert decision.revision == engine.revision
                revisions.append(decision.revision)
    assert revisions[0] == revisions[1] != revisions[2]


@needs_opa
async def test_a_real_opa_over_tls_that_wants_a_token_and_shows_no_policies(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.server(LOOPBACK)
    (tmp_path / "ca.pem").write_text(authority.pem())
    allowed = """default allow := false

        allow if {
            input.identity == "opas-own-token"
            input.path[0] == "v1"
            input.path[1] == "data"
            input.path[2] == "weighbridge"
        }"""
    (tmp_path / "authz.rego").write_text(rego(allowed, "system.authz"))
    (tmp_path / "p.rego").write_text(rego('decision := {"decision": "ALLOW"}'))
    files = (tmp_path / "p.rego", tmp_path / "authz.rego")
    own = str(tmp_path / "server.pem")
    protected = ["--authentication=token", "--authorization=basic"]
    protected += ["--tls-cert-file", own, "--tls-private-key-file", own]
    with opa_server(*files, arguments=protected, scheme="https") as server:
        async with asking_really(server, ca=str(tmp_path / "ca.pem"), token=TOKEN) as engine:
            assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW
        async with asking_really(server, ca=str(tmp_path / "ca.pem"), token="another-token") as engine:
            await refused(engine, EngineUnavailable, "OPA answers 401 unauthorized")
        async with asking_really(server, token=TOKEN) as engine:
            await refused(engine, EngineUnavailable, "TLS:")


# The end.


async def test_an_engine_that_retires_answers_what_was_asked_before(opa: LyingOpa) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def later(wire: Wire) -> None:
        await wire.body()
        asked.set()
        await go_on.wait()
        await wire.send(reply(ALLOW))

    opa.decides(later)
    async with asking(opa) as engine:
        question = asyncio.create_task(engine.evaluate(llm(), NOW))
        await asked.wait()
        retiring = asyncio.create_task(engine.retire())
        await asyncio.sleep(0)
        go_on.set()
        assert (await question).effect is Effect.ALLOW
        await retiring


async def test_an_engine_that_retires_still_says_how_what_it_decided_is_masked(opa: LyingOpa) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def later(wire: Wire) -> None:
        await wire.body()
        asked.set()
        await go_on.wait()
        await wire.send(reply(ALLOW))

    async def decided(engine: OpaEngine) -> Any:
        await engine.evaluate(llm(), NOW)
        return await engine.mask(b"{}")

    opa.decides(later)
    opa.on(MASK, answers({"result": ["/input"]}))
    async with asking(opa) as engine:
        question = asyncio.create_task(decided(engine))
        await asked.wait()
        retiring = asyncio.create_task(engine.retire())
        await asyncio.sleep(0)
        go_on.set()
        assert await question == ["/input"]
        await retiring


async def test_an_engine_that_retires_while_it_looks_waits_for_nobody(opa: LyingOpa) -> None:
    opa.names_problems(never_answers)
    async with asking(opa) as engine:
        began = time.monotonic()
        await engine.retire()
        assert time.monotonic() - began < 1
        assert len(asyncio.all_tasks()) <= 1 + opa.open


async def test_a_call_that_gives_up_leaves_the_engine_well(opa: LyingOpa) -> None:
    opa.decides(never_answers)
    async with asking(opa) as engine:
        question = asyncio.create_task(engine.evaluate(llm(), NOW))
        while not opa.questions():
            await asyncio.sleep(0)
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await question
        assert engine.failure is None
        opa.decides(answers(ALLOW))
        assert (await engine.evaluate(llm(), NOW)).effect is Effect.ALLOW


# The input.

DEEP: Final = [b"[" * depth + b"]" * depth for depth in (1, 126, 127, 128, 129, 5000)]
NUMBERS: Final = ["1e308", "1e309", "-1e999", "1e-400", "18446744073709551616", "1" * 400, "0e9999", "0.1", "-0"]
ODD: Final = [
    b"",
    b"{",
    b"nul",
    b'"\xff"',
    b'"\\ud800"',
    b'"\\u0000"',
    b"[1,]",
    b"01",
    b"{}{}",
    b'{"a":1,"a":2}',
    b'"\t"',
    b"NaN",
    b'["' + b"[" * 500 + b'"]',
    b'["\\"' + b"{" * 500 + b'"]',
    b"[" + b",".join([b"{}"] * 500) + b"]",
    b'{"a":' * 127 + b"1" + b"}" * 127,
    b'{"a":[' * 64 + b"1" + b"]}" * 64,
]


@pytest.mark.parametrize(
    "document", [*DEEP, *(text.encode() for text in NUMBERS), *ODD], ids=range(len(DEEP + NUMBERS + ODD))
)
def test_an_input_is_fit_for_opa_where_the_embedded_engine_takes_it(document: bytes) -> None:
    agree(document)


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.sampled_from('[]{}\\"'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=40,
)


@settings(max_examples=200, deadline=None)
@given(json, st.integers(0, 130), st.binary(max_size=4), st.integers(0, 10_000))
def test_any_input_is_fit_for_opa_where_the_embedded_engine_takes_it(
    value: Any, depth: int, cut: bytes, place: int
) -> None:
    document = orjson.dumps(value if writable(value) else None)
    agree(b"[" * depth + document + b"]" * depth)
    at = place % (len(document) + 1)
    agree(document[:at] + cut + document[at:])


def writable(value: Any) -> bool:
    """Whether the value can be written by orjson, which knows no whole numbers beyond 64 bits."""
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    "document",
    [
        b"[" + b",".join([b"[" * 120 + b"]" * 120] * 5000) + b"]",
        b'["' + b'\\"' * 500_000 + b'"' + b",[]" * 200 + b"]",
    ],
    ids=["brackets", "quotes"],
)
def test_whether_an_input_is_fit_costs_little_more_than_reading_and_writing_it(document: bytes) -> None:
    def least(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            began = time.process_time()
            work()
            seconds.append(time.process_time() - began)
        return min(seconds)

    assert least(lambda: fit(document)) < 2 * least(lambda: orjson.dumps(orjson.loads(document))) + 0.01


def agree(document: bytes) -> None:
    interpreter = create(Clock())
    try:
        interpreter.set_input_json(document.decode())
    except (RuntimeError, UnicodeDecodeError):
        with pytest.raises(InputRefused):
            fit(document)
    else:
        assert orjson.loads(fit(document)) == orjson.loads(document)


# Nothing that OPA may say ends in anything but a decision or one of the three refusals.


class Parrot:
    """A line that says what it is told to, whatever it is asked."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = replies
        self._next = 0

    async def ask(self, path: str, body: bytes | None, most: int) -> Reply:
        self._next += 1
        return self._replies[self._next % len(self._replies)]

    async def close(self) -> None:
        pass


async def test_a_fault_of_our_own_is_no_yes_and_does_not_end_the_watch() -> None:
    class Broken(Parrot):
        broken = True

        async def ask(self, path: str, body: bytes | None, most: int) -> Reply:
            if self.broken:
                raise ValueError("nobody foresaw this")
            return Reply(200, orjson.dumps(LISTING if path == POLICIES else {} if path == PROBLEMS else ALLOW))

    line = Broken()
    engine = OpaEngine(line, timeout=5, again=0.02)
    await engine.begin()
    assert engine.failure == "looking at OPA failed unexpectedly with ValueError"
    line.broken = False
    await until(engine, fails=False)
    assert (await engine.evaluate(b"{}", NOW)).effect is Effect.ALLOW
    await engine.retire()


_KEYS = st.sampled_from(
    "result provenance bundles revision code errors message location row id raw ast package path value decision".split()
)
said = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2**70)
    | st.sampled_from(["ALLOW", "eval_x", "data", "weighbridge", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=25,
).map(
    lambda value: orjson.dumps(value, default=str, option=orjson.OPT_PASSTHROUGH_SUBCLASS) if writable(value) else b"{}"
)
replies = st.builds(Reply, st.sampled_from([200, 200, 200, 400, 401, 404, 500, 503]), said)


@settings(max_examples=300, deadline=None)
@given(st.lists(replies, min_size=1, max_size=4))
def test_whatever_opa_says_a_call_is_decided_or_refused(told: list[Reply]) -> None:
    async def ask() -> None:
        engine = OpaEngine(Parrot(*told), timeout=5, again=60)
        await engine.begin()
        for _ in range(3):
            try:
                decision = await engine.evaluate(b"{}", NOW)
                assert decision.effect in Effect
            except (Undecided, EngineUnavailable, InputRefused):
                pass
            assert len(engine.revision) == 64
            assert engine.failure is None or engine.failure
        await engine.retire()

    asyncio.run(ask())
