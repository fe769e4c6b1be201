"""The engine in this process: same question, same answer, and nothing of one call visible to the next."""

import asyncio
import threading
import time
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.build import RUNG, build
from policies.decision import Decision, Effect
from policies.embedded import EmbeddedEngine
from policies.errors import EngineUnavailable, InputRefused, PolicyError, Undecided
from policies.obligations import NONE
from policies.pack import SLICE
from policies.sources import read
from tests.policies.support import NOW, SHIPPED, call, engine, llm, rego, sources

_ECHO = """
    default decision := {"decision": "DENY", "explanation": "nothing said"}
    decision := {"decision": "ALLOW", "explanation": input.call.arguments.say}
"""


async def test_a_decision_carries_the_revision_that_made_it() -> None:
    made = await engine('decision := {"decision": "ALLOW"}')
    assert made.answer(llm(), NOW) == Decision(Effect.ALLOW, None, (), "", NONE, made.revision)


async def test_the_same_document_gives_the_same_decision() -> None:
    made = await engine(_ECHO)
    first = made.answer(llm(arguments={"say": "one"}), NOW)
    assert made.answer(llm(arguments={"say": "two"}), NOW) != first
    assert made.answer(llm(arguments={"say": "one"}), NOW) == first


@pytest.mark.parametrize(
    ("expression", "recorded"),
    [
        ("input.call.arguments.say + 1", "policy0.rego:5: `add` expects numeric argument"),
        ("upper(input.call.arguments.number)", "policy0.rego:5: `upper` expects string argument"),
        ("count(input.call.arguments.number)", "policy0.rego:5: `count` requires array/object/set/string argument"),
        ("1 / (input.call.arguments.number - 987654)", "policy0.rego:5: divide by zero"),
        ("net.cidr_contains(`10.0.0.0/8`, input.call.arguments.say)", "policy0.rego:5: the policy failed on this call"),
        ("time.parse_duration_ns(input.call.arguments.say)", "the policy failed on this call"),
        ("time.parse_duration_ns(input.call.arguments.lines)", "the policy failed on this call"),
        (
            "uri.parse(input.call.arguments.say)",
            "policy0.rego:5: extension 'uri.parse' raises Python error: ValueError: uri.parse was given a URI with ",
        ),
    ],
)
async def test_what_is_recorded_of_a_failure_holds_no_value_of_the_call(expression: str, recorded: str) -> None:
    made = await engine(f'decision := {{"decision": "ALLOW", "explanation": json.marshal({expression})}}')
    arguments = {
        "say": "1secret: %zz error: 987654",
        "lines": "1\n--> secret:987654:1\nerror: 987654",
        "number": 987654,
    }
    with pytest.raises(Undecided) as caught:
        made.answer(llm(arguments=arguments), NOW)
    assert caught.value.recorded.startswith(recorded)
    assert "secret" not in caught.value.recorded
    assert "987654" not in caught.value.recorded


async def test_a_rule_that_conflicts_is_told_in_one_line_with_the_other_place() -> None:
    made = await engine(
        'decision := {"decision": "ALLOW", "explanation": input.call.arguments.say}\n\n'
        'decision := {"decision": word} if word := ["DENY", "ALLOW"][input.call.arguments.which]'
    )
    with pytest.raises(Undecided) as caught:
        made.answer(llm(arguments={"say": "secret", "which": 0}), NOW)
    assert caught.value.recorded == caught.value.internal
    assert caught.value.recorded == "policy0.rego:7: rule conflicts with the rule at line 5"


async def test_after_a_refused_input_the_next_caller_does_not_see_the_previous_one() -> None:
    made = await engine(_ECHO)
    assert made.answer(llm(arguments={"say": "secret"}), NOW).explanation == "secret"
    with pytest.raises(InputRefused):
        made.answer(b"{", NOW)
    assert made.answer(b"{}", NOW).explanation == "nothing said"


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b'{"a": "\\ud800"}', "it is not JSON"),
        (b'{"a": NaN}', "it is not JSON"),
        (b'{"number out of range": recursion limit}', "it is not JSON"),
        (b'{"a": 1e999}', "it holds a number out of range"),
        (b'{"a": -1' + b"0" * 400 + b"}", "it holds a number out of range"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "it nests too deep"),
        (b"[" * 100_000, "it nests too deep"),
    ],
)
async def test_a_document_that_cannot_be_represented_is_refused_with_its_cause(document: bytes, cause: str) -> None:
    made = await engine('decision := {"decision": "ALLOW"}')
    with pytest.raises(InputRefused) as caught:
        made.answer(document, NOW)
    assert str(caught.value) == f"The call cannot be put before the policy: {cause}."


