"""The stage on which stock clients play: a real gateway process in front of the stand-ins, two agents, a small policy.

`clerk` may do everything. `guest` may list models and use gpt-4o-mini, nothing else. Each misbehaviour of the stand-ins
is a model of its own name at the OpenAI-like one, and of the name `claude-NAME` at the Anthropic-like one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.process import Gateway, serving
from tests.support.standins import ANTHROPIC_KEY, OPENAI_KEY, Standins

CLERK_KEY = "night-clerk-0f2e77"
GUEST_KEY = "walk-in-guest-9a41c3"
PERSON_TOKEN = "head-porter-5d20b8"
CALL_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
MISBEHAVIOURS = (
    "fail-400",
    "fail-429",
    "fail-500",
    "cut-stream",
    "no-done",
    "short-stream",
    "error-in-stream",
    "slow-first-byte",
    "trickle",
    "endless",
    "ignores-max-tokens",
    "big-events",
    "no-usage",
)
FIRST_BYTE_SECONDS = 0.5  # what targets named `hasty-...` are given
SILENCE_SECONDS = 20.0  # what `slow-first-byte` takes: longer than any test waits

POLICY = """
package weighbridge

default decision := {"decision": "DENY", "explanation": "No rule of the house allows this."}

decision := {"decision": "ALLOW", "risk_level": "low"} if input.agent.name == "clerk"

decision := {"decision": "ALLOW"} if {
    input.agent.name == "guest"
    guest_may
}

decision := {"decision": "DENY", "risk_level": "medium", "explanation": explanation} if {
    input.agent.name == "guest"
    not guest_may
    explanation := sprintf("Guests may not use %s. Ask for gpt-4o-mini instead.", [input.call.target])
}

guest_may if input.call.operation == "models"

guest_may if input.call.target == "gpt-4o-mini"
"""


def configuration(standins: Standins, policy: Path) -> dict[str, Any]:
    """The configuration of the stage, its policy in the file `policy`."""
    openai = {"kind": "openai", "url": f"{standins.openai_url}/v1", "key": OPENAI_KEY}
    anthropic = {"kind": "anthropic", "url": standins.anthropic_url, "key": ANTHROPIC_KEY}
    hasty = {"timeouts": {"first_byte": FIRST_BYTE_SECONDS}}
    renamed = [
        {"name": f"claude-{name}", "models": [f"claude-{name}"], "arms": [{"target": "anthropic", "model": name}]}
        for name in MISBEHAVIOURS
    ]
    return {
        "admin": {"people": [{"name": "porter", "token": PERSON_TOKEN, "roles": ["admin"]}]},
        "ledger": {"path": "ledger"},
        "policy": {"paths": [str(policy)]},
        "agents": [
            {"name": "clerk", "tenant": "hotel", "key": CLERK_KEY, "roles": ["staff"], "autonomy_tier": 3},
            {"name": "guest", "tenant": "hotel", "key": GUEST_KEY},
        ],
        "targets": [
            {"name": "openai", **openai},
            {"name": "anthropic", **anthropic},
            {"name": "hasty-openai", **openai, **hasty},
        ],
        "routes": [
            {"name": "house", "models": ["house-small"], "arms": [{"target": "openai", "model": "gpt-4o-mini"}]},
            {"name": "hasty", "models": ["hasty"], "arms": [{"target": "hasty-openai", "model": "slow-first-byte"}]},
            {"name": "chat", "models": ["gpt-*", *MISBEHAVIOURS], "arms": [{"target": "openai"}]},
            {"name": "embed", "models": ["text-embedding-*"], "arms": [{"target": "openai"}]},
            *renamed,
            {"name": "claude", "models": ["claude-*"], "arms": [{"target": "anthropic"}]},
        ],
    }


@contextmanager
def stage(standins: Standins, folder: Path) -> Iterator[Gateway]:
    """The gateway of the stage, serving, with everything it writes under `folder`."""
    policy = folder / "house.rego"
    policy.write_text(POLICY, encoding="utf-8")
    with serving(configuration(standins, policy), folder) as gateway:
        yield gateway
