"""What a call can cost at most, before anybody knows what it will cost: worked out for the policy and for budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from adapters.base import AgentCall, Size
from adapters.sizes import looks_up
from policies.prices import NANO_OF_FEMTO, Price, Prices
from routing.table import Arm

_ROOM: Final = 4096
"""Tokens of an answer that are reckoned with at least where neither the call nor the model says how long it can be."""

_ANY_CONTEXT: Final = 200_000
"""Tokens that a call can make a model read beyond its body, where nobody knows the model's context."""


def context(prices: Prices, target: str, model: str) -> int:
    """The most tokens that a target's model can read: what is taken for it where nobody knows."""
    return prices.context(target, model) or _ANY_CONTEXT


class Tariff:
    """What the arms that can get a call charge, and how long their models' answers can be.

    `longest` is what is configured for all of them, `possible` what fits into their models' contexts; both are 0 where
    nobody knows it of one of them. `context` is never 0. `looks_up` says that one of the models reads more than calls
    say, by the name that its target knows it by. `flat` is as that of a Price, where one price is all there is.
    """

    __slots__ = ("context", "flat", "longest", "looks_up", "possible", "prices", "unpriced")

    def __init__(self, arms: Iterable[Arm], call: AgentCall, prices: Prices) -> None:
        found: list[Price] = []
        longest: list[int | None] = []
        possible: list[int | None] = []
        self.unpriced = self.looks_up = False
        self.context = 0
        for arm in arms:
            model = arm.model or call.target
            price = prices.of(arm.target.name, model)
            if price is None:
                self.unpriced = True
                continue
            found.append(price)
            self.looks_up = self.looks_up or looks_up(model)
            self.context = max(self.context, context(prices, arm.target.name, model))
            longest.append(prices.longest(arm.target.name, model))
            possible.append(longest[-1] or prices.context(arm.target.name, model))
        self.longest = _largest(longest)
        self.possible = _largest(possible)
        self.prices = tuple(found)
        self.flat = found[0].flat if len(found) == 1 else None
        self.unpriced = self.unpriced or not found

    @classmethod
    def of(cls, prices: Sequence[Price]) -> Tariff:
        """What charges these prices and is no model: nothing of it is counted in tokens."""
        tariff = cls.__new__(cls)
        tariff.prices = tuple(prices)
        tariff.longest = tariff.possible = 0
        tariff.context = 1
        tariff.looks_up, tariff.unpriced = False, not prices
        tariff.flat = prices[0].flat if len(prices) == 1 else None
        return tariff


def _largest(numbers: Sequence[int | None]) -> int:
    """0 where one of them is not known."""
    known = [number for number in numbers if number]
    return max(known) if known and len(known) == len(numbers) else 0


class Estimate:
    """A call's cost, bounded from above over all arms that may get it.

    `input_tokens` bounds what is read. Each of `answers` has at most `longest` tokens: `asked`, where the call says so
    itself, else what the model can or what is usual; no answer can be longer where that is `known`. `chunk` is what is
    lent for each answer at a time. `outlasts` says that the target goes on with it when nobody listens any more.
    """

    __slots__ = (
        "_a_token",
        "_before_output",
        "_tariff",
        "_tier",
        "answers",
        "asked",
        "chunk",
        "input_tokens",
        "known",
        "longest",
        "outlasts",
        "searches",
        "unpriced",
    )

    def __init__(self, size: Size, tariff: Tariff, usual: int) -> None:
        """`usual` is how long answers to this agent by this model usually are, in tokens."""
        input_tokens, open_ended, answers, asked, self.searches, self._tier, _, self.outlasts = size
        self._tariff = tariff
        self.unpriced = tariff.unpriced
        if (open_ended or tariff.looks_up) and input_tokens < tariff.context:
            input_tokens = tariff.context
        self.input_tokens = input_tokens
        self.answers = answers or 1
        self.asked = asked
        self._a_token = -1
        """Femto-dollars of each token of output; below 0 where the call has to be put before every price."""
        if tariff.flat is not None and not (self.searches or self._tier):
            given, self._a_token, once = tariff.flat
            self._before_output = input_tokens * given + once
        if asked is None:
            self.longest = tariff.longest or max(_ROOM, 4 * usual)
            self.known = tariff.longest > 0
        else:
            possible = tariff.possible
            self.longest = asked if not possible or asked < possible else possible
            self.known = True
        self.chunk = usual if usual < self.longest else self.longest

    def bound(self, output_tokens: int) -> int:
        """Nano-dollars that the call costs at most with so many tokens in all its answers together."""
        if self._a_token >= 0:
            return -(-(self._before_output + output_tokens * self._a_token) // NANO_OF_FEMTO)
        return max(price.bound(self.input_tokens, output_tokens, 1, self.searches) for price in self._prices())

    def affords(self, amount: int) -> int:
        """Tokens of each answer that so many nano-dollars pay for; below 0 where they do not even pay for the input."""
        return (
            min(price.affords(amount, self.input_tokens, self.answers, self.searches) for price in self._prices())
            // self.answers
        )

    def _prices(self) -> Sequence[Price]:
        return [price.on(self._tier) for price in self._tariff.prices]
