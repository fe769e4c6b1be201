"""Whose money, in which window: the accounts of a call, and how they stand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import BudgetSettings
from policies.budgets import (
    DIMENSIONS,
    METRICS,
    Balance,
    Budget,
    Mode,
    Plan,
    Spent,
    Window,
    account,
    resets_at,
    unnamed,
    window_id,
)
from policies.money import NANO

DAY = 86_400 * NANO


def at(*when: int) -> int:
    """A time in UTC, in Unix nanoseconds."""
    return int(datetime(*when, tzinfo=UTC).timestamp()) * NANO  # type: ignore[arg-type, misc]


def written(node: str, window: str = "day", limit_usd: float = 1, **more: object) -> BudgetSettings:
    return BudgetSettings.model_validate({"node": node, "window": window, "limit_usd": limit_usd, **more})


def budget(window: Window = "day", limit: int = 100, mode: Mode = Mode.STRICT, warn_at: float = 80) -> Budget:
    return Budget("acme/bot", window, limit, mode, warn_at)


@pytest.mark.parametrize(
    ("now", "day", "month"),
    [
        (at(2026, 11, 21, 4, 40), "2026-11-21", "2026-11"),
        (at(2026, 12, 31, 23, 59, 59) + NANO - 1, "2026-12-31", "2026-12"),
        (at(2027, 1, 1), "2027-01-01", "2027-01"),
        (at(2028, 2, 29, 12), "2028-02-29", "2028-02"),
        # Clocks are set forward and back in many places; in UTC nothing happens then.
        (at(2026, 3, 29, 1, 30), "2026-03-29", "2026-03"),
        (at(2026, 10, 25, 1, 30), "2026-10-25", "2026-10"),
    ],
)
def test_a_call_belongs_to_the_day_and_the_month_of_its_admission_in_utc(now: int, day: str, month: str) -> None:
    assert window_id("day", now, "s-1") == day
    assert window_id("month", now, None) == month


def test_a_session_is_a_window_of_its_own_and_calls_without_one_share_a_day() -> None:
    now = at(2026, 11, 21)
    assert window_id("session", now, "s-1") == window_id("session", now + 40 * DAY, "s-1")
    assert window_id("session", now, None) == window_id("session", now + DAY - 1, None)
    assert window_id("session", now, None) != window_id("session", now + DAY, None)


@given(st.text(max_size=20))
def test_no_session_can_be_named_so_that_it_shares_an_account_with_calls_without_one(session: str) -> None:
    now = at(2026, 11, 21)
    assert window_id("session", now, session) != window_id("session", now, None)


@given(st.lists(st.text("ab|=/-", min_size=1, max_size=6), min_size=2, max_size=2, unique=True))
def test_two_sessions_never_share_an_account(sessions: list[str]) -> None:
    one, other = (account(budget("session"), 0, session).key for session in sessions)
    assert one != other


def test_accounts_of_different_windows_and_nodes_have_different_keys() -> None:
    now = at(2026, 11, 21)
    windows: tuple[Window, ...] = ("session", "day", "month")
    keys = {
        account(Budget(node, window, 1, Mode.STRICT), now, "2026-11-21").key
        for node in ("acme", "acme/bot", "acme/bott")
        for window in windows
    }
    assert len(keys) == 9


@pytest.mark.parametrize(
    ("window", "now", "ends"),
    [
        ("day", at(2026, 12, 31, 4), "2027-01-01T00:00:00Z"),
        ("day", at(2028, 2, 28, 4), "2028-02-29T00:00:00Z"),
        ("month", at(2026, 12, 31, 4), "2027-01-01T00:00:00Z"),
        ("month", at(2027, 1, 31, 4), "2027-02-01T00:00:00Z"),
        ("month", at(2026, 2, 1), "2026-03-01T00:00:00Z"),
        ("session", at(2026, 2, 1), None),
    ],
)
def test_a_window_tells_when_it_ends(window: Window, now: int, ends: str | None) -> None:
    assert resets_at(account(budget(window), now, "s-1")) == ends


def test_what_is_called_without_a_session_begins_anew_every_day_whatever_sessions_are_called() -> None:
    nameless = account(budget("session"), at(2026, 12, 31, 4), None)
    assert (unnamed(nameless), resets_at(nameless)) == ("2026-12-31", "2027-01-01T00:00:00Z")
    named = account(budget("session"), at(2026, 12, 31, 4), "none-2026-12-31")
    assert (unnamed(named), resets_at(named)) == (None, None)


@pytest.mark.parametrize(
    ("posted", "pending", "limit", "state", "percent"),
    [
        (0, 0, 100, "ok", 0),
        (50, 29, 100, "ok", 79),
        (50, 30, 100, "warning", 80),
        (99, 0, 100, "warning", 99),
        (199, 0, 200, "warning", 99),
        (60, 40, 100, "exhausted", 100),
        (150, 0, 100, "exhausted", 150),
        (0, 0, 0, "exhausted", 100),
    ],
)
def test_an_account_tells_how_far_it_is_used(posted: int, pending: int, limit: int, state: str, percent: int) -> None:
    """By what is lent, too, and by the limit in force, which need not be the configured one."""
    balance = Balance(account(budget(limit=7), 0, None), limit, posted, pending)
    assert (balance.state, balance.used_percent) == (state, percent)


def test_a_warning_begins_where_it_is_configured() -> None:
    early = Balance(account(budget(warn_at=0), 0, None), 100, 0, 0)
    never = Balance(account(budget(warn_at=100), 0, None), 100, 99, 0)
    assert (early.state, never.state) == ("warning", "ok")


@pytest.mark.parametrize("mode", Mode)
def test_strict_and_adaptive_budgets_are_hard(mode: Mode) -> None:
    assert mode.hard == (mode.value in ("strict", "adaptive"))
    assert account(budget(mode=mode), 0, None).hard == mode.hard


def test_the_budgets_of_a_call_are_those_of_its_tenant_its_team_and_its_agent_from_the_top() -> None:
    plan = Plan(
        map(written, ("acme/bot", "acme", "acme/support", "beta", "acme/other"), ("day", "month", "day", "day", "day"))
    )
    assert [each.node for each in plan.of("acme", "support", "bot")] == ["acme", "acme/support", "acme/bot"]
    assert [each.node for each in plan.of("acme", None, "bot")] == ["acme", "acme/bot"]
    assert plan.of("gamma", None, "bot") == ()
    found = plan.find("acme", "month")
    assert found is not None
    assert (found.limit, found.mode, found.warn_at) == (NANO, Mode.ADAPTIVE, 80.0)
    assert plan.find("acme", "day") is None


def test_a_plan_tells_whether_anything_depends_on_how_budgets_stand() -> None:
    assert not Plan([]).hard
    assert Plan([]).of("acme", None, "bot") == ()
    assert not Plan([written("acme", mode="soft"), written("acme/bot", mode="shadow")]).hard
    assert Plan([written("acme", mode="soft"), written("acme/bot", mode="adaptive")]).hard


def test_a_line_of_the_cost_ledger_has_its_dimensions_first_and_its_metrics_after_them() -> None:
    assert Spent._fields == (*DIMENSIONS, *METRICS)
