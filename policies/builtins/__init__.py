"""The builtins that are ours: what a policy may call is the interpreter's builtins and these tables, and no FORBIDDEN.

arguments       how arguments are judged before any work is done
texts           texts, numbers, arrays; networks: CIDRs; uris: URIs; digests: crypto.md5 .. crypto.hmac
keys            PEM and JWK; tokens: io.jwt; certificates: crypto.x509

Nothing can interrupt an evaluation, so each has a bound on its cost; beyond it, or given what it does not take, it
raises ValueError, which makes the decision fail as OPA's strict builtin errors do. Results hold neither lone surrogates
nor numbers that are not finite: the interpreter would not survive them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from policies.builtins import certificates, digests, keys, networks, texts, tokens, uris

Builtin = tuple[int, Callable[..., Any]]
"""How many arguments it takes, and what answers."""

BOUNDED: Final[Mapping[str, Builtin]] = {
    "numbers.range": (2, texts.numbers_range),
    "numbers.range_step": (3, texts.numbers_range_step),
    "bits.lsh": (2, texts.bits_lsh),
    "strings.count": (2, texts.strings_count),
    "replace": (3, texts.replace),
    "strings.replace_n": (2, texts.strings_replace_n),
    "trim": (2, texts.trim("trim", str.strip)),
    "trim_left": (2, texts.trim("trim_left", str.lstrip)),
    "trim_right": (2, texts.trim("trim_right", str.rstrip)),
    "units.parse": (1, texts.units_parse),
    "units.parse_bytes": (1, texts.units_parse_bytes),
    "net.cidr_expand": (1, networks.cidr_expand),
}
"""Ours in place of the interpreter's: the same answers, with a limit instead of exhaustion and panics."""

SUPPLIED: Final[Mapping[str, Builtin]] = {
    "array.flatten": (1, texts.array_flatten),
    "strings.split_n": (3, texts.strings_split_n),
    "regex.globs_match": (2, texts.regex_globs_match),
    "net.cidr_intersects": (2, networks.cidr_intersects),
    "net.cidr_contains_matches": (2, networks.cidr_contains_matches),
    "net.cidr_merge": (1, networks.cidr_merge),
    "uri.parse": (1, uris.uri_parse),
    "uri.is_valid": (1, uris.uri_is_valid),
    **{f"crypto.{algorithm}": (1, digests.digest(algorithm)) for algorithm in ("md5", "sha1", "sha256")},
    **{f"crypto.hmac.{algorithm}": (2, digests.keyed(algorithm)) for algorithm in ("md5", "sha1", "sha256", "sha512")},
    "crypto.hmac.equal": (2, digests.equal),
    "crypto.x509.parse_certificates": (1, certificates.parse_certificates),
    "crypto.x509.parse_certificate_request": (1, certificates.parse_certificate_request),
    "crypto.x509.parse_rsa_private_key": (1, keys.parse_rsa_private_key),
    **{f"io.jwt.verify_{algorithm.lower()}": (2, tokens.verify(algorithm)) for algorithm in sorted(keys.ALGORITHMS)},
    "io.jwt.decode": (1, tokens.decode),
    "io.jwt.encode_sign": (3, tokens.encode_sign),
    "io.jwt.encode_sign_raw": (3, tokens.encode_sign_raw),
}
"""What OPA has and the interpreter lacks."""

TIMED: Final[Mapping[str, tuple[int, Callable[[Callable[[], int]], Callable[..., Any]]]]] = {
    "time.now_ns": (0, lambda now: now),
    "io.jwt.decode_verify": (2, tokens.decode_verify),
    "crypto.x509.parse_and_verify_certificates": (1, certificates.parse_and_verify),
    "crypto.x509.parse_and_verify_certificates_with_options": (2, certificates.parse_and_verify_with_options),
}
"""Builtins that look at the time of the call: made from what tells it, in Unix nanoseconds."""

FORBIDDEN: Final[Mapping[str, tuple[int, str]]] = {
    "http.send": (1, "a decision must not wait for the network; bring what it needs as data"),
    "net.lookup_ip_addr": (1, "a decision must not wait for the network"),
    "opa.runtime": (0, "it shows the gateway's process; bring what the policy needs as data"),
    "rand.intn": (2, "the same call must get the same decision"),
    "uuid.rfc4122": (1, "the same call must get the same decision"),
    "graph.reachable_paths": (2, "its cost grows exponentially; use graph.reachable"),
    "yaml.unmarshal": (1, "aliases in a short text expand without bound; use json.unmarshal"),
}
"""Builtins no policy may call: how many arguments they take, and why. The linter names them, the interpreter raises."""

NONDETERMINISTIC: Final = frozenset(
    (*TIMED, "io.jwt.encode_sign", "io.jwt.encode_sign_raw", "rand.intn", "uuid.rfc4122", "opa.runtime", "http.send")
) | {"net.lookup_ip_addr"}
"""Builtins whose answer depends on more than their arguments: the time, or chance in a signature."""

LITERAL: Final[Mapping[str, tuple[int, str]]] = {
    "sprintf": (0, "a width in a format from elsewhere can ask for any amount of memory"),
    "concat": (0, "a delimiter from elsewhere multiplies the text"),
    "regex.replace": (2, "a replacement from elsewhere multiplies the text"),
}
"""Builtins one of whose arguments (by position, from 0) must be written out in the policy, and why."""
