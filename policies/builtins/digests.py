"""Digests and keyed digests, as hexadecimal texts: which kinds there are is OPA's choice, weak ones included."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

from policies.builtins.arguments import text


def digest(algorithm: str) -> Callable[[Any], str]:
    """The builtin `crypto.ALGORITHM`."""

    def answer(message: Any) -> str:
        text(f"crypto.{algorithm}", message)
        return hashlib.new(algorithm, message.encode(), usedforsecurity=False).hexdigest()

    return answer


def keyed(algorithm: str) -> Callable[[Any, Any], str]:
    """The builtin `crypto.hmac.ALGORITHM` (RFC 2104)."""

    def answer(message: Any, key: Any) -> str:
        text(f"crypto.hmac.{algorithm}", message, key)
        return hmac.new(key.encode(), message.encode(), algorithm).hexdigest()

    return answer


def equal(one: Any, other: Any) -> bool:
    """Whether two texts are the same, in a time that does not tell where they differ."""
    text("crypto.hmac.equal", one, other)
    return hmac.compare_digest(one.encode(), other.encode())
