"""What an edit changes about money, limits and routes' weights: logged and recorded, as a person's command is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from config.settings import BudgetSettings, PriceSettings, Settings
from gateway.ledger import Ledger
from policies.limits import What
from policies.money import nano, usd_text

log = logging.getLogger("weighbridge.budgets")
_of_routes = logging.getLogger("weighbridge.routes")

_MOST_LOGGED: Final = 20
"""Of one edit; the ledger has all."""

_LIMITS: Final = get_args(What)


@dataclass(frozen=True, slots=True)
class Amendment:
    """One thing that is otherwise from now on: the record's kind and facts, and what is said to the operator."""

    kind: str
    facts: Mapping[str, Any]
    text: str


def tell(ledger: Ledger, who: str, found: Sequence[Amendment]) -> None:
    """Never raises."""
    for each in found:
        ledger.note(each.kind, {"event": "configured", "who": who, **each.facts})
    for each in found[:_MOST_LOGGED]:
        (_of_routes if each.kind == "weights" else log).warning("%s", each.text)
    if len(found) > _MOST_LOGGED:
        log.warning(
            "%d more budgets, limits, prices and weights have changed: the ledger has all", len(found) - _MOST_LOGGED
        )


def amendments(before: Settings, after: Settings) -> list[Amendment]:
    """Budgets whose limit or mode is another, limits, prices of targets, and weights of routes, in the files' order."""
    return [*_budgets(before, after), *_limits(before, after), *_prices(before, after), *_weights(before, after)]


def _budgets(before: Settings, after: Settings) -> Iterator[Amendment]:
    old = {(each.node, each.window): each for each in before.budgets}
    new = {(each.node, each.window): each for each in after.budgets}
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was is not None and now is not None and (was.limit_usd, was.mode) == (now.limit_usd, now.mode):
            continue
        facts = {
            "node": key[0],
            "window": key[1],
            "old_usd": _amount(was),
            "new_usd": _amount(now),
            "old_mode": _mode(was),
            "new_mode": _mode(now),
        }
        yield Amendment("budget", facts, f"the budget of {key[0]}, {key[1]}: {_budget(now)}, was {_budget(was)}")


def _amount(budget: BudgetSettings | None) -> str | None:
    return usd_text(nano(budget.limit_usd)) if budget is not None else None


def _mode(budget: BudgetSettings | None) -> str | None:
    return budget.mode if budget is not None else None


def _budget(budget: BudgetSettings | None) -> str:
    return f"{_amount(budget)} USD {_mode(budget)}" if budget is not None else "none"


def _limits(before: Settings, after: Settings) -> Iterator[Amendment]:
    old, new = _mosts(before), _mosts(after)
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was != now:
            facts = {"node": key[0], "what": key[1], "old": was, "new": now}
            text = f"the limit of {key[0]}, {key[1]}: {_or_none(now)}, was {_or_none(was)}"
            yield Amendment("limit", facts, text)


def _mosts(settings: Settings) -> dict[tuple[str, str], int]:
    limits = ((each.node, what, getattr(each, what)) for each in settings.limits for what in _LIMITS)
    return {(node, what): most for node, what, most in limits if most is not None}


def _or_none(most: int | None) -> str:
    return "none" if most is None else str(most)


def _prices(before: Settings, after: Settings) -> Iterator[Amendment]:
    """Of targets that were there before, and are."""
    old = {each.name: each.price for each in before.targets}
    for each in after.targets:
        if each.name in old and each.price != old[each.name]:
            facts = {"target": each.name, "old": _rates(old[each.name]), "new": _rates(each.price)}
            yield Amendment(
                "price", facts, f"the price of target {each.name} is another, for calls that end from now on"
            )


def _rates(price: PriceSettings | None) -> object:
    return price.model_dump(exclude_unset=True) if price is not None else "published"


def _weights(before: Settings, after: Settings) -> Iterator[Amendment]:
    """Of routes that were there before, and are."""
    old = {route.name: {arm.target: arm.weight for arm in route.arms} for route in before.routes}
    for route in after.routes:
        was, now = old.get(route.name), {arm.target: arm.weight for arm in route.arms}
        if was is not None and was != now:
            facts = {"route": route.name, "old": was, "new": now}
            said = ", ".join(f"{target} {weight:g}" for target, weight in now.items())
            yield Amendment("weights", facts, f"the configured weights of route {route.name}: {said}")
