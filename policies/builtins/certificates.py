"""X.509 certificates (RFC 5280) as objects in OPA's shape, and whether a chain of them holds."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from policies.builtins.arguments import from_base64, text
from policies.builtins.keys import LONGEST_KEYS, bounded, pem

MOST_CERTIFICATES: Final = 32
LONGEST_CHAIN: Final = 8
_REFUSED: Final = (
    ValueError,
    TypeError,
    UserWarning,  # of certificates that will be refused one day, where warnings are errors
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
)

_NAMES: Final = {
    NameOID.COUNTRY_NAME: "Country",
    NameOID.ORGANIZATION_NAME: "Organization",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OrganizationalUnit",
    NameOID.LOCALITY_NAME: "Locality",
    NameOID.STATE_OR_PROVINCE_NAME: "Province",
    NameOID.STREET_ADDRESS: "StreetAddress",
    NameOID.POSTAL_CODE: "PostalCode",
}
_KEY_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
"""From the lowest bit on, as OPA counts them."""

_EXTENDED: Final = {
    "KeyUsageServerAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "KeyUsageClientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "KeyUsageCodeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
    "KeyUsageEmailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "KeyUsageTimeStamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "KeyUsageOCSPSigning": ExtendedKeyUsageOID.OCSP_SIGNING,
}
_USAGE_NUMBERS: Final = {
    "2.5.29.37.0": 0,
    **{f"1.3.6.1.5.5.7.3.{number}": number for number in range(1, 10)},
    "1.3.6.1.4.1.311.10.3.3": 10,
    "2.16.840.1.113730.4.1": 11,
}
"""OPA's numbers for what a certificate may be used for."""

_ANY_USAGE: Final = "KeyUsageAny"
_UNDERSTOOD: Final = frozenset(
    (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    )
)
"""Extensions that may be critical in a chain that holds. Name constraints are not: a chain with them is refused."""


def parse_certificates(value: Any) -> list[dict[str, Any]]:
    """The certificates of a PEM text, or of base64 of PEM or DER, in the order written."""
    name = "crypto.x509.parse_certificates"
    return [_shown(name, each) for each in _certificates(name, value)]


def _certificates(builtin: str, value: Any) -> list[x509.Certificate]:
    text(builtin, value, longest=LONGEST_KEYS)
    if not value.startswith("-----BEGIN"):
        der = from_base64(builtin, value)
        if not der.startswith(b"-----BEGIN"):
            ders = _split(builtin, der)
            return _loaded(builtin, ders)
        value = der.decode("ascii", "replace")
    blocks = pem(builtin, value)
    if any(label != "CERTIFICATE" for label, _ in blocks):
        raise ValueError(f"{builtin} takes PEM blocks of certificates only")
    return _loaded(builtin, [der for _, der in blocks])


def _split(builtin: str, der: bytes) -> list[bytes]:
    """Certificates one after the other: each says in its first bytes (ITU-T X.690, 8.1.3) how long it is."""
    parts = []
    while der:
        if len(der) < 4 or der[0] != 0x30:
            raise ValueError(f"{builtin} was given a malformed certificate")
        size, head = der[1], 2
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(der[2:head]) if head <= 6 else len(der)
        if not head + size <= len(der):
            raise ValueError(f"{builtin} was given a malformed certificate")
        parts.append(der[: head + size])
        der = der[head + size :]
    return parts


def _loaded(builtin: str, ders: Sequence[bytes]) -> list[x509.Certificate]:
    if len(ders) > MOST_CERTIFICATES:
        raise ValueError(f"{builtin} takes at most {MOST_CERTIFICATES} certificates")
    try:
        return [x509.load_der_x509_certificate(der) for der in ders]
    except _REFUSED:
        raise ValueError(f"{builtin} was given a malformed certificate") from None


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _name(name: x509.Name) -> dict[str, Any]:
    shown: dict[str, Any] = dict.fromkeys(_NAMES.values())
    shown |= {"CommonName": "", "SerialNumber": "", "ExtraNames": None}
    names = []
    for each in name:
        value = each.value if isinstance(each.value, str) else _base64(each.value)
        names.append({"Type": [int(part) for part in each.oid.dotted_string.split(".")], "Value": value})
        if each.oid in _NAMES:
            field = _NAMES[each.oid]
            shown[field] = [*(shown[field] or []), value]
        elif each.oid == NameOID.COMMON_NAME:
            shown["CommonName"] = value
        elif each.oid == NameOID.SERIAL_NUMBER:
            shown["SerialNumber"] = value
    shown["Names"] = names or None
    return shown


