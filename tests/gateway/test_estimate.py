"""`gateway.estimate`: a call's cost is bounded by the dearest price that can hold for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Size
from gateway.estimate import Estimate, Tariff
from tests.support.exchanges import assembly, exchange

PLAIN = {"input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.6}
BY_CALL = {"input_usd_per_mtok": 3, "output_usd_per_mtok": 0, "usd_per_call": 0.01, "usd_per_web_search": 0.02}
BY_LENGTH = {**PLAIN, "tiers": [{"above_input_tokens": 1000, "input_usd_per_mtok": 5, "output_usd_per_mtok": 9}]}


def tariff(*prices: dict[str, Any]) -> Tariff:
    names = [f"t{number}" for number in range(len(prices))]
    everything = assembly(
        targets=[
            {"name": name, "kind": "openai", "url": "http://127.0.0.1:9", "price": price, "context_window": 5000}
            for name, price in zip(names, prices, strict=True)
        ],
        routes=[{"name": "r", "models": ["*"], "arms": [{"target": name, "weight": 1} for name in names]}],
    )
    call = exchange().call
    assert call is not None
    arms = everything.table.match("m").able(call.protocol, call.operation)
    return Tariff(arms, call, everything.prices)


@pytest.mark.parametrize("prices", [(PLAIN,), (BY_CALL,), (BY_LENGTH,), (PLAIN, BY_CALL), (PLAIN, PLAIN, BY_LENGTH)])
def test_a_call_costs_at_most_what_the_dearest_of_its_prices_makes_of_it(prices: tuple[dict[str, Any], ...]) -> None:
    charged = tariff(*prices)

    @given(
        st.builds(
            Size,
            st.integers(0, 3000),
            st.booleans(),
            st.integers(1, 3),
            st.none() | st.integers(0, 9),
            st.integers(0, 2),
        ),
        st.integers(0, 10**6),
    )
    def holds(size: Size, output_tokens: int) -> None:
        found = Estimate(size, charged, 512)
        assert found.input_tokens == (5000 if size.open_ended else size.input_tokens)
        assert found.bound(output_tokens) == max(
            price.bound(found.input_tokens, output_tokens, 1, size.searches) for price in charged.prices
        )

    holds()
