"""JSON Web Tokens (RFC 7519) in compact serialisation (RFC 7515): decoded, verified and signed as OPA does it."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from policies.builtins.arguments import LONGEST_TEXT, from_base64url, json_object, text, to_base64url
from policies.builtins.keys import ALGORITHMS, Key, PrivateKey, PublicKey, signing, verifying

LONGEST_TOKEN: Final = 256 * 1024
MOST_NESTED: Final = 8
UNVERIFIED: Final[tuple[bool, dict[str, Any], dict[str, Any]]] = (False, {}, {})

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_CURVE: Final = {"256": "secp256r1", "384": "secp384r1", "512": "secp521r1"}


@dataclass(frozen=True, slots=True)
class _Token:
    """A token's header, read, and its other parts as they came: what they are is asked when it matters."""

    builtin: str
    signed: bytes
    header: dict[str, Any]
    encoded_payload: str
    encoded_signature: str

    def payload(self) -> bytes:
        return from_base64url(self.builtin, self.encoded_payload)

    def signature(self) -> bytes:
        return from_base64url(self.builtin, self.encoded_signature)


def _read(builtin: str, token: Any) -> _Token:
    """A token whose header is in order. Raises ValueError."""
    parts = _split(builtin, token)
    header = json_object(builtin, from_base64url(builtin, parts[0]))
    if "enc" in header:
        raise ValueError(f"{builtin} does not take encrypted tokens")
    return _Token(builtin, f"{parts[0]}.{parts[1]}".encode(), header, parts[1], parts[2])


def _split(builtin: str, token: Any) -> list[str]:
    text(builtin, token, longest=LONGEST_TOKEN)
    parts: list[str] = token.split(".")
    if len(parts) != 3:
        raise ValueError(f"{builtin} takes a token of three parts")
    return parts


def decode(token: Any) -> list[Any]:
    """Header, payload, and the signature in hexadecimal; nothing is verified. A token in a token is opened."""
    for _ in range(MOST_NESTED):
        read = _read("io.jwt.decode", token)
        if read.header.get("cty") != "JWT":
            return [read.header, json_object("io.jwt.decode", read.payload()), read.signature().hex()]
        token = _inner("io.jwt.decode", read.payload()).strip("\"'")
    raise ValueError(f"io.jwt.decode opens at most {MOST_NESTED} tokens in tokens")


