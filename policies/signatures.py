"""The signatures of bundles, made and verified: who vouches for which files, before anything in them is understood.

A signed bundle holds `.signatures.json`, whose one JSON Web Token (RFC 7515, RFC 7519) lists every file with its
digest, as Open Policy Agent's bundles do.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from policies import data as datafile
from policies.errors import PolicyError, Problem

SIGNATURES: Final = ".signatures.json"
SHORTEST_SECRET: Final = 32
"""Bytes of the shortest secret of the HS algorithms (RFC 7518, 3.2, asks for as many as the digest has)."""
SHORTEST_RSA: Final = 2048
"""Bits of the shortest RSA key (RFC 7518, 3.3)."""

_LONGEST_TOKEN: Final = 8 * 1024 * 1024
_CLOCKS_DIFFER: Final = 60.0
"""Seconds by which the signer's clock may be ahead of ours."""

_DIGESTS: Final[Mapping[str, Callable[[], hashes.HashAlgorithm]]] = {
    "SHA-224": hashes.SHA224,
    "SHA-256": hashes.SHA256,
    "SHA-384": hashes.SHA384,
    "SHA-512": hashes.SHA512,
    "SHA-512-224": hashes.SHA512_224,
    "SHA-512-256": hashes.SHA512_256,
}
_BROKEN: Final = ("MD5", "SHA-1")
"""Digests OPA also knows, for which two files with one digest can be made."""

