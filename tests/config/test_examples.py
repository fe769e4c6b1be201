"""Every file under `config/examples/` is one that the gateway can be started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.load import NOT_YET, load

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
DATA = {"envelopes.yaml"}
"""Files there that are data for policies, not configurations."""

CONFIGURATIONS = sorted(path.name for path in EXAMPLES.glob("*.yaml") if path.name not in DATA)
KEYS = {
    name: f"a-key-for-{name.lower().replace('_', '-')}"
    for name in (
        "DANA_TOKEN",
        "SAM_TOKEN",
        "SUPPORT_BOT_KEY",
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "CRM_KEY",
        "APPROVALS_WEBHOOK",
        "APPROVALS_WEBHOOK_SECRET",
    )
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_example_loads(name: str) -> None:
    settings = load(EXAMPLES / name, KEYS).settings
    assert settings.agents
    assert settings.targets
    assert settings.routes


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_example_points_at_the_shipped_policy(name: str) -> None:
    paths = load(EXAMPLES / name, KEYS).settings.policy.paths
    assert [path.resolve().relative_to(EXAMPLES.parents[1]).as_posix() for path in paths] == [
        "policies/rego",
        "config/examples/envelopes.yaml",
    ]


def test_the_smallest_example_has_nothing_to_warn_of() -> None:
    assert load(EXAMPLES / "minimal.yaml", KEYS).warnings == []


def test_the_demo_needs_no_environment_and_warns_of_its_literal_keys_alone() -> None:
    warnings = load(EXAMPLES / "demo.yaml", {}).warnings
    assert [each.path for each in warnings] == [
        "admin.people[0].token",
        "agents[0].key",
        "agents[1].key",
        "agents[2].key",
        "targets[0].key",
        "targets[1].key",
        "tools[0].key",
    ]


def test_the_contracts_example_holds_what_it_says() -> None:
    settings = load(EXAMPLES / "contract.yaml", KEYS).settings
    assert (settings.listen.port, settings.admin.listen.port) == (8080, 8081)
    assert [(each.name, each.token.reveal(), each.roles) for each in settings.admin.people] == [
        ("dana", KEYS["DANA_TOKEN"], ("admin", "finance")),
        ("sam", KEYS["SAM_TOKEN"], ("security",)),
    ]
    agent = settings.agents[0]
    assert (agent.name, agent.tenant, agent.roles, agent.autonomy_tier) == ("support-bot", "acme", ("support",), 2)
    price = settings.targets[0].price
    assert price is not None
    assert (price.input_usd_per_mtok, price.output_usd_per_mtok) == (0.05, 0.10)
    assert settings.targets[1].url == "https://api.openai.com/v1"
    route = settings.routes[0]
    assert route.models == ("gpt-4o-mini", "llama-*")
    assert [(arm.target, arm.weight, arm.model) for arm in route.arms] == [
        ("openai", 90, None),
        ("parallax", 10, "Qwen/Qwen3-0.6B"),
    ]
    assert route.rollout is not None
    assert [step.hold for step in route.rollout.steps] == [14 * 86400, 21 * 86400, 21 * 86400, 28 * 86400]
    approvals = settings.approvals
    assert (approvals.decide_within, approvals.use_within, approvals.hold_for) == (3600, 900, 50)
    assert approvals.webhook is not None
    assert approvals.webhook.url.reveal() == KEYS["APPROVALS_WEBHOOK"]


def test_what_is_not_acted_on_yet_is_warned_of() -> None:
    warned = {each.path for each in load(EXAMPLES / "contract.yaml", KEYS).warnings}
    assert warned == {".".join(str(part) for part in place).replace(".*", "[0]") for place in NOT_YET}
