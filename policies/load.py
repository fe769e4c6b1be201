"""From the operator's paths to an engine that may be put to use: read, proven in a child process, built, warmed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from policies.build import build
from policies.embedded import EmbeddedEngine
from policies.prove import prove
from policies.sources import read


async def load(
    paths: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,  # noqa: ASYNC109  # the proof's child is killed then, and the policy judged by that
) -> EmbeddedEngine:
    """An engine for the policies and data at `paths`, bound to the calling thread.

    The proof may take `timeout` seconds. The event loop is held up for at most some 20 ms (100 ms with ten thousand
    envelopes). Raises PolicyError; whatever served before is untouched.
    """
    sources = await asyncio.to_thread(read, paths)
    await prove(sources, timeout)
    return await build(sources)
