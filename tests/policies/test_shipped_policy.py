"""The shipped policy through both engines, on the example envelopes: who may do what, as a table."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.budgets import Balance, Budget, Mode, Window, account
from policies.decision import Effect
from policies.document import Question, agent_fragment, budgets_document, render
from policies.errors import Undecided
from policies.money import nano
from tests.policies.support import ENVELOPES, NOW, SHIPPED, Purse, call, llm
from tests.support.engines import Answering, embedded, on_opa
from tests.support.opa import needs_opa


@pytest.fixture(scope="module", params=["embedded", pytest.param("opa", marks=needs_opa)])
def shipped(request: pytest.FixtureRequest) -> Iterator[Answering]:
    started = embedded if request.param == "embedded" else on_opa
    with started(SHIPPED, ENVELOPES) as engine:
        yield engine


ALLOW, DENY, ASK = Effect.ALLOW, Effect.DENY, Effect.NEEDS_APPROVAL
PR = {"title": "Fix", "base": "main"}


@pytest.mark.parametrize(
    ("document", "effect", "said"),
    [
        (llm("gpt-4o-mini"), ALLOW, ""),
        (llm("gpt-4o"), ALLOW, ""),
        (llm("text-embedding-3-small", operation="embeddings"), ALLOW, ""),
        (llm("llama-3.1/8b"), ALLOW, ""),
        (llm("claude-sonnet-4-5", operation="messages"), ALLOW, ""),
        (llm("my-llama-3"), DENY, "Use one of: gpt-4o, gpt-4o-mini"),
        (llm("GPT-4o"), DENY, "The model GPT-4o is not in the envelope of support-bot."),
        (llm(""), DENY, ""),
        (llm("", operation="models"), ALLOW, ""),
        (llm("gpt-5", operation="models"), ALLOW, ""),
        (llm("gpt-5", operation="count_tokens"), ALLOW, ""),
        (llm("gpt-4o", agent="intern-bot", tier=1), ASK, "held for the approval of operator"),
        (llm("gpt-4o", agent="intern-bot", tier=2), ASK, ""),
        (llm("gpt-4o", agent="intern-bot", tier=3), ALLOW, ""),
        (llm("llama-3", agent="intern-bot", tier=3), DENY, "Use one of: gpt-4o, gpt-4o-mini."),
        (llm("gpt-4o-mini", {"max_tokens": 256}, agent="intern-bot"), ALLOW, ""),
        (llm("gpt-4o-mini", {"max_tokens": 257}, agent="intern-bot"), DENY, "Set max_tokens to at most 256."),
        (llm("gpt-4o-mini", {"max_completion_tokens": 300}, agent="intern-bot"), DENY, "at most 256"),
        (llm("gpt-4o-mini", {"max_output_tokens": 300}, agent="intern-bot"), DENY, "at most 256"),
        (llm("gpt-4o-mini", {"max_tokens": "1"}, agent="intern-bot"), DENY, "at most 256"),
        (llm("gpt-4o-mini", {"max_tokens": None}, agent="intern-bot"), ALLOW, ""),
        (llm("gpt-4o", {"max_tokens": 300}, agent="intern-bot", tier=1), DENY, "at most 256"),
        (llm(agent="stranger"), DENY, "The agent stranger has no envelope"),
        (llm(agent=""), DENY, "has no envelope"),
        (llm(state="paused"), DENY, "not active"),
        (llm(state="quarantined"), DENY, "not active"),
        (llm(state="paused", operation="models"), DENY, "not active"),
        (call("tool", "github", "create_pr", PR), ALLOW, ""),
        (call("tool", "github", "create_pr", PR | {"base": "prod"}), DENY, 'Set base to one of ["main","develop"].'),
        (call("tool", "github", "create_pr", {}), DENY, "Give title."),
        (call("tool", "github", "create_pr", PR | {"title": "x" * 121}), DENY, "Shorten title to 120 characters."),
        (call("tool", "github", "merge_pr", {}), ASK, "held for the approval of security"),
        (call("tool", "github", "delete_repo", {}), DENY, "There it may use: create_pr, list_issues, merge_pr."),
        (call("tool", "wiki", "GET /", {}), DENY, "It may use: crm, github."),
        (call("tool", "github", "list_issues", {}, agent="intern-bot"), DENY, "Do without it."),
        (call("message", "planner", "SendMessage", {}), DENY, "Do without it."),
        (call("environment", "grid", "step", {}), DENY, "Do without it."),
        (call("tool", "models", "models", {}), DENY, ""),
    ],
)
def test_who_may_do_what(shipped: Answering, document: bytes, effect: Effect, said: str) -> None:
    decision = shipped.answer(document, NOW)
    assert decision.effect is effect, decision
    assert said in decision.explanation
    assert decision.explanation.endswith(".")
    assert (decision.required_approvals != ()) is (effect is ASK)
    assert not decision.obligations


def test_an_approval_by_those_asked_lets_the_call_pass(shipped: Answering) -> None:
    agent = agent_fragment("support-bot", "acme", [], 1, "active")

    def decided(approval: Any) -> Effect:
        given_approval = None if approval is None else orjson.dumps(approval)
        document = render(agent, "tool", "mcp", "github", "merge_pr", None, b"{}", None, NOW, approval=given_approval)
        return shipped.answer(document, NOW).effect

    assert decided(None) is ASK
    assert decided({"id": "01A", "roles": ["finance"], "approvers": ["dana"]}) is ASK
    assert decided({"id": "01A", "roles": ["security", "finance"], "approvers": ["sam"]}) is ALLOW
    assert decided({"roles": ["security"]}) is ASK


def _mutilated(document: dict[str, Any], path: tuple[str, ...], value: Any) -> bytes:
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return orjson.dumps(document)


@pytest.mark.parametrize("value", [..., None, True, 0, 5, "", "x", "3", [], {}, ["x"], {"x": 1}])
@pytest.mark.parametrize(
    "path",
    [
        ("agent",),
        ("agent", "name"),
        ("agent", "state"),
        ("agent", "autonomy_tier"),
        ("call",),
        ("call", "kind"),
        ("call", "target"),
        ("call", "operation"),
    ],
)
def test_a_missing_or_mistyped_field_never_turns_a_no_into_a_yes(
    shipped: Answering, path: tuple[str, ...], value: Any
) -> None:
    for document in (
        call("tool", "github", "merge_pr", {}, tier=1),
        llm("gpt-4o", agent="intern-bot", tier=1),
        call("tool", "github", "drop", {}),
    ):
        before = shipped.answer(document, NOW).effect
        assert before is not ALLOW
        changed = _mutilated(orjson.loads(document), path, value)
        if path == ("agent", "autonomy_tier") and value == 5 and type(value) is int:
            continue  # a higher tier is the one thing that rightly makes a yes
        try:
            assert shipped.answer(changed, NOW).effect is not ALLOW
        except Undecided:
            pass


# --- money, as a gateway tells it ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["embedded", pytest.param("opa", marks=needs_opa)])
def with_cap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answering]:
    envelopes = tmp_path_factory.mktemp("data") / "envelopes.json"
    envelopes.write_bytes(orjson.dumps({"envelopes": {"saver": {"models": {"m": {}}, "daily_cost_cap_usd": 0.3}}}))
    started = embedded if request.param == "embedded" else on_opa
    with started(SHIPPED, envelopes) as engine:
        yield engine


def balance(node: str, window: Window, posted: int, pending: int) -> Balance:
    budget = Budget(node, window, nano(5), Mode.ADAPTIVE)
    return Balance(account(budget, NOW, None), nano(5), posted, pending)


def paying(balances: list[Balance], cost: int | None) -> bytes:
    agent = agent_fragment("saver", "acme", [], 2, "active")
    money = Purse(budgets_document(balances), cost)
    return Question(agent, "llm", "openai", "m", "chat", None, None, b"{}", {}, NOW, money).document()


micros = st.integers(0, 400_000)


@settings(max_examples=200, deadline=None)
@given(micros, micros, st.none() | micros)
def test_the_daily_cost_cap_counts_to_the_millionth_of_a_dollar(
    with_cap: Answering, posted: int, pending: int, cost: int | None
) -> None:
    others = [balance("acme", "day", nano(4), 0), balance("acme/saver", "month", nano(4), 0)]
    own = balance("acme/saver", "day", posted * 1000, pending * 1000)
    document = paying([*others, own], None if cost is None else cost * 1000)
    expected = ALLOW if posted + pending + (cost or 0) <= 300_000 else DENY
    decision = with_cap.answer(document, NOW)
    assert decision.effect is expected
    assert expected is ALLOW or decision.explanation == "The daily cost cap of 0.3 USD is reached. Continue tomorrow."


def test_a_daily_cost_cap_without_a_budget_that_measures_it_refuses(with_cap: Answering) -> None:
    for balances in ([], [balance("acme", "day", 0, 0)], [balance("acme/saver", "month", 0, 0)]):
        decision = with_cap.answer(paying(balances, None), NOW)
        assert decision.effect is DENY
        assert "no budget with window day measures this agent" in decision.explanation


json = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 500) | st.text(max_size=4) | st.sampled_from(["main", "title"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["title", "base", "max_tokens", "x"]), json) | json)
def test_whatever_the_arguments_a_yes_means_they_are_within_the_constraints(
    shipped: Answering, given_arguments: Any
) -> None:
    try:
        tool = shipped.answer(call("tool", "github", "create_pr", given_arguments), NOW)
    except Undecided:
        return
    fits = (
        isinstance(given_arguments, dict)
        and isinstance(given_arguments.get("title"), str)
        and len(given_arguments["title"]) <= 120
        and given_arguments.get("base", "main") in ("main", "develop")
    )
    assert (tool.effect is ALLOW) is fits
    model = shipped.answer(llm("gpt-4o-mini", given_arguments, agent="intern-bot"), NOW)
    asked = given_arguments.get("max_tokens") if isinstance(given_arguments, dict) else None
    # Rego, like JSON, knows true and 1 apart; Python does not.
    within = asked is None or (isinstance(asked, int) and not isinstance(asked, bool) and asked <= 256)
    assert (model.effect is ALLOW) is within
