"""What a bundle means: its modules, its data where it lies, its roots, and everything it is refused for."""

import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from config.settings import PolicySettings
from policies import bundle as bundles
from policies.build import build
from policies.errors import PolicyError
from policies.load import places
from policies.prove import prove
from policies.signatures import Key, SigningKey, canonical, is_structured
from policies.sources import Fetched, Places
from policies.sources import read as read_paths
from tests.policies.bundles import RULE, bundle, manifest, packed, read, refused
from tests.support.opa import OPA, needs_opa


def test_a_bundle_holds_modules_tests_and_data_at_its_folder() -> None:
    found = read(
        bundle(
            {
                "main.rego": b"\xef\xbb\xbf" + RULE.encode(),
                "deep/more.rego": "package more\n",
                "main_test.rego": "package main_test\n",
                "data.json": '{"top": 1}',
                "a/b/data.yaml": "words: [x]",
                "a/data.yml": "number: 1.5",
                "a/list/data.json": "[1, 2]",
                "a/other.json": "{",
                "a/values.yaml": "\t",
                "README.md": "not policy",
                ".hidden": "x",
            }
        )
    )
    assert found.modules == (("b.tar.gz/deep/more.rego", "package more\n"), ("b.tar.gz/main.rego", RULE))
    assert found.tests == (("b.tar.gz/main_test.rego", "package main_test\n"),)
    assert found.data == {"top": 1, "a": {"b": {"words": ["x"]}, "number": 1.5, "list": [1, 2]}}
    assert (found.roots, found.revision, found.signed_by) == (((),), "", None)
    assert "README.md" in found.files


def test_the_manifest_names_revision_and_roots() -> None:
    found = read(
        bundle(
            {"main.rego": RULE, "acme/limits/data.json": "{}"},
            revision="v1.2-rc",
            roots=["weighbridge", "/acme/limits/"],
            rego_version=1,
            file_rego_versions={"/main.rego": 1},
            metadata={"built": "today"},
            wasm=[],
            tool="of our own",
        )
    )
    assert (found.revision, found.roots) == ("v1.2-rc", (("weighbridge",), ("acme", "limits")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rego_version": 0}, "another version of Rego"),
        ({"rego_version": 2}, "another version of Rego"),
        ({"rego_version": True}, "another version of Rego"),
        ({"rego_version": "1"}, "another version of Rego"),
        ({"file_rego_versions": {"*": 0}}, "another version of Rego"),
        ({"file_rego_versions": [1]}, "no object"),
        ({"wasm": [{"entrypoint": "a", "module": "policy.wasm"}]}, "WebAssembly"),
        ({"revision": 1}, "no short text"),
        ({"revision": "x" * 257}, "no short text"),
        ({"revision": "\x1b[2J"}, "no short text"),
        ({"roots": "weighbridge"}, "no list of texts"),
        ({"roots": [["weighbridge"]]}, "no list of texts"),
        ({"roots": ["a", "weighbridge", "a/b"]}, "`a` and `a/b`, one within the other"),
        ({"roots": ["weighbridge", ""]}, "`/` and `weighbridge`, one within the other"),
        ({"metadata": []}, "metadata that is no object"),
        ({"Roots": ["weighbridge"]}, "has `Roots` for `roots`"),
    ],
)
def test_a_manifest_that_is_none_of_ours_is_refused(fields: dict[str, Any], message: str) -> None:
    found = refused(bundle(**fields))
    assert found.file == "b.tar.gz/.manifest"
    assert message in found.message


def test_as_many_roots_as_a_manifest_can_name_are_looked_through_at_once() -> None:
    names = [f"root{number}" for number in range(20_000)]
    files: dict[str, bytes | str] = {"main.rego": RULE, "data.json": orjson.dumps(dict.fromkeys(names, 1))}
    began = time.process_time()
    found = read(bundle(files, roots=["weighbridge", *names]))
    assert len(found.roots) == 20_001
    assert len(read(bundles.build({"main.rego": RULE}, found.data, "1")).roots) == 20_001
    message = refused(bundle(files, roots=["elsewhere", *names])).message
    assert message.endswith(" and 19991 more")
    assert len(message) < 500
    assert time.process_time() - began < 10


