"""The builtins that are ours against vectors of the standards, beyond their bounds, and fed with anything at all."""

import base64
import datetime
import time
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.builtins import BOUNDED, NONDETERMINISTIC, SUPPLIED, TIMED
from policies.builtins.keys import LARGEST_RSA
from policies.interpreter import Clock, builtins, create

NOW = 1_763_700_000
CLOCK = Clock()
CLOCK.now_ns = NOW * 1_000_000_000

OURS = {name: arity for table in (BOUNDED, SUPPLIED, TIMED) for name, (arity, _) in table.items()}


def call(name: str, *arguments: Any) -> Any:
    """What a policy gets that calls a builtin with parts of its input. Raises RuntimeError where it fails."""
    interpreter = create(CLOCK)
    inside = ", ".join(f"input[{number}]" for number in range(len(arguments)))
    interpreter.add_policy("p.rego", f"package p\nx := {name}({inside})")
    interpreter.set_input_json(orjson.dumps(arguments).decode())
    return orjson.loads(interpreter.eval_rule_as_json("data.p.x"))


def encoded(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


# --- RFC 7515 appendix A.1 and RFC 8037 appendix A.4 ---------------------------------------------------------------

HS256_TOKEN = (
    "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
    ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
)
HS256_KEY = {
    "kty": "oct",
    "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
}
EDDSA_TOKEN = (
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    ".hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)
EDDSA_KEY = {
    "kty": "OKP",
    "crv": "Ed25519",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
}


def public(jwk: dict[str, str]) -> str:
    return orjson.dumps({name: value for name, value in jwk.items() if name != "d"}).decode()


def test_the_hmac_example_of_rfc_7515_is_decoded_and_verified() -> None:
    header, payload, signature = call("io.jwt.decode", HS256_TOKEN)
    assert header == {"typ": "JWT", "alg": "HS256"}
    assert payload == {"iss": "joe", "exp": 1300819380, "http://example.com/is_root": True}
    assert signature.startswith("7418dfb49799e0254ffa607dd8adbbba")
    before = {"cert": orjson.dumps(HS256_KEY).decode(), "iss": "joe", "time": 1_300_819_379 * 10**9}
    assert call("io.jwt.decode_verify", HS256_TOKEN, before) == [True, header, payload]
    assert call("io.jwt.decode_verify", HS256_TOKEN, {**before, "time": 1_300_819_380 * 10**9}) == [False, {}, {}]


def test_the_eddsa_example_of_rfc_8037_is_signed_and_verified() -> None:
    signed = call("io.jwt.encode_sign_raw", '{"alg":"EdDSA"}', '"Example of Ed25519 signing"', str_of(EDDSA_KEY))
    assert call("io.jwt.verify_eddsa", signed, public(EDDSA_KEY)) is True
    assert call("io.jwt.verify_eddsa", EDDSA_TOKEN, public(EDDSA_KEY)) is True
    assert call("io.jwt.verify_eddsa", EDDSA_TOKEN[:-4] + "AAAA", public(EDDSA_KEY)) is False


def str_of(value: Any) -> str:
    return orjson.dumps(value).decode()


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        ("md5", "9294727a3638bb1c13f48ef8158bfc9d"),
        ("sha1", "b617318655057264e28bc0b6fb378c8ef146be00"),
        ("sha256", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (
            "sha512",
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
        ),
    ],
)
def test_keyed_digests_are_those_of_rfc_2202_and_rfc_4231(algorithm: str, digest: str) -> None:
    # The first test case of each; its key of twenty (MD5: sixteen) bytes 0x0b is a text as well.
    key = "\x0b" * (16 if algorithm == "md5" else 20)
    assert call(f"crypto.hmac.{algorithm}", "Hi There", key) == digest


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        ("md5", "900150983cd24fb0d6963f7d28e17f72"),
        ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    ],
)
def test_digests_are_those_of_their_standards(algorithm: str, digest: str) -> None:
    assert call(f"crypto.{algorithm}", "abc") == digest


def test_equal_texts_are_equal_whatever_their_length() -> None:
    assert call("crypto.hmac.equal", "é" * 9, "é" * 9) is True
    assert call("crypto.hmac.equal", "é", "é" * 9) is False


# --- tokens --------------------------------------------------------------------------------------------------------


def jwk_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Any:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return call("crypto.x509.parse_rsa_private_key", pem)


def pem_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