@pytest.mark.parametrize(
    "policy",
    [
        'decision := {"decision": "ALLOW"} if false',
        "decision := null",
        'decision := "<undefined>"',
        'decision := {"decision": "MAYBE"}',
        'decision := {"decision": "ALLOW"} if 1 / input.zero',
        'decision := {"decision": "ALLOW"} if count(input.zero)',
        'decision := {"decision": "ALLOW"} if nowhere.to.be.found(1)',
        'decision := {"decision": "ALLOW"} if http.send({})',
        'decision := {"decision": "ALLOW"} if opa.runtime()',
        'decision := {"decision": "ALLOW"} if rand.intn("a", 5) >= 0',
        'decision := {"decision": "ALLOW"} if net.cidr_expand("0.0.0.0/0")',
        'decision := {"decision": "ALLOW"} if numbers.range(1, 1000000000)',
        'decision := {"decision": "ALLOW"} if bits.lsh(1, 1000000000)',
        'decision := {"decision": "ALLOW"} if units.parse("1e999999999")',
        'decision := {"decision": "ALLOW"} if strings.count(input.zero, "") >= 0',
        'decision := {"decision": "ALLOW"} if yaml.unmarshal("a: 1")',
        'decision := {"decision": "ALLOW"} if replace(input.long, "a", input.long)',
        'decision := {"decision": "ALLOW"}\ndecision := {"decision": "DENY"}',
        'decision := {"decision": "ALLOW"} if other\nother if decision',
    ],
)
async def test_a_policy_without_a_valid_answer_is_undecided_and_says_nothing_of_itself(policy: str) -> None:
    made = await engine(policy)
    with pytest.raises(Undecided) as caught:
        made.answer(orjson.dumps({"zero": 0, "text": "abc", "long": "a" * 10_000}), NOW)
    assert caught.value.internal
    assert str(caught.value) == "The policy gave no valid decision, so the call is refused."


async def test_a_panic_of_the_interpreter_is_undecided_and_the_engine_stays_usable() -> None:
    made = await engine('decision := {"decision": "ALLOW", "explanation": substring(input.a, input.from, -1)}')

    class Panicking:
        """An interpreter whose evaluation panics, as the real one's does: with something that is no Exception."""

        def __init__(self, base: object) -> None:
            self.base = base

        def clone(self) -> "Panicking":
            return self

        def set_input_json(self, input: str) -> None:
            return None

        def eval_rule_as_json(self, rule: str) -> str:
            raise _Panic

    base, made._base = made._base, Panicking(None)  # type: ignore[assignment]  # only what `evaluate` uses
    with pytest.raises(Undecided):
        made.answer(b"{}", NOW)
    made._base = base
    assert made.answer(b'{"a": "abc", "from": 1}', NOW).explanation == "bc"


class _Panic(BaseException):
    pass


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_a_wish_to_stop_is_no_answer_of_the_policy(stop: type[BaseException]) -> None:
    made = await engine('decision := {"decision": "ALLOW"}')

    class Stopping:
        """An interpreter that is stopped while it evaluates."""

        def clone(self) -> "Stopping":
            return self

        def set_input_json(self, input: str) -> None:
            return None

        def eval_rule_as_json(self, rule: str) -> str:
            raise stop

    made._base = Stopping()  # type: ignore[assignment]  # only what `evaluate` uses
    with pytest.raises(stop):
        made.answer(b"{}", NOW)


async def test_the_time_is_that_of_the_call() -> None:
    made = await engine('decision := {"decision": "ALLOW", "explanation": format_int(time.now_ns(), 10)}')
    assert made.answer(b"{}", NOW).explanation == str(NOW)
    assert made.answer(b"{}", NOW + 1).explanation == str(NOW + 1)


async def test_another_thread_gets_no_answer() -> None:
    made = await engine('decision := {"decision": "ALLOW"}')
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(made.answer(b"{}", NOW))
        except EngineUnavailable as error:
            answers.append(str(error))

    asker = threading.Thread(target=ask)
    asker.start()
    asker.join()
    assert answers == ["The policy engine belongs to another thread."]


async def test_a_policy_that_does_not_parse_is_named_with_its_line() -> None:
    with pytest.raises(PolicyError) as caught:
        await build(sources(rego("decision := ] if true")))
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == ("policy0.rego", 5)


