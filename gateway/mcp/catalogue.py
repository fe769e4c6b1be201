"""What one MCP server offers, as its agents may see it: definitions of tools, held against what people have accepted.

The server's lists pass through here on their way to an agent, calls on their way to the server, and answers on their
way back. What an agent is not shown it cannot call either.

    a list    what is unsound or not accepted is left out, then what the policy would not allow
    a call    its tool is there, its definition accepted, its arguments what the definition wants
    a result  what is too large, or what the policy does not let pass, is withheld
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from adapters.base import AgentCall
from adapters.body import leads
from adapters.errors import MalformedCall
from adapters.mcp import definitions, lists, mirrors, results
from adapters.mcp.definitions import Definition, UnusableDefinition
from adapters.mcp.messages import FREE, Era, McpCall
from adapters.mcp.mirrors import Parameter
from adapters.mcp.schemas import Schema, UnusableSchema
from config.settings import ToolSettings
from gateway.exchange import Exchange
from gateway.mcp.asking import Unlisted, offered
from gateway.mcp.definitions import DefinitionRefused, Definitions
from gateway.mcp.upstream import Upstream
from gateway.problems import TargetFailed
from gateway.tools.desk import Desk
from gateway.tools.results import MISSED, NOT_THERE, pointers
from policies.decision import Decision, Effect
from policies.definitions import Standing, standing
from policies.errors import EngineUnavailable, InputRefused, Undecided

log = logging.getLogger("weighbridge.tools")

KEPT: Final = 60.0
"""Seconds after which the server is asked again which tools it has, while calls go on by what it said last."""
AGAIN: Final = 1.0
"""Seconds between two times that it is asked because somebody wants a tool that nobody has heard of, or because it did
not answer."""
LARGEST_CHECKED: Final = 1024 * 1024
"""Bytes of an answer that a policy is asked about: it holds up all other calls while it reads."""

_MOST_READ: Final = 4096
_MOST_LISTS: Final = 1024
_CHANGED: Final = "notifications/tools/list_changed"

_WORDS: Final[Mapping[Standing, str]] = {
    "changed": "its definition changed since it was accepted; a person has to accept it",
    "refused": "a person has refused it",
    "unknown": "its definition is not among those that the operator has pinned",
}
"""Why a tool may not be used, for the agent."""


class Offered:
    """One tool as its server defines it; `why` says what is wrong with a definition that there is none of."""

    __slots__ = ("_schema", "definition", "parameters", "why")

    def __init__(self, definition: Definition | None, why: str = "") -> None:
        self.definition = definition
        self.why = why
        self.parameters: tuple[Parameter, ...] = ()
        self._schema: Schema | UnusableSchema | None = None
        if definition is not None:
            self.parameters = mirrors.parameters(definition.members["inputSchema"])

    def schema(self) -> Schema:
        """Compiled when it is first needed. Raises UnusableSchema."""
        if self._schema is None:
            assert self.definition is not None, "only a definition has a schema"
            try:
                self._schema = Schema(self.definition.members["inputSchema"])
            except UnusableSchema as error:
                self._schema = error
        if isinstance(self._schema, UnusableSchema):
            raise self._schema
        return self._schema


class Catalogue:
    """The definitions of one server, as they were seen last."""

    def __init__(self, settings: ToolSettings, upstream: Upstream, clock: Callable[[], float] = time.monotonic) -> None:
        """`upstream` is where the server is asked itself; `clock` gives seconds."""
        self.settings = settings
        self._upstream = upstream
        self._clock = clock
        self._pins = {each.tool: each.sha256 for each in settings.pins}
        self._tools: dict[str, Offered] = {}
        self._era: Era | None = None
        self._known = False
        self._stale = False
        self._asked_at = -KEPT
        self._failure: str | None = None
        self._flight: asyncio.Task[None] | None = None
        self._read: OrderedDict[bytes, Offered] = OrderedDict()
        self._lists: OrderedDict[tuple[object, ...], frozenset[str]] = OrderedDict()
        self._complained: set[str] = set()

    # Calls

    async def check(self, x: Exchange, call: McpCall, desk: Desk) -> McpCall:
        """The call with the definition of its tool, before anybody decides on it.

        Raises MalformedCall where there is no such tool or its arguments are not what the definition wants,
        DefinitionRefused, DefinitionsUnavailable, TargetFailed.
        """
        if call.method != "tools/call" or not self._looks:
            return call
        tool = await self._found(call.operation, call.era)
        definition = tool.definition
        if definition is None:
            raise DefinitionRefused(f"The tool {call.operation} cannot be used: {tool.why}.")
        await self._pin([definition], desk)
        stands = self.standing(definition, desk.definitions)
        if stands != "accepted":
            raise DefinitionRefused(f"The tool {call.operation} cannot be used: {_WORDS[stands]}.")
        call.definition = definition.digest
        self._check_arguments(tool, call)
        return call

    async def digest(self, name: str, said: Definitions) -> str:
        """The hash of a tool's definition as its server gives it now, which calls of it have from then on; empty where
        nothing is to be known of this server's tools.

        Raises MalformedCall where there is no such tool, DefinitionRefused, DefinitionsUnavailable, TargetFailed.
        """
        if not self._looks:
            return ""
        tool = (await self.tools(self._era or "modern")).get(name)
        if tool is None:
            raise MalformedCall(f"The server {self.settings.name} has no tool {name[:100]!r}.")
        if tool.definition is None:
            raise DefinitionRefused(f"The tool {name} cannot be used: {tool.why}.")
        stands = self.standing(tool.definition, said)
        if stands == "changed":
            raise DefinitionRefused(f"The definition of {name} changed since it was accepted: accept it first.")
        if stands == "refused" or (stands == "unknown" and self.settings.definitions != "first_seen"):
            raise DefinitionRefused(f"The tool {name} cannot be used: {_WORDS[stands]}.")
        return tool.definition.digest

    def mirrored(self, call: McpCall) -> Sequence[Parameter]:
        """The arguments of its tool that stand in headers, too, as the definition says that `check` has held it
        against; none where that is not known."""
        tool = self._tools.get(call.operation) if call.method == "tools/call" else None
        return tool.parameters if tool is not None else ()

    def described(self, name: str, digest: str) -> Mapping[str, Any]:
        """The definition of this tool that has this hash; empty where it is not known here."""
        tool = self._tools.get(name)
        known = tool is not None and tool.definition is not None and tool.definition.digest == digest
        return tool.definition.members if known and tool is not None and tool.definition is not None else {}

    def noticed(self, method: str) -> None:
        """The server tells that one of its lists has changed: `method` is `notifications/tools/list_changed` or its
        like."""
        if method == _CHANGED:
            self._stale = True

    def _check_arguments(self, tool: Offered, call: McpCall) -> None:
        if self.settings.check_arguments == "off":
            return
        try:
            schema = tool.schema()
        except UnusableSchema as error:
            self._complain(call.operation, f"its input schema cannot be used: {error}")
            if self.settings.check_arguments == "lenient":
                return
            raise DefinitionRefused(
                f"The tool {call.operation} cannot be used: nothing can be held against its input schema."
            ) from None
        if mistakes := schema.mistakes(call.arguments, len(call.body)):
            raise MalformedCall(f"The arguments are not what the tool {call.operation} wants: {'; '.join(mistakes)}.")

    # What there is

    @property
    def _looks(self) -> bool:
        """Whether anything is to be known of this server's tools."""
        return self.settings.definitions != "any" or self.settings.check_arguments != "off"

    async def tools(self, era: Era = "modern") -> Mapping[str, Offered]:
        """All tools as the server lists them now. Raises TargetFailed."""
        await self._ask(era)
        return dict(self._tools)

    async def _found(self, name: str, era: Era) -> Offered:
        now = self._clock()
        if not self._known or self._stale:
            await self._ask(era)
        elif now - self._asked_at > KEPT:
            self._fly(era).add_done_callback(_heard)
        tool = self._tools.get(name)
        if tool is None and self._clock() - self._asked_at > AGAIN:
            await self._ask(era)
            tool = self._tools.get(name)
        if tool is None:
            raise MalformedCall(
                f"The server {self.settings.name} has no tool {name[:100]!r}. It has those that tools/list names."
            )
        return tool

    async def _ask(self, era: Era) -> None:
        """Asks the server, or waits for who is asking already. Raises TargetFailed."""
        if self._flight is None and self._failure is not None and self._clock() - self._asked_at <= AGAIN:
            raise TargetFailed(self._failure)
        await asyncio.shield(self._fly(era))

    def _fly(self, era: Era) -> asyncio.Task[None]:
        if self._flight is None:
            self._asked_at = self._clock()
            self._flight = asyncio.create_task(self._fetch(era), name=f"tools of {self.settings.name}")
            self._flight.add_done_callback(self._landed)
        return self._flight

    def _landed(self, _: asyncio.Task[None]) -> None:
        self._flight = None

    async def _fetch(self, era: Era) -> None:
        self._stale = False
        try:
            items, self._era = await offered(self._upstream, self._era or era, self.settings.largest_answer)
        except Unlisted as error:
            self._stale = self._known
            self._failure = f"The tool server {self.settings.name} does not say which tools it has."
            if isinstance(error.__cause__, TargetFailed):  # it was not even asked, and the agent may know why
                self._failure = str(error)
            self._complain("", f"the server does not say which tools it has: {error}")
            raise TargetFailed(self._failure) from None
        self._failure = None
        self._complained.discard("")
        found: dict[str, Offered] = {}
        for item in items:
            name = item["name"]
            if definitions.sound(name):
                found[name] = self._one_of_two(name, found.get(name), self._offered(item))
            else:
                self._complain(repr(name[:100]), "nothing can be called so: it is left out")
        self._tools, self._known = found, True

    def _one_of_two(self, name: str, before: Offered | None, tool: Offered) -> Offered:
        if before is None or (before.definition == tool.definition and before.why == tool.why):
            return tool
        self._complain(name, "it is offered twice, with different definitions")
        return Offered(None, "its server offers it twice, with different definitions")

    def _offered(self, item: Mapping[str, Any]) -> Offered:
        """A tool's definition, read once for as long as it stays the same."""
        key = orjson.dumps([item.get(name) for name in definitions.MEMBERS])
        known = self._read.get(key)
        if known is not None:
            self._read.move_to_end(key)
            return known
        try:
            tool = Offered(definitions.read(item))
        except UnusableDefinition as error:
            tool = Offered(None, str(error))
            self._complain(item["name"], str(error))
        self._read[key] = tool
        if len(self._read) > _MOST_READ:
            self._read.popitem(last=False)
        return tool

    # What people have accepted

    async def _pin(self, seen: Iterable[Definition], desk: Desk) -> None:
        """Pins what nobody has seen before, where that is how it is done. Raises DefinitionsUnavailable."""
        if self.settings.definitions != "first_seen":
            return
        new = [each for each in seen if desk.definitions.pin(self.settings.name, each.name) is None]
        if new:
            await desk.definitions.first(self.settings.name, new)

    def standing(self, definition: Definition, said: Definitions) -> Standing:
        """How a definition stands. Raises DefinitionsUnavailable."""
        match self.settings.definitions:
            case "any":
                return "accepted"
            case "configured":
                pinned = self._pins.get(definition.name)
                if pinned is None:
                    return "unknown"
                return "accepted" if pinned == definition.digest else "changed"
        pin = said.pin(self.settings.name, definition.name)
        stands = standing(pin, definition.digest)
        if stands == "changed" and pin is not None:
            said.changed(self.settings.name, definition.name, definition.digest, pin.digest)
        return stands

    # Lists

    async def listed(self, x: Exchange, call: McpCall, answer: bytes, desk: Desk) -> bytes:
        """The JSON-RPC answer to `tools/list` and its like, with what this agent could ever be allowed.

        Raises TargetFailed, DefinitionsUnavailable, EngineUnavailable.
        """
        return await self._shown(x, call.method, call.era, answer, desk) if call.method in lists.KINDS else answer

    async def resumed(self, x: Exchange, call: McpCall, answer: bytes, desk: Desk) -> bytes:
        """An answer that comes in the stream of a GET, to a request that was made in another one: of what it is the
        answer nobody knows here. Raises as `listed` does."""
        message = results.parsed(answer) or {}
        result = message.get("result")
        if isinstance(result, dict):
            for method, kind in lists.KINDS.items():
                if isinstance(result.get(kind.member), list):
                    answer = await self._shown(x, method, call.era, answer, desk)
        if self.settings.results == "checked" and (isinstance(result, dict) or "error" in message):
            return self._withheld(x, call, "It came too late to be checked", orjson.dumps(message.get("id")))
        return answer

    async def _shown(self, x: Exchange, method: str, era: Era, answer: bytes, desk: Desk) -> bytes:
        try:
            page = lists.read(method, answer)
        except lists.UnreadableList as error:
            raise TargetFailed(f"The tool server {self.settings.name} does not say what it has: {error}.") from None
        if page is None:
            return answer
        items = [item for item in page.items if definitions.sound(page.name(item)) or page.kind.key != "name"]
        if method == "tools/list" and self._looks:
            items = await self._accepted(items, desk)
        allowed = await self._allowed(x, method, [page.name(item) for item in items], desk)
        return page.shown([item for item in items if page.name(item) in allowed], modern=era == "modern")

    async def _accepted(self, items: Sequence[Mapping[str, Any]], desk: Desk) -> list[Mapping[str, Any]]:
        """Those with a definition that may be used. What is seen here is what calls are held against from now on."""
        seen: dict[str, Offered] = {}
        for item in items:
            name = item["name"]
            seen[name] = self._one_of_two(name, seen.get(name), self._offered(item))
        if self._known:
            self._tools.update(seen)
        await self._pin([tool.definition for tool in seen.values() if tool.definition is not None], desk)
        good = {
            name
            for name, tool in seen.items()
            if tool.definition is not None and self.standing(tool.definition, desk.definitions) == "accepted"
        }
        times = Counter[str]()
        found = []
        for item in items:
            times[item["name"]] += 1
            if item["name"] in good and times[item["name"]] == 1:
                found.append(item)
        return found

    async def _allowed(self, x: Exchange, method: str, names: Sequence[str], desk: Desk) -> frozenset[str]:
        """Those that the policy could ever allow, asked twice at most: whether it may be listed, and where it does not
        speak of that, whether it may be called without arguments.

        A policy that has nothing to say of lists says the same of every name, also of the empty one, which nothing has.
        So an answer that differs from the one about the empty name is about this item; any other is about none, and
        then the call itself decides.
        """
        lasting = desk.inquiries.lasting(x)
        key = (lasting, method, tuple(names))
        if lasting is not None and (known := self._lists.get(key)) is not None:
            self._lists.move_to_end(key)
            return known
        distinct = list(dict.fromkeys(names))
        of_nobody, *of_each = await desk.inquiries.could_each(
            x, [self._list_question(method, name) for name in ("", *distinct)], "list"
        )
        nobody = of_nobody is not Effect.DENY
        said = {name: effect is not Effect.DENY for name, effect in zip(distinct, of_each, strict=True)}
        silent = [name for name in distinct if said[name] is nobody]
        calls = await desk.inquiries.could_each(x, [self._call_question(method, name) for name in silent])
        said |= {name: effect is not Effect.DENY for name, effect in zip(silent, calls, strict=True)}
        found = frozenset(name for name, shown in said.items() if shown)
        if lasting is not None:
            self._lists[key] = found
            if len(self._lists) > _MOST_LISTS:
                self._lists.popitem(last=False)
        return found

    def _list_question(self, method: str, name: str) -> AgentCall:
        kind = lists.KINDS[method]
        return self._question("list", {"method": method, "name" if kind.key == "name" else "uri": name})

    def _call_question(self, method: str, name: str) -> AgentCall:
        kind = lists.KINDS[method]
        if kind.act == "tools/call":
            return self._question(name, {})
        return self._question(kind.act, {kind.argument: name})

    def _question(self, operation: str, arguments: dict[str, Any]) -> AgentCall:
        body = orjson.dumps(arguments)
        return AgentCall("tool", "mcp", self.settings.name, operation, None, arguments, body, FREE)

    # Results

    async def returned(self, x: Exchange, call: McpCall, answer: bytes, desk: Desk) -> bytes:
        """The JSON-RPC answer to a call that was decided on, as the agent may have it."""
        x.tool_error = results.failed(answer)
        if len(answer) > self.settings.largest_answer:
            limit = self.settings.largest_answer
            return self._withheld(x, call, f"It is longer than the {limit} bytes that this gateway lets pass")
        if self.settings.server_tasks == "refused" and results.is_task(answer):
            return self._withheld(x, call, "It would come by a task of the server's, which belongs to no agent")
        if self.settings.results == "passed":
            return answer
        text = results.told(answer)
        if text is None:
            return self._withheld(x, call, "It is no answer that can be read for certain")
        if len(text) > LARGEST_CHECKED:
            return self._withheld(
                x, call, f"It is longer than the {LARGEST_CHECKED} bytes that a policy is asked about"
            )
        if results.is_task(answer):
            return self._withheld(x, call, "It would come later, when nobody checks it")
        try:
            decision = await desk.inquiries.judge(x, call, text)
        except (Undecided, InputRefused, EngineUnavailable) as error:
            log.error("call %s: its result is withheld: %s", x.id, error.internal or error)
            return self._withheld(x, call, "The policy could not be asked about it", code="policy_unavailable")
        return self._as_decided(x, call, answer, decision)

    def late(self, x: Exchange, call: McpCall) -> bytes:
        """In place of an answer with what came of other calls, by a task of the server's."""
        return self._withheld(x, call, "It came too late to be checked")

    def _as_decided(self, x: Exchange, call: McpCall, answer: bytes, decision: Decision) -> bytes:
        said = decision.explanation
        if decision.effect is Effect.DENY:
            return self._withheld(x, call, said or "The policy does not let it pass")
        if decision.effect is Effect.NEEDS_APPROVAL:
            return self._withheld(x, call, "The policy wants people's approval of it, and results cannot wait for that")
        obligations = decision.obligations
        if not obligations:
            return answer
        others = sorted(obligations.facts().keys() - {"redact"})
        if others or any(edit.path[:1] != ("result",) for edit in obligations.redact):
            log.error(
                "call %s: its result is withheld: nothing but `redact` below /result can be demanded of one", x.id
            )
            return self._withheld(x, call, "The policy lets it pass only with obligations that cannot be fulfilled")
        missed = [edit for edit in obligations.redact if not leads(answer, edit.path)]
        if missed:
            x.detail = x.detail or MISSED.format(pointers(missed))
            return self._withheld(x, call, NOT_THERE)
        try:
            redacted = results.redacted(answer, [edit.path[1:] for edit in obligations.redact])
        except results.Unredactable as error:
            return self._withheld(x, call, f"The policy lets only a part of it pass, and {error}")
        x.result = "redacted"
        return redacted

    def _withheld(
        self, x: Exchange, call: McpCall, why: str, identity: bytes = b"", code: str = "policy_denied"
    ) -> bytes:
        x.result = "withheld"
        x.code = code
        x.detail = x.detail or f"the result was withheld: {why}"
        text = (
            f"The call was made, and its result is withheld. {why.removesuffix('.')}. "
            "Do not repeat the call to see it; tell your user."
        )
        return results.withheld(call, text, code, x.id, identity)

    def _complain(self, what: str, why: str) -> None:
        """Told once in the log."""
        key = f"{what}: {why}" if what else ""
        if key in self._complained:
            return
        if len(self._complained) > _MOST_READ:
            self._complained.clear()
        self._complained.add(key)
        log.warning("%s: %.300s", self.settings.name, key or why)


def _heard(flight: asyncio.Task[None]) -> None:
    """Nobody waits for it, and the log has been told."""
    if not flight.cancelled():
        flight.exception()