RSA = rsa.generate_private_key(65537, 2048)
CURVES = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 512: ec.SECP521R1()}
SIGNERS: dict[str, Any] = {f"{kind}{bits}": RSA for kind in ("RS", "PS") for bits in CURVES} | {
    f"ES{bits}": ec.generate_private_key(curve) for bits, curve in CURVES.items()
}


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_token_is_verified_by_its_own_key_and_algorithm_only(algorithm: str) -> None:
    key = SIGNERS[algorithm]
    token = call("io.jwt.encode_sign", {"alg": algorithm}, {"sub": "ann"}, jwk_of(key))
    others = [each for each in SIGNERS if each != algorithm and SIGNERS[each] is not key]
    assert call(f"io.jwt.verify_{algorithm.lower()}", token, pem_of(key)) is True
    assert call(f"io.jwt.verify_{algorithm.lower()}", token, pem_of(SIGNERS[others[0]])) is False
    assert [each for each in SIGNERS if call(f"io.jwt.verify_{each.lower()}", token, pem_of(key))] == [algorithm]
    header, payload, signature = token.split(".")
    assert call(f"io.jwt.verify_{algorithm.lower()}", f"{header}.{payload}x.{signature}", pem_of(key)) is False


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    """The old confusion: HS256 with the text of the RSA key that everybody has."""
    pem = pem_of(RSA)
    secret = base64.urlsafe_b64encode(pem.encode()).decode()
    forged = call("io.jwt.encode_sign", {"alg": "HS256"}, {"sub": "eve"}, {"kty": "oct", "k": secret})
    assert call("io.jwt.decode_verify", forged, {"cert": pem})[0] is False
    unsigned = encoded(b'{"alg":"none"}') + ".e30."
    assert call("io.jwt.decode_verify", unsigned, {"cert": pem})[0] is False


@pytest.mark.parametrize(
    ("claims", "demands", "valid"),
    [
        ({}, {}, True),
        ({"exp": NOW + 1}, {}, True),
        ({"exp": NOW}, {}, False),
        ({"nbf": NOW}, {}, True),
        ({"nbf": NOW + 1}, {}, False),
        ({"exp": NOW - 5}, {"time": (NOW - 6) * 10**9}, True),
        ({"iss": "us"}, {"iss": "us"}, True),
        ({"iss": "them"}, {"iss": "us"}, False),
        ({"iss": ["us"]}, {"iss": "us"}, False),
        ({}, {"iss": "us"}, False),
        ({"aud": "a"}, {"aud": "a"}, True),
        ({"aud": ["b", "a"]}, {"aud": "a"}, True),
        ({"aud": "a"}, {}, False),
        ({"aud": []}, {"aud": "a"}, False),
        ({"aud": 5}, {"aud": "a"}, False),
        ({}, {"aud": "a"}, False),
        ({}, {"alg": "HS256"}, True),
        ({}, {"alg": "HS512"}, False),
    ],
)
def test_a_token_has_to_meet_every_demand(claims: dict[str, Any], demands: dict[str, Any], valid: bool) -> None:
    key = {"kty": "oct", "k": base64.urlsafe_b64encode(b"secret").decode()}
    token = call("io.jwt.encode_sign", {"alg": "HS256"}, claims, key)
    assert call("io.jwt.decode_verify", token, {"secret": "secret", **demands})[0] is valid


@pytest.mark.parametrize(
    "demands",
    [
        {},
        {"secret": ""},
        {"secret": "a", "cert": public(EDDSA_KEY)},
        {"secret": "a", "unknown": 1},
        {"secret": 1},
        {"secret": "a", "time": -1},
        {"secret": "a", "time": "now"},
        {"cert": "nothing of the kind"},
        {"cert": '{"keys": 5}'},
        {"cert": '{"kty": "unheard of"}'},
    ],
)
def test_demands_that_make_no_sense_are_an_error(demands: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError):
        call("io.jwt.decode_verify", HS256_TOKEN, demands)


def test_what_a_header_calls_critical_must_be_understood() -> None:
    key = {"kty": "oct", "k": "c2VjcmV0"}
    header = {"alg": "HS256", "crit": ["never heard of it"], "never heard of it": 1}
    token = call("io.jwt.encode_sign", header, {}, key)
    assert call("io.jwt.decode_verify", token, {"secret": "secret"})[0] is False


def nested(depth: int) -> str:
    token = call("io.jwt.encode_sign_raw", '{"alg":"HS256"}', "{}", '{"kty":"oct","k":"c2VjcmV0"}')
    for _ in range(depth):
        header = '{"alg":"HS256","cty":"JWT","typ":"other"}'
        token = call("io.jwt.encode_sign_raw", header, token, '{"kty":"oct","k":"c2VjcmV0"}')
    return str(token)