async def test_data_in_many_slices_is_whole_and_the_loop_runs_between_them() -> None:
    names = {f"agent-{number}": {"word": "ALLOW"} for number in range(10_000)}
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        other = group.create_task(other_work())
        made = await engine('decision := {"decision": data.words[input.name].word}', {"words": names, "empty": {}})
        other.cancel()
    assert turns >= len(orjson.dumps(names)) // SLICE
    for name in ("agent-0", "agent-5000", "agent-9999"):
        assert made.answer(orjson.dumps({"name": name}), NOW).effect is Effect.ALLOW


async def test_an_engine_that_retires_gives_way_to_calls_and_answers_no_more() -> None:
    names = {f"agent-{number}": {"words": ["ALLOW"] * 100} for number in range(5_000)}
    made = await engine('decision := {"decision": data.words[input.name].words[0]}', {"words": names})
    successor = await engine('decision := {"decision": data.words[input.name].words[0]}', {"words": names})
    answered = 0

    async def calls() -> None:
        nonlocal answered
        while True:
            answered += successor.answer(b'{"name":"agent-7"}', NOW).effect is Effect.ALLOW
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        other = group.create_task(calls())
        await made.retire()
        other.cancel()
    assert answered >= len(orjson.dumps(names)) // RUNG
    with pytest.raises(EngineUnavailable, match="has retired"):
        made.answer(b"{}", NOW)


async def test_data_too_wide_to_be_freed_piece_by_piece_is_taken_and_freed_all_the_same() -> None:
    made = await engine(
        'decision := {"decision": data.hosts[input.host]}', {"hosts": {str(n): "DENY" for n in range(90_000)}}
    )
    assert made.answer(b'{"host":"89999"}', NOW).effect is Effect.DENY
    await made.retire()


async def test_decisions_with_obligations_are_shared_for_nobody_can_change_them() -> None:
    made = await engine('decision := {"decision": "ALLOW", "obligations": {"redact": ["/a"]}}')
    one, two = made.answer(b"{}", NOW), made.answer(b"{}", NOW)
    assert one == two
    assert one is two


async def test_what_is_remembered_of_answers_is_bounded() -> None:
    made = await engine(_ECHO)
    for number in range(5_000):
        made.answer(llm(arguments={"say": str(number)}), NOW)
    made.answer(llm(arguments={"say": "long" * 1000}), NOW)
    assert len(made._parsed) <= 2048
    assert max(map(len, made._parsed)) <= 1024


def test_printing_policies_do_not_write_to_our_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    made: EmbeddedEngine = asyncio.run(engine('decision := {"decision": "ALLOW"} if print(input.secret)'))
    assert made.answer(b'{"secret": "hunter2"}', NOW).effect is Effect.ALLOW
    assert capfd.readouterr() == ("", "")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_decided_or_refused(document: bytes) -> None:
    made = _constant()
    try:
        assert made.answer(document, NOW).effect is Effect.ALLOW
    except InputRefused:
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(document)


_made: list[EmbeddedEngine] = []


def _constant() -> EmbeddedEngine:
    if not _made:
        _made.append(asyncio.run(engine('decision := {"decision": "ALLOW"}')))
    return _made[0]


async def test_ten_thousand_envelopes_are_decided_from_as_fast_as_ten() -> None:
    """By processor time, in turns so that both meet the same disturbances, and the fairest round counts."""
    shipped = read([SHIPPED / "envelopes.rego", SHIPPED / "weighbridge.rego"])
    envelope = {"models": {"gpt-4o-mini": {"max_output_tokens": 9}}, "allowed_tools": {"t": {"operations": {"o": {}}}}}
    few, many = [
        await build(replace(shipped, data={"envelopes": {f"agent-{number}": envelope for number in range(count)}}))
        for count in (10, 10_000)
    ]
    documents = [llm(agent="agent-7"), call("tool", "t", "o", {}, agent="agent-9"), llm(agent="nobody")]

    def ratio_of_the_slowest_hundredth() -> float:
        seconds: dict[EmbeddedEngine, list[float]] = {few: [], many: []}
        for turn in range(1_500):
            for made, spent in seconds.items():
                began = time.thread_time()
                made.answer(documents[turn % 3], NOW)
                spent.append(time.thread_time() - began)
        return sorted(seconds[many])[-15] / sorted(seconds[few])[-15]

    ratios = [ratio_of_the_slowest_hundredth() for _ in range(3)]
    assert min(ratios) < 1.5, ratios
