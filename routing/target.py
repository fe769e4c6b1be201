"""A place where calls can go: what it speaks, where its paths begin, and what it must be shown to let us in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from config.settings import TargetSettings


@dataclass(frozen=True, slots=True)
class Kind:
    """What all targets of one `kind` have in common.

    `operations` are the ones it serves, per protocol of the caller; what it is told is in its own `protocol`, into
    which a call of another one is translated. `root` is put between the target's URL and an endpoint's suffix: OpenAI's
    base URLs end in /v1, the others' do not.
    """

    protocol: str
    operations: Mapping[str, frozenset[str]]
    root: str = ""
    bearer: bool = True


_MESSAGES: Final = frozenset({"messages"})
_CHAT: Final = frozenset({"chat"})

KINDS: Mapping[str, Kind] = {
    "openai": Kind(
        "openai",
        {"openai": frozenset({"chat", "completions", "embeddings", "responses"}), "anthropic": _MESSAGES},
    ),
    "parallax": Kind("openai", {"openai": _CHAT, "anthropic": _MESSAGES}, root="/v1"),
    "anthropic": Kind(
        "anthropic",
        {"anthropic": frozenset({"messages", "count_tokens"}), "openai": _CHAT},
        root="/v1",
        bearer=False,
    ),
}


_NO_KEY = b"\x00no key\x00"


@dataclass(frozen=True, slots=True)
class Target:
    """One configured target.

    `credentials` are the header lines that it wants, `secret` is the key in them: they stay out of every repr. Without
    a key the secret is a byte sequence that HTTP cannot carry.
    """

    name: str
    settings: TargetSettings
    kind: Kind
    credentials: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    secret: bytes = field(repr=False)

    def serves(self, protocol: str, operation: str) -> bool:
        return operation in self.kind.operations.get(protocol, frozenset())


def target(settings: TargetSettings) -> Target:
    """Raises SecretMissing when the target's key cannot be had."""
    kind = KINDS[settings.kind]
    credentials: tuple[tuple[bytes, bytes], ...] = ()
    key = _NO_KEY
    if settings.key is not None:
        key = settings.key.reveal().encode("latin-1")
        credentials = ((b"authorization", b"Bearer " + key),) if kind.bearer else ((b"x-api-key", key),)
    return Target(settings.name, settings, kind, credentials, key)
