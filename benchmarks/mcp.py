"""Tool calls of MCP: who is measured with them, what is asked, and the tables of that run.

Each contestant stands in front of `benchmarks.mcp_upstream`. In the legacy era a call belongs to a session, begun
beforehand for each agent; in the modern one there are none. Each call has its own id; whether it has arguments of its
own too makes a difference to who remembers what was decided on them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx2

from benchmarks import bare, fleet, peers, wrk
from benchmarks.children import PYTHON, Child, Children, StartFailed, free_port
from benchmarks.compare import Plan, Say, start_upstream, timed
from benchmarks.contestants import FEW, Contestant, Running
from benchmarks.machine import CONTESTANT_CORE, settle
from benchmarks.scenarios import COUNT, Scenario
from benchmarks.table import GOAL_HEAD, HEAD, Goal, Results, Sample, goal_rows, invalid, markdown, number, rows

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
SERVER: Final = "catalogue"
PATH: Final = f"/mcp/{SERVER}"
SERVER_SESSION: Final = b"0123456789abcdef0123456789abcdef"
"""The one session that the upstream knows."""

_WORDS: Final = "Weigh what an agent asks before it passes, and keep a record of what was said and why. "
ANSWER: Final = _WORDS * 8
TOOL: Final[Mapping[str, Any]] = {
    "name": "look_up",
    "description": "Looks something up in the catalogue.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "question": {"type": "string", "minLength": 1, "maxLength": 4000},
            "language": {"type": "string", "enum": ["de", "en", "fr"]},
            "most": {"type": "integer", "minimum": 1, "maximum": 100},
            "within": {
                "type": "object",
                "properties": {"shelf": {"type": "string"}, "years": {"type": "array", "items": {"type": "integer"}}},
                "additionalProperties": False,
            },
        },
        "required": ["question"],
        "additionalProperties": False,
    },
}
_ACCEPTED: Final = ("Accept", "application/json, text/event-stream")
_CLIENT: Final = {"name": "benchmark", "version": "1.0"}


def call(meta: Mapping[str, object] | None, *, new: bool = False, size: int = 1024) -> bytes:
    """A `tools/call` of exactly `size` bytes, with arguments that are `new` each time or always the same."""

    def written(question: str) -> bytes:
        within = {"shelf": "scales", "years": [1999, 2026]}
        arguments = {"question": question, "language": "en", "most": 10, "within": within}
        params: dict[str, object] = {"name": TOOL["name"], "arguments": arguments}
        if meta is not None:
            params["_meta"] = meta
        message = {"jsonrpc": "2.0", "id": int(f"1{COUNT}"), "method": "tools/call", "params": params}
        return json.dumps(message, separators=(",", ":")).encode()

    room = size - len(written(""))
    return written(((COUNT + " " if new else "") + _WORDS * (room // len(_WORDS) + 1))[:room])


@dataclass(frozen=True, slots=True)
class ToolScenario(Scenario):
    """Calls of the one tool."""

    def shortest(self) -> int:
        return len(ANSWER)

    def mistake(self, status: int, body: bytes) -> str:
        if status != 200:
            return f"status {status}: {body[:200].decode(errors='replace')}"
        shown = body[:200].decode(errors="replace")
        try:
            result = _message(body)["result"]
            text = result["content"][0]["text"]
        except (ValueError, LookupError, TypeError):
            return f"not a tool's result: {shown}"
        if result.get("isError"):
            return f"the tool failed: {text[:200]}"
        return "" if text == ANSWER else "the result's text is not what the upstream sent"

    def arrived(self, body: bytes) -> str:
        try:
            sent, got = (json.loads(each)["params"] for each in (self.body, body))
        except (ValueError, LookupError, TypeError):
            return "the upstream received something that is no call"
        same = (got.get("name"), got.get("arguments")) == (TOOL["name"], sent["arguments"])
        return "" if same else "the upstream received another call than was sent"


_META: Final = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": _CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}
_MIRRORS: Final = (
    _ACCEPTED,
    ("MCP-Protocol-Version", MODERN),
    ("Mcp-Method", "tools/call"),
    ("Mcp-Name", str(TOOL["name"])),
)
SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        ToolScenario(
            "modern",
            f"tools/call of {MODERN}, answered in JSON, 1 KB requests, the same arguments",
            call(_META),
            headers=_MIRRORS,
        ),
        ToolScenario(
            "new",
            f"tools/call of {MODERN}, answered in JSON, 1 KB requests, arguments new each time",
            call(_META, new=True),
            headers=_MIRRORS,
        ),
        ToolScenario(
            "legacy",
            f"tools/call of {LEGACY}, answered as a stream of one event, 1 KB requests, the same arguments",
            call(None),
            headers=(_ACCEPTED, ("MCP-Protocol-Version", LEGACY)),
            in_session=True,
        ),
    )
}


def _message(body: bytes) -> dict[str, Any]:
    """The JSON-RPC message of an answer, be it JSON or a stream of events."""
    if not body.lstrip().startswith(b"{"):
        body = next(line.removeprefix(b"data:") for line in body.splitlines() if line.startswith(b"data:"))
    found: dict[str, Any] = json.loads(body)
    return found


# --- who is measured --------------------------------------------------------------------------------------------------


def begun(port: int, path: str, keys: Sequence[str]) -> list[str]:
    """A session for each key, begun as a client begins one. Raises StartFailed."""
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": _CLIENT}
    begin = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    begun = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    found = []
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        for key in keys:
            headers = {"accept": _ACCEPTED[1]} | ({"authorization": f"Bearer {key}"} if key else {})
            answer = client.post(path, json=begin, headers=headers)
            if answer.status_code != 200:
                raise StartFailed(f"no session could be begun: {answer.status_code} {answer.text[:300]}")
            session = answer.headers.get("mcp-session-id", "")
            headers |= {"mcp-protocol-version": LEGACY} | ({"mcp-session-id": session} if session else {})
            client.post(path, json=begun, headers=headers)
            found.append(session)
    return found


def _bare(children: Children, folder: Path, upstream: int) -> Running:
    command = [PYTHON, "-m", "benchmarks.bare", str(upstream)]
    child, told = children.start("bare", command, core=CONTESTANT_CORE, ready=bare.READY)
    path = "/mcp"
    return Running(child, int(told), ["any-key"], path=path, sessions=begun(int(told), path, ["any-key"]))


def _all_on(children: Children, folder: Path, upstream: int) -> Running:
    own = folder / "all-on"
    own.mkdir()
    config = configured(own, upstream)
    command = [PYTHON, "-m", "gateway.cli", "serve", "--config", str(config)]
    child, told = children.start("all-on", command, core=CONTESTANT_CORE, ready="weighbridge: agents ")
    port, keys = int(told.split(" ", 1)[0].rpartition(":")[2]), fleet.keys(FEW)
    expects = (("x-weighbridge-decision", "ALLOW"),)
    sessions = begun(port, PATH, keys)
    return Running(child, port, keys, expects=expects, ledger=own / "ledger", path=PATH, sessions=sessions)


def configured(folder: Path, upstream: int) -> Path:
    """A gateway's configuration for these calls, everything on: its path."""
    tool = {"name": SERVER, "kind": "mcp", "url": f"http://127.0.0.1:{upstream}/mcp", "price": {"usd_per_call": 0.001}}
    granted = {"allowed_tools": {SERVER: {"operations": {TOOL["name"]: GRANT}}}}
    return fleet.write(folder, FEW, upstream, granted=granted, tools=[tool])


