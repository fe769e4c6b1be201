"""A call as the pipeline leaves it, for tests of what comes after."""

import time
from typing import Any

import orjson

from adapters import registry
from adapters.base import AgentCall
from config.settings import Settings
from gateway.assembly import Assembly, assemble
from gateway.callids import CallIds
from gateway.exchange import Asked, Exchange
from policies.decision import Decision, Effect
from policies.document import Question
from policies.obligations import NONE

AGENT_KEY = "support-bots-own-key"
TOKEN = "danas-own-token"
ALLOWED = Decision(Effect.ALLOW, None, (), "", NONE, "r1")


def settings(**sections: Any) -> Settings:
    """Settings with one agent, support-bot of acme, and whatever else a test needs."""
    agents = [{"name": "support-bot", "tenant": "acme", "key": AGENT_KEY, "roles": ["support"], "autonomy_tier": 2}]
    people = [
        {"name": "dana", "token": TOKEN, "roles": ["admin"]},
        {"name": "sam", "token": "sams-own-token"},
        {"name": "fay", "token": "fays-own-token", "roles": ["finance"]},
        {"name": "ned", "token": "neds-own-token", "roles": ["finance", "security"]},
    ]
    return Settings.model_validate({"agents": agents, "admin": {"people": people}, **sections})


def assembly(**sections: Any) -> Assembly:
    return assemble(settings(**sections))


def exchange(*, arguments: dict[str, Any] | None = None, session: str | None = None) -> Exchange:
    """An allowed chat call that has just ended."""
    arguments = arguments or {"model": "gpt-4o-mini", "messages": []}
    everything = assembly()
    agent = everything.directory.identify(b"Bearer " + AGENT_KEY.encode(), None)
    now_ns, body = time.time_ns(), orjson.dumps(arguments)
    question = Question(
        agent.fragment, "llm", "openai", arguments["model"], "chat", False, session, body, arguments, now_ns
    )
    endpoint, _ = registry.endpoint(registry.OPENAI, "POST", "/v1/chat/completions")
    return Exchange(
        id=CallIds().next(time.time_ns()),
        arrived_ns=now_ns,
        began=1.0,
        method="POST",
        path=endpoint.path,
        query=b"",
        headers=[],
        own={},
        doubled=frozenset(),
        adapter=registry.OPENAI,
        assembly=everything,
        agent=agent,
        session=session,
        call=AgentCall("llm", "openai", arguments["model"], "chat", False, arguments, body, endpoint),
        decision=ALLOWED,
        asked=[Asked(question, ALLOWED, ALLOWED.revision, None)],
        ended=1.5,
        status=200,
    )
