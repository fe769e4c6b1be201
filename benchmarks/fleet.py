"""A gateway's configuration and envelopes for any number of agents, as an operator's tooling would write them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.children import ROOT
from benchmarks.scenarios import MODEL

POLICY = ROOT / "policies" / "rego"
TENANT = "default"
PRICE = {"input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.6}
FEW_ENOUGH = 1000


def names(agents: int) -> list[str]:
    return [f"agent-{number}" for number in range(agents)]


def keys(agents: int) -> list[str]:
    """The agents' keys, in the order of their names; they open nothing but a gateway that a run has started."""
    return [f"benchmark-key-{number:06}" for number in range(agents)]


def envelope() -> dict[str, object]:
    """What each agent may do: one model, answers up to a length."""
    return {"models": {MODEL: {}, "gpt-4o": {}}, "max_output_tokens": 4096}


def budgets(agents: int) -> list[dict[str, object]]:
    """Three accounts for each call: the tenant's for the month and the day, and, in a small fleet, the agent's own.

    Each agent's own budget would not fit into the largest configuration where there are ten thousand.
    """
    shared: list[dict[str, object]] = [
        {"node": TENANT, "window": window, "limit_usd": 1_000_000} for window in ("month", "day")
    ]
    own: list[dict[str, object]] = [
        {"node": f"{TENANT}/{name}", "window": "day", "limit_usd": 100_000} for name in names(agents)
    ]
    if agents > FEW_ENOUGH:
        own = [{"node": TENANT, "window": "session", "limit_usd": 100_000}]
    return [*shared, *own]


def write(
    folder: Path,
    agents: int,
    upstream: int,
    policy: Sequence[Path] = (POLICY,),
    *,
    reuse: bool = True,
    granted: Mapping[str, object] | None = None,
    tools: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Writes the configuration and its envelopes into `folder` and returns the configuration's path. JSON is YAML.

    `granted` is what each agent may do beside calling its model.
    """
    envelopes = folder / "envelopes.json"
    whole = envelope() | dict(granted or {})
    envelopes.write_text(json.dumps({"envelopes": dict.fromkeys(names(agents), whole)}))
    digests = (hashlib.sha256(key.encode()).hexdigest() for key in keys(agents))
    settings = {
        "listen": {"port": 0},
        "admin": {"listen": {"port": 0}},
        "state": f"sqlite:///{folder / 'state.db'}",
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": [*map(str, policy), str(envelopes)], "prove_timeout": 60, "watchdog": 30, "reuse": reuse},
        "targets": [{"name": "upstream", "kind": "openai", "url": f"http://127.0.0.1:{upstream}/v1", "price": PRICE}],
        "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "upstream"}]}],
        "tools": list(tools),
        "budgets": budgets(agents),
        "limits": [{"node": TENANT, "calls_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrent": 10**6}],
        "agents": [{"name": name, "key_sha256": digest} for name, digest in zip(names(agents), digests, strict=True)],
    }
    written = folder / "gateway.yaml"
    written.write_text(_flow(settings))
    return written


def _flow(settings: dict[str, object]) -> str:
    """YAML in flow style without a space to spare: ten thousand agents just fit into the largest file that is read."""
    return "\n".join(f"{key}: {json.dumps(value, separators=(',', ':'))}" for key, value in settings.items()) + "\n"