GRANT: Final = {
    "parameters": ["question", "language", "most", "within"],
    "required": ["question"],
    "max": {"most": 50},
    "one_of": {"language": ["de", "en"]},
    "max_length": {"question": 2000},
}
"""What the shipped policy looks at in each call."""


def _contextforge(children: Children, folder: Path, upstream: int) -> Running:
    port = free_port()
    own = folder / "contextforge"
    own.mkdir()
    command = [str(peers.PEERS["contextforge"].program), "mcpgateway.main:app", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--log-level", "error", "--no-access-log"]
    environment = peers.quiet("contextforge") | {"DATABASE_URL": f"sqlite:///{own / 'mcp.db'}"}
    child, _ = children.start("contextforge", command, core=CONTESTANT_CORE, ready=port, environment=environment)
    path = _registered(child, port, upstream)
    return Running(child, port, [""], path=path, sessions=begun(port, path, [""]))


def _registered(child: Child, port: int, upstream: int) -> str:
    """Makes the upstream known, and a virtual server of its one tool: the path at which that is called.

    Raises StartFailed.
    """
    shown = {"authorization": f"Bearer {peers.contextforge_token()}"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False, headers=shown) as client:
        url = f"http://127.0.0.1:{upstream}/mcp"
        gateway = {"name": SERVER, "visibility": "public", "url": url, "transport": "STREAMABLEHTTP"}
        told = client.post("/v1/gateways", json=gateway)
        tools = client.get("/v1/tools").json() if told.is_success else []
        if not tools:
            raise StartFailed(f"{child.name} does not take the upstream: {told.status_code} {told.text[:500]}")
        server = {"name": SERVER, "associated_tools": [tool["id"] for tool in tools]}
        made = client.post("/v1/servers", json={"server": server, "visibility": "public"})
        if not made.is_success:
            raise StartFailed(f"{child.name} makes no server: {made.status_code} {made.text[:500]}")
        return f"/servers/{made.json()['id']}/mcp"


CONTESTANTS: Final = {
    contestant.name: contestant
    for contestant in (
        Contestant("bare", "the gateway's server and carrier with nothing in between", _bare),
        Contestant("all-on", f"the gateway with everything on, {FEW} agents", _all_on),
        Contestant("contextforge", "ContextForge: one worker, SQLite, nobody logs in", _contextforge, "contextforge"),
    )
}
PEERS: Final = [contestant.peer for contestant in CONTESTANTS.values() if contestant.peer]
CALLED: Final = {"contextforge": "catalogue-look-up"}
"""Contestants at which the tool has another name."""
SPOKEN: Final[Mapping[str, Sequence[str]]] = {"contextforge": ("legacy",)}
"""Contestants that do not speak every era -> those scenarios that they can take part in."""


# --- the run ----------------------------------------------------------------------------------------------------------


def run(plan: Plan, children: Children, folder: Path, say: Say) -> str:
    """Starts everybody, measures in turns, and returns the tables. Raises StartFailed for the upstream."""
    _, upstream = start_upstream(children, "benchmarks.mcp_upstream")
    running: dict[str, Running] = {}
    absent: dict[str, str] = {}
    for name, contestant in CONTESTANTS.items():
        if contestant.peer and not peers.installed(contestant.peer):
            absent[name] = "not installed (use --install)"
            continue
        say(f"starting {name} ...")
        try:
            running[name] = contestant.start(children, folder, upstream)
        except (StartFailed, httpx2.HTTPError) as error:
            absent[name] = str(error)
            say(str(error))
    found = {name: Results(name) for name in SCENARIOS}
    for turn in range(1, plan.rounds + 1):
        for results in found.values():
            for name, each in running.items():
                if results.scenario not in SPOKEN.get(name, SCENARIOS):
                    continue
                scenario = asked_of(name, SCENARIOS[results.scenario])
                sample = timed(each, scenario, wrk.script(folder, each, scenario), plan, upstream)
                settle(each.child.pid)
                results.add(name, sample)
                shown = invalid(sample.invalid) if sample.invalid else f"{number(sample.rate)} calls/s"
                say(f"round {turn}/{plan.rounds}  {scenario.name:<7} {name:<13} {shown}")
    return report(found, absent)


def asked_of(contestant: str, scenario: ToolScenario) -> ToolScenario:
    """The same calls by the name that the tool has there."""
    ours, theirs = (f'"name":"{name}"'.encode() for name in (TOOL["name"], CALLED.get(contestant, TOOL["name"])))
    return replace(scenario, body=scenario.body.replace(ours, theirs))


def goals(found: Mapping[str, Results]) -> list[Goal]:
    modern, legacy = found["modern"], found["legacy"]
    return [
        Goal("modern, everything on, of bare", modern.ratio("all-on", "bare"), 0.5),
        Goal("the same with arguments new each time", found["new"].ratio("all-on", "bare"), 0.5),
        Goal("legacy, everything on, of bare", legacy.ratio("all-on", "bare"), 0.5),
        Goal(
            "legacy, everything on, times ContextForge for each second of a core",
            legacy.ratio("all-on", "contextforge", of=Sample.per_core),
            20,
        ),
    ]


_BASES: Final = ("bare", "contextforge")
_HEAD: Final = (*HEAD[:2], *(f"of {base}" for base in _BASES), *HEAD[4:])


def report(found: Mapping[str, Results], absent: Mapping[str, str]) -> str:
    """The run's tables as Markdown."""
    parts = ["### Goals of tool calls", markdown(GOAL_HEAD, goal_rows(goals(found)))]
    for results in found.values():
        parts += [f"### {SCENARIOS[results.scenario].title}", markdown(_HEAD, rows(results, _BASES))]
    if absent:
        parts += ["### Not measured", "\n".join(f"- {name}: {why.splitlines()[0]}" for name, why in absent.items())]
    return "\n\n".join(parts)
