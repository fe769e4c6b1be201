"""Everything built from one accepted configuration: a reload makes a new one, a call keeps the one it began with."""

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from config.settings import Settings, TargetSettings
from gateway.carrier import Carrier, Limits, Origin, Timeouts
from gateway.decision_log import ARGUMENTS
from gateway.identity import Directory, People
from gateway.mcp.doorway import Doorway
from gateway.oauth.login import Login
from gateway.tools.toolbox import Toolbox
from policies.budgets import Plan
from policies.limits import LimitPlan
from policies.masks import Mask
from policies.prices import Prices
from routing.table import Table, table
from routing.target import target


@dataclass(frozen=True, slots=True)
class Way:
    """The way to one node: its carrier, and what stands before an endpoint's suffix in its paths."""

    carrier: Carrier
    root: str


@dataclass(frozen=True, slots=True)
class Line:
    """The ways to one target's nodes, by their URLs."""

    settings: TargetSettings
    ways: Mapping[str, Way]

    @property
    def carriers(self) -> Iterable[Carrier]:
        return [way.carrier for way in self.ways.values()]


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
    toolbox: Toolbox
    doorway: Doorway
    login: Login


def assemble(settings: Settings, previous: Assembly | None = None) -> Assembly:
    """Builds all rooms' parts; targets that did not change keep their connections.

    Raises SecretMissing for a key that cannot be had, OSError or ssl.SSLError for a file of authorities or keys that
    cannot be used.
    """
    directory = Directory(settings.agents, settings.oauth.issuers if settings.oauth is not None else ())
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
        directory,
        People(settings.admin.people),
        table(settings.routes, targets),
        lines,
        Mask(settings.ledger.mask, ARGUMENTS),
        Plan(settings.budgets),
        LimitPlan(settings.limits),
        _prices(settings),
        Toolbox(settings.tools, previous.toolbox if previous is not None else None),
        Doorway(settings.listen, settings.oauth.resource if settings.oauth is not None else None),
        Login(directory, settings.oauth, previous.login if previous is not None else None),
    )


def retired(before: Assembly, after: Assembly) -> list[Carrier]:
    """The carriers that only calls already under way still use."""
    kept = {id(carrier) for line in after.lines.values() for carrier in line.carriers}
    return [carrier for line in before.lines.values() for carrier in line.carriers if id(carrier) not in kept]


def _prices(settings: Settings) -> Prices:
    """Published prices take a while to be read, so those of all models with a name are looked up now."""
    prices = Prices(settings.targets, settings.tools)
    for route in settings.routes:
        places = [(arm.target, arm.model) for arm in route.arms]
        if route.mirror is not None:
            places.append((route.mirror.target, route.mirror.model))
        for target_name, known_as in places:
            for model in route.models:
                prices.of(target_name, known_as or model)
    return prices


def _line(settings: TargetSettings, root: str) -> Line:
    timeouts = Timeouts(
        connect=settings.timeouts.connect,
        first_byte=settings.timeouts.first_byte,
        idle=settings.timeouts.idle,
        total=settings.timeouts.total,
    )
    ways: dict[str, Way] = {}
    tls: ssl.SSLContext | None = None
    for url in settings.nodes:
        origin, base = Origin.parse(url)
        if origin.scheme == "https" and tls is None:
            tls = ssl.create_default_context(cafile=str(settings.ca) if settings.ca is not None else None)
        limits = Limits(connections=settings.max_connections)
        carrier = Carrier(origin, timeouts=timeouts, limits=limits, tls=tls if origin.scheme == "https" else None)
        ways[url] = Way(carrier, base.rstrip("/") + root)
    return Line(settings, ways)
