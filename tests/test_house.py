"""The house as the design draws it: who may import whom, what every error means, what no file may contain."""

import ast
import importlib
import importlib.metadata
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from adapters.openai import OpenAI
from adapters.registry import ADAPTERS
from gateway.carrier import CarrierError
from gateway.problems import PROBLEMS, UNEXPECTED, refusal_for

ROOT = Path(__file__).parent.parent
ROOMS = ("adapters", "config", "gateway", "policies", "routing")

ARROWS = {
    "config": set[str](),
    "adapters": {"config"},
    "policies": {"config"},
    "routing": {"config"},
    "gateway": {"config", "adapters", "policies", "routing"},
}
"""Room -> the other rooms it may know."""

OWNERS = {
    "uvicorn": ("gateway/",),
    "starlette": ("gateway/",),
    "regorus": ("policies/",),
    "genai_prices": ("policies/published.py",),
    "jinja2": ("gateway/console/",),
    "httptools": ("gateway/carrier.py", "gateway/door.py"),
    "pyarrow": ("gateway/parquet.py",),
    "redis": ("gateway/state/",),
    "hiredis": ("gateway/state/",),
}
"""Dependency -> the only places that import it, so that replacing it stays the work of one place."""

NEVER_TOLD = {
    "config.errors.ConfigError": "refuses a configuration: the start or the reload fails, no call is under way with it",
    "config.errors.SecretMissing": "refuses a configuration, as above",
    "adapters.openapi.UnusableDocument": "becomes ConfigError, with the file and the line",
    "policies.errors.PolicyError": "refuses policies: the start or the reload fails, calls keep the last good ones",
    "policies.errors._Short": "is only ever raised as one of its kinds, which have rows",
    "policies.errors.BudgetShort": "is only ever raised as one of its kinds, which have rows",
    "policies.budgets.Short": "is caught where money is lent and becomes one of the kinds of BudgetShort",
    "policies.budgets.Conflict": "is caught where money is lent and becomes BudgetsUnavailable",
    "policies.errors.ApprovalEnded": "is only ever raised as one of its kinds, which have rows",
    "policies.approvals.Refused": "is told to a person, by the admin API; of a call's own claim it is ApprovalDenied",
    "policies.approvals.NotEntitled": "is told to a person, by the admin API",
    "policies.approval_store.StoreUnavailable": "is caught where approvals are asked for: ApprovalsUnavailable",
    "policies.binding.Unbindable": "makes the policy's wish for people a no, which has a row",
    "gateway.standings.AgentStopped": "is only ever raised as one of its kinds, which have rows",
    "gateway.standings.Outrun": "is told to a person, by the admin API",
    "gateway.standings.NotWritten": "is told to a person, by the admin API",
    "gateway.claims.NotUsable": "makes a call look again at what it waits for",
    "policies.budgets.StoreUnavailable": "is caught where stores are asked: money refuses, limits let pass",
    "policies.limits.LimitReached": "is caught where limits are asked and becomes RateLimited",
    "policies.errors._Unanswered": "is only ever raised as one of its kinds, which have rows",
    "policies.archive.Unreadable": "is caught where bundles are read and becomes a PolicyError",
    "policies.data._Refused": "is caught where policies are loaded and becomes a PolicyError",
    "policies.signatures._Unfit": "is caught where bundles are verified and becomes a PolicyError",
    "gateway.oauth.client_credentials._NoToken": "becomes TargetFailed where a token was needed",
    "gateway.mcp.answers.NoMessage": "is caught where answers of MCP servers are read and becomes TargetFailed",
    "gateway.lifeline.ClientGone": "nobody is left to be told",
    "gateway.supervise.AddressUnavailable": "stops the start",
    "gateway.state.errors.StateUnusable": "stops the start",
    "gateway.state.redis_wire.Unanswered": "is an answer, and becomes StoreUnavailable",
    "gateway.state.redis_wire._Unfit": "ends a connection, of which calls see only that it is not there",
    "gateway.state.redis_servers.NotAsked": "is StoreUnavailable to all but the outbox",
    "gateway.state.redis_servers.Refused": "is StoreUnavailable to all but the outbox",
    "gateway.remote.Refused": "is told by a command, at a terminal",
    "gateway.spend.SpendRefused": "is told to a person, by the admin API",
    "gateway.trial.TrialRefused": "is told to a person, by the admin API",
    "routing.rollout.MoveRefused": "is told to a person, by the admin API",
    "gateway.obligations.Unfulfilled": "makes the policy's yes a no, which has a row",
    "routing.errors.StoreUnavailable": "is caught where routes are steered and counts flushed; calls ask no store",
    "routing.errors.WeightsRefused": "is told to a person, by the admin API",
    "adapters.errors.GivenUp": "is caught where answers are carried: its target has failed",
    "gateway.mcp.joined.Absent": "leaves a server out of what is joined; of a call it becomes TargetFailed",
    "gateway.mcp.joined.SessionLost": "makes the gateway begin a session anew",
    "adapters.mcp.schemas.UnusableSchema": "refuses a tool, which has a row, or lets its arguments pass unchecked",
    "adapters.mcp.definitions.UnusableDefinition": "refuses a tool, which has a row",
    "adapters.mcp.lists.UnreadableList": "is caught where lists are read: their server has failed",
    "adapters.mcp.results.Unredactable": "withholds the result",
    "gateway.mcp.asking.Unlisted": "is caught where servers are asked: they have failed",
    "policies.definitions.StoreUnavailable": "is caught where definitions are kept: DefinitionsUnavailable",
    "policies.reads._Strange": "is caught where policies are read: such a policy reads the whole input",
}
"""Errors without a row in PROBLEMS, and why none of them reaches an agent."""