def test_tokens_in_tokens_are_opened_but_not_for_ever() -> None:
    assert call("io.jwt.decode_verify", nested(3), {"secret": "secret"})[0] is True
    for name, more in (("io.jwt.decode", []), ("io.jwt.decode_verify", [{"secret": "secret"}])):
        with pytest.raises(RuntimeError, match="at most 8"):
            call(name, nested(8), *more)


@pytest.mark.parametrize(
    "payload",
    [b'{"a":"\\ud800"}', b'{"a":' * 200 + b"1" + b"}" * 200, b'{"a":1e999}', b'{"a":NaN}', b"[1]", b"\xff", b""],
)
def test_a_payload_that_the_interpreter_would_not_survive_is_an_error(payload: bytes) -> None:
    with pytest.raises(RuntimeError):
        call("io.jwt.decode", encoded(b'{"alg":"HS256"}') + f".{encoded(payload)}.AAAA")


# --- keys and certificates -----------------------------------------------------------------------------------------


def test_a_key_that_would_take_seconds_is_refused_at_once() -> None:
    huge = base64.urlsafe_b64encode(b"\xff" * (LARGEST_RSA // 8 + 1)).decode().rstrip("=")
    began = time.process_time()
    for jwk in ({"kty": "RSA", "n": huge, "e": "AQAB"}, {"kty": "RSA", "n": huge[: len(huge) // 2], "e": huge[:400]}):
        with pytest.raises(RuntimeError, match="too large"):
            call("io.jwt.verify_rs256", HS256_TOKEN, str_of(jwk))
    with pytest.raises(RuntimeError, match="at most 32"):
        call("io.jwt.verify_eddsa", EDDSA_TOKEN, str_of({"keys": [orjson.loads(public(EDDSA_KEY))] * 33}))
    assert time.process_time() - began < 1


def certificate(
    name: str,
    key: Any,
    issuer: str,
    issuer_key: Any,
    *,
    ca: bool,
    days: int = 10,
    path_length: int | None = None,
    usage: x509.ObjectIdentifier | None = None,
    more: x509.ExtensionType | None = None,
) -> str:
    start = datetime.datetime.fromtimestamp(NOW, datetime.UTC) - datetime.timedelta(days=1, seconds=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    )
    if not ca:
        names = [x509.DNSName(name), x509.UniformResourceIdentifier(f"spiffe://{name}/x")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if more is not None:
        builder = builder.add_extension(more, critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
ROOT = certificate("root", KEYS[0], "root", KEYS[0], ca=True)
BETWEEN = certificate("between", KEYS[1], "root", KEYS[0], ca=True)


def leaf(**changes: Any) -> str:
    given: dict[str, Any] = {"ca": False, **changes}
    return certificate("agent.example", KEYS[2], "between", KEYS[1], **given)


def test_a_chain_that_holds_is_told_from_the_leaf_to_the_root() -> None:
    valid, chain = call("crypto.x509.parse_and_verify_certificates", ROOT + BETWEEN + leaf())
    assert valid is True
    assert [each["Subject"]["CommonName"] for each in chain] == ["agent.example", "between", "root"]
    assert chain[0]["DNSNames"] == ["agent.example"]
    assert chain[0]["URIStrings"] == ["spiffe://agent.example/x"]
    assert [each["IsCA"] for each in chain] == [False, True, True]


@pytest.mark.parametrize(
    "chain",
    [
        ROOT,
        ROOT + leaf(),
        ROOT + certificate("between", KEYS[1], "root", KEYS[0], ca=False) + leaf(),
        ROOT + certificate("between", KEYS[1], "root", KEYS[1], ca=True) + leaf(),
        ROOT + BETWEEN + leaf(days=1),
        ROOT + BETWEEN + leaf(usage=ExtendedKeyUsageOID.CLIENT_AUTH),
        ROOT + BETWEEN + leaf(more=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")),
        ROOT
        + certificate(
            "between",
            KEYS[1],
            "root",
            KEYS[0],
            ca=True,
            more=x509.NameConstraints([x509.DNSName("example")], None),
        )
        + leaf(),
        certificate("root", KEYS[0], "root", KEYS[0], ca=True, path_length=0) + BETWEEN + leaf(),
        ROOT + BETWEEN * 8 + leaf(),
        "nothing of the kind",
        ROOT + BETWEEN + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ],
)
def test_a_chain_in_doubt_does_not_hold(chain: str) -> None:
    assert call("crypto.x509.parse_and_verify_certificates", chain) == [False, []]


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ({}, True),
        ({"DNSName": "agent.example"}, True),
        ({"DNSName": "Agent.Example."}, True),
        ({"DNSName": "other.example"}, False),
        ({"DNSName": "127.0.0.1"}, False),
        ({"CurrentTime": (NOW + 100 * 86400) * 10**9}, False),
        ({"KeyUsages": ["KeyUsageClientAuth"]}, True),
        ({"KeyUsages": ["KeyUsageAny"]}, True),
    ],
)
def test_a_chain_is_held_against_options(options: dict[str, Any], holds: bool) -> None:
    name = "crypto.x509.parse_and_verify_certificates_with_options"
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if "KeyUsages" in options else None
    assert call(name, ROOT + BETWEEN + leaf(usage=usage), options)[0] is holds


@pytest.mark.parametrize("options", [{"Roots": []}, {"CurrentTime": "now"}, {"KeyUsages": ["Any"]}, []])
def test_options_that_make_no_sense_are_an_error(options: Any) -> None:
    with pytest.raises(RuntimeError):
        call("crypto.x509.parse_and_verify_certificates_with_options", ROOT + BETWEEN, options)


def test_many_certificates_are_refused() -> None:
    with pytest.raises(RuntimeError, match="at most 32"):
        call("crypto.x509.parse_certificates", ROOT * 33)


# --- networks, texts, numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("net.cidr_intersects", ["10.0.0.0/8", "10.1.2.3/32"], True),
        ("net.cidr_intersects", ["10.0.0.0/8", "11.0.0.0/8"], False),
        ("net.cidr_intersects", ["::ffff:10.0.0.0/104", "10.1.0.0/16"], True),
        ("net.cidr_contains_matches", [["10.0.0.0/8", "11.0.0.0/8"], {"a": "11.1.1.1", "b": "::1"}], [[1, "a"]]),
        ("net.cidr_merge", [["10.0.0.0/9", "10.128.0.0/9", "fe80::/64"]], ["10.0.0.0/8", "fe80::/64"]),
        ("net.cidr_expand", ["10.0.0.4/31"], ["10.0.0.4", "10.0.0.5"]),
        ("array.flatten", [[1, [2, [3]], "a"]], [1, 2, [3], "a"]),
        ("strings.split_n", ["a.b.c", ".", -2], ["b", "c"]),
        ("regex.globs_match", ["a[b-d]+", ".c*"], True),
        ("regex.globs_match", ["a+b", "b*"], False),
        ("regex.globs_match", ["\\*+", "[*]"], True),
        ("units.parse", ["10Mi"], 10 * 2**20),
        ("units.parse", ["1500m"], 1.5),
        ("units.parse_bytes", ["1.5kB"], 1500),
        ("uri.is_valid", ["http://[::1"], False),
        ("uri.is_valid", [5], False),
        (
            "uri.parse",
            ["https://ann@Host.example:8443/a%2Fb?q=1#top"],
            {
                "scheme": "https",
                "hostname": "Host.example",
                "port": "8443",
                "path": "/a/b",
                "raw_path": "/a%2Fb",
                "raw_query": "q=1",
                "fragment": "top",
            },
        ),
    ],
)
def test_a_supplied_builtin_answers(name: str, arguments: list[Any], answer: Any) -> None:
    assert call(name, *arguments) == answer


LONG = "a" * (1024 * 1024 + 1)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("net.cidr_expand", ["10.0.0.0/8"]),
        ("net.cidr_merge", [["10.0.0.0/8"] * 2001]),
        ("net.cidr_merge", [["10.0.0.0/8", "fe80::1"]]),
        ("net.cidr_contains_matches", [["10.0.0.0/8"] * 101, ["10.0.0.1"] * 100]),
        ("net.cidr_intersects", ["10.0.0.0", "10.0.0.0/8"]),
        ("net.cidr_intersects", ["10.0.0.0/255.0.0.0", "10.0.0.0/8"]),
        ("net.cidr_intersects", ["010.0.0.0/8", "10.0.0.0/8"]),
        ("regex.globs_match", ["a" * 129, "a"]),
        ("regex.globs_match", ["[a", "a"]),
        ("regex.globs_match", ["[z-a]", "a"]),
        ("units.parse", ["1e999"]),
        ("units.parse", ["10E999999"]),
        ("units.parse_bytes", ["10 MB"]),
        ("units.parse", ["100E"]),
        ("crypto.sha256", [LONG]),
        ("strings.split_n", [LONG, ",", 1]),
        ("uri.parse", ["http://a:b/"]),
        ("uri.parse", ["http://a/%zz"]),
        ("uri.parse", ["http://exa%6dple.com/"]),
        ("array.flatten", [{}]),
    ],
)
def test_beyond_its_bounds_it_is_an_error(name: str, arguments: list[Any]) -> None:
    with pytest.raises(RuntimeError, match="raises Python error: ValueError"):
        call(name, *arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("regex.globs_match", ["a*" * 64, ".*" * 63 + "b"]),
        ("net.cidr_merge", [[f"10.{n // 250}.{n % 250}.0/24" for n in range(2000)]]),
        ("net.cidr_contains_matches", [[f"10.0.{n}.0/24" for n in range(100)], [f"10.0.{n}.1" for n in range(100)]]),
        ("io.jwt.decode", ["e30." + encoded(b'{"a":"' + b"x" * 190_000 + b'"}') + ".AAAA"]),
        ("crypto.hmac.sha512", [LONG[:-1], LONG[:-1]]),
        ("strings.replace_n", [{"a": "b", "": "c"}, LONG[: 512 * 1024]]),
        ("trim", [LONG, "bcd" * 85]),
        ("trim_left", [LONG, "bcd" * 85]),
        ("trim_right", [LONG, "bcd" * 85]),
        ("crypto.x509.parse_certificates", [ROOT * 32]),
        ("crypto.x509.parse_and_verify_certificates", [ROOT + BETWEEN * 6 + leaf()]),
        ("net.cidr_expand", ["10.0.0.0/20"]),
    ],
)
def test_the_most_a_builtin_takes_costs_little(name: str, arguments: list[Any]) -> None:
    began = time.process_time()
    call(name, *arguments)
    assert time.process_time() - began < 1


# --- anything at all -----------------------------------------------------------------------------------------------

PEM = "-----BEGIN CERTIFICATE-----\n"
TELLING = [HS256_TOKEN, EDDSA_TOKEN, public(EDDSA_KEY), str_of(HS256_KEY), ROOT, PEM, "10.0.0.0/8", "::1/128", "1.5Gi"]
TEXTS = st.text(max_size=40) | st.sampled_from(TELLING) | st.text("[]()*+.-\\az%/:@?#=", max_size=30)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXTS
KEYS_OF_OBJECTS = st.sampled_from(["cert", "secret", "alg", "kty", "k", "crv", "x", "time", "DNSName", "aud"]) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS_OF_OBJECTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_given_anything_it_answers_or_fails_and_the_interpreter_lives(name: str, data: st.DataObject) -> None:
    arguments = [data.draw(VALUES) for _ in range(OURS[name])]
    began = time.process_time()
    failure = ""
    try:
        call(name, *arguments)
    except RuntimeError as error:
        failure = str(error)
    # Only what a builtin means to say: any other kind of error is a mistake of ours.
    assert "raises Python error" not in failure or "ValueError: " in failure, failure
    assert time.process_time() - began < 1


def test_what_depends_on_more_than_its_arguments_is_listed() -> None:
    assert TIMED.keys() < NONDETERMINISTIC
    assert NONDETERMINISTIC <= builtins()
    assert "io.jwt.decode" not in NONDETERMINISTIC


def made_for(text: str) -> Any:
    clock = Clock()
    clock.now_ns = 5
    interpreter = create(clock, [text])
    interpreter.add_policy("p.rego", text)
    return orjson.loads(interpreter.eval_rule_as_json("data.p.x"))


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("crypto.md5(`a`)", "0cc175b9c0f1b6a831c399e269772661"),
        ('time["now_ns"]()', 5),
        (r'time["now\u005fns"]()', 5),
        ("1", 1),
    ],
)
def test_an_interpreter_made_for_a_policy_has_what_it_calls(expression: str, answer: Any) -> None:
    assert made_for(f"package p\nx := {expression}") == answer


@pytest.mark.parametrize(
    "expression",
    ['numbers["r\\u0061nge"](1, 100000)', 'rand["\\u0069ntn"]("a", 5)', 'opa["runtim\\u0065"]()', "bits.lsh(1, 99)"],
)
def test_no_way_of_writing_a_name_leads_past_our_own(expression: str) -> None:
    with pytest.raises(RuntimeError, match="raises Python error"):
        made_for(f"package p\nx := {expression}")


def test_an_interpreter_has_nothing_its_policy_does_not_name() -> None:
    lean = create(Clock(), ["package p\nx := 1"])
    lean.add_policy("p.rego", "package p\nx := crypto.md5(`a`)")
    with pytest.raises(RuntimeError, match="could not find function"):
        lean.eval_rule_as_json("data.p.x")
