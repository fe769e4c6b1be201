"""What a call can cost at most, and what it has cost: prices as integers, so that sums are exact and bounds hold.

A rate is in femto-dollars (10**-15 USD) for one token, search or call: a dollar for a million tokens is 10**9. Amounts
are nano-dollars, rounded up once for each call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Final, Protocol

from config.settings import PriceSettings, RateSettings, TargetSettings, ToolSettings

if TYPE_CHECKING:
    from policies.published import Model, Provider

MOST_TOKENS: Final = 2**53
"""What an amount affords where tokens cost nothing."""

NANO_OF_FEMTO: Final = 10**6
"""Femto-dollars of a nano-dollar."""
_FEMTO: Final = 10**15
_MILLION: Final = 10**6

_FRESH: Final = 900.0
"""Seconds that a look-up holds, from one quarter of an hour to the next: that is when prices by the time of day
change."""
_MOST_KNOWN: Final = 4096
"""Look-ups that are remembered: models are callers' text."""


class Used(Protocol):
    """What a call has used; `adapters.base.Usage` is one. `input_tokens` and `output_tokens` include all their parts.

    `tier` is what the target calls the terms that it has billed by, empty for the usual ones.
    """

    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cache_read_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...
    @property
    def cache_write_1h_tokens(self) -> int: ...
    @property
    def reasoning_tokens(self) -> int: ...
    @property
    def audio_input_tokens(self) -> int: ...
    @property
    def audio_output_tokens(self) -> int: ...
    @property
    def image_input_tokens(self) -> int: ...
    @property
    def web_searches(self) -> int: ...
    @property
    def file_searches(self) -> int: ...
    @property
    def tier(self) -> str: ...


