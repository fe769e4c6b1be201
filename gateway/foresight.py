"""What will go wrong with a sound configuration once it is served on this machine, seen before it is: for `check`."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Final

from config.crosscheck import nearest
from config.errors import Mistake
from config.load import Loaded
from config.settings import Settings
from gateway.ledger import FILE_NAME
from gateway.mcp.process import environment
from gateway.state import file_of
from policies.budgets import Plan
from policies.prices import Prices
from policies.sources import Sources

_MOST_ENVELOPES: Final = 9
"""Of those that are of nothing, how many are named one by one."""
_MOST_GUESSED: Final = 1000
"""Names among which the nearest is looked for."""

_PATTERN: Final = frozenset("*?[")


def unwritable(settings: Settings) -> Iterator[str]:
    """Files of the gateway that could not be written by whoever asks. Nothing is made or opened."""
    file = file_of(settings.state) if isinstance(settings.state, str) else None
    if file is not None:
        yield from _against("state", file)
    yield from _against("ledger", settings.ledger.path / FILE_NAME)


def _against(what: str, path: Path) -> Iterator[str]:
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if place == path:
        if not path.is_file():
            yield f"{what}: {path} is not a file."
        elif not os.access(path, os.R_OK | os.W_OK):
            yield f"{what}: {path} may not be written by this user."
    elif not place.is_dir():
        yield f"{what}: {path} cannot be made, for {place} is not a folder."
    elif not os.access(place, os.W_OK | os.X_OK):
        yield f"{what}: {path} cannot be made, for this user may not write into {place}."


def unfound(settings: Settings) -> Iterator[str]:
    """Programs of local MCP servers that could not be started from here. Raises SecretMissing."""
    for tool in settings.tools:
        if not tool.command:
            continue
        program = tool.command[0]
        if "/" in program:
            there = os.access(Path(tool.directory or "") / program, os.X_OK)
        else:
            there = shutil.which(program, path=environment(tool)["PATH"]) is not None
        if not there:
            yield f"tool {tool.name}: its program {program!r} is not found. Write its whole path, or a PATH in `env`."


def pointless(settings: Settings, sources: Sources) -> Iterator[str]:
    """Envelopes in files of this gateway that are of agents, or grant tools, that it does not have."""
    agents = {each.name for each in settings.agents}
    tools = {each.name for each in settings.tools}
    found = _pointless(agents, tools, sources)
    for place, what, word in itertools.islice(found, _MOST_ENVELOPES):
        known = agents if what == "agent" else tools
        guess = nearest(word, known) if len(known) <= _MOST_GUESSED else None
        yield f"{place}: no {what} has this name." + (f" Did you mean {guess}?" if guess else "")
    if more := sum(1 for _ in found):
        yield f"envelopes: {more} more are of agents or tools that are not configured."


def _pointless(agents: Set[str], tools: Set[str], sources: Sources) -> Iterator[tuple[str, str, str]]:
    """Place, what is named there, and its name."""
    envelopes = sources.data.get("envelopes")
    for agent, envelope in envelopes.items() if isinstance(envelopes, dict) else ():
        # What comes in bundles may be meant for several gateways.
        file = sources.data_files.get("envelopes") or sources.data_files.get(f"envelopes.{agent}")
        if file is None:
            continue
        if agent not in agents:
            yield f"{file}: envelopes.{agent}", "agent", agent
        granted = envelope.get("allowed_tools") if isinstance(envelope, dict) else None
        for tool in granted if isinstance(granted, dict) else ():
            if tool not in tools:
                yield f"{file}: envelopes.{agent}.allowed_tools.{tool}", "tool server", tool


def unpriced(loaded: Loaded) -> Iterator[Mistake]:
    """Targets with a model of which nobody knows what it costs, where budgets pay for it or its arm is compared."""
    settings = loaded.settings
    hard, prices = bool(Plan(settings.budgets).hard), Prices(settings.targets, settings.tools)
    for number, target in enumerate(settings.targets):
        models: list[str] = []
        paid = compared = False
        for route in settings.routes:
            arms = [(arm.target, arm.model) for arm in route.arms]
            mirror = [(route.mirror.target, route.mirror.model)] if route.mirror is not None else []
            asked = {
                model
                for name, own in (*arms, *mirror)
                if name == target.name
                for model in (route.models if own is None else (own,))
                # Nothing is published of nodes of our own, whatever a pattern stands for.
                if own is not None or not _PATTERN & set(model) or target.kind == "parallax"
            }
            unknown = sorted(model for model in asked if prices.of(target.name, model) is None)
            if unknown:
                models += unknown
                paid |= hard and any(name == target.name for name, _ in arms)
                compared |= len(arms) + len(mirror) > 1
        follows = ["what it saves is not known"] if compared else []
        follows += ["calls that a strict or adaptive budget has to pay for are refused"] if paid else []
        if follows:
            charge = f"nobody knows what {target.name} charges for {models[0]!r}"
            yield loaded.warning(("targets", number), f"{charge}, so {', and '.join(follows)}", "Write its `price`.")
