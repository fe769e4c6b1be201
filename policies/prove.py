"""The proof that policies may be put to use: parsed, linted and evaluated on sample calls, in a child process."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from policies import child, history
from policies.decision import parse
from policies.document import agent_fragment, render
from policies.engine import ENTRY
from policies.errors import PolicyError, Problem, Undecided
from policies.interpreter import Clock, Interpreter, builtins, create, problem
from policies.lint import lint
from policies.pack import Packed, describe, pack, slices, texts, unpack
from policies.reads import Reads, analyse
from policies.sources import Sources

PROBLEMS: Final = ".".join((*ENTRY.split(".")[:-1], "problems"))
"""A rule that policies may define: texts, evaluated without input, each a reason not to put policy and data to use."""

_MOST_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True)
class Proof:
    """These policies answered: what was proven, what it reads, and processor seconds per sample call, by the sample's
    name. `kept` is what `policies.history` keeps of it, None where it is too large."""

    packed: Packed
    reads: Reads
    seconds: Mapping[str, float]
    kept: bytes | None = field(repr=False)


async def prove(
    origin: child.Origin,
    timeout: float,  # noqa: ASYNC109  # the child is killed then, and the policy judged by that
) -> Proof:
    """Reads, where `origin` are paths, and proves in a child process, which may take `timeout` seconds after reading.

    Raises PolicyError.
    """
    place = child.place(origin)
    try:
        told = await child.run("prove", origin, timeout)
    except OSError as error:
        message = f"the proof of the policy cannot be started: {error.strerror or type(error).__name__}"
        raise PolicyError([Problem(place, None, message, _SHORT)], transient=error.errno in _SCARCE) from None
    problems = [Problem(**line["problem"]) for line in told.lines if "problem" in line]
    if problems:
        raise PolicyError(problems)
    if told.failure is not None:
        at = next((line["at"] for line in reversed(told.lines) if "at" in line), None)
        file = at[0] if at else place
        doing = f"while {at[1]}" if at else "before it began"
        remedy = child.ONE_VERSION if told.astray else _SHORT if told.transient else _REMEDY
        problem = Problem(file, None, f"the proof of the policy {told.failure} {doing}", remedy)
        raise PolicyError([problem], transient=told.transient)
    (described,) = (line["proven"] for line in told.lines if "proven" in line)
    (reads,) = (line["reads"] for line in told.lines if "reads" in line)
    seconds = {line["sample"]: line["seconds"] for line in told.lines if "sample" in line}
    kept = told.contents[0] if told.contents else None
    return Proof(unpack(described, told.texts), Reads.from_json(reads), seconds, kept)


_SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
_SLOWEST_PARSE: Final = 0.5
_SLOWEST_DECISION: Final = 0.1
"""Seconds of processor time. The gateway parses a proven policy itself, and decides while everyone else waits."""

_FASTER: Final = "Look things up by name instead of searching, and loop over little."
_SHORT: Final = "Give the gateway more files, processes or memory, and load the policy again."
_REMEDY: Final = "Look there for recursion, deep nesting, or loops over large ranges."


def main() -> None:
    """The child's side."""
    sources = child.receive()
    found = False
    for each in _judged(sources):
        found = True
        child.answer({"problem": each})
    if not found:
        _hand_over(sources)


def _hand_over(sources: Sources) -> None:
    packed = pack(sources)
    child.answer({"proven": describe(packed)})
    for text in texts(packed):
        child.hand(text)
    kept = history.pack(sources)
    if kept is not None:
        child.hand(kept)


def _judged(sources: Sources) -> Iterator[Problem]:
    clock = Clock()
    base = create(clock)
    broken = False
    for module in sources.modules:
        child.answer({"at": (module.name, "it was parsed")})
        began = time.process_time()
        try:
            base.add_policy(module.name, module.text)
        except BaseException as error:
            broken = True
            yield problem(error, module.name, "Correct the policy.")
        if time.process_time() - began > _SLOWEST_PARSE:
            broken = True
            yield Problem(module.name, None, f"takes more than {_SLOWEST_PARSE} s to parse", "Nest less deeply.")
    if broken:
        return
    file = sources.modules[0].name
    child.answer({"at": (file, "the policies were checked")})
    trees = orjson.loads(base.get_ast_as_json())
    found = lint(trees, sources.data, builtins())[:_MOST_PROBLEMS]
    yield from found
    if found:
        return
    child.answer({"reads": analyse(trees).as_json()})
    child.answer({"at": (file, "the data was read")})
    for text in slices(sources.data):
        base.add_data_json(text)
    child.answer({"at": (file, f"{PROBLEMS} was evaluated")})
    wrong = list(_own_problems(base.clone(), file, sources.data_files))
    yield from wrong
    if not wrong:
        yield from _failures(base, clock, file, sources.data)


