"""What will go wrong with a sound configuration once it is served on this machine, seen before it is: for `check`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from config.errors import Mistake
from config.load import Loaded
from config.settings import Settings
from gateway.ledger import FILE_NAME
from gateway.state import file_of
from policies.budgets import Plan
from policies.prices import Prices

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