@pytest.mark.parametrize("content", [b"{", b"[]", b"null, null", b'{"roots": [], "roots": []}', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_refused(content: bytes) -> None:
    assert refused(bundle({"main.rego": RULE, ".manifest": content})).file == "b.tar.gz/.manifest"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("patch.json", "a delta bundle"),
        ("policy.wasm", "compiled policy"),
        ("plan.json", "compiled policy"),
        (".manifest.pb", "Protocol Buffers"),
        ("deep/.manifest", "belongs at the top"),
        ("x.manifest", "belongs at the top"),
    ],
)
def test_what_only_opa_can_use_is_refused(file: str, message: str) -> None:
    found = refused(bundle({"main.rego": RULE, file: "{}"}))
    assert found.file == f"b.tar.gz/{file}"
    assert message in found.message


@pytest.mark.parametrize(
    ("files", "file", "message"),
    [
        ({"data.json": "[1]"}, "data.json", "holds no object"),
        ({"data.json": "{"}, "data.json", "is not JSON"),
        ({"data.json": '{"a": 1, "a": 2}'}, "data.json", "is not JSON"),
        ({"data.yaml": "a: &x 1"}, "data.yaml", "anchor"),
        ({"data.json": '{"a": {"b": 1}}', "a/data.json": '{"b": 2}'}, "a/data.json", "`a.b`"),
        ({"data.json": '{"a": 1}', "data.yaml": "a: 2"}, "data.yaml", "`a`"),
        ({"a/data.json": "[]", "a/b/data.json": "{}"}, "a/b/data.json", "`a`"),
        ({"x/" * 40 + "data.json": "{}"}, "x/" * 40 + "data.json", "too deep"),
        ({"bad.rego": b"package a\n\xff"}, "bad.rego", "is not UTF-8"),
        ({"large.rego": "#" * (1024 * 1024 + 1)}, "large.rego", "is too large"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(files: dict[str, bytes | str], file: str, message: str) -> None:
    found = refused(bundle(files))
    assert found.file == f"b.tar.gz/{file}"
    assert message in found.message


def test_all_modules_together_have_a_limit() -> None:
    modules: dict[str, bytes | str] = {f"{number}.rego": "#" * 1024 * 1024 for number in range(9)}
    assert "all of them 8388608" in refused(bundle(modules)).message


@pytest.mark.parametrize(
    ("package", "path"),
    [
        ("package weighbridge\n", ("weighbridge",)),
        ("# a comment\n\n   package  acme.rules # another\nimport rego.v1", ("acme", "rules")),
        ("\r\npackage acme.rules\r\n", ("acme", "rules")),
        ('package acme["with-dash"].x["a \\" b"]\n', ("acme", "with-dash", "x", 'a " b')),
        ("package a", ("a",)),
    ],
)
def test_a_package_is_told_at_a_glance(package: str, path: tuple[str, ...]) -> None:
    assert bundles.packages([("x.rego", package)]) == [("x.rego", path)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import rego.v1\npackage a",
        "package\na",
        "package a.\nb",
        "package a\n.b",
        "package a # x\n# y\n\n  .b",
        'package a\n["b"]',
        "package a; x := 1",
        "package a import rego.v1",
        "package a[`b`]",
        'package a["\\u0062"]',
        "packagea",
    ],
)
def test_a_package_that_could_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="package on a line of its own"):
        bundles.packages([("x.rego", text)])
    assert "package on a line" in refused(bundle({"x.rego": text}, roots=["a"])).message


@pytest.mark.parametrize(
    ("files", "roots", "file", "message"),
    [
        ({"main.rego": RULE}, ["acme"], "b.tar.gz/main.rego", "package `weighbridge` is outside the bundle's roots"),
        ({"main.rego": RULE}, ["weighbridge/rules"], "b.tar.gz/main.rego", "package `weighbridge` is outside"),
        ({"main.rego": RULE}, [], "b.tar.gz/main.rego", "roots, none"),
        ({"data.json": '{"acme": {"x": 1, "y": {"z": 2}}}'}, ["acme/y"], "b.tar.gz", "data at `acme/x` is outside"),
        ({"data.json": '{"acme": 1}'}, ["acme/x"], "b.tar.gz", "data at `acme` is outside"),
        ({"data.json": '{"acmes": {}}'}, ["acme"], "b.tar.gz", "data at `acmes` is outside"),
    ],
)  # fmt: skip  # each row is to be read as a row
def test_what_lies_outside_the_roots_is_refused(
    files: dict[str, bytes | str], roots: list[str], file: str, message: str
) -> None:
    found = refused(bundle(files, roots=roots))
    assert found.file == file
    assert message in found.message


def test_what_decides_makes_the_print() -> None:
    files: dict[str, bytes | str] = {"main.rego": RULE, "a/data.json": '{"x": 1}'}
    first = read(bundle(files)).print
    assert read(packed(*reversed(files.items()))).print == first, "the order of members"
    assert read(bundle({**files, "main_test.rego": "package t", "README": "x"}, revision="r2")).print == first
    changes: list[dict[str, bytes | str]] = [
        {**files, "main.rego": RULE + "\n"},
        {"other.rego": RULE, "a/data.json": '{"x": 1}'},
        {"main.rego": RULE, "b/data.json": '{"x": 1}'},
        {"main.rego": RULE, "a/data.json": '{"x": 2}'},
    ]
    assert len({first, *(read(bundle(each)).print for each in changes)}) == 5


def test_what_is_built_is_read_again_and_owns_what_it_says() -> None:
    modules = {"b/main.rego": RULE, "a.rego": "package weighbridge.more\n", "c.rego": "package acme.x\n"}
    data = {"envelopes": {"b": 1, "a": {}}, "acme": {"limits": 1.5}}
    content = bundles.build(modules, data, "v1")
    assert content == bundles.build(dict(reversed(modules.items())), dict(reversed(data.items())), "v1")
    found = read(content)
    assert {name.removeprefix("b.tar.gz/"): text for name, text in found.modules} == modules
    assert (found.data, found.revision) == (data, "v1")
    assert found.roots == (("acme",), ("envelopes",), ("weighbridge",))


@pytest.mark.parametrize("name", ["data.json", "x/.manifest", ".signatures.json"])
def test_a_module_cannot_be_built_under_a_name_that_means_something_else(name: str) -> None:
    with pytest.raises(PolicyError, match="means something else"):
        bundles.build({name: RULE}, {}, "")


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_bundles_stand_beside_folders_and_each_other(tmp_path: Path) -> None:
    rules = written(tmp_path, "rules.tar.gz", bundle(revision="r1", roots=["weighbridge"]))
    limits = written(tmp_path, "limits.tgz", bundle({"acme/data.json": '{"x": 1}'}, roots=["acme"]))
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "other.rego").write_text("package other\n")
    (tmp_path / "loose" / "envelopes.yaml").write_text("envelopes: {a: 1}")
    fetched = Fetched(
        "http://localhost/prices.tar.gz", bundle({"prices/data.json": "{}"}, revision="7", roots=["prices"])
    )
    found = read_paths([tmp_path / "loose", rules, limits, rules], fetched=[fetched])
    assert [Path(module.name).name for module in found.modules] == ["other.rego", "main.rego"]
    assert found.data == {"envelopes": {"a": 1}, "acme": {"x": 1}, "prices": {}}
    assert found.bundles == {"rules": "r1", "limits": "", "prices": "7"}
    assert str(rules) in found.files
    assert "http://localhost/prices.tar.gz" in found.files
    assert len(found.revision) == 64
    rules.rename(tmp_path / "renamed.tar.gz")
    again = read_paths([tmp_path / "renamed.tar.gz", limits, tmp_path / "loose"], fetched=[fetched])
    assert again.revision == found.revision, "neither names of bundles nor the order of paths decide anything"


