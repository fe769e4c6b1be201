"""From the operator's settings to an engine that may be put to use: read, proven in a child process, built, warmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from config.errors import SecretMissing
from config.settings import OpaSettings, PolicySettings
from policies.build import build
from policies.engine import Engine
from policies.errors import PolicyError, Problem
from policies.fetch import once
from policies.history import History, Kept
from policies.opa import Line, OpaEngine
from policies.prove import prove
from policies.signatures import Key, check
from policies.sources import Fetched, Places


async def load(
    settings: PolicySettings,
    *,
    opa: Callable[[OpaSettings], Line] | None = None,
    fetched: Fetched | None = None,
    history: History | None = None,
) -> Engine:
    """An engine for the policies that `settings` name, bound to the calling thread and its event loop.

    `fetched` is what the server of `settings.bundle` said last; without it, the server is asked.
    `opa` makes the way to an OPA server, for those who may ask one. An engine that asks it is given out whether it
    answers or not: see its `failure`. What is embedded is kept in `history`. Raises PolicyError; whatever served before
    is untouched.
    """
    match settings.engine:
        case "embedded":
            return await _embedded(settings, fetched, history)
        case "opa":
            if opa is None or settings.opa is None:
                raise PolicyError([Problem("policy", None, "an OPA server is not asked here", "Name policy files.")])
            return await _asking(settings.opa, opa)


def on_trial(settings: PolicySettings) -> PolicySettings | None:
    """The settings that the policy on trial is loaded by, where there is one."""
    if settings.shadow is None:
        return None
    return settings.model_copy(update={"engine": "embedded", "paths": settings.shadow.paths, "bundle": None})


def places(settings: PolicySettings, fetched: Fetched | None = None) -> Places:
    """Where `settings` have policies read from, and with which keys. Raises PolicyError."""
    return Places(settings.paths, _keys(settings), (fetched,) if fetched is not None else ())


def _keys(settings: PolicySettings) -> tuple[Key, ...]:
    keys: list[Key] = []
    problems: list[Problem] = []
    for each in settings.keys:
        try:
            key = Key(each.id, each.algorithm, each.key.reveal_text(), each.scope or "")
        except SecretMissing as missing:
            message = f"the key {missing.reason} ({missing.reference})"
            problems.append(Problem(f"policy.keys `{each.id}`", None, message, "Provide it."))
            continue
        wrong = check(key)
        problems += [wrong] if wrong is not None else []
        keys.append(key)
    if problems:
        raise PolicyError(problems)
    return tuple(keys)


async def again(settings: PolicySettings, kept: Kept) -> Engine:
    """An engine for a revision that was put to use before. Raises PolicyError."""
    proof = await prove(kept, settings.prove_timeout)
    return await build(proof.packed, proof.reads, reuse=settings.reuse)


async def _embedded(settings: PolicySettings, fetched: Fetched | None, history: History | None) -> Engine:
    """Holds the event loop up for a few milliseconds at a time."""
    if settings.bundle is not None and fetched is None:
        fetched = await once(settings.bundle)
    proof = await prove(places(settings, fetched), settings.prove_timeout)
    engine = await build(proof.packed, proof.reads, reuse=settings.reuse)
    if history is not None and proof.kept is not None:
        await asyncio.to_thread(history.keep, engine.revision, proof.kept)
    return engine


async def _asking(settings: OpaSettings, opa: Callable[[OpaSettings], Line]) -> Engine:
    try:
        line = await asyncio.to_thread(opa, settings)  # reads some hundred certificates
    except OSError as error:
        message = f"its authorities cannot be used: {error.strerror or type(error).__name__}"
        raise PolicyError([Problem("policy.opa.ca", None, message, "Name a PEM file.")]) from None
    engine = OpaEngine(line, timeout=settings.timeout)
    await engine.begin()
    return engine