def _inner(builtin: str, payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{builtin} was given a token in a token that is no text") from None


def _is_signed(key: PublicKey | None, algorithm: str, message: bytes, signature: bytes) -> bool:
    """Whether `key` made the signature by `algorithm` (RFC 7518 section 3, RFC 8037); no for a key of another kind."""
    kind, bits = algorithm[:2], algorithm[2:]
    try:
        if isinstance(key, bytes):
            return kind == "HS" and hmac.compare_digest(hmac.digest(key, message, f"sha{bits}"), signature)
        if isinstance(key, rsa.RSAPublicKey) and kind == "RS":
            key.verify(signature, message, padding.PKCS1v15(), _HASHES[bits])
        elif isinstance(key, rsa.RSAPublicKey) and kind == "PS":
            masked = padding.PSS(padding.MGF1(_HASHES[bits]), padding.PSS.AUTO)
            key.verify(signature, message, masked, _HASHES[bits])
        elif isinstance(key, ec.EllipticCurvePublicKey) and kind == "ES" and key.curve.name == _CURVE[bits]:
            size = (key.key_size + 7) // 8
            if len(signature) != 2 * size:
                return False
            pair = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
            key.verify(encode_dss_signature(*pair), message, ec.ECDSA(_HASHES[bits]))
        elif isinstance(key, ed25519.Ed25519PublicKey) and algorithm == "EdDSA":
            key.verify(signature, message)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _by_any(keys: Iterable[Key], header: dict[str, Any], algorithm: str, token: _Token) -> bool:
    """Whether the key that the token names made its signature, or, if none has that name, any key for its algorithm."""
    kid, named = header.get("kid", ""), header.get("alg", "")
    listed = tuple(keys)
    chosen = [key for key in listed if kid and key.kid == kid][:1]
    candidates = chosen or [key for key in listed if not key.algorithm or key.algorithm == named]
    signature = token.signature()
    return any(_is_signed(key.public, algorithm, token.signed, signature) for key in candidates)


_TEXTS: Final = ("alg", "kid", "typ", "cty")


def _checked(builtin: str, header: dict[str, Any]) -> set[str]:
    """The parameters that must be understood (RFC 7515 section 4.1.11). Raises ValueError for a malformed header."""
    if not all(isinstance(header.get(name, ""), str) for name in _TEXTS):
        raise ValueError(f"{builtin} was given a token whose header has no text for one of {', '.join(_TEXTS)}")
    critical = header.get("crit", ["crit"])
    if not isinstance(critical, list) or not critical or not all(isinstance(each, str) for each in critical):
        raise ValueError(f"{builtin} was given a token whose crit is no array of texts")
    return {each for each in critical if each in header and each not in (*_TEXTS, "crit")}


def verify(algorithm: str) -> Callable[[Any, Any], bool]:
    """The builtin `io.jwt.verify_ALGORITHM`: whether the signature, and nothing else, is in order."""
    builtin = f"io.jwt.verify_{algorithm.lower()}"

    def by_key(token: Any, keys: Any) -> bool:
        text(builtin, keys)
        read, found = _read(builtin, token), verifying(builtin, keys)
        _checked(builtin, read.header)
        return _by_any(found, read.header, algorithm, read)

    def by_secret(token: Any, secret: Any) -> bool:
        text(builtin, secret)
        header, payload, signature = _split(builtin, token)
        signed = from_base64url(builtin, signature)
        return _is_signed(secret.encode(), algorithm, f"{header}.{payload}".encode(), signed)

    return by_secret if algorithm.startswith("HS") else by_key


@dataclass(frozen=True, slots=True)
class _Demands:
    """What a policy asks of a token: by whose key, and what it must say."""

    keys: tuple[Key, ...] | None
    secret: str
    alg: str
    iss: str
    aud: str
    seconds: float

    def __repr__(self) -> str:
        return "<_Demands>"


_DEMANDS: Final = ("cert", "secret", "alg", "iss", "aud", "time")


def _demands(constraints: Any, now_ns: int) -> _Demands:
    name = "io.jwt.decode_verify"
    if not isinstance(constraints, dict):
        raise ValueError(f"{name} takes an object of constraints")
    for key in constraints:
        if key not in _DEMANDS:
            raise ValueError(f"{name} knows no constraint but {', '.join(_DEMANDS)}")
    given = {key: constraints.get(key, "") for key in _DEMANDS if key != "time"}
    text(name, *given.values())
    moment = constraints.get("time", now_ns)
    if not isinstance(moment, int | float) or isinstance(moment, bool) or moment < 0:
        raise ValueError(f"{name} takes a time in nanoseconds that is not negative")
    keys = verifying(name, given["cert"]) if "cert" in constraints else None
    if (keys is None) == (not given["secret"]):
        raise ValueError(f"{name} needs a cert or a secret, and not both")
    return _Demands(keys, given["secret"], given["alg"], given["iss"], given["aud"], moment / 1_000_000_000)


def decode_verify(now: Callable[[], int]) -> Callable[[Any, Any], Any]:
    """The builtin: `[true, header, payload]` of a token that meets all constraints, else `[false, {}, {}]`.

    `now` gives Unix nanoseconds; it is what `exp` and `nbf` are held against where no `time` is demanded.
    """

    def answer(token: Any, constraints: Any) -> Any:
        name = "io.jwt.decode_verify"
        demands = _demands(constraints, now())
        for _ in range(MOST_NESTED):
            read = _read(name, token)
            unknown = _checked(name, read.header)
            algorithm = read.header.get("alg", "")
            if unknown or algorithm not in ALGORITHMS or demands.alg not in ("", algorithm):
                return UNVERIFIED
            keys = (Key(demands.secret.encode()),) if demands.keys is None else demands.keys
            if not _by_any(keys, read.header, algorithm, read):
                return UNVERIFIED
            if read.header.get("cty", "").upper() != "JWT":
                payload = json_object(name, read.payload())
                return (True, read.header, payload) if _meets(payload, demands) else UNVERIFIED
            token = _inner(name, read.payload())
        raise ValueError(f"{name} opens at most {MOST_NESTED} tokens in tokens")

    return answer


def _meets(payload: dict[str, Any], demands: _Demands) -> bool:
    """Issuer, audience and times (RFC 7519 section 4.1). An audience that nobody demanded refuses the token."""
    if demands.iss and payload.get("iss") != demands.iss:
        return False
    if "aud" in payload or demands.aud:
        audience = payload.get("aud")
        if demands.aud not in (audience if isinstance(audience, list) else [audience]):
            return False
    for claim in ("exp", "nbf"):
        if isinstance(payload.get(claim, 0), bool) or not isinstance(payload.get(claim, 0), int | float):
            raise ValueError(f"io.jwt.decode_verify was given a token whose {claim} is no number")
    return ("exp" not in payload or demands.seconds < payload["exp"]) and (
        "nbf" not in payload or demands.seconds >= payload["nbf"]
    )


def encode_sign(header: Any, payload: Any, key: Any) -> str:
    """A token of two objects, their keys sorted, signed by a JWK."""
    name = "io.jwt.encode_sign"
    if not all(isinstance(each, dict) for each in (header, payload, key)):
        raise ValueError(f"{name} takes three objects")
    return _signed(name, header, _written(name, header), _written(name, payload), key)


def encode_sign_raw(header: Any, payload: Any, key: Any) -> str:
    """A token of two texts as they are, signed by the JWK in the third."""
    name = "io.jwt.encode_sign_raw"
    text(name, header, payload, key, longest=LONGEST_TOKEN)
    read = json_object(name, header.encode())
    return _signed(name, read, header.encode(), payload.encode(), json_object(name, key.encode()))


def _written(builtin: str, value: dict[str, Any]) -> bytes:
    def plain(inner: Any) -> Any:
        if isinstance(inner, set):
            return sorted(inner, key=orjson.dumps)
        raise TypeError

    try:
        return orjson.dumps(value, default=plain, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError):
        raise ValueError(f"{builtin} takes objects whose keys are texts") from None


def _signed(builtin: str, read: dict[str, Any], header: bytes, payload: bytes, key: dict[str, Any]) -> str:
    if len(header) + len(payload) > LONGEST_TEXT // 2:
        raise ValueError(f"{builtin} signs at most {LONGEST_TEXT // 2} bytes")
    algorithm = read.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise ValueError(f"{builtin} needs a header with an alg that it knows")
    if read.get("typ", "JWT") == "JWT":
        try:
            orjson.loads(payload)
        except ValueError:
            raise ValueError(f"{builtin} was given a payload that is not JSON") from None
    message = f"{to_base64url(header)}.{to_base64url(payload)}"
    return f"{message}.{to_base64url(_signature(builtin, signing(builtin, key), algorithm, message.encode()))}"


def _signature(builtin: str, key: PrivateKey, algorithm: str, message: bytes) -> bytes:
    kind, bits = algorithm[:2], algorithm[2:]
    if isinstance(key, bytes) and kind == "HS":
        return hmac.digest(key, message, f"sha{bits}")
    if isinstance(key, rsa.RSAPrivateKey) and kind == "RS":
        return key.sign(message, padding.PKCS1v15(), _HASHES[bits])
    if isinstance(key, rsa.RSAPrivateKey) and kind == "PS":
        masked = padding.PSS(padding.MGF1(_HASHES[bits]), padding.PSS.DIGEST_LENGTH)
        return key.sign(message, masked, _HASHES[bits])
    if isinstance(key, ec.EllipticCurvePrivateKey) and kind == "ES" and key.curve.name == _CURVE[bits]:
        # Without chance (RFC 6979), so that the same call gets the same signature.
        pair = decode_dss_signature(key.sign(message, ec.ECDSA(_HASHES[bits], deterministic_signing=True)))
        size = (key.curve.key_size + 7) // 8
        return b"".join(number.to_bytes(size) for number in pair)
    if isinstance(key, ed25519.Ed25519PrivateKey) and algorithm == "EdDSA":
        return key.sign(message)
    raise ValueError(f"{builtin} was given a key that does not sign by {algorithm}")