def femto(usd: float | Decimal, each: int = 1) -> int:
    """Dollars for so many -> femto-dollars for one, rounded up."""
    return int((Decimal(str(usd)) * _FEMTO / each).to_integral_value(ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class Rates:
    """Femto-dollars for a token: of the input and of its parts, of the output and of its parts.

    `cache_write_1h` is for tokens that a cache keeps for an hour, which are a part of those written to it.
    """

    input: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    audio_input: int
    image_input: int
    output: int
    reasoning: int
    audio_output: int

    @classmethod
    def of(
        cls,
        input: int,
        output: int,
        *,
        cache_read: int | None = None,
        cache_write: int | None = None,
        cache_write_1h: int | None = None,
        audio_input: int | None = None,
        image_input: int | None = None,
        reasoning: int | None = None,
        audio_output: int | None = None,
    ) -> Rates:
        """A part without a rate of its own costs what the whole does."""
        written = input if cache_write is None else cache_write
        return cls(
            input,
            input if cache_read is None else cache_read,
            written,
            written if cache_write_1h is None else cache_write_1h,
            input if audio_input is None else audio_input,
            input if image_input is None else image_input,
            output,
            output if reasoning is None else reasoning,
            output if audio_output is None else audio_output,
        )

    @property
    def dearest_input(self) -> int:
        return max(
            self.input, self.cache_read, self.cache_write, self.cache_write_1h, self.audio_input, self.image_input
        )

    @property
    def dearest_output(self) -> int:
        return max(self.output, self.reasoning, self.audio_output)

    @property
    def plain(self) -> bool:
        """Whether the parts cost what the whole does."""
        given, made = self.input, self.output
        return (self.cache_read, self.cache_write, self.cache_write_1h, self.audio_input, self.image_input) == (
            given,
            given,
            given,
            given,
            given,
        ) and (self.reasoning, self.audio_output) == (made, made)


@dataclass(frozen=True, slots=True)
class Price:
    """What one model, or one tool, charges.

    `tiers` are pairs, fewest tokens first: calls with more input tokens than the first member pay the second for all
    their tokens. `variants` are the prices on other terms, by what the target calls them. Bounds also hold where one
    of `perhaps` is billed instead: what holds a little later, or what a target falls back to.
    """

    rates: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()
    call: int = 0
    web_search: int = 0
    file_search: int = 0
    variants: Mapping[str, Price] = field(default_factory=dict)
    perhaps: tuple[Price, ...] = ()

    flat: tuple[int, int, int] | None = field(init=False, repr=False, compare=False)
    """What a token of the input costs at most, one of the output, and the call itself; None where that depends on how
    much is read."""
    _plain: bool = field(init=False, repr=False, compare=False)
    _steps: tuple[tuple[int, int, int], ...] = field(init=False, repr=False, compare=False)
    """More input tokens than this -> the dearest that one of the input costs, and one of the output."""
    _dearest_call: int = field(init=False, repr=False, compare=False)
    _dearest_search: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        alike = (self, *self.perhaps)
        object.__setattr__(self, "_plain", self.rates.plain and all(rates.plain for _, rates in self.tiers))
        object.__setattr__(self, "_steps", _steps(alike))
        object.__setattr__(self, "_dearest_call", max(each.call for each in alike))
        object.__setattr__(self, "_dearest_search", max(max(each.web_search, each.file_search) for each in alike))
        flat = (*self._steps[0][1:], self._dearest_call) if len(self._steps) == 1 else None
        object.__setattr__(self, "flat", flat)

    def on(self, terms: str) -> Price:
        """The price of a call that asks for these terms: for its bounds, since the target decides what it grants."""
        return self.variants.get(terms, self) if terms else self

    def cost(self, usage: Used) -> int:
        """Nano-dollars, rounded up."""
        price = self.variants.get(usage.tier, self) if usage.tier else self
        given, made = usage.input_tokens, usage.output_tokens
        rates = price.rates
        for above, dearer in price.tiers:
            if given > above:
                rates = dearer
        charged = given * rates.input + made * rates.output + price.call
        if not price._plain:
            charged += _of_parts(usage, rates)
        if usage.web_searches or usage.file_searches:
            charged += usage.web_searches * price.web_search + usage.file_searches * price.file_search
        return -(-charged // NANO_OF_FEMTO)

    def bound(self, input_tokens: int, output_tokens: int, calls: int = 1, searches: int = 0) -> int:
        """The most that is charged for up to so many tokens, whatever they are parts of, in nano-dollars."""
        steps = self._steps
        _, given, made = steps[0]
        if len(steps) > 1:
            for above, dearer, longer in steps:
                if input_tokens > above:
                    given, made = dearer, longer
        charged = input_tokens * given + output_tokens * made + calls * self._dearest_call
        if searches:
            charged += searches * self._dearest_search
        return -(-charged // NANO_OF_FEMTO)

    def affords(self, amount: int, input_tokens: int, answers: int = 1, searches: int = 0) -> int:
        """The most output tokens, of all answers together and as many for each, whose bound is within `amount`.

        -1 where the amount does not even pay for the input.
        """
        _, given, made = next(step for step in reversed(self._steps) if input_tokens > step[0])
        left = amount * NANO_OF_FEMTO - input_tokens * given - self._dearest_call - searches * self._dearest_search
        if left < 0:
            return -1
        tokens = min(left // made, MOST_TOKENS) if made else MOST_TOKENS
        return tokens - tokens % answers


def configured(settings: PriceSettings) -> Price:
    """The price that an operator has written."""
    return Price(
        _rates(settings),
        tuple((each.above_input_tokens, _rates(each)) for each in settings.tiers),
        femto(settings.usd_per_call),
        femto(settings.usd_per_web_search),
    )


class Prices:
    """The prices of one configuration: what is configured, else what is published for the model.

    Published prices are read at the first look-up that needs them, which takes about a third of a second.
    """

    def __init__(
        self,
        targets: Iterable[TargetSettings],
        tools: Iterable[ToolSettings] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives Unix time in seconds."""
        self._targets = {each.name: each for each in targets}
        self._configured = {name: configured(each.price) for name, each in self._targets.items() if each.price}
        self._tools = {each.name: _tool(each) for each in tools}
        self._clock = clock
        self._providers: dict[str, Provider | None] = {}
        self._models: dict[tuple[str, str], Model | None] = {}
        self._found: dict[tuple[str, str], tuple[Price | None, int | None]] = {}
        self._fresh_until = 0.0

    def of(self, target: str, model: str) -> Price | None:
        """What a target charges for a model, by the name the target knows it by; None where nobody knows."""
        price = self._configured.get(target)
        return price if price is not None else self._published(target, model)[0]

    def tool(self, name: str) -> Price | None:
        """What a tool charges; None where no price is configured, or no such tool."""
        return self._tools.get(name)

    def context(self, target: str, model: str) -> int | None:
        """The most tokens that a model can read; None where nobody knows."""
        settings = self._targets.get(target)
        if settings is not None and settings.context_window is not None:
            return settings.context_window
        return self._published(target, model)[1]

    def longest(self, target: str, model: str) -> int | None:
        """The most tokens of an answer by any model of a target; None where nobody knows: nothing is published."""
        settings = self._targets.get(target)
        return settings.max_output_tokens if settings is not None else None

    def _published(self, target: str, model: str) -> tuple[Price | None, int | None]:
        now = self._clock()
        if now >= self._fresh_until:
            self._found.clear()
            self._fresh_until = (now // _FRESH + 1) * _FRESH
        found = self._found.get((target, model))
        if found is None:
            known = self._model(target, model)
            found = (known.price(now), known.context) if known is not None else (None, None)
            self._found[target, model] = found
        return found

    def _model(self, target: str, model: str) -> Model | None:
        """Looking for a name in the table takes up to a millisecond."""
        if (target, model) in self._models:
            return self._models[target, model]
        from policies import published

        if target not in self._providers:
            settings = self._targets.get(target)
            found = published.provider(settings.nodes[0], settings.kind) if settings is not None else None
            self._providers[target] = found
        provider = self._providers[target]
        if len(self._models) >= _MOST_KNOWN:
            self._models.clear()
            self._found.clear()
        known = self._models[target, model] = published.find(provider, model) if provider is not None else None
        return known


def _tool(settings: ToolSettings) -> Price | None:
    if settings.price is None:
        return None
    return Price(Rates.of(0, 0), call=femto(settings.price.usd_per_call))


def _rates(settings: RateSettings) -> Rates:
    return Rates.of(
        femto(settings.input_usd_per_mtok, _MILLION),
        femto(settings.output_usd_per_mtok, _MILLION),
        cache_read=_part(settings.cache_read_usd_per_mtok),
        cache_write=_part(settings.cache_write_usd_per_mtok),
        cache_write_1h=_part(settings.cache_write_1h_usd_per_mtok),
        audio_input=_part(settings.audio_input_usd_per_mtok),
        image_input=_part(settings.image_input_usd_per_mtok),
        reasoning=_part(settings.reasoning_usd_per_mtok),
        audio_output=_part(settings.audio_output_usd_per_mtok),
    )


def _part(usd_per_mtok: float | None) -> int | None:
    return None if usd_per_mtok is None else femto(usd_per_mtok, _MILLION)


def _steps(prices: Iterable[Price]) -> tuple[tuple[int, int, int], ...]:
    """What a token costs at most in a call of more input tokens than the first member: one of the input, of the output.

    Every call up to so many tokens is covered, a shorter one as well: so neither cost ever falls.
    """
    starts = sorted({-1} | {above for price in prices for above, _ in price.tiers})
    steps: list[tuple[int, int, int]] = []
    given = made = 0
    for start in starts:
        for price in prices:
            rates = next((rates for above, rates in reversed(price.tiers) if above <= start), price.rates)
            given, made = max(given, rates.dearest_input), max(made, rates.dearest_output)
        if not steps or steps[-1][1:] != (given, made):
            steps.append((start, given, made))
    return tuple(steps)


def _of_parts(usage: Used, rates: Rates) -> int:
    """What the parts cost more, or less, than they would at the rate of the whole, in femto-dollars.

    Of tokens that are several things at once nobody tells how many they are: they count as what is last in the list.
    """
    more = 0
    read, written = usage.cache_read_tokens, usage.cache_write_tokens
    images, audio = usage.image_input_tokens, usage.audio_input_tokens
    if read or written or images or audio:
        if read + written + images + audio > usage.input_tokens:
            audio = min(audio, usage.input_tokens)
            images = min(images, usage.input_tokens - audio)
            written = min(written, usage.input_tokens - audio - images)
            read = min(read, usage.input_tokens - audio - images - written)
        for_an_hour = min(usage.cache_write_1h_tokens, written)
        more += read * (rates.cache_read - rates.input)
        more += (written - for_an_hour) * (rates.cache_write - rates.input)
        more += for_an_hour * (rates.cache_write_1h - rates.input)
        more += images * (rates.image_input - rates.input) + audio * (rates.audio_input - rates.input)
    thought, spoken = usage.reasoning_tokens, usage.audio_output_tokens
    if thought or spoken:
        spoken = min(spoken, usage.output_tokens)
        thought = min(thought, usage.output_tokens - spoken)
        more += thought * (rates.reasoning - rates.output) + spoken * (rates.audio_output - rates.output)
    return more
