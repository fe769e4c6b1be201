"""What model providers publish of their prices, as the package genai-prices has it, made into a Price of ours.

Reading the table takes about a third of a second, so this module is imported where a price is first needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, TypeAlias

from genai_prices.data import providers as _PROVIDERS
from genai_prices.types import ModelInfo, ModelPrice, Provider, StartDateConstraint, TieredPrices, TimeOfDateConstraint

from policies.prices import Price, Rates, femto

__all__ = ["Model", "Provider", "find", "provider"]

Constraint: TypeAlias = StartDateConstraint | TimeOfDateConstraint

_BY_KIND: Final = {"openai": "openai", "anthropic": "anthropic"}
"""Whose prices hold for a target whose URL is nobody's known one."""

_MILLION: Final = 10**6
_THOUSAND: Final = 10**3

_RATES: Final = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "audio_input",
    "input_image_mtok": "image_input",
    "output_reasoning_mtok": "reasoning",
    "output_audio_mtok": "audio_output",
}
"""The units that a Price has a rate for."""

_COVERED: Final = frozenset({"cache_audio_read_mtok", "cache_image_read_mtok"})
"""Units of tokens that are two things at once, which no usage tells apart: they are charged as sound or images."""

_COUNTED: Final = {
    "requests_kcount": "call",
    "web_searches_kcount": "web_search",
    "storage_searches_kcount": "file_search",
}

_KNOWN: Final = _RATES.keys() | _COVERED | _COUNTED.keys()

_TERMS: Final = frozenset({"service_tier", "speed"})
"""What can be asked for in a call, and is told in its answer. Other variants are of other ways to call."""

_SOON: Final = tuple(timedelta(minutes=15 * quarters) for quarters in range(1, 13))
"""How far ahead bounds look for other prices: as long as a look-up holds, and a call lasts."""


def provider(url: str, kind: str) -> Provider | None:
    """Whose prices hold for a target: by its URL, else by its kind."""
    for each in _PROVIDERS:
        if re.match(each.api_pattern, url):
            return each
    return next((each for each in _PROVIDERS if each.id == _BY_KIND.get(kind)), None)


def find(provider: Provider, model: str) -> Model | None:
    """A model by whatever name its provider takes for it; None for one that is not in the table."""
    found = provider.find_model(model, all_providers=_PROVIDERS)
    return Model(found, any(found is each for each in provider.models)) if found is not None else None


@dataclass(frozen=True, slots=True)
class Model:
    """A model in the table. `own` is False for one that its provider sells at the prices of another provider, whose
    special terms are its own."""

    info: ModelInfo
    own: bool = True

    @property
    def context(self) -> int | None:
        """The most tokens that it can read."""
        return self.info.context_window

    def price(self, now: float) -> Price | None:
        """What it costs from now on, by Unix time in seconds; None where it is sold by a unit that no usage of ours
        counts, or where the table knows no price."""
        at = datetime.fromtimestamp(now, UTC)
        special = [
            each for each in self.info.price_variants or () if len(each.when) == 1 and each.when.keys() <= _TERMS
        ]
        constraints = [each.constraint for each in special if self.own]
        if not isinstance(self.info.prices, ModelPrice):
            constraints += [each.constraint for each in self.info.prices]
        soon = _changes(constraints, at)
        standard = _over_time(self.info, at, soon, {})
        if standard is None or not self.own:
            return standard
        variants: dict[str, Price] = {}
        for each in special:
            other = _over_time(self.info, at, soon, each.when)
            if other is None:
                return None
            if other != standard:
                (terms,) = each.when.values()
                variants[terms] = replace(other, perhaps=(*other.perhaps, standard, *standard.perhaps))
        return replace(standard, variants=variants) if variants else standard


def _changes(constraints: Sequence[Constraint | None], now: datetime) -> list[datetime]:
    """The times in the near future at which other prices are in force than just before."""
    times = [now, *(now + ahead for ahead in _SOON)]
    active = [[each is None or each.active(at) for each in constraints] for at in times]
    return [at for at, before, after in zip(times[1:], active, active[1:], strict=False) if before != after]


def _over_time(model: ModelInfo, now: datetime, soon: Iterable[datetime], terms: dict[str, str]) -> Price | None:
    """The price now, together with those that may hold by the time a call is billed."""
    current = _read(model.get_prices(now, terms))
    others: list[Price] = []
    for at in soon:
        other = _read(model.get_prices(at, terms))
        if other is None:
            return None
        if other != current and other not in others:
            others.append(other)
    return replace(current, perhaps=tuple(others)) if current is not None and others else current


def _read(published: ModelPrice) -> Price | None:
    """None where there is a unit that a Price has no rate for, or no rate for the input."""
    units: dict[str, Decimal | TieredPrices] = {
        key: value for key, value in vars(published).items() if value is not None
    }
    if "input_mtok" not in units or not units.keys() <= _KNOWN:
        return None
    counted = {name: units.get(key, Decimal(0)) for key, name in _COUNTED.items()}
    if any(isinstance(value, TieredPrices) for value in counted.values()):
        return None
    call, web_search, file_search = (femto(_at(value, None), _THOUSAND) for value in counted.values())
    starts = {tier.start for value in units.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    tiers = tuple((start, _rates(units, start)) for start in sorted(starts))
    return Price(_rates(units, None), tiers, call, web_search, file_search)


def _rates(units: Mapping[str, Decimal | TieredPrices], above: int | None) -> Rates:
    """The rates of calls with more than `above` input tokens; of the shortest where that is None."""
    rates = {name: femto(_at(units[key], above), _MILLION) for key, name in _RATES.items() if key in units}
    # What only reads has no price for answers. Should it answer all the same, that is not free.
    return Rates.of(**{"output": rates["input"], **rates})


def _at(value: Decimal | TieredPrices, above: int | None) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if above is None:
        return value.base
    return next((tier.price for tier in reversed(value.tiers) if tier.start <= above), value.base)
