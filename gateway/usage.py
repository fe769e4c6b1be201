"""What an answer has used that came in one piece: as its target reports it, else as it can be estimated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from adapters.base import Adapter, AgentCall, Usage
from adapters.meter import tokens_of
from adapters.registry import ADAPTERS
from routing.target import Target

TRANSLATED: Final[Mapping[str, str]] = {"openai": "chat", "anthropic": "messages"}
"""A target's protocol -> what it is asked in it where calls of another one are translated for it."""

_READERS: Final = {each.protocol: each for each in ADAPTERS}


def used(adapter: Adapter, call: AgentCall, body: bytes, size: int, untranslated: Target | None = None) -> Usage:
    """Tokens of an unstreamed answer of `size` bytes: all of it in `body`, its end, or nothing where it broke off.

    A target that reports none for what it has said has not counted. `untranslated` is the target whose protocol the
    answer is in, where that is not the agent's.
    """
    reader, asked = adapter, call
    if untranslated is not None:
        protocol = untranslated.kind.protocol
        reader, asked = _READERS[protocol], dataclasses.replace(call, operation=TRANSLATED[protocol])
    usage = reader.usage(asked, body) if body else None
    if usage is not None and usage.output_tokens:
        return usage
    if len(body) == size:
        counted = reader.counted(asked, body)
    else:
        counted = tokens_of(size) if adapter.token_caps(call) else 0
    if usage is None:
        return Usage(output_tokens=counted, estimated=True)
    return dataclasses.replace(usage, output_tokens=counted, estimated=True) if counted else usage