def _alternatives(extensions: x509.Extensions) -> dict[str, Any]:
    """What else the subject is called, by kind; null where there is none."""
    try:
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        found = x509.SubjectAlternativeName([])
    kinds: dict[str, list[str]] = {
        "DNSNames": found.get_values_for_type(x509.DNSName),
        "EmailAddresses": found.get_values_for_type(x509.RFC822Name),
        "IPAddresses": [str(each) for each in found.get_values_for_type(x509.IPAddress)],
        "URIStrings": found.get_values_for_type(x509.UniformResourceIdentifier),
    }
    return {kind: listed or None for kind, listed in kinds.items()}


def _public_key(key: Any) -> dict[str, Any]:
    """The algorithm by OPA's number for it. An RSA key's numbers are too large to be numbers here and left out."""
    numbers = {rsa.RSAPublicKey: 1, ec.EllipticCurvePublicKey: 3, ed25519.Ed25519PublicKey: 4}
    return {"PublicKeyAlgorithm": next((number for kind, number in numbers.items() if isinstance(key, kind)), 0)}


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _shown(builtin: str, certificate: x509.Certificate) -> dict[str, Any]:
    try:
        extensions = certificate.extensions
        constraints = _extension(extensions, x509.BasicConstraints)
        usage = _extension(extensions, x509.KeyUsage)
        extended = _extension(extensions, x509.ExtendedKeyUsage)
        subject_key = _extension(extensions, x509.SubjectKeyIdentifier)
        path = constraints.path_length if constraints else None
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {
            "Raw": _base64(certificate.public_bytes(Encoding.DER)),
            "RawTBSCertificate": _base64(certificate.tbs_certificate_bytes),
            "RawSubjectPublicKeyInfo": _base64(spki),
            "RawSubject": _base64(certificate.subject.public_bytes()),
            "RawIssuer": _base64(certificate.issuer.public_bytes()),
            "Signature": _base64(certificate.signature),
            "Version": certificate.version.value + 1,
            "Subject": _name(certificate.subject),
            "Issuer": _name(certificate.issuer),
            "NotBefore": _time(certificate.not_valid_before_utc),
            "NotAfter": _time(certificate.not_valid_after_utc),
            "KeyUsage": sum(1 << bit for bit, each in enumerate(_KEY_USAGES) if usage and getattr(usage, each)),
            "BasicConstraintsValid": constraints is not None,
            "IsCA": bool(constraints and constraints.ca),
            "MaxPathLen": (-1 if path is None else path) if constraints else 0,
            "MaxPathLenZero": path == 0,
            "ExtKeyUsage": _usage_numbers(extended) or None,
            "SubjectKeyId": _base64(subject_key.digest) if subject_key else None,
            **_public_key(certificate.public_key()),
            **_alternatives(extensions),
        }
    except _REFUSED:
        raise ValueError(f"{builtin} was given a certificate that cannot be read") from None


def _usage_numbers(extended: x509.ExtendedKeyUsage | None) -> list[int]:
    return [_USAGE_NUMBERS[each.dotted_string] for each in extended or () if each.dotted_string in _USAGE_NUMBERS]


def _extension(extensions: x509.Extensions, kind: Any) -> Any:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def parse_certificate_request(value: Any) -> dict[str, Any]:
    """A certificate signing request (RFC 2986) from PEM, or base64 of PEM or DER."""
    name = "crypto.x509.parse_certificate_request"
    text(name, value, longest=LONGEST_KEYS)
    der = b""
    if not value.startswith("-----BEGIN"):
        der = from_base64(name, value)
        value = der.decode("ascii", "replace") if der.startswith(b"-----BEGIN") else ""
    if value:
        blocks = pem(name, value)
        if not blocks or blocks[0][0] != "CERTIFICATE REQUEST":
            raise ValueError(f"{name} takes the PEM of a certificate request")
        der = blocks[0][1]
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        return {
            "Raw": _base64(request.public_bytes(Encoding.DER)),
            "RawSubject": _base64(request.subject.public_bytes()),
            "Signature": _base64(request.signature),
            "Subject": _name(request.subject),
            **_public_key(key),
            **{name: each for name, each in _alternatives(request.extensions).items() if name != "URIStrings"},
        }
    except _REFUSED:
        raise ValueError(f"{name} was given a malformed certificate request") from None


