"""Who may vouch for a bundle, that every file is covered, and that nothing is understood before both are certain."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import bundle as bundles
from policies import signatures
from policies.errors import PolicyError, Problem
from policies.signatures import ALGORITHMS, Key, SigningKey, canonical, digest, go_number, sign, verify
from tests.policies.bundles import RULE, bundle, manifest, packed, read, refused
from tests.support.opa import OPA, needs_opa

SECRET = "a secret of more than thirty-two bytes"
FILES: dict[str, bytes | str] = {
    "main.rego": RULE,
    ".manifest": manifest(revision="r1", roots=["weighbridge", "acme"], metadata={"b": 1, "a": [1.0]}),
    "acme/data.json": b'{"b": 1.0, "a": {"z": 1e3, "text": "<a>&\\u2028\\u00e9"}}',
    "README.md": "not policy",
}
_MADE: dict[str, Callable[[], Any]] = {
    "RS": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@functools.cache
def pair(algorithm: str) -> tuple[str, str]:
    """(what signs, what verifies) for an algorithm."""
    if algorithm.startswith("HS"):
        return SECRET, SECRET
    if algorithm != "RS" and algorithm[:2] in ("RS", "PS"):
        return pair("RS")
    private = _MADE[algorithm]()
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return secret.decode(), public.decode()


def key(algorithm: str = "HS256", id: str = "global", scope: str = "") -> Key:
    return Key(id, algorithm, pair(algorithm)[1], scope)


def signing(algorithm: str = "HS256", id: str = "global", scope: str = "") -> SigningKey:
    return SigningKey(id, algorithm, pair(algorithm)[0], scope)


def signed(files: Mapping[str, bytes | str] = FILES, by: SigningKey | None = None) -> bytes:
    return bundles.sign(bundle(files), "b.tar.gz", by or signing())


def token(header: Any, claims: Any, secret: str = SECRET) -> str:
    """A token made by hand with HS256, whatever it says."""
    text = b".".join(base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in (header, claims))
    code = hmac.new(secret.encode(), text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(code).rstrip(b"=")).decode()


def listing(files: Mapping[str, bytes | str], algorithm: str = "SHA-256") -> list[dict[str, str]]:
    return [
        {"name": name, "hash": digest(name, _bytes(content), algorithm), "algorithm": algorithm}
        for name, content in files.items()
    ]


def _bytes(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def with_token(made: str, files: Mapping[str, bytes | str] = FILES) -> bytes:
    return bundle({**files, ".signatures.json": orjson.dumps({"signatures": [made]})})


GOOD = {"alg": "HS256", "kid": "global"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bundle_is_verified_with_the_key_that_signed_it(algorithm: str) -> None:
    content = signed(by=signing(algorithm))
    found = read(content, [key("HS256", "other"), key(algorithm)])
    assert (found.signed_by, found.revision) == ("global", "r1")
    assert ".signatures.json" in found.files


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "PS256", "ES256", "EdDSA"])
def test_another_key_of_the_same_kind_is_not_the_one(algorithm: str) -> None:
    content = signed(by=signing(algorithm))
    other = SECRET[::-1]
    if algorithm != "HS256":
        kind = "RS" if algorithm[0] in "RP" else algorithm
        public = _MADE[kind]().public_key()
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        other = pem.decode()
    found = refused(content, [Key("global", algorithm, other)])
    assert found.message == "was not signed with the key `global`, or was changed since"
    assert found.file == "b.tar.gz/.signatures.json"


@pytest.mark.parametrize("configured", ALGORITHMS)
@pytest.mark.parametrize("used", ["HS256", "RS256", "PS384", "ES256", "EdDSA"])
def test_an_algorithm_is_never_taken_from_the_signature(used: str, configured: str) -> None:
    if used != configured:
        found = refused(signed(by=signing(used)), [key(configured)])
        assert found.message == f"is not made with {configured}, the algorithm of the key `global`"


def test_a_public_key_is_no_secret() -> None:
    """The old trick: sign with HS256, and the public key, which everybody has, for a secret."""
    public = pair("RS256")[1]
    forged = token(GOOD, {"files": listing(FILES)}, secret=public)
    assert "is not made with RS256" in refused(with_token(forged), [key("RS256")]).message
    wrong = signatures.check(Key("global", "HS256", public))
    assert wrong is not None
    assert "is a PEM key" in wrong.message


@pytest.mark.parametrize("name", ["none", "None", "", "HS257", None, 1])
def test_no_algorithm_is_no_signature(name: Any) -> None:
    text = token({"alg": name, "kid": "global"}, {"files": listing(FILES)})
    assert "is not made with HS256" in refused(with_token(text), [key()]).message
    assert "signed JSON Web Token" in refused(with_token(text.rpartition(".")[0] + "."), [key()]).message


def test_keys_are_told_apart_by_their_names() -> None:
    keys = [key(id="one"), Key("two", "HS256", SECRET[::-1])]
    assert read(signed(by=signing(id="one")), keys).signed_by == "one"
    assert "or was changed since" in refused(signed(by=signing(id="two")), keys).message
    assert "not configured; configured: `one`, `two`" in refused(signed(by=signing(id="three")), keys).message
    assert "does not say which" in refused(signed(by=signing(id="")), keys).message
    assert read(signed(by=signing(id="")), [key()]).signed_by == "global"


def test_the_scope_has_to_be_the_one_asked_for() -> None:
    assert read(signed(by=signing(scope="write")), [key(scope="write")]).signed_by == "global"
    for given_scope, asked in (("write", ""), ("", "write"), ("read", "write")):
        assert "another scope" in refused(signed(by=signing(scope=given_scope)), [key(scope=asked)]).message


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"exp": 1_000}, "has expired"),
        ({"exp": 2_000}, "has expired"),
        ({"nbf": 2_100}, "made in the future"),
        ({"iat": 2_100}, "made in the future"),
        ({"exp": "never"}, "no time"),
        ({"exp": None}, "no time"),
        ({"exp": True}, "no time"),
        ({"keyid": "other"}, "one key in its header and another"),
        ({"scope": "x"}, "another scope"),
        ({"scope": None}, "another scope"),
        ({"files": None}, "lists no files"),
        ({"files": ["main.rego"]}, "without name, hash or algorithm"),
        ({"files": [{"name": "main.rego", "hash": "00"}]}, "without name, hash or algorithm"),
        ({"files": [*listing({"a": "x"}), *listing({"/a": "x"})]}, "lists a file twice"),
    ],
)
def test_what_a_signature_claims_is_believed_to_the_letter(claims: dict[str, Any], message: str) -> None:
    text = token(GOOD, {"files": listing(FILES), **claims})
    found = problem(with_token_members(text), [key()])
    assert message in found.message
    assert found.file == "b/.signatures.json"


def with_token_members(text: str) -> dict[str, bytes]:
    members = {name: _bytes(content) for name, content in FILES.items()}
    return {**members, ".signatures.json": orjson.dumps({"signatures": [text]})}


def problem(members: Mapping[str, bytes], keys: list[Key]) -> Problem:
    with pytest.raises(PolicyError) as caught:
        verify("b", members, keys, now=2_000.0)
    return caught.value.problems[0]


def test_a_signature_that_expires_later_is_good_until_then() -> None:
    text = token(GOOD, {"files": listing(FILES), "exp": 2_001, "iat": 1_000, "nbf": 2_030, "iss": "ci"})
    assert verify("b", with_token_members(text), [key()], now=2_000.0) == "global"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON object"),
        (b"[]", "no JSON object"),
        (b'{"signatures": ["a.b.c"], "signatures": []}', "no JSON object"),
        (b'{"signatures": []}', "exactly one"),
        (b'{"signatures": ["a.b.c", "a.b.c"]}', "exactly one"),
        (b'{"signatures": "a.b.c"}', "exactly one"),
        (b'{"signatures": [1]}', "exactly one"),
        (b'{"signatures": ["a.b"]}', "signed JSON Web Token"),
        (b'{"signatures": ["a.b.c.d"]}', "signed JSON Web Token"),
        (b'{"signatures": ["%.b.c"]}', "signed JSON Web Token"),
        (b'{"signatures": ["a.b.c"]}', "signed JSON Web Token"),
        (b'{"signatures": ["W10.e30.AAAA"]}', "the header of the signature is no JSON object"),
        (b'{"signatures": ["a.b.c"], "plugin": "mine"}', "a plugin of OPA"),
        (b"{" * 100_000, "no JSON object"),
    ],
)
def test_a_signature_file_that_is_none_is_refused(content: bytes, message: str) -> None:
    assert message in refused(bundle({**FILES, ".signatures.json": content}), [key()]).message


def test_an_extension_that_must_be_understood_is_not() -> None:
    text = token({**GOOD, "crit": ["b64"], "b64": False}, {"files": listing(FILES)})
    assert "extension" in refused(with_token(text), [key()]).message


def changed(content: bytes, **members: bytes | None) -> bytes:
    """The bundle with some members replaced, added or (None) taken away."""
    held = {name: bytes(value) for name, value in bundles.read(content, "b").items()}
    for name, value in members.items():
        if value is None:
            del held[name]
        else:
            held[name] = value
    return packed(*held.items())


@pytest.mark.parametrize(
    ("members", "file", "message"),
    [
        ({"main.rego": RULE.encode() + b" "}, "main.rego", "is not what was signed"),
        ({"README.md": b"other"}, "README.md", "is not what was signed"),
        ({"acme/data.json": b'{"b": 1, "a": {"z": 1e3, "text": "<a>&\\u2028\\u00e9"}}'}, "acme/data.json", "not what"),
        ({"acme/data.json": b'{"b": 1.0'}, "acme/data.json", "is not plain JSON"),
        ({"acme/data.json": b'{"b": NaN}'}, "acme/data.json", "is not plain JSON"),
        ({"acme/data.json": b'"\\ud800"'}, "acme/data.json", "is not plain JSON"),
        ({"acme/data.json": b"[" * 100_000}, "acme/data.json", "is not plain JSON"),
        ({".manifest": manifest(revision="r2")}, ".manifest", "is not what was signed"),
        ({"main.rego": None}, "main.rego", "is signed but not in the bundle"),
        ({"extra.rego": b"package x"}, "extra.rego", "is not signed"),
        ({"acme/data.yaml": b"c: 1"}, "acme/data.yaml", "is not signed"),
        ({"policy.wasm": b""}, "policy.wasm", "is not signed"),
    ],
)
def test_every_file_is_covered(members: dict[str, bytes | None], file: str, message: str) -> None:
    found = refused(changed(signed(), **members), [key()])
    assert found.file == f"b.tar.gz/{file}"
    assert message in found.message


def test_a_renamed_file_is_both_missing_and_unsigned() -> None:
    with pytest.raises(PolicyError) as caught:
        read(changed(signed(), **{"main.rego": None, "other.rego": RULE.encode()}), [key()])
    assert [each.message for each in caught.value.problems] == ["is signed but not in the bundle", "is not signed"]


def test_the_order_of_members_and_the_form_of_json_make_no_difference() -> None:
    held = {name: bytes(value) for name, value in bundles.read(signed(), "b").items()}
    assert read(packed(*reversed(held.items())), [key()]).signed_by == "global"
    spaced = b'{ "a":{"text":"<a>&\\u2028\xc3\xa9", "z":1e3 },\n"b":1.0 }'
    assert read(changed(signed(), **{"acme/data.json": spaced}), [key()]).signed_by == "global"


def test_a_signed_bundle_needs_a_key_and_a_key_needs_signed_bundles() -> None:
    assert "no key is configured" in refused(signed()).message
    assert "is not signed" in refused(bundle(FILES), [key()]).message
    hidden = bundle({**FILES, "deep/.signatures.json": signatures.sign("b", with_token_members("x"), signing())})
    assert "is not signed" in refused(hidden, [key()]).message
    assert "belongs at the top" in refused(hidden).message


def test_nothing_is_understood_before_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle whose every file is broken is refused for its signature alone, and none of its files is looked at."""
    files: dict[str, bytes | str] = {"main.rego": b"\xff", "data.json": b"{", ".manifest": b"{", "data.yaml": b"\t"}
    looked: list[str] = []

    def look(file: str, content: bytes) -> bytes:
        looked.append(file)
        return content

    monkeypatch.setattr(signatures, "canonical", look)
    found = refused(with_token(token(GOOD, {"files": []}, secret=SECRET[::-1]), files), [key()])
    assert "or was changed since" in found.message
    listed = [{"name": name, "hash": "00", "algorithm": "SHA-256"} for name in files]
    found = refused(with_token(token(GOOD, {"files": listed}), files), [key()])
    assert (found.file, found.message) == ("b.tar.gz/main.rego", "is not what was signed")
    assert looked == []


