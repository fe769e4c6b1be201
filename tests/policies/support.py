"""Policies and inputs that several tests share."""

import textwrap
from pathlib import Path
from typing import Any, Final

import orjson

from policies.build import build
from policies.document import Kind, agent_fragment, render
from policies.embedded import EmbeddedEngine
from policies.sources import Module, Sources

ROOT: Final = Path(__file__).resolve().parents[2]
SHIPPED: Final = ROOT / "policies" / "rego"
ENVELOPES: Final = ROOT / "config" / "examples" / "envelopes.yaml"
NOW: Final = 1_763_700_000_123_456_789


def rego(text: str, package: str = "weighbridge") -> str:
    return f"package {package}\n\nimport rego.v1\n\n{textwrap.dedent(text).strip()}\n"


def sources(*texts: str, data: dict[str, Any] | None = None, tests: tuple[str, ...] = ()) -> Sources:
    """Sources that stand in no file; the first text is `policy0.rego`."""
    return Sources(
        tuple(Module(f"policy{number}.rego", text) for number, text in enumerate(texts)),
        tuple(Module(f"policy{number}_test.rego", text) for number, text in enumerate(tests)),
        data or {},
        "0" * 64,
        (),
    )


async def engine(text: str, data: dict[str, Any] | None = None) -> EmbeddedEngine:
    return await build(sources(rego(text), data=data))


class Purse:
    """Money as it is put before a policy: `budgets` as JSON text, `cost` in nano-dollars. Counts what it is asked."""

    def __init__(self, budgets: bytes = b"[]", cost: int | None = None) -> None:
        self._budgets, self._cost = budgets, cost
        self.asked: list[str] = []

    def budgets(self) -> bytes:
        self.asked.append("budgets")
        return self._budgets

    def estimated_cost(self) -> int | None:
        self.asked.append("estimated_cost")
        return self._cost


def llm(
    model: str = "gpt-4o-mini",
    arguments: Any = None,
    *,
    agent: str = "support-bot",
    tier: int = 2,
    state: str = "active",
    operation: str = "chat",
) -> bytes:
    return call("llm", model, operation, {} if arguments is None else arguments, agent=agent, tier=tier, state=state)


def call(
    kind: Kind,
    target: str,
    operation: str,
    arguments: Any,
    *,
    agent: str = "support-bot",
    tier: int = 2,
    state: str = "active",
) -> bytes:
    fragment = agent_fragment(agent, "acme", ["support"], tier, state)
    return render(fragment, kind, "test", target, operation, None, orjson.dumps(arguments), None, NOW)
