"""Keys as policies hold them, PEM or JWK (RFC 7517), made into keys that verify and sign; large ones are refused.

A signature by a key of 65,536 bits takes seconds to check, and nothing can interrupt an evaluation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

from policies.builtins.arguments import from_base64, from_base64url, json_object, text, to_base64url

LONGEST_KEYS: Final = 128 * 1024
MOST_KEYS: Final = 32
LARGEST_RSA: Final = 8192
LARGEST_SIGNING_RSA: Final = 4096
_LARGEST_EXPONENT: Final = 2**31 - 1
_LARGEST_PRIVATE_DER: Final = 2560
"""Bytes: what an RSA key of 4,096 bits takes, and some; larger ones are not even parsed."""

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | bytes
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | bytes

CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
ALGORITHMS: Final = frozenset(f"{kind}{bits}" for kind in ("RS", "PS", "ES", "HS") for bits in (256, 384, 512)) | {
    "EdDSA"
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key that may verify: by which algorithm and under which id, where a JWK says so."""

    public: PublicKey | None
    algorithm: str = ""
    kid: str = ""

    def __repr__(self) -> str:
        return f"<Key {self.kid or 'without an id'}>"


@lru_cache(maxsize=32)
def verifying(builtin: str, value: str) -> tuple[Key, ...]:
    """The keys of a PEM certificate or public key, of a JWK or of a JWK set. Raises ValueError."""
    text(builtin, value, longest=LONGEST_KEYS)
    if "-----BEGIN" in value:
        blocks = pem(builtin, value)
        if len(blocks) != 1 or value[value.rindex("-----END") :].partition("\n")[2]:
            raise ValueError(f"{builtin} takes one PEM block")
        return (Key(_public(builtin, *blocks[0])),)
    found = json_object(builtin, value.encode())
    listed = found["keys"] if "keys" in found else [found]
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ValueError(f"{builtin} was given a JWK set without an array of keys")
    if len(listed) > MOST_KEYS:
        raise ValueError(f"{builtin} takes at most {MOST_KEYS} keys")
    keys = []
    for each in listed:
        algorithm, kid = each.get("alg", ""), each.get("kid", "")
        if not isinstance(algorithm, str) or not isinstance(kid, str):
            raise ValueError(f"{builtin} was given a JWK whose alg or kid is no text")
        if not algorithm or algorithm in ALGORITHMS:
            keys.append(Key(_from_jwk(builtin, each), algorithm, kid))
    return tuple(keys)


_PEM: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----\s*\n([A-Za-z0-9+/=\s]*?)-----END \1-----")


def pem(builtin: str, value: str) -> list[tuple[str, bytes]]:
    """The labels and contents of the PEM blocks of a text (RFC 7468). Raises ValueError."""
    return [(label, from_base64(builtin, "".join(body.split()))) for label, body in _PEM.findall(value)]


def _public(builtin: str, label: str, der: bytes) -> PublicKey | None:
    try:
        if label == "CERTIFICATE":
            return bounded(builtin, x509.load_der_x509_certificate(der).public_key())
        if label == "PUBLIC KEY":
            return bounded(builtin, load_der_public_key(der))
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{builtin} was given a key or certificate that cannot be read or is too large") from None
    raise ValueError(f"{builtin} takes the PEM of a certificate or a public key")