@pytest.mark.parametrize("algorithm", ["SHA-224", "SHA-256", "SHA-384", "SHA-512", "SHA-512-224", "SHA-512-256"])
def test_every_digest_that_opa_knows_and_can_be_relied_on(algorithm: str) -> None:
    assert read(with_token(token(GOOD, {"files": listing(FILES, algorithm)})), [key()]).signed_by == "global"


@pytest.mark.parametrize(
    ("algorithm", "message"), [("MD5", "can be forged"), ("SHA-1", "can be forged"), ("sha-256", "not known here")]
)
def test_other_digests_are_refused(algorithm: str, message: str) -> None:
    listed = [{**each, "algorithm": algorithm} for each in listing(FILES)]
    assert message in refused(with_token(token(GOOD, {"files": listed})), [key()]).message


@pytest.mark.parametrize(
    ("algorithm", "material", "message"),
    [
        ("RS256", "x" * 40, "is no PEM public key"),
        ("RS256", pair("RS")[0], "is a private key"),
        ("RS256", pair("ES256")[1], "of another kind than RS256"),
        ("ES256", pair("RS")[1], "of another kind than ES256"),
        ("ES384", pair("ES256")[1], "of another kind than ES384"),
        ("EdDSA", pair("ES256")[1], "of another kind than EdDSA"),
        ("HS256", "too short", "less than 32 bytes"),
        ("HS256", pair("EdDSA")[1], "is a PEM key"),
        ("none", SECRET, "not known here"),
        ("RS1", pair("RS")[1], "not known here"),
    ],
)
def test_a_key_has_to_fit_its_algorithm(algorithm: str, material: str, message: str) -> None:
    wrong = signatures.check(Key("global", algorithm, material))
    assert wrong is not None
    assert message in wrong.message
    assert wrong.file == "policy.keys `global`"
    assert material.split("\n")[0] not in str(wrong)