def _failures(base: Interpreter, clock: Clock, file: str, data: Mapping[str, Any]) -> Iterator[Problem]:
    """What goes wrong on the sample calls, each place once."""
    seen: set[Problem] = set()
    for name, document in samples(data):
        child.answer({"at": (file, f"the sample `{name}` was decided")})
        began = time.process_time()
        interpreter = base.clone()
        interpreter.set_input_json(document.decode())
        clock.now_ns = _WHEN
        try:
            result = interpreter.eval_rule_as_json(ENTRY)
        except BaseException as error:
            found_here = problem(error, file, f"It failed on the sample `{name}`; correct the policy.")
            if all((each.file, each.line) != (found_here.file, found_here.line) for each in seen):
                seen.add(found_here)
                yield found_here
            continue
        seconds = time.process_time() - began
        child.answer({"sample": name, "seconds": seconds})
        if seconds > _SLOWEST_DECISION:
            yield Problem(file, None, f"takes {seconds:.2f} s to decide the sample `{name}`", _FASTER)
            return
        if result != '"<undefined>"':
            try:
                parse(result, "")
            except Undecided as error:
                message = f"{ENTRY} is no decision on the sample `{name}`: {error.internal}"
                yield Problem(file, None, message, "Answer as docs/policy.md describes.")
                return


def _own_problems(interpreter: Interpreter, file: str, data_files: Mapping[str, str]) -> Iterator[Problem]:
    """What the policies find wrong: with the file that holds what a text begins with, where one does."""
    try:
        result = orjson.loads(interpreter.eval_rule_as_json(PROBLEMS))
    except BaseException as error:
        if "not a valid rule path" not in str(error):
            yield problem(error, file, f"Correct {PROBLEMS}.")
        return
    if result == "<undefined>":
        return
    if not isinstance(result, list) or not all(isinstance(text, str) for text in result):
        yield Problem(file, None, f"{PROBLEMS} is no set of texts", "Let it hold one text for each problem.")
        return
    for text in result[:_MOST_PROBLEMS]:
        root, dot, rest = re.split(r"[: ]", text, maxsplit=1)[0].partition(".")
        holder = data_files.get(root) or data_files.get(root + dot + rest.partition(".")[0])
        yield Problem(holder or "policy data", None, text.rstrip("."), "Correct the data.")


_WHEN: Final = 1_763_700_000_000_000_000
_BODY: Final = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}],"max_tokens":100,"stream":false}'
_BUDGET: Final = (
    b'{"node":%b,"window":"day","limit_usd":5.00,"posted_usd":4.10,"pending_usd":0.05,"used_percent":83,'
    b'"state":"warning","mode":"adaptive"}'
)
_CALLS: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    ("chat completion", ("llm", "openai", "gpt-4o-mini", "chat", False, _BODY)),
    ("message to a model", ("llm", "anthropic", "claude-sonnet", "messages", True, _BODY)),
    ("list of models", ("llm", "openai", "", "models", None, b"{}")),
    ("tool call", ("tool", "mcp", "github", "create_pr", None, b'{"title":"Fix","base":"main","amount":12.5}')),
    ("HTTP tool call", ("tool", "http", "crm", "POST /contacts", None, b'{"name":"Ann"}')),
    (
        "message to an agent",
        ("message", "a2a", "planner", "SendMessage", None, b'{"message":{"role":"ROLE_USER"}}'),
    ),
    ("environment step", ("environment", "openenv", "grid", "step", None, b'{"action":{"move":"left"}}')),
)


def samples(data: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Inputs that a policy will meet: none at all, and each kind of call, one with money, by some agents that the data
    names."""
    yield "no input", b"{}"
    envelopes = data.get("envelopes")
    named = list(envelopes)[:3] if isinstance(envelopes, dict) else []
    for name in [*named, "an-agent-nobody-knows"]:
        agent = agent_fragment(name, "acme", ["support"], 1, "active")
        for title, (kind, protocol, target, operation, stream, arguments) in _CALLS:
            text = render(agent, kind, protocol, target, operation, stream, arguments, "s-1", _WHEN)
            yield f"{title} by {name}", text
        title, (kind, protocol, target, operation, stream, arguments) = _CALLS[0]
        budgets = b"[%b]" % (_BUDGET % orjson.dumps(f"acme/{name}"))
        text = render(
            agent, kind, protocol, target, operation, stream, arguments, "s-1", _WHEN, budgets, estimated_cost=b"0.0012"
        )
        yield f"paid {title} by {name}", text