def bounded(builtin: str, key: Any) -> PublicKey | None:
    """A key of a kind that verifies tokens, none of another. Raises ValueError."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size > LARGEST_RSA or key.public_numbers().e > _LARGEST_EXPONENT:
            raise ValueError(f"{builtin} takes RSA keys of at most {LARGEST_RSA} bits")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return key
    return None


def _member(builtin: str, jwk: dict[str, Any], name: str) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{builtin} was given a JWK without `{name}`")
    return from_base64url(builtin, value)


def _number(builtin: str, jwk: dict[str, Any], name: str) -> int:
    value = _member(builtin, jwk, name)
    if len(value) * 8 > LARGEST_RSA:
        raise ValueError(f"{builtin} takes RSA keys of at most {LARGEST_RSA} bits")
    return int.from_bytes(value)


def _from_jwk(builtin: str, jwk: dict[str, Any]) -> PublicKey | None:
    """The public key of a JWK (RFC 7518 section 6, RFC 8037); none where it holds a private one."""
    kind = jwk.get("kty")
    try:
        if kind == "oct":
            return _member(builtin, jwk, "k")
        if kind not in ("RSA", "EC", "OKP"):
            raise ValueError("unknown kty")
        if kind == "RSA":
            numbers = rsa.RSAPublicNumbers(_number(builtin, jwk, "e"), _number(builtin, jwk, "n"))
            public: PublicKey | None = bounded(builtin, numbers.public_key())
        elif kind == "EC":
            curve = CURVES[jwk["crv"]]()
            size = (curve.key_size + 7) // 8
            x, y = _member(builtin, jwk, "x"), _member(builtin, jwk, "y")
            if len(x) > size or len(y) > size:
                raise ValueError("too long")
            public = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve).public_key()
        else:
            if jwk.get("crv") != "Ed25519":
                return None
            public = ed25519.Ed25519PublicKey.from_public_bytes(_member(builtin, jwk, "x"))
        return None if "d" in jwk else public
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{builtin} was given a JWK that cannot be read or is too large") from None


def signing(builtin: str, jwk: dict[str, Any]) -> PrivateKey:
    """The private or secret key of a JWK. Raises ValueError."""
    if isinstance(jwk.get("keys"), list) and jwk["keys"] and isinstance(jwk["keys"][0], dict):
        jwk = jwk["keys"][0]
    kind = jwk.get("kty")
    try:
        if kind == "oct":
            return _member(builtin, jwk, "k")
        if kind == "RSA":
            return _rsa(builtin, jwk)
        if kind == "EC":
            curve = CURVES[jwk["crv"]]()
            d = _member(builtin, jwk, "d")
            if len(d) > (curve.key_size + 7) // 8:
                raise ValueError("too long")
            return ec.derive_private_key(int.from_bytes(d), curve)
        if kind == "OKP" and jwk.get("crv") == "Ed25519":
            return ed25519.Ed25519PrivateKey.from_private_bytes(_member(builtin, jwk, "d"))
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
        pass
    raise ValueError(f"{builtin} was given no key that signs, or one that is too large")


def _rsa(builtin: str, jwk: dict[str, Any]) -> rsa.RSAPrivateKey:
    n, e, d = (_number(builtin, jwk, name) for name in ("n", "e", "d"))
    if n.bit_length() > LARGEST_SIGNING_RSA or e > _LARGEST_EXPONENT:
        raise ValueError(f"{builtin} signs with RSA keys of at most {LARGEST_SIGNING_RSA} bits")
    p, q = _number(builtin, jwk, "p"), _number(builtin, jwk, "q")
    dp, dq = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q)
    # Whether p and q are prime takes longer to find out than a decision may: a wrong key makes wrong signatures.
    numbers = rsa.RSAPrivateNumbers(p, q, d, dp, dq, rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, n))
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def parse_rsa_private_key(value: Any) -> dict[str, str] | None:
    """The JWK of the first private key (RSA, elliptic curve or Ed25519) of a PEM text or of base64 of one."""
    name = "crypto.x509.parse_rsa_private_key"
    text(name, value, longest=LONGEST_KEYS)
    if not value:
        raise ValueError(f"{name} was given an empty text")
    if not value.startswith("-----BEGIN"):
        value = from_base64(name, value).decode("utf-8", "replace")
    blocks = [der for label, der in pem(name, value) if label.endswith("PRIVATE KEY")]
    if not blocks:
        return None
    if len(blocks[0]) > _LARGEST_PRIVATE_DER:
        raise ValueError(f"{name} takes keys of at most {LARGEST_SIGNING_RSA} bits")
    try:
        key = load_der_private_key(blocks[0], None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{name} was given a key that cannot be read") from None
    return _to_jwk(name, key)


def _to_jwk(builtin: str, key: Any) -> dict[str, str]:
    def written(number: int, size: int | None = None) -> str:
        return to_base64url(number.to_bytes(size or (number.bit_length() + 7) // 8))

    if isinstance(key, rsa.RSAPrivateKey):
        own = key.private_numbers()
        parts = {"n": own.public_numbers.n, "e": own.public_numbers.e, "d": own.d, "p": own.p, "q": own.q}
        parts |= {"dp": own.dmp1, "dq": own.dmq1, "qi": own.iqmp}
        return {"kty": "RSA"} | {name: written(number) for name, number in parts.items()}
    if isinstance(key, ec.EllipticCurvePrivateKey):
        curve = next((name for name, kind in CURVES.items() if isinstance(key.curve, kind)), None)
        if curve is not None:
            size, private = (key.curve.key_size + 7) // 8, key.private_numbers()
            places = {"x": private.public_numbers.x, "y": private.public_numbers.y, "d": private.private_value}
            return {"kty": "EC", "crv": curve} | {name: written(number, size) for name, number in places.items()}
    if isinstance(key, ed25519.Ed25519PrivateKey):
        public = key.public_key().public_bytes_raw()
        return {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(public), "d": to_base64url(key.private_bytes_raw())}
    raise ValueError(f"{builtin} was given a key of a kind it does not know")