def test_a_short_rsa_key_is_refused() -> None:
    public = rsa.generate_private_key(65537, 1024).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    wrong = signatures.check(Key("global", "RS256", pem))
    assert wrong is not None
    assert "less than 2048 bits" in wrong.message


@pytest.mark.parametrize(
    ("algorithm", "material", "message"),
    [
        ("RS256", pair("RS")[1], "no PEM private key"),
        ("ES256", pair("RS")[0], "of another kind"),
        ("HS256", "short", "less than 32 bytes"),
    ],
)
def test_a_signing_key_has_to_fit_too(algorithm: str, material: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        sign("b", {}, SigningKey("", algorithm, material))


def test_an_encrypted_key_is_refused_in_words() -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    locked = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(PolicyError, match="is encrypted"):
        sign("b", {}, SigningKey("", "EdDSA", locked.decode()))


def test_a_key_is_not_shown() -> None:
    assert SECRET not in repr(key()) + repr(signing())


@pytest.mark.parametrize(
    ("file", "content", "form"),
    [
        ("data.json", b' {"b":1,\n"a":[1.0, 1E3,-0, 123456789012345]} ', b'{"a":[1.0,1E3,-0,123456789012345],"b":1}'),
        ("a/data.json", b'{"\\u00e9":"<&>\\b\\f\\u0001\\u2028\\/"}', '{"é":"<&>\\b\\f\\u0001\\u2028/"}'.encode()),
        ("data.json", b"\xef\xbb\xbf[]", b"[]"),
        ("data.json", b"null", b"null"),
        (".manifest", b'{"z":1,"a":2}', b'{"a":2,"z":1}'),
        ("data.yaml", b"b: [1.50, 2e3, 0.0000001, 'yes']\na: {x: 1}", b'{"a":{"x":1},"b":[1.5,2000,1e-7,"yes"]}'),
    ],
)  # fmt: skip  # each row is to be read as a row
def test_the_canonical_form_is_that_of_opa(file: str, content: bytes, form: bytes) -> None:
    assert canonical(file, content) == form


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (0.1, "0.1"),
        (-2.5e-6, "-0.0000025"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.25e-9, "1.25e-9"),
        (1e16, "10000000000000000"),
        (1.5e16, "15000000000000000"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (-1.5e300, "-1.5e+300"),
        (5e-324, "5e-324"),
        (123456789.125, "123456789.125"),
    ],
)
def test_fractions_are_written_as_go_writes_them(number: float, text: str) -> None:
    assert go_number(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300)