_SIZES: Final[Mapping[str, Callable[[], hashes.HashAlgorithm]]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: Final[Mapping[str, type[ec.EllipticCurve]]] = {
    "ES256": ec.SECP256R1,
    "ES384": ec.SECP384R1,
    "ES512": ec.SECP521R1,
}
ALGORITHMS: Final = (*(f"{kind}{size}" for kind in ("HS", "RS", "PS", "ES") for size in _SIZES), "EdDSA")
"""What bundles can be signed with (RFC 7518, 3.1; RFC 8037 for EdDSA, with Ed25519)."""

_Public = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Key:
    """A key that bundles are verified with: a PEM public key or certificate, or for HS algorithms the secret itself.

    `scope` is what the signature must say it is for; empty when it must say nothing. A key whose `id` is empty verifies
    signatures whatever key they name. `material` is never shown.
    """

    id: str
    algorithm: str
    material: str = field(repr=False)
    scope: str = ""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that bundles are signed with: a PEM private key, or for HS algorithms the secret. `id` may be empty."""

    id: str
    algorithm: str
    material: str = field(repr=False)
    scope: str = ""


class _Unfit(Exception):
    """A key, a token or a file that cannot be relied on: what is wrong with it, and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def check(key: Key) -> Problem | None:
    """What is wrong with a verification key; its material is not repeated."""
    try:
        _public(key)
    except _Unfit as unfit:
        return Problem(f"policy.keys `{key.id}`", None, str(unfit), unfit.remedy)
    return None


def verify(name: str, members: Mapping[str, bytes | memoryview], keys: Sequence[Key], now: float | None = None) -> str:
    """The id of the one of `keys` that signed exactly these files of the bundle called `name`; `now` in Unix seconds.

    Digests come after the signature, and nothing of a file is understood but, for `data.json`, `data.yaml`, `data.yml`
    and `.manifest`, the values whose canonical form OPA digests. Raises PolicyError.
    """
    place = f"{name}/{SIGNATURES}"
    try:
        key, claims = _claims(bytes(members[SIGNATURES]), keys, time.time() if now is None else now)
        listed = _listed(claims)
    except _Unfit as unfit:
        raise PolicyError([Problem(place, None, str(unfit), unfit.remedy)]) from None
    present = members.keys() - {SIGNATURES}
    problems = [
        Problem(f"{name}/{file}", None, "is signed but not in the bundle", "Fetch or build the bundle again.")
        for file in sorted(listed.keys() - present)
    ]
    problems += [
        Problem(f"{name}/{file}", None, "is not signed", "Remove it, or sign the bundle again.")
        for file in sorted(present - listed.keys())
    ]
    if problems:
        raise PolicyError(problems[:_MOST_PROBLEMS])
    # What has to be parsed for its digest comes last, and only where everything else is right.
    for file in sorted(present, key=lambda each: (is_structured(each), each)):
        algorithm, expected = listed[file]
        try:
            if digest(file, members[file], algorithm) != expected:
                raise _Unfit("is not what was signed", "Fetch or build the bundle again; do not edit a signed one.")
        except _Unfit as unfit:
            raise PolicyError([Problem(f"{name}/{file}", None, str(unfit), unfit.remedy)]) from None
    return key.id


def sign(name: str, members: Mapping[str, bytes | memoryview], key: SigningKey, now: float | None = None) -> bytes:
    """The content of `.signatures.json` for these files; `now` in Unix seconds. Raises PolicyError."""
    try:
        private = _private(key)
    except _Unfit as unfit:
        raise PolicyError([Problem("the signing key", None, str(unfit), unfit.remedy)]) from None
    try:
        files = [
            {"name": file, "hash": digest(file, content, "SHA-256"), "algorithm": "SHA-256"}
            for file, content in sorted(members.items())
            if file != SIGNATURES
        ]
    except _Unfit as unfit:
        raise PolicyError([Problem(name, None, str(unfit), unfit.remedy)]) from None
    header = {"alg": key.algorithm, "typ": "JWT"} | ({"kid": key.id} if key.id else {})
    claims: dict[str, Any] = {"files": files, "iat": int(time.time() if now is None else now)}
    if key.id:
        claims["keyid"] = key.id
    if key.scope:
        claims["scope"] = key.scope
    text = b".".join(base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in (header, claims))
    signature = base64.urlsafe_b64encode(_signature(key.algorithm, private, text)).rstrip(b"=")
    token = b".".join((text, signature)).decode()
    return orjson.dumps({"signatures": [token]}, option=orjson.OPT_INDENT_2)


_MOST_PROBLEMS: Final = 20
_RESIGN: Final = "Sign the bundle again, with `weighbridge policy sign` or `opa sign`."


def _claims(content: bytes, keys: Sequence[Key], now: float) -> tuple[Key, dict[str, Any]]:
    """The key that made the token and what it claims, where it is neither too old nor for others."""
    text, header, payload, signature = _token(content)
    key = _key_for(header, keys)
    if not _is_signed_by(key, signature, text):
        raise _Unfit(f"was not signed with the key `{key.id}`, or was changed since", _RESIGN)
    claims = _object(payload, "the payload of the signature")
    named = claims.get("keyid", "")
    if key.id and named not in ("", key.id):
        raise _Unfit("names one key in its header and another in its payload", _RESIGN)
    if claims.get("scope", "") != key.scope:
        wanted = f"`{key.scope}`" if key.scope else "none"
        raise _Unfit(
            f"is for another scope than the key `{key.id}` asks for ({wanted})", "Correct scope, or sign again."
        )
    for claim in ("exp", "nbf", "iat"):
        at = claims.get(claim, now)
        if isinstance(at, bool) or not isinstance(at, int | float):
            raise _Unfit(f"has an `{claim}` that is no time", _RESIGN)
    if claims.get("exp", now + 1) <= now:
        raise _Unfit("has expired", _RESIGN)
    if max(claims.get("nbf", now), claims.get("iat", now)) > now + _CLOCKS_DIFFER:
        raise _Unfit("was made in the future", "Correct the clock here, or where it was signed.")
    return key, claims


def _token(content: bytes) -> tuple[bytes, dict[str, Any], bytes, bytes]:
    """The one token of a `.signatures.json`: what is signed, its header, its payload, its signature."""
    if len(content) > _LONGEST_TOKEN:
        raise _Unfit(f"is larger than {_LONGEST_TOKEN} bytes", "Sign a bundle of fewer files.")
    document = _object(content, "it")
    if document.get("plugin", "") not in ("", "_default"):
        raise _Unfit("was made by a plugin of OPA, which only that plugin can verify", _RESIGN)
    tokens = document.get("signatures")
    if not isinstance(tokens, list) or len(tokens) != 1 or not isinstance(tokens[0], str):
        raise _Unfit("does not hold exactly one signature", _RESIGN)
    parts = tokens[0].split(".")
    if len(parts) != 3 or not all(map(_ENCODED.fullmatch, parts)):
        raise _Unfit("does not hold a signed JSON Web Token", _RESIGN)
    header, payload, signature = map(_decoded, parts)
    return ".".join(parts[:2]).encode(), _object(header, "the header of the signature"), payload, signature


_ENCODED: Final = re.compile(r"[A-Za-z0-9_-]+")


def _decoded(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        raise _Unfit("does not hold a signed JSON Web Token", _RESIGN) from None


def _object(content: bytes, what: str) -> dict[str, Any]:
    value, wrong = datafile.read(".json", content)
    if wrong or not value:
        raise _Unfit(f"cannot be read: {what} is no JSON object", _RESIGN)
    return value


def _key_for(header: Mapping[str, Any], keys: Sequence[Key]) -> Key:
    """The key a token has to be verified with: the one it names, or the only one, and never another algorithm's."""
    if "crit" in header:
        raise _Unfit("asks for an extension of its format that is not known here", _RESIGN)
    named = header.get("kid")
    if named is None:
        if len(keys) != 1:
            raise _Unfit("does not say which of the configured keys it was made with", "Sign with --key-id.")
        key = keys[0]
    else:
        found = [each for each in keys if each.id in ("", named)]
        if not found:
            known = ", ".join(f"`{each.id}`" for each in keys)
            raise _Unfit(f"was made with a key that is not configured; configured: {known}", "Add it to policy.keys.")
        key = found[0]
    if header.get("alg") != key.algorithm:
        raise _Unfit(f"is not made with {key.algorithm}, the algorithm of the key `{key.id}`", _RESIGN)
    return key


def _listed(claims: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """File -> digest's algorithm and hexadecimal digits."""
    files = claims.get("files")
    if not isinstance(files, list):
        raise _Unfit("lists no files", _RESIGN)
    listed: dict[str, tuple[str, str]] = {}
    for each in files:
        entry = each if isinstance(each, dict) else {}
        name, algorithm, value = (entry.get(key) for key in ("name", "algorithm", "hash"))
        if not isinstance(name, str) or not isinstance(algorithm, str) or not isinstance(value, str):
            raise _Unfit("has an entry without name, hash or algorithm", _RESIGN)
        name = name.removeprefix("/").removeprefix("./")
        if name in listed:
            raise _Unfit("lists a file twice", _RESIGN)
        listed[name] = (algorithm, value.lower())
    return listed


def is_structured(file: str) -> bool:
    """Whether a file's digest is that of its canonical JSON: spaces and the order of keys make no difference."""
    return file.rpartition("/")[2] in ("data.json", "data.yaml", "data.yml", ".manifest")


def digest(file: str, content: bytes | memoryview, algorithm: str) -> str:
    """The hexadecimal digest of a bundle's file as OPA computes it. Raises _Unfit."""
    if algorithm in _BROKEN:
        raise _Unfit(f"is signed by its {algorithm}, which can be forged", "Sign it with SHA-256.")
    if algorithm not in _DIGESTS:
        raise _Unfit("is signed with a digest that is not known here", f"Use one of {', '.join(_DIGESTS)}.")
    hashing = hashes.Hash(_DIGESTS[algorithm]())
    hashing.update(canonical(file, bytes(content)) if is_structured(file) else content)
    return hashing.finalize().hex()


def canonical(file: str, content: bytes) -> bytes:
    """A structured file as OPA digests it: JSON with sorted keys, without spaces, numbers as they are written.

    Raises _Unfit.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        if file.endswith((".yaml", ".yml")):
            value, wrong = datafile.anything(file, content)
            if wrong:
                raise _Unfit(wrong[0].message, wrong[0].remedy)
            value = _floats_as_go(value)
        else:
            value = json.loads(content.decode(), parse_int=_verbatim, parse_float=_verbatim, parse_constant=_constant)
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (ValueError, TypeError, RecursionError):
        raise _Unfit(
            "is not plain JSON, so its digest cannot be computed", "Correct the file and sign again."
        ) from None
    # Go escapes these two in every text, which JavaScript takes for line ends.
    return text.replace("\u2028".encode(), b"\\u2028").replace("\u2029".encode(), b"\\u2029")


def _verbatim(number: str) -> orjson.Fragment:
    return orjson.Fragment(number)


def _constant(name: str) -> Any:
    raise ValueError(name)


def _floats_as_go(value: Any) -> Any:
    """Fractions become the text that Go writes for them; levels are limited where the value was read."""
    if isinstance(value, dict):
        return {key: _floats_as_go(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_floats_as_go(each) for each in value]
    return orjson.Fragment(go_number(value)) if isinstance(value, float) else value


def go_number(value: float) -> str:
    """A float as Go's encoding/json writes it: ES6's form, exponents from 1e21 and below 1e-6."""
    shortest = repr(value)
    if shortest.endswith(".0"):
        shortest = shortest[:-2]
    if "e" not in shortest and (value == 0 or abs(value) >= 1e-6):
        return shortest
    sign, mantissa, power = _SHORTEST.fullmatch(shortest).groups("")  # type: ignore[union-attr]  # repr has this form
    whole, _, fraction = mantissa.partition(".")
    digits, point = (whole + fraction), len(whole) + int(power or 0)
    leading = len(digits) - len(digits.lstrip("0"))
    digits, point = digits.lstrip("0").rstrip("0") or "0", point - leading
    if -6 < point <= 21:
        plain = digits.ljust(point, "0") if point > 0 else "0" * (1 - point) + digits
        at = max(point, 1)
        return sign + plain[:at] + ("." + plain[at:] if plain[at:] else "")
    return f"{sign}{digits[0]}{'.' + digits[1:] if digits[1:] else ''}e{point - 1:+d}"


_SHORTEST: Final = re.compile(r"(-?)([0-9.]+)(?:e([-+][0-9]+))?")


def _is_signed_by(key: Key, signature: bytes, text: bytes) -> bool:
    public = _public(key)
    hashing = _hash_of(key.algorithm)
    try:
        if isinstance(public, bytes):
            assert hashing is not None, "an HS algorithm has a digest"
            code = hmac.HMAC(public, hashing)
            code.update(text)
            code.verify(signature)
        elif isinstance(public, rsa.RSAPublicKey):
            assert hashing is not None, "an RSA algorithm has a digest"
            public.verify(signature, text, _padding(key.algorithm, hashing), hashing)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            assert hashing is not None, "an ECDSA algorithm has a digest"
            width = (public.curve.key_size + 7) // 8
            if len(signature) != 2 * width:
                return False
            r, s = (int.from_bytes(signature[at : at + width], "big") for at in (0, width))
            public.verify(utils.encode_dss_signature(r, s), text, ec.ECDSA(hashing))
        else:
            public.verify(signature, text)
    except InvalidSignature:
        return False
    return True


def _signature(algorithm: str, private: bytes | _Private, text: bytes) -> bytes:
    hashing = _hash_of(algorithm)
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(text)
    assert hashing is not None, "every algorithm but EdDSA has a digest"
    if isinstance(private, bytes):
        code = hmac.HMAC(private, hashing)
        code.update(text)
        return code.finalize()
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(text, _padding(algorithm, hashing), hashing)
    width = (private.curve.key_size + 7) // 8
    r, s = utils.decode_dss_signature(private.sign(text, ec.ECDSA(hashing)))
    return r.to_bytes(width, "big") + s.to_bytes(width, "big")


def _hash_of(algorithm: str) -> hashes.HashAlgorithm | None:
    return _SIZES[algorithm[2:]]() if algorithm[2:] in _SIZES else None


def _padding(algorithm: str, hashing: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
    if algorithm.startswith("PS"):
        return padding.PSS(padding.MGF1(hashing), hashing.digest_size)
    return padding.PKCS1v15()


def _public(key: Key) -> bytes | _Public:
    """The key in the form its algorithm takes; a secret is never made of a PEM, nor a public key of a secret."""
    if (secret := _secret(key)) is not None:
        return secret
    material = key.material.strip().encode()
    if b"PRIVATE KEY" in material:
        raise _Unfit("is a private key, which only the signer may have", "Give its public key.")
    try:
        if b"BEGIN CERTIFICATE" in material:
            public: Any = x509.load_pem_x509_certificate(material).public_key()
        else:
            public = serialization.load_pem_public_key(material)
    except (ValueError, UnsupportedAlgorithm):
        raise _Unfit(
            "is no PEM public key", "Give the public key as PEM: -----BEGIN PUBLIC KEY----- and so on."
        ) from None
    _fits(key.algorithm, public, rsa.RSAPublicKey, ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)
    fit: _Public = public
    return fit


def _private(key: SigningKey) -> bytes | _Private:
    if (secret := _secret(key)) is not None:
        return secret
    try:
        private: Any = serialization.load_pem_private_key(key.material.strip().encode(), None)
    except TypeError:
        raise _Unfit("is encrypted", "Give it decrypted, in a file that nobody else can read.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _Unfit("is no PEM private key", "Give the private key as PEM.") from None
    _fits(key.algorithm, private, rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)
    fit: _Private = private
    return fit


def _secret(key: Key | SigningKey) -> bytes | None:
    if key.algorithm not in ALGORITHMS:
        raise _Unfit("has an algorithm that is not known here", f"Use one of {', '.join(ALGORITHMS)}.")
    if not key.algorithm.startswith("HS"):
        return None
    secret = key.material.encode()
    if secret.lstrip().startswith(b"-----BEGIN"):
        raise _Unfit("is a PEM key, which is no secret for an HS algorithm", "Correct algorithm, or give the secret.")
    if len(secret) < SHORTEST_SECRET:
        raise _Unfit(f"is a secret of less than {SHORTEST_SECRET} bytes, which can be guessed", "Use a longer one.")
    return secret


def _fits(algorithm: str, key: Any, *kinds: type) -> None:
    """`kinds` are those of RSA, of elliptic curves and of Ed25519."""
    of_rsa, of_curves, of_ed25519 = (isinstance(key, kind) for kind in kinds)
    if algorithm == "EdDSA":
        fits = of_ed25519
    elif algorithm in _CURVES:
        fits = of_curves and isinstance(key.curve, _CURVES[algorithm])
    else:
        fits = of_rsa
    if not fits:
        raise _Unfit(f"is a key of another kind than {algorithm} takes", "Correct the algorithm or the key.")
    if of_rsa and key.key_size < SHORTEST_RSA:
        raise _Unfit(f"is an RSA key of less than {SHORTEST_RSA} bits", "Use a longer one.")
