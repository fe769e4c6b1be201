"""The engine on an OPA server: each call is one question to its REST API, and what is not clearly an answer is none.

Source: Open Policy Agent 1.22, REST API (Data API with `provenance` and `strict-builtin-errors`, Policy API).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

import orjson

from policies.decision import Decision, parse
from policies.document import Question
from policies.errors import EngineUnavailable, InputRefused, Undecided

log = logging.getLogger("weighbridge.opa")

DECISION: Final = "/v1/data/weighbridge/decision?strict-builtin-errors=true&provenance=true"
PROBLEMS: Final = "/v1/data/weighbridge/problems?strict-builtin-errors=true&provenance=true"
MASK: Final = "/v1/data/system/log/mask?strict-builtin-errors=true"
POLICIES: Final = "/v1/policies"

NOBODY: Final = "0" * 64
"""The revision before OPA has answered for the first time."""

_MOST_ANSWER: Final = 128 * 1024
_MOST_POLICIES: Final = 64 * 1024 * 1024
"""Bytes of the longest answers that are read. A listing of policies holds their syntax trees, too."""

_LOOK_PATIENCE: Final = 10.0
_FIRST_LOOK: Final = 1.0
"""Seconds in which a look has to end, and for which a start waits for the first one."""

_IDLE_SHARE: Final = 20
"""After a look that took a second, so many seconds pass before the next one."""

_MOST_JUDGED: Final = 64
_MOST_PROBLEMS: Final = 20
_LONGEST_DETAIL: Final = 500

_NOT_YET: Final = "OPA has not answered yet"


def unavailable(why: str) -> EngineUnavailable:
    """What a call is refused with. `why` is for the operator alone."""
    return EngineUnavailable("The policy could not be asked, so the call is refused.", why)


class Reply(NamedTuple):
    """An HTTP status and the whole body."""

    status: int
    body: bytes


class Line(Protocol):
    """The way to one OPA server."""

    async def ask(self, path: str, body: bytes | None, most: int) -> Reply:
        """POSTs JSON to a path below the server's base path, or without `body` GETs it.

        Repeats a request only when no byte of an answer came on a connection that had been used before. May be
        cancelled at any time. Raises EngineUnavailable when no answer of at most `most` bytes comes.
        """
        ...

    async def close(self) -> None:
        """Ends all connections."""
        ...


class OpaEngine:
    """Asks an OPA server, and keeps an eye on it: what decides there, and whether it can be asked at all.

    A look is taken at the start, when an answer comes from a revision not seen before, every `every` seconds, and every
    `again` seconds while OPA does not answer. It asks for `data.weighbridge.problems`: while there are any, or there is
    no policy of this package, calls are refused, as the embedded engine would refuse to load such policies.
    """

    def __init__(self, line: Line, *, timeout: float, every: float = 5.0, again: float = 1.0) -> None:
        """`timeout`: seconds for one question and its answer."""
        self.revision = NOBODY
        self.bundles: Mapping[str, str] = {}
        self.masks = True
        self._line = line
        self._timeout = timeout
        self._every = every
        self._again = again
        self._down: str | None = _NOT_YET
        self._late = False
        """Whether it is down for answering too slowly: then it is only up again when it has answered in time."""
        self._answered = float("-inf")
        self._texts: str | None = None
        self._by_bundles = False
        self._judged: dict[str, str | None] = {}
        self._look: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._next_look = 0.0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<OpaEngine {self.revision[:12]}{' failing' if self.failure else ''}>"

    @property
    def failure(self) -> str | None:
        """See `policies.engine.Engine`."""
        if self._down is not None:
            return self._down
        return self._judged.get(self.revision)

    async def begin(self) -> None:
        """Starts to look, and waits a moment for the first look to end. Raises nothing: see `failure`."""
        self._watch = asyncio.create_task(self._watching(), name="watch over OPA")
        await asyncio.wait([self._looking()], timeout=_FIRST_LOOK)

    async def decide(self, question: Question) -> Decision:
        """See `policies.engine.Engine`."""
        return await self.evaluate(question.document(), question.now_ns)

    async def evaluate(self, document: bytes, now_ns: int) -> Decision:
        """See `policies.engine.Engine`. `time.now_ns()` is OPA's own clock: `now_ns` is only known as `input.time`."""
        body = b'{"input":%b}' % fit(document)
        began = asyncio.get_running_loop().time()
        try:
            with self._busy():
                async with asyncio.timeout(self._timeout):
                    answer = await self._told(DECISION, body)
                    revision = self._revision(answer)
                    if revision not in self._judged:
                        await asyncio.shield(self._looking())
                        revision = self._revision(answer)  # without bundles it is made of what the look has found
        except TimeoutError:
            late = f"OPA gave no answer within {self._timeout:g} s"
            if self._answered <= began:  # where others were answered meanwhile, this one question took too long
                self._fell(late, late=True)
            raise unavailable(late) from None
        if revision not in self._judged:
            raise unavailable(self.failure or "the policies on the OPA server change faster than they can be judged")
        if revision != self.revision:
            self.revision, self.bundles = revision, _bundles(answer)
        wrong = self._judged[revision]
        if wrong is not None:
            raise unavailable(wrong)
        if "result" not in answer:
            raise Undecided("the decision is undefined")
        try:
            result = orjson.dumps(answer["result"])
        except TypeError:
            raise Undecided("the decision nests too deep") from None
        return parse(result, revision)

    async def mask(self, event: bytes) -> Any:
        """See `policies.engine.Engine`."""
        try:
            with self._busy():
                async with asyncio.timeout(self._timeout):
                    answer = await self._told(MASK, b'{"input":%b}' % event)
        except TimeoutError:
            raise unavailable(f"OPA gave no masks for the decision log within {self._timeout:g} s") from None
        return answer.get("result")

    async def retire(self) -> None:
        """See `policies.engine.Engine`. Questions under way are answered first."""
        while self._under_way:  # who was answered may go on to ask how to mask it
            await self._idle.wait()  # before the look ends, which some of them may be waiting for
        tasks = [task for task in (self._watch, self._look) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._line.close()

    # Asking.

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _told(self, path: str, body: bytes) -> dict[str, Any]:
        """The answer of the Data API. Raises EngineUnavailable, and Undecided for an error of policy or input."""
        try:
            reply = await self._line.ask(path, body, _MOST_ANSWER)
            answer = _parsed(reply)
        except EngineUnavailable as error:
            self._fell(error.internal)
            raise
        if reply.status == 200:
            self._rose()
            return answer
        detail = _detail(answer)
        if _blames_the_question(reply.status, answer):
            self._rose()
            raise Undecided(detail, _detail(answer, _without_values))
        advice = "; see policy.opa.token" if reply.status in (401, 403) else ""
        refusal = f"OPA answers {reply.status} {detail}".rstrip() + advice
        self._fell(refusal)
        raise unavailable(refusal)

    def _fell(self, why: str, *, late: bool = False) -> None:
        if self._down in (None, _NOT_YET):
            log.warning("calls are refused: %s", why)
        self._down, self._late = why, late

    def _rose(self) -> None:
        if self._down is not None:
            log.info("OPA answers")
        self._down, self._late = None, False
        self._answered = asyncio.get_running_loop().time()

    # Looking.

    async def _watching(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._again)
            if self._down is not None or loop.time() >= self._next_look:
                await asyncio.shield(self._looking())

    def _looking(self) -> asyncio.Task[None]:
        """The look that is under way, or a new one: whoever needs one shares it."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._judge(), name="look at OPA")
        return self._look

    async def _judge(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(_LOOK_PATIENCE):
                await self._judge_now()
        except TimeoutError:
            self._fell(f"OPA took more than {_LOOK_PATIENCE:g} s to tell what it decides by")
        except EngineUnavailable as error:
            self._fell(error.internal)
        except Exception as error:  # whatever it is, the next look must come
            log.exception("looking at OPA failed unexpectedly")
            self._fell(f"looking at OPA failed unexpectedly with {type(error).__name__}")
        finally:
            self._next_look = began + max(self._every, _IDLE_SHARE * (loop.time() - began))

    async def _judge_now(self) -> None:
        if self._late and not await self._is_quick():
            return
        if self._by_bundles and await self._is_known():
            return
        provenance: dict[str, Any] = {}
        try:
            provenance = await self._told(PROBLEMS, b"{}")
            wrong = _problems(provenance)
        except Undecided as error:  # an error carries no provenance, so nothing is known of the revision
            wrong = f"data.weighbridge.problems cannot be evaluated: {error.internal}"
        if not _named(provenance) or self._revision(provenance) not in self._judged:
            self._texts, present, self.masks = await self._listed()
            if wrong is None and not present:
                wrong = "OPA has no policy of package weighbridge"
        self._by_bundles = _named(provenance)
        self._note(self._revision(provenance), wrong)
        self.bundles = _bundles(provenance)

    async def _is_quick(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                with contextlib.suppress(Undecided):  # without an input a policy may well fail
                    await self._told(DECISION, b"{}")
                return True
        return False

    async def _is_known(self) -> bool:
        """Whether what decides has been judged. To judge is work, with ten thousand envelopes a second of OPA's."""
        try:
            answer = await self._told(DECISION, b"{}")
        except Undecided:  # without an input a policy may well fail
            return True
        return _named(answer) and self._revision(answer) in self._judged

    def _note(self, revision: str, wrong: str | None) -> None:
        if wrong is not None and self._judged.get(revision) != wrong:
            log.error("the policy on the OPA server is not fit for use, calls are refused: %s", wrong)
        if revision != self.revision:
            log.info("policy %s decides", revision[:12])
        if len(self._judged) >= _MOST_JUDGED:
            self._judged.clear()
        self._judged[revision] = wrong
        self.revision = revision

    async def _listed(self) -> tuple[str | None, bool, bool]:
        """A hash over the policies' names and texts, and whether one of them is ours; (None, True) where not told."""
        reply = await self._line.ask(POLICIES, None, _MOST_POLICIES)
        if reply.status in (401, 403, 404):  # who may ask for decisions need not be allowed to read policies
            return None, True, True
        return await asyncio.to_thread(_read_listing, reply)

    def _revision(self, answer: Mapping[str, Any]) -> str:
        bundles = _bundles(answer)
        texts = None if _named(answer) else self._texts
        return hashlib.sha256(orjson.dumps([sorted(bundles.items()), texts])).hexdigest()


# The input.

_DEEPEST: Final = 127
"""Levels of nesting of a whole input that the embedded engine accepts."""
_DEEPEST_WRITTEN: Final = 254
"""Levels that `orjson.dumps` writes."""


def fit(document: bytes) -> bytes:
    """An input as both engines see it: numbers whole up to 64 bits, binary fractions beyond. Raises InputRefused."""
    try:
        value = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise _unfit(error.msg) from None
    # Within so many lists, what nests too deep for the embedded engine does for the writer. Counting levels ourselves
    # would take seconds for the longest calls, in which no other call is served.
    wrapped = _DEEPEST_WRITTEN - _DEEPEST
    for _ in range(wrapped):
        value = [value]
    try:
        # Written anew: OPA would see the digits of 2^64 + 1, and of two equal keys whichever its parser prefers.
        return orjson.dumps(value)[wrapped:-wrapped]
    except TypeError as error:
        raise _unfit(f"depth: {error}") from None


def _unfit(complaint: str) -> InputRefused:
    cause = next((cause for word, cause in _UNFIT if word in complaint), "it is not JSON")
    return InputRefused(f"The call cannot be put before the policy: {cause}.", complaint)


_UNFIT: Final = (("infinity", "it holds a number out of range"), ("depth", "it nests too deep"))
"""Words in the complaint of the reader or writer, and what the caller is told."""


# Answers.


def _parsed(reply: Reply) -> dict[str, Any]:
    """The JSON object of a reply, whatever its status. Raises EngineUnavailable."""
    try:
        answer = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise unavailable(f"OPA answers {reply.status} with something that is not OPA's JSON")
    return answer


def _blames_the_question(status: int, answer: Mapping[str, Any]) -> bool:
    """Whether OPA works and says that this question has no answer: its policy failed on it, or refuses the input."""
    if status in (400, 413):
        return isinstance(answer.get("code"), str)
    errors = answer.get("errors")
    return (
        status == 500
        and isinstance(errors, list)
        and len(errors) > 0
        and all(isinstance(each, dict) and str(each.get("code")).startswith(("eval_", "rego_")) for each in errors)
    )


_VALUELESS: Final = re.compile(
    r"[\w.]+: operand [0-9]+ must be .*|[\w.]+(?=:)|divide by zero|modulo on floating-point number"
    r"|(?:complete rules|functions) must not produce multiple outputs.*",
    re.ASCII,
)
"""Beginnings of OPA's messages that hold none of the input's values: of many, the name of the builtin alone."""


def _without_values(message: str) -> str:
    known = _VALUELESS.match(message)
    return known[0] if known else "the policy failed on this call"


def _detail(answer: Mapping[str, Any], told: Callable[[str], str] = str) -> str:
    """What OPA says went wrong, and where, in one line for the operator; of each message what `told` leaves."""
    said = []
    errors = answer.get("errors")
    for each in errors if isinstance(errors, list) else []:
        if isinstance(each, dict):
            where = each.get("location")
            place = f"{where.get('file')}:{where.get('row')}: " if isinstance(where, dict) else ""
            said.append(f"{place}{each.get('code')}: {told(str(each.get('message')))}")
    if not said:
        said = [str(answer["code"])] if "code" in answer else []
        said += [told(str(answer["message"]))] if "message" in answer else []
    return ": ".join(said).replace("\n", " ")[:_LONGEST_DETAIL]


def _problems(answer: Mapping[str, Any]) -> str | None:
    told = answer.get("result", [])
    if not isinstance(told, list) or not all(isinstance(text, str) for text in told):
        return "data.weighbridge.problems is no set of texts"
    more = f" (and {len(told) - _MOST_PROBLEMS} more)" if len(told) > _MOST_PROBLEMS else ""
    return "; ".join(told[:_MOST_PROBLEMS]) + more if told else None


def _bundles(answer: Mapping[str, Any]) -> dict[str, str]:
    """The revision of each bundle that an answer came from, "" for one without."""
    provenance = answer.get("provenance")
    bundles = provenance.get("bundles") if isinstance(provenance, dict) else None
    if not isinstance(bundles, dict):
        return {}
    return {name: str(told.get("revision", "")) if isinstance(told, dict) else "" for name, told in bundles.items()}


def _named(answer: Mapping[str, Any]) -> bool:
    """Whether an answer itself says from which policies it came."""
    bundles = _bundles(answer)
    return bool(bundles) and all(bundles.values())


def _read_listing(reply: Reply) -> tuple[str, bool, bool]:
    policies = _parsed(reply).get("result") if reply.status == 200 else None
    if not isinstance(policies, list):
        raise unavailable(f"OPA answers {reply.status} when asked for its policies")
    texts = []
    present = masks = False
    for policy in policies:
        with contextlib.suppress(TypeError, KeyError, AttributeError):
            texts.append((str(policy["id"]), str(policy["raw"])))
            path = [part.get("value") for part in policy["ast"]["package"]["path"]]
            present = present or path[:2] == ["data", "weighbridge"]
            masks = masks or path[:3] == ["data", "system", "log"]
    return hashlib.sha256(orjson.dumps(sorted(texts))).hexdigest(), present, masks
