"""Policies that would kill, stall or fill the process that interprets them end a child, and are told by name."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import child
from policies.budgets import Balance, Budget, Mode, account
from policies.document import budgets_document
from policies.errors import PolicyError, Problem
from policies.money import nano
from policies.prove import prove, samples
from policies.sources import Module, Sources, read
from tests.policies.support import rego, sources

_ALLOW = 'decision := {"decision": "ALLOW"}'
_AS_CHILD = {"MIMALLOC_ARENA_RESERVE": "16384"}


async def refused(what: Sources, seconds: float = 10) -> list[Problem]:
    with pytest.raises(PolicyError) as caught:
        await prove(what, seconds)
    return caught.value.problems


async def test_a_sound_policy_is_proven_on_every_kind_of_call() -> None:
    proof = await prove(sources(rego(_ALLOW)), 10)
    for kind in ("no input", "chat completion", "tool call", "message to an agent", "environment step"):
        assert any(name.startswith(kind) for name in proof.seconds)


async def test_it_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orjson.py").write_text("raise SystemExit('found in the working folder')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    await prove(sources(rego(_ALLOW)), 10)


def test_the_child_runs_the_code_that_its_parent_runs_where_another_version_is_installed(tmp_path: Path) -> None:
    installed = tmp_path / "policies"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    (installed / "prove.py").write_text("def main():\n    raise SystemExit('of another version')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{child.program('prove')}"
    work = orjson.dumps({"seconds": 10, "sources": sources(rego(_ALLOW))})
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], input=work, env=_AS_CHILD, capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert b'"proven"' in done.stdout


async def test_a_child_that_does_not_find_the_code_of_its_parent_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (problem,) = await refused(sources(rego(_ALLOW)))
    assert "other code of the gateway than runs here, or none" in problem.message
    assert problem.remedy == child.ONE_VERSION


async def test_a_proof_that_cannot_be_started_is_told_and_nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (problem,) = await refused(sources(rego(_ALLOW)))
    assert problem.message == "the proof of the policy cannot be started: No such file or directory"


def test_the_samples_speak_of_agents_that_the_data_names() -> None:
    names = [name for name, _ in samples({"envelopes": {"ann": {}, "bob": {}}})]
    assert {"tool call by ann", "tool call by bob"} < set(names)


async def test_a_policy_that_fails_on_money_is_told_before_there_is_any() -> None:
    policy = rego(f"{_ALLOW} if {{ some budget in input.budgets; 1 / (budget.limit_usd - 5) < budget.posted_usd }}")
    (problem,) = await refused(sources(policy))
    assert (problem.line, problem.message) == (5, "divide by zero")
    assert "failed on the sample `paid chat completion by an-agent-nobody-knows`" in problem.remedy


def test_the_sample_with_money_has_it_as_calls_have() -> None:
    told = {name: orjson.loads(document) for name, document in samples({"envelopes": {"ann": {}}})}
    paid = told["paid chat completion by ann"]
    budget = Budget("acme/ann", "day", nano(5), Mode.ADAPTIVE)
    balance = Balance(account(budget, 0, None), nano(5), nano(4.1), nano(0.05))
    assert paid["budgets"] == orjson.loads(budgets_document([balance]))
    assert paid["call"] == {**told["chat completion by ann"]["call"], "estimated_cost_usd": 0.0012}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("garbage", 1, "Missing package declaration"),
        ("", 1, "Missing package declaration"),
        ("\x00\x01\x02", 1, ""),
        (rego("decision := ] if true"), 5, "expecting expression"),
        ("package weighbridge\ndecision := 1 { true }", 2, "`if` keyword is required"),
        ("package weighbridge\ndecision := '" + "x" * 2000, 2, ""),
        (rego(_ALLOW + "\ndecision := nosuch(1)"), 6, "no function `nosuch`"),
        (rego("f(x) := f(x)\n" + _ALLOW + " if f(1)"), 5, "calls itself"),
        (rego("f(x) := g(x)\ng(x) := f(x)\n" + _ALLOW + " if f(1)"), 5, "calls itself"),
        (rego("a if b\nb if a\n" + _ALLOW + " if a"), 5, "recursion"),
        (rego(_ALLOW + "\n" + 'decision := {"decision": "DENY"}'), 6, ""),
        (rego(_ALLOW + " if unsafe == 1"), 5, "unsafe"),
        (rego(_ALLOW + " if count(input.call.kind) / 0 > 1"), 5, "divide by zero"),
        (rego('decision := "ALLOW"'), None, "is no decision"),
        (rego('decision := {"decision": "MAYBE"}'), None, "is no decision"),
        (rego('decision := {"decision": "ALLOW", "risk_level": "dire"}'), None, "is no decision"),
        (rego(_ALLOW + '\nproblems contains "the moon is full"'), None, "the moon is full"),
        (rego(_ALLOW + "\nproblems := 5"), None, "is no set of texts"),
        (rego(_ALLOW + "\nproblems contains x if x := 1 / data.zero"), 6, "divide by zero"),
    ],
)
async def test_a_policy_that_is_wrong_is_told_with_its_line(text: str, line: int | None, message: str) -> None:
    problems = await refused(sources(text, data={"zero": 0}))
    assert any(message in each.message and each.line == line for each in problems), problems


@pytest.mark.parametrize(
    "body",
    [
        "x := [1 | some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a == b]; count(x) > 0",
        "x := [[a, b, c] | some a in data.many; some b in data.many; some c in data.many]; count(x) > 0",
        'x := [concat("", [a, b]) | some a in data.long; some b in data.long]; count(x) > 0',
    ],
)
async def test_a_policy_that_takes_all_time_or_memory_ends_the_child_alone(body: str) -> None:
    data = {"many": list(range(2_000)), "long": ["x" * 10_000] * 1_000}
    began = time.monotonic()
    (problem,) = await refused(sources(rego(f"{_ALLOW} if {{ {body} }}"), data=data), 2)
    assert time.monotonic() - began < 8
    assert problem.file == "policy0.rego"
    assert problem.message


async def test_a_policy_nested_so_deep_that_it_takes_minutes_to_parse_is_given_up() -> None:
    (problem,) = await refused(sources(rego("x := " + "[" * 300 + "]" * 300 + "\n" + _ALLOW)), 1)
    assert "did not finish within 1 s while it was parsed" in problem.message


async def test_an_expression_without_end_does_not_harm_us() -> None:
    for text in ("-" * 3_000 + "1", "1" + "+1" * 5_000, "not " * 5_000 + "1", "{" * 5_000, "f(" * 5_000):
        assert await refused(sources(rego(f"x := {text}\n{_ALLOW}")), 1)


async def test_a_policy_that_is_slow_on_a_sample_is_refused() -> None:
    slow = "count([1 | some a in numbers.range(1, 2000); some b in numbers.range(1, 1000); a == b]) > 0"
    (problem,) = await refused(sources(rego(f"{_ALLOW} if {slow}")), 50)
    assert "to decide the sample `no input`" in problem.message


async def test_a_large_policy_is_proven_or_refused() -> None:
    many = "\n".join(f"rule_{number} := {number}" for number in range(2_000))
    await prove(sources(rego(_ALLOW), rego(many, "many")), 10)


async def test_a_child_is_gone_when_its_proof_is_cancelled() -> None:
    slow = sources(rego("x := " + "[" * 300 + "]" * 300 + "\n" + _ALLOW))
    before = _children()
    task = asyncio.create_task(prove(slow, 30))
    while not _children() - before:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _children() - before


async def test_a_child_that_somebody_else_ended_says_nothing_about_the_policy() -> None:
    slow = sources(rego("x := " + "[" * 300 + "]" * 300 + "\n" + _ALLOW))
    before = _children()
    task = asyncio.create_task(prove(slow, 30))
    while not _children() - before:
        await asyncio.sleep(0.01)
    (child,) = _children() - before
    os.kill(int(child), signal.SIGKILL)
    with pytest.raises(PolicyError, match="was ended from outside") as caught:
        await task
    assert caught.value.transient


async def test_a_policy_that_is_wrong_is_not_wrong_for_now() -> None:
    with pytest.raises(PolicyError) as caught:
        await prove(sources("garbage"), 10)
    assert not caught.value.transient


async def test_what_was_proven_comes_back_as_it_was_read(tmp_path: Path) -> None:
    texts = {"a.rego": rego(_ALLOW), "b.rego": rego('word := "é😀"', "b")}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "data.json").write_text('{"a": {"é": [1.5, null, "\\u0000"]}}')
    (tmp_path / "a_test.rego").write_text("package a_test")
    proof = await prove([tmp_path], 10)
    assert [(Path(module.name).name, module.text) for module in proof.packed.modules] == list(texts.items())
    assert [orjson.loads(text) for text in proof.packed.slices] == [{"a": {"é": [1.5, None, "\0"]}}]
    assert proof.packed.revision == read([tmp_path]).revision


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_the_child_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[dict[str, Any]] = []
    real = asyncio.create_subprocess_exec

    async def watched(*command: Any, **given: Any) -> asyncio.subprocess.Process:
        created.append(given)
        return await real(*command, **given)

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
    await prove(sources(rego(_ALLOW)), 10)
    assert "OPENAI_API_KEY" not in created[0]["env"]
    assert created[0].get("close_fds", True)


_WORDS = st.sampled_from(
    [
        *"package weighbridge import rego.v1 decision := = == if else { } [ ] ( ) | , : ; .".split(),
        *"input data every some in not with as contains default true null 1 -1 1e9 x y".split(),
        *"f(x) count(x) numbers.range(1,9) `b` % #".split(),
        *('"a"', "é", "\n", "\n\n", "\\", "\x00"),
    ]
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_WORDS, max_size=40).map(" ".join), st.booleans())
def test_any_text_is_proven_or_refused(text: str, is_whole: bool) -> None:
    whole = text if is_whole else rego(_ALLOW) + text
    what = Sources((Module("random.rego", whole),), (), {}, "", ())
    problems: list[Problem] = []
    try:
        asyncio.run(prove(what, 5))
    except PolicyError as error:
        problems = error.problems
    assert all(problem.message for problem in problems)
    assert problems or "decision" in whole


async def test_a_problem_with_the_data_names_the_file_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text(
        rego(
            _ALLOW + '\nproblems := {"limits.a is odd", "envelopes.one: is odd", "envelopes.two.x: is odd", "all odd", '
            '"envelopes is odd"}'
        )
    )
    (tmp_path / "limits.yaml").write_text("limits: {a: 1}\n")
    (tmp_path / "one.yaml").write_text("envelopes: {one: {}}\n")
    (tmp_path / "two.yaml").write_text("envelopes: {two: {x: 1}}\n")
    assert [str(each) for each in await refused(read([tmp_path]))] == [
        "policy data: all odd. Correct the data.",
        "policy data: envelopes is odd. Correct the data.",
        f"{tmp_path}/one.yaml: envelopes.one: is odd. Correct the data.",
        f"{tmp_path}/two.yaml: envelopes.two.x: is odd. Correct the data.",
        f"{tmp_path}/limits.yaml: limits.a is odd. Correct the data.",
    ]
