"""Everything built from one accepted configuration: a reload makes a new one, a call keeps the one it began with."""

import ssl
from dataclasses import dataclass

from config.settings import Settings, TargetSettings
from gateway.carrier import Carrier, Limits, Origin, Timeouts
from gateway.decision_log import ARGUMENTS
from gateway.identity import Directory, People
from policies.budgets import Plan
from policies.limits import LimitPlan
from policies.masks import Mask
from policies.prices import Prices
from routing.table import Table, table
from routing.target import target


@dataclass(frozen=True, slots=True)
class Line:
    """The way to one target: its carrier, and what stands before an endpoint's suffix in its paths."""

    settings: TargetSettings
    carrier: Carrier
    root: str


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a call needs of the configuration, ready to use."""

    settings: Settings
    directory: Directory
    people: People
    table: Table
    lines: dict[str, Line]
    mask: Mask
    plan: Plan
    limit_plan: LimitPlan
    prices: Prices


def assemble(settings: Settings, previous: Assembly | None = None) -> Assembly:
    """Builds all rooms' parts; targets that did not change keep their connections.

    Raises SecretMissing for a key that cannot be had, OSError or ssl.SSLError for a CA file that cannot be used.
    """
    targets = {each.name: target(each) for each in settings.targets}
    lines: dict[str, Line] = {}
    for each in targets.values():
        before = previous.lines.get(each.name) if previous is not None else None
        if before is not None and before.settings == each.settings:
            lines[each.name] = before
        else:
            lines[each.name] = _line(each.settings, each.kind.root)
    return Assembly(
        settings,
        Directory(settings.agents),
        People(settings.admin.people),
        table(settings.routes, targets),
        lines,
        Mask(settings.ledger.mask, ARGUMENTS),
        Plan(settings.budgets),
        LimitPlan(settings.limits),
        _prices(settings),
    )


def retired(before: Assembly, after: Assembly) -> list[Carrier]:
    """The carriers that only calls already under way still use."""
    kept = {id(line.carrier) for line in after.lines.values()}
    return [line.carrier for line in before.lines.values() if id(line.carrier) not in kept]


def _prices(settings: Settings) -> Prices:
    """Published prices take a while to be read, so those of all models with a name are looked up now."""
    prices = Prices(settings.targets, settings.tools)
    for route in settings.routes:
        for arm in route.arms:
            for model in route.models:
                prices.of(arm.target, arm.model or model)
    return prices


def _line(settings: TargetSettings, root: str) -> Line:
    origin, base = Origin.parse(settings.nodes[0])
    timeouts = Timeouts(
        connect=settings.timeouts.connect,
        first_byte=settings.timeouts.first_byte,
        idle=settings.timeouts.idle,
        total=settings.timeouts.total,
    )
    tls = None
    if origin.scheme == "https":
        tls = ssl.create_default_context(cafile=str(settings.ca) if settings.ca is not None else None)
    carrier = Carrier(origin, timeouts=timeouts, limits=Limits(connections=settings.max_connections), tls=tls)
    return Line(settings, carrier, base.rstrip("/") + root)
