"""What will go wrong with a sound configuration once it is served on this machine, seen before it is: for `check`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

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


def unpriced(settings: Settings) -> Iterator[str]:
    """Models, routed by name, that budgets cannot pay for because nobody knows what they cost."""
    if not Plan(settings.budgets).hard:
        return
    prices = Prices(settings.targets, settings.tools)
    for route in settings.routes:
        for arm in route.arms:
            for model in route.models if arm.model is None else (arm.model,):
                named = arm.model is not None or not _PATTERN & set(model)
                if named and prices.of(arm.target, model) is None:
                    yield (
                        f"route {route.name}: nobody knows what target {arm.target} charges for {model!r}, so calls "
                        "that a strict or adaptive budget has to pay for are refused. Write targets[].price."
                    )