@pytest.mark.parametrize(
    ("loose", "text", "roots", "shared"),
    [
        ("more.rego", "package weighbridge.more\n", ["weighbridge"], "weighbridge/more"),
        ("more.rego", "package weighbridge\n", ["weighbridge/rules"], "weighbridge/rules"),
        ("more.yaml", "acme: {y: 1}", ["weighbridge", "acme/x"], "acme/x"),
        ("more.yaml", "acme: {y: 1}", None, "acme"),
    ],
)
def test_what_a_bundle_owns_nothing_else_may_speak_of(
    loose: str, text: str, roots: list[str] | None, shared: str, tmp_path: Path
) -> None:
    rule = RULE if roots is None or "weighbridge" in roots else RULE.replace("weighbridge", "weighbridge.rules")
    content = bundle({"main.rego": rule}, **({} if roots is None else {"roots": roots}))
    path = written(tmp_path, "b.tar.gz", content)
    written(tmp_path, loose, text.encode())
    with pytest.raises(PolicyError) as caught:
        read_paths([path, tmp_path / loose])
    (only,) = caught.value.problems
    assert only.file == str(path)
    assert f"`{shared}`" in only.message
    assert "roots" in only.remedy


def test_two_bundles_cannot_own_the_same(tmp_path: Path) -> None:
    one = written(tmp_path, "one.tar.gz", bundle(roots=["weighbridge", "acme"]))
    two = written(tmp_path, "two.tar.gz", bundle({"acme/x/data.json": "{}"}, roots=["acme/x"]))
    with pytest.raises(PolicyError, match=r"two.tar.gz: and .*one.tar.gz both have to do with `acme/x`"):
        read_paths([one, two])