CODES = {
    "unauthenticated": {401},
    "policy_denied": {403},
    "policy_unavailable": {403},
    "approval_pending": {403},
    "approval_denied": {403},
    "approval_expired": {403},
    "budget_exhausted": {429},
    "budget_contended": {429},
    "rate_limited": {429},
    "unpriced_model": {403},
    "agent_paused": {403},
    "agent_quarantined": {403},
    "no_route": {404},
    "no_healthy_target": {503},
    "target_timeout": {504},
    "target_failed": {502},
    # Besides 400, HTTP has more exact words for a method that is not served, a body that does not come, a host that is
    # another's and a page that may not call.
    "malformed_call": {400, 403, 405, 408, 421},
    "body_too_large": {413},
    "ledger_unavailable": {503},
}
"""The contract's words for a refusal -> the HTTP statuses they come with."""

NOT_OURS = {".git", ".venv", ".tools", ".hypothesis", ".peers", "__pycache__", "node_modules", "var", "dist", "build"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> ModuleType:
    name = named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return importlib.import_module(name)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute, so that the arrows can be seen"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert called not in ("import_module", "__import__"), f"{path}:{node.lineno}: an import that nobody can see"


def errors() -> Iterator[type[Exception]]:
    """Every error class that a room defines."""
    for path in sources(*ROOMS):
        found = module(path)
        for _, value in inspect.getmembers(found, inspect.isclass):
            if issubclass(value, Exception) and value.__module__ == found.__name__:
                yield value


def full_name(error: type[BaseException]) -> str:
    return f"{error.__module__}.{error.__qualname__}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    others = set(ROOMS) - ARROWS[room] - {room}
    assert sources(room), "a room is not empty"
    for path in sources(room):
        for line, imported in imports(path):
            top = imported.partition(".")[0]
            assert top not in others, f"{named(path)}:{line}: {room} must not know {top}"
            assert top not in {"tests", "deploy", "benchmarks"}, f"{named(path)}:{line}: {top} is not shipped"


@pytest.mark.parametrize("dependency", OWNERS)
def test_a_dependency_is_imported_by_its_owners_alone(dependency: str) -> None:
    users = {named(p) for p in sources(*ROOMS) for _, each in imports(p) if each.partition(".")[0] == dependency}
    assert users, "an unused dependency needs no owner"
    assert {user for user in users if not user.startswith(OWNERS[dependency])} == set()


def test_an_import_is_seen_wherever_it_hides(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.py"
    hidden.write_text("def f():\n    if True:\n        import gateway.app as a\n    from policies import x\n")
    assert set(imports(hidden)) == {(3, "gateway.app"), (4, "policies")}
    for unseen in ("from . import x", "import importlib\nimportlib.import_module('gateway')", "__import__('gateway')"):
        hidden.write_text(unseen)
        with pytest.raises(AssertionError):
            list(imports(hidden))


def test_no_dependency_ships_a_package_with_the_name_of_a_room() -> None:
    """Python would then import theirs, or ours, by the order of its path."""
    distributions = importlib.metadata.packages_distributions()
    assert len(distributions) > len(ROOMS)
    for room in ROOMS:
        assert set(distributions.get(room, [])) <= {"weighbridge"}


@pytest.mark.parametrize("path", sources(*ROOMS, "deploy"), ids=named)
def test_a_module_opens_with_its_place_in_the_journey(path: Path) -> None:
    opening = ast.get_docstring(ast.parse(path.read_bytes()))
    assert opening, f"{named(path)} has no docstring"
    assert re.match(r".*?[.:?]", opening.partition("\n\n")[0], re.DOTALL), f"{named(path)} opens with a whole sentence"


def test_every_error_that_can_end_a_call_has_a_row() -> None:
    found = {full_name(error): error for error in errors()}
    assert len(found) > len(NEVER_TOLD)
    carriers = {name for name, error in found.items() if issubclass(error, CarrierError)}
    # What the carrier raises is told as one of the target's failures; its own words name addresses.
    carriers |= {"gateway.carrier._ExtraBytes"} & found.keys()
    rows = {full_name(error) for error in PROBLEMS}
    assert rows <= found.keys(), "a row for an error that no room defines"
    assert found.keys() - rows - carriers - NEVER_TOLD.keys() == set(), "an error without a row"
    assert (carriers | NEVER_TOLD.keys()) & rows == set()
    assert NEVER_TOLD.keys() <= found.keys(), "a reason for an error that is gone"


def test_every_code_is_a_word_of_the_contract_with_its_status() -> None:
    for error, problem in PROBLEMS.items():
        assert problem.code in CODES, full_name(error)
        assert problem.status in CODES[problem.code], full_name(error)
    assert UNEXPECTED.code not in CODES, "a fault of our own is none of the contract's refusals"


def test_what_can_be_repeated_says_so_and_nothing_else_does() -> None:
    for error, problem in PROBLEMS.items():
        assert not problem.retry or problem.status in (429, 502, 503, 504), full_name(error)
        assert problem.retry_after is None or problem.retry, full_name(error)
        # The Anthropic SDK sleeps as long as it is told to, without a cap.
        assert problem.retry_after is None or 0 < problem.retry_after <= 60, full_name(error)


@pytest.mark.parametrize("status", sorted({problem.status for problem in [*PROBLEMS.values(), UNEXPECTED]}))
def test_every_status_can_be_told_in_every_protocol(status: int) -> None:
    problem = next(each for each in [*PROBLEMS.values(), UNEXPECTED] if each.status == status)
    error = next((each for each, row in PROBLEMS.items() if row is problem), RuntimeError)
    refusal = refusal_for(_raised(error), "01CALL")
    for adapter in ADAPTERS:
        headers, body = adapter.refusal(refusal)
        assert (b"content-type", b"application/json") in headers
        assert problem.code.encode() in body
        assert status < 500 or b"invalid_request" not in body, "a fault of ours is not blamed on the agent"


def test_an_unexpected_error_is_not_quoted() -> None:
    _, body = OpenAI().refusal(refusal_for(RuntimeError("password=hunter2 in /etc/passwd"), "01CALL"))
    assert b"hunter2" not in body
    assert b"internal_error" in body


def _raised(error: type[BaseException]) -> BaseException:
    """An instance as raised, without the arguments that its own constructor wants."""
    instance = error.__new__(error)
    instance.args = ("Something is wrong.",)
    return instance


def files() -> Iterator[Path]:
    for folder, below, found in os.walk(ROOT):
        below[:] = [name for name in below if name not in NOT_OURS and not name.endswith("_cache")]
        yield from (Path(folder, name) for name in found)


def test_no_file_knows_a_package_registry_or_the_machine_it_was_written_on() -> None:
    """Installs take the registry from the environment; paths of one machine are of no use on another."""
    # Spelled in halves, or this file would be found.
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "proxy.golang" + ".org", "crates" + ".io"]
    places = [
        r"/wo" + r"rk/(?:main|shared)\b",
        r"/tm" + r"p/w/",
        "bash_" + "jobs",
        r"/ho" + r"me/\w+/",
        r"/ro" + r"ot/\w+",
    ]
    forbidden = re.compile("|".join([*map(re.escape, hosts), *places]).encode())
    checked = 0
    for path in files():
        found = forbidden.search(path.read_bytes())
        assert found is None, f"{named(path)} contains {found and found.group()!r}"
        checked += 1
    assert checked > 50
