"""What was put to use is kept, found again, and the same policy when it is."""

import os
from pathlib import Path

import orjson
import pytest

from config.settings import PolicySettings
from policies import archive
from policies.decision import Effect
from policies.errors import PolicyError
from policies.history import MOST, ON_TRIAL, History, Kept, pack, read
from policies.load import again, load
from policies.sources import Sources
from policies.sources import read as read_sources
from tests.policies.support import ENVELOPES, NOW, SHIPPED, llm, rego, sources

ALLOW = 'decision := {"decision": "ALLOW"}'


def revision(number: int) -> str:
    return f"{number:064x}"


def kept(folder: Path, what: Sources) -> Kept:
    history = History(folder)
    bundle = pack(what)
    assert bundle is not None
    history.keep(what.revision, bundle)
    assert history.failure is None
    found = history.find(what.revision)
    assert found is not None
    return found


def test_what_is_kept_is_read_as_it_was(tmp_path: Path) -> None:
    shipped = read_sources([SHIPPED, ENVELOPES])
    again = read(kept(tmp_path, shipped))
    assert again.modules == shipped.modules
    assert again.data == shipped.data
    assert (again.revision, again.files, again.tests) == (shipped.revision, shipped.files, ())


def test_two_files_of_one_name_and_names_that_no_archive_takes_are_told_apart(tmp_path: Path) -> None:
    what = sources(rego(ALLOW), rego("x := 1", "x"))
    modules = tuple(
        type(each)(name, each.text) for name, each in zip(("/a/p q:é.rego", "/b/p q:é.rego"), what.modules, strict=True)
    )
    strange = Sources(modules, (), {}, what.revision, ())
    assert read(kept(tmp_path, strange)).modules == modules


async def test_a_policy_that_was_loaded_can_be_loaded_again_when_its_files_are_gone(tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text(rego(ALLOW))
    settings = PolicySettings(paths=(tmp_path / "p.rego",), prove_timeout=20)
    history = History(tmp_path / "history")
    first = await load(settings, history=history)
    (tmp_path / "p.rego").unlink()
    newest = history.newest()
    assert newest is not None
    second = await again(settings, newest)
    assert second.revision == first.revision
    assert (await second.evaluate(llm(), NOW)).effect is Effect.ALLOW


def test_the_newest_is_what_was_put_to_use_last_and_the_oldest_go(tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    for number in range(MOST + 3):
        history.keep(revision(number), b"%d" % number)
        os.utime(tmp_path / "history" / f"{revision(number)}.tar.gz", (number, number))
    assert len(list((tmp_path / "history").iterdir())) == MOST
    assert history.find(revision(2)) is None
    history.keep(revision(7), b"again")
    newest = history.newest()
    assert newest is not None
    assert newest.file.read_bytes() == b"again"
    assert newest == history.find(revision(7))


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    found = kept(tmp_path / "history", sources(rego(ALLOW)))
    assert found.file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o700


def test_where_nothing_can_be_kept_the_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("a file is in the way")
    history = History(tmp_path / "history")
    history.keep(revision(1), b"bundle")
    assert history.failure == "File exists"
    assert history.newest() is None


def test_nothing_but_a_revision_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "secret.tar.gz").write_text("not ours")
    assert History(tmp_path / "history").find("../secret") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive",
        archive.pack({"data.json": b"{}"}),
        archive.pack({".manifest": b"[]", "data.json": b"{}"}),
        archive.pack({".manifest": orjson.dumps({"metadata": {"weighbridge": {"names": {"m": "p"}}}})}),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(PolicyError, match=r"x\.tar\.gz: is no kept revision"):
        read(Kept(tmp_path / "x.tar.gz"))


async def test_a_child_says_so_as_well(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar.gz")
    for file in (tmp_path / "x.tar.gz", tmp_path / "nowhere.tar.gz"):
        with pytest.raises(PolicyError, match=r"tar\.gz: (is no kept revision|cannot be read)"):
            await again(PolicySettings(prove_timeout=20), Kept(file))


def test_a_policy_on_trial_is_found_again_and_never_fallen_back_on(tmp_path: Path) -> None:
    History(tmp_path / ON_TRIAL).keep(revision(1), b"a bundle")
    found = History(tmp_path).find(revision(1))
    assert found is not None
    assert found.file.read_bytes() == b"a bundle"
    assert History(tmp_path).newest() is None