def test_with_keys_everything_has_to_be_a_signed_bundle(tmp_path: Path) -> None:
    (tmp_path / "rego").mkdir()
    (tmp_path / "rego" / "main.rego").write_text(RULE)
    unsigned = written(tmp_path, "b.tar.gz", bundle(roots=["weighbridge"]))
    with pytest.raises(PolicyError) as caught:
        read_paths([tmp_path / "rego", unsigned], [Key("global", "HS256", "x" * 32)])
    assert [(Path(each.file).name, each.message.partition(",")[0]) for each in caught.value.problems] == [
        ("rego", "is no bundle"),
        ("b.tar.gz", "is not signed"),
    ]


def test_a_key_that_cannot_be_used_is_named_before_anything_is_read(tmp_path: Path) -> None:
    keys = [
        {"id": "gone", "algorithm": "RS256", "key": f"file:{tmp_path}/gone.pub"},
        {"id": "short", "algorithm": "HS256", "key": "a-short-secret"},
        {"id": "good", "algorithm": "HS256", "key": "x" * 32, "scope": "write"},
    ]
    settings = PolicySettings.model_validate({"paths": [str(tmp_path / "b.tar.gz")], "keys": keys})
    with pytest.raises(PolicyError) as caught:
        places(settings)
    gone, short = caught.value.problems
    assert (gone.file, "is not a file" in gone.message) == ("policy.keys `gone`", True)
    assert (short.file, "less than 32 bytes" in short.message) == ("policy.keys `short`", True)
    assert "a-short-secret" not in str(caught.value)
    found = places(settings.model_copy(update={"keys": settings.keys[2:]}))
    assert found.keys == (Key("good", "HS256", "x" * 32, "write"),)
    assert found.paths == settings.paths


async def test_bundles_and_keys_reach_the_child_that_proves(tmp_path: Path) -> None:
    key = Key("k", "HS256", "x" * 32)
    loose = bundle({"main.rego": RULE, "acme/data.json": '{"x": 1}'}, revision="r1", roots=["weighbridge", "acme"])
    signed = bundles.sign(loose, "b", SigningKey("k", "HS256", "x" * 32))
    path = written(tmp_path, "policy.tar.gz", signed)
    more = bundles.sign(
        bundle({"more/data.json": "{}"}, revision="7", roots=["more"]), "b", SigningKey("", "HS256", "x" * 32)
    )
    origin = Places(
        (path,), (key,), (Fetched("http://localhost/more.tar.gz", more), Fetched("http://localhost/b", b""))
    )
    with pytest.raises(PolicyError, match="http://localhost/b: is empty"):
        await prove(origin, 20)
    proof = await prove(Places((path,), (key,), origin.fetched[:1]), 20)
    assert proof.packed.bundles == {"policy": "r1", "more": "7"}
    assert proof.packed.revision == read_paths([path], [key], origin.fetched[:1]).revision
    assert (await build(proof.packed)).bundles == {"policy": "r1", "more": "7"}