def parse_and_verify(now: Callable[[], int]) -> Callable[[Any], Any]:
    """The builtin: a root, then what stands between, then a server's certificate; `[true, from that to the root]`.

    `now` gives Unix nanoseconds: the time at which all must be valid.
    """
    name = "crypto.x509.parse_and_verify_certificates"
    return lambda value: _verified(name, value, now(), "", ["KeyUsageServerAuth"])


def parse_and_verify_with_options(now: Callable[[], int]) -> Callable[[Any, Any], Any]:
    """The same with options: `DNSName`, `CurrentTime` in Unix nanoseconds, `KeyUsages`."""
    name = "crypto.x509.parse_and_verify_certificates_with_options"

    def answer(value: Any, options: Any) -> Any:
        if not isinstance(options, dict) or options.keys() - {
            "DNSName",
            "CurrentTime",
            "KeyUsages",
            "MaxConstraintComparisons",
        }:
            raise ValueError(f"{name} takes an object of DNSName, CurrentTime, KeyUsages, MaxConstraintComparisons")
        host, moment = options.get("DNSName", ""), options.get("CurrentTime", now())
        text(name, host)
        if not isinstance(moment, int) or isinstance(moment, bool):
            raise ValueError(f"{name} takes a CurrentTime in whole nanoseconds")
        usages = options.get("KeyUsages", [])
        if not isinstance(usages, list | set) or not all(each in (*_EXTENDED, _ANY_USAGE) for each in usages):
            raise ValueError(f"{name} takes KeyUsages of {', '.join((*_EXTENDED, _ANY_USAGE))}")
        return _verified(name, value, moment, host.strip('"'), list(usages) or ["KeyUsageServerAuth"])

    return answer


def _verified(builtin: str, value: Any, now_ns: int, host: str, usages: Sequence[str]) -> tuple[bool, list[Any]]:
    text(builtin, value, longest=LONGEST_KEYS)
    try:
        chain = _certificates(builtin, value)
        if not 2 <= len(chain) <= LONGEST_CHAIN:
            return False, []
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_ns // 1000)
        root, *between, leaf = chain
        if host and not _is_called(leaf, host):
            return False, []
        path = _path(leaf, between, root)
        if path is None or not _holds(path, moment, usages):
            return False, []
        return True, [_shown(builtin, each) for each in path]
    except (*_REFUSED, OverflowError):
        return False, []


def _path(leaf: x509.Certificate, between: Sequence[x509.Certificate], root: x509.Certificate) -> Any:
    """From the leaf to the root over certificates that each signed the one before; each is used once, first fit."""
    path, left = [leaf], list(between)
    while True:
        if _signed_by(path[-1], root):
            return [*path, root]
        issuer = next((each for each in left if _signed_by(path[-1], each)), None)
        if issuer is None:
            return None
        left.remove(issuer)
        path.append(issuer)


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        # Other kinds of keys, and larger ones, could take any time.
        if bounded("", issuer.public_key()) is None:
            return False
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_REFUSED):
        return False
    return True


def _holds(path: Sequence[x509.Certificate], moment: datetime, usages: Sequence[str]) -> bool:
    """Validity, authority, path lengths, usages and critical extensions of a path (RFC 5280 section 6.1)."""
    for depth, each in enumerate(path):
        if not each.not_valid_before_utc <= moment <= each.not_valid_after_utc:
            return False
        if any(extension.critical and extension.oid not in _UNDERSTOOD for extension in each.extensions):
            return False
        if _extension(each.extensions, x509.NameConstraints) is not None:
            return False
        allowed = _extension(each.extensions, x509.ExtendedKeyUsage)
        if allowed is not None and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in allowed:
            usages = [usage for usage in usages if usage == _ANY_USAGE or _EXTENDED[usage] in allowed]
            if not usages:
                return False
        if depth:
            constraints = _extension(each.extensions, x509.BasicConstraints)
            usage = _extension(each.extensions, x509.KeyUsage)
            if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
                return False
            if constraints.path_length is not None and depth - 1 > constraints.path_length:
                return False
    return True


def _is_called(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate is for the host (RFC 6125): a `*` stands for the whole first label and no other."""
    names = _alternatives(certificate.extensions)
    try:
        return str(ipaddress.ip_address(host.strip("[]"))) in (names["IPAddresses"] or [])
    except ValueError:
        wanted = host.rstrip(".").lower()
    for each in names["DNSNames"] or []:
        name = each.rstrip(".").lower()
        if name == wanted or (name.startswith("*.") and wanted.partition(".")[1:] == (".", name[2:])):
            return True
    return False