def test_a_fraction_written_as_go_writes_it_is_the_same_number(number: float) -> None:
    assert float(go_number(number)) == number


def opa(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(OPA), *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle's folder as an author keeps it, with data that is easily digested wrongly."""
    made = tmp_path / "policy"
    (made / "acme" / "deep").mkdir(parents=True)
    (made / "main.rego").write_text(RULE)
    (made / ".manifest").write_bytes(_bytes(FILES[".manifest"]))
    (made / "acme" / "data.json").write_bytes(
        b'{"n": [1.0, 1e3, -0, 0.1e-9, 1234567890123456789, 1E+2], "A": null, "a": [true, {}, [], ""], '
        b'"t": "<a>&\\u2028\\u2029\\b\\f\\u007f\\u001f \xc3\xa9 \\ud83d\\ude00", '
        b'"\xf0\x9f\x98\x80": 1, "\xef\xbf\xbd": 2}'
    )
    (made / "acme" / "deep" / "data.yaml").write_text(
        "floats: [1.5, 2.0, 1e3, 1.0e+21, 0.0000001, -3.25e-5, 123456789.5]\nwords: {on: x, b: 'y'}\nints: [1, -2]\n"
    )
    return made


@needs_opa
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_opa_signed_is_verified_here(algorithm: str, folder: Path, tmp_path: Path) -> None:
    private, public = pair(algorithm)
    (tmp_path / "private").write_text(private)
    made = opa(
        "sign", "--signing-key", tmp_path / "private", "--signing-alg", algorithm, "--bundle", ".", folder=folder
    )
    assert made.returncode == 0, made.stdout
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = read(packed(*files.items()), [Key("global", algorithm, public)])
    assert (found.signed_by, found.revision) == ("global", "r1")
    files["acme/data.json"] = files["acme/data.json"].replace(b"1.0", b"1.1", 1)
    assert refused(packed(*files.items()), [Key("global", algorithm, public)]).message == "is not what was signed"


@needs_opa
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_signed_here_is_verified_by_opa(algorithm: str, folder: Path, tmp_path: Path) -> None:
    private, public = pair(algorithm)
    (tmp_path / "public").write_text(public)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    content = bundles.sign(packed(*files.items()), "b", SigningKey("global", algorithm, private, "write"))
    (tmp_path / "signed.tar.gz").write_bytes(content)
    arguments: list[str | Path] = ["build", "--bundle", tmp_path / "signed.tar.gz", "--signing-alg", algorithm]
    arguments += ["--verification-key", tmp_path / "public", "--verification-key-id", "global", "-o", tmp_path / "out"]
    verified = opa(*arguments, "--scope", "write", folder=tmp_path)
    assert verified.returncode == 0, verified.stdout
    assert "scope mismatch" in opa(*arguments, folder=tmp_path).stdout
    broken = changed(content, **{"main.rego": b"package weighbridge\n"})
    (tmp_path / "signed.tar.gz").write_bytes(broken)
    assert "digest mismatch" in opa(*arguments, "--scope", "write", folder=tmp_path).stdout


@needs_opa
def test_a_bundle_that_opa_built_and_signed_is_verified_here(folder: Path, tmp_path: Path) -> None:
    private, public = pair("ES256")
    (tmp_path / "private").write_text(private)
    (tmp_path / "public").write_text(public)
    # OPA's names begin at the folder that was named, on the command line as in the signature.
    key_arguments: list[str | Path] = ["--signing-key", tmp_path / "private", "--signing-alg", "ES256"]
    signed_there = opa("sign", *key_arguments, "--bundle", folder.name, "-o", folder, folder=tmp_path)
    assert signed_there.returncode == 0, signed_there.stdout
    key_arguments += ["--verification-key", tmp_path / "public", "--verification-key-id", "global"]
    built = opa("build", *key_arguments, "--bundle", folder.name, "-o", "b.tar.gz", folder=tmp_path)
    assert built.returncode == 0, built.stdout
    found = read((tmp_path / "b.tar.gz").read_bytes(), [Key("global", "ES256", public)])
    assert found.signed_by == "global"
    assert found.data["acme"]["deep"]["ints"] == [1, -2]
