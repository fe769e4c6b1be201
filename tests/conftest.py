"""For all tests: no example is too slow on a busy machine, and garbage is collected between tests, by the thread that
runs them.

A policy engine has to end in the thread that made it, and a failed call leaves one in a cycle with its traceback. Left
to itself, Python collects in whichever thread happens to allocate, and a test of something else would be blamed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A test that hangs is ended by its timeout.
settings.register_profile("weighbridge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("weighbridge")

_EVERY = 25
"""Tests between two collections."""


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        return (yield)
    finally:
        gc.unfreeze()
        gc.enable()


_ended = 0


def pytest_runtest_teardown(item: pytest.Item) -> None:
    global _ended
    _ended += 1
    if _ended % _EVERY == 0:
        gc.collect()
        # What is still there has been looked at; looking again each time would cost more than the tests.
        gc.freeze()