def test_a_bundle_is_a_regular_file_of_limited_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar.gz")
    with pytest.raises(PolicyError, match="is not a regular file"):
        read_paths([tmp_path / "pipe.tar.gz"])
    with (tmp_path / "large.tar.gz").open("wb") as file:
        file.truncate(33 * 1024 * 1024)
    with pytest.raises(PolicyError, match="too large"):
        read_paths([tmp_path / "large.tar.gz"])


def test_damaged_bundles_are_refused_in_words_and_signed_ones_always() -> None:
    """Members cut, doubled and scribbled in: nothing but a PolicyError comes of it, and with a key nothing at all."""
    key = Key("k", "HS256", "x" * 32)
    files: dict[str, bytes | str] = {
        "main.rego": RULE,
        "a/data.json": b'{"x":[1.0,{"y":null}]}',
        "a/b/data.yaml": b"q: [1, 2]\nr: {s: t}\n",
    }
    whole = bundles.sign(bundle(files, roots=["weighbridge", "a"]), "b", SigningKey("k", "HS256", "x" * 32))
    members = {name: bytes(content) for name, content in bundles.read(whole, "b").items()}
    scribbles = (b"{", b"[", b'"', b"\\u0000", b"1e999", b"\xff", b"\0", b": &a", b"[" * 3000, b"\n", b" ")
    chance = random.Random(5)
    accepted = 0
    for _ in range(1500):
        name = chance.choice(list(members))
        damaged = bytearray(members[name])
        here, there = sorted(chance.randrange(len(damaged) + 1) for _ in range(2))
        damaged[here : chance.choice([here, there])] = chance.choice([*scribbles, damaged[here:there]])
        signed = {**members, name: bytes(damaged)}
        unsigned = {each: content for each, content in signed.items() if each != ".signatures.json"}
        for held, keys in ((unsigned, []), (signed, [key])):
            try:
                found = read(packed(*held.items()), keys)
            except PolicyError:
                continue
            accepted += 1
            if keys:
                assert all(canonical_or_same(each, held[each], members[each]) for each in unsigned), name
                assert found.signed_by == "k"
    assert 100 < accepted < 1500


def canonical_or_same(name: str, one: bytes, other: bytes) -> bool:
    return canonical(name, one) == canonical(name, other) if is_structured(name) else one == other


@needs_opa
@pytest.mark.parametrize("options", [["--revision", "r7"], ["-O", "1", "-e", "weighbridge/decision"]])
def test_what_opa_builds_is_read_here(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "src" / "acme").mkdir(parents=True)
    (tmp_path / "src" / "main.rego").write_text(RULE)
    (tmp_path / "src" / "acme" / "data.yaml").write_text("models: [a]")
    (tmp_path / "src" / ".manifest").write_bytes(manifest(roots=["weighbridge", "acme"]))
    built = subprocess.run(
        [str(OPA), "build", "--bundle", "src", *options], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert built.returncode == 0, built.stdout
    found = read((tmp_path / "bundle.tar.gz").read_bytes())
    assert found.data == {"acme": {"models": ["a"]}}
    assert "package weighbridge" in found.modules[0][1]
    assert found.revision == ("r7" if "r7" in options else "")


@needs_opa
def test_a_bundle_that_opa_built_for_the_old_language_is_refused(tmp_path: Path) -> None:
    (tmp_path / "main.rego").write_text("package weighbridge\nallow { true }\n")
    built = subprocess.run(
        [str(OPA), "build", "--v0-compatible", "main.rego"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert built.returncode == 0, built.stdout
    assert "another version of Rego" in refused((tmp_path / "bundle.tar.gz").read_bytes()).message


@needs_opa
def test_what_is_built_here_decides_in_opa(tmp_path: Path) -> None:
    content = bundles.build({"a/main.rego": RULE}, {"envelopes": {"x": {"y": 1}}}, "v1")
    (tmp_path / "b.tar.gz").write_bytes(content)
    asked = subprocess.run(
        [str(OPA), "eval", "--bundle", "b.tar.gz", "-f", "raw", "[data.weighbridge.decision.decision, data.envelopes]"],
        cwd=tmp_path, capture_output=True, text=True, timeout=50,
    )  # fmt: skip  # the command in one line
    assert asked.stdout.strip() == '["ALLOW",{"x":{"y":1}}]'
