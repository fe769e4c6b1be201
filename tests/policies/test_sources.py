"""What may stand at a policy path, what its revision depends on, and every way of being refused by name."""

import itertools
import os
import threading
from pathlib import Path

import pytest

from policies import sources
from policies.errors import PolicyError, Problem
from policies.sources import read

_RULE = 'package weighbridge\ndecision := {"decision": "ALLOW"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "rego"
    made.mkdir()
    (made / "main.rego").write_text(_RULE)
    return made


def problem(*paths: Path) -> Problem:
    with pytest.raises(PolicyError) as caught:
        read(paths)
    (only,) = caught.value.problems
    assert str(caught.value) == str(only)
    return only


def test_a_folder_is_read_with_all_below_it(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "more.rego").write_text("package more")
    (folder / "deep" / "main_test.rego").write_text("package main_test")
    (folder / "a.yaml").write_text("limits: {a: 1}")
    (folder / "b.yml").write_text("words: [x]")
    (folder / "c.json").write_text('{"numbers": 1.5}')
    (folder / "README.md").write_text("not policy")
    (folder / ".hidden.rego").write_text("garbage")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.rego").write_text("garbage")
    found = read([folder])
    assert [Path(module.name).name for module in found.modules] == ["more.rego", "main.rego"]
    assert [Path(module.name).name for module in found.tests] == ["main_test.rego"]
    assert found.data == {"limits": {"a": 1}, "words": ["x"], "numbers": 1.5}
    assert [Path(file).name for file in found.files] == [
        "a.yaml",
        "b.yml",
        "c.json",
        "more.rego",
        "main_test.rego",
        "main.rego",
    ]


def test_the_revision_is_that_of_names_and_contents(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.yaml"
    data.write_text("a: 1")
    first = read([folder, data]).revision
    assert read([data, folder, folder / "main.rego"]).revision == first
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    assert read([elsewhere, data]).revision == first
    (elsewhere / "main_test.rego").write_text("package t")
    assert read([elsewhere, data]).revision == first, "tests decide nothing"
    (elsewhere / "main.rego").rename(elsewhere / "other.rego")
    renamed = read([elsewhere, data]).revision
    data.write_text("a: 2")
    changed = read([elsewhere, data]).revision
    assert len({first, renamed, changed}) == 3
    assert len(first) == 64


def test_two_files_may_share_a_top_level_key(folder: Path) -> None:
    (folder / "a.yaml").write_text("envelopes: {a: {x: 1}}")
    (folder / "b.yaml").write_text("envelopes: {b: {x: 2}}")
    assert read([folder]).data == {"envelopes": {"a": {"x": 1}, "b": {"x": 2}}}


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        ("envelopes: {a: 1}", "envelopes: {a: 1}", "envelopes.a"),
        ("envelopes: {a: 1}", "envelopes: [a]", "envelopes"),
        ("word: x", "word: y", "word"),
    ],
)
def test_what_two_files_both_say_names_both(folder: Path, one: str, two: str, shared: str) -> None:
    (folder / "a.yaml").write_text(one)
    (folder / "b.yaml").write_text(two)
    found = problem(folder)
    assert found.file == str(folder / "b.yaml")
    assert found.message == f"`{shared}` is also in {folder / 'a.yaml'}"


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    found = problem(tmp_path / "nowhere")
    assert (found.file, found.message) == (str(tmp_path / "nowhere"), "does not exist")


def test_nothing_to_read_is_a_problem(tmp_path: Path) -> None:
    assert "no policy" in problem(tmp_path).message
    with pytest.raises(PolicyError, match="no paths"):
        read([])
    (tmp_path / "only.yaml").write_text("a: 1")
    assert problem(tmp_path).message == "has no .rego file"


def test_other_files_are_refused_when_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    assert "neither policy nor data" in problem(tmp_path / "x.txt").message


def test_a_link_that_leads_back_is_a_problem_and_another_link_is_followed(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "more.rego").write_text("package more")
    (folder / "linked").symlink_to(other)
    assert len(read([folder]).modules) == 2
    (other / "back").symlink_to(folder)
    assert "leads back" in problem(folder).message


def test_a_link_to_itself_or_to_nothing_is_a_problem(folder: Path) -> None:
    (folder / "self.rego").symlink_to(folder / "self.rego")
    assert problem(folder).file == str(folder / "self.rego")
    (folder / "self.rego").unlink()
    (folder / "gone.rego").symlink_to(folder / "nothing.rego")
    assert problem(folder).file == str(folder / "gone.rego")


def test_a_mounted_config_map_is_read_once(tmp_path: Path) -> None:
    generation = tmp_path / "..2026_11_21"
    generation.mkdir()
    (generation / "main.rego").write_text(_RULE)
    (tmp_path / "..data").symlink_to(generation)
    (tmp_path / "main.rego").symlink_to("..data/main.rego")
    assert len(read([tmp_path]).modules) == 1


def test_a_named_pipe_does_not_make_us_wait(folder: Path) -> None:
    os.mkfifo(folder / "pipe.rego")
    assert problem(folder).message == "is not a regular file"


def test_text_that_is_not_utf_8_is_named_with_its_line(folder: Path) -> None:
    (folder / "bad.rego").write_bytes(b"package a\n\n# \xff\n")
    found = problem(folder)
    assert (found.file, found.line, found.message) == (str(folder / "bad.rego"), 3, "is not UTF-8 text")


def test_a_byte_order_mark_is_no_part_of_the_policy(folder: Path) -> None:
    (folder / "main.rego").write_bytes(b"\xef\xbb\xbf" + _RULE.encode())
    assert read([folder]).modules[0].text == _RULE


def test_a_file_of_20_mb_is_too_large(folder: Path) -> None:
    with (folder / "large.rego").open("wb") as file:
        file.truncate(20 * 1024 * 1024)
    found = problem(folder)
    assert found.file == str(folder / "large.rego")
    assert "too large" in found.message


def test_all_files_together_have_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ALL_MODULES", 200)
    for number in range(3):
        (folder / f"{number}.rego").write_text("# " + "x" * 58)
    assert "too large" in problem(folder).message
    monkeypatch.setattr(sources, "ALL_DATA", 100)
    for number in range(3):
        (folder / f"{number}.rego").unlink()
        (folder / f"{number}.json").write_text(f'{{"k{number}": "{"x" * 40}"}}')
    assert "too large" in problem(folder).message


def test_the_number_of_files_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_FILES", 5)
    for number in range(20):
        (folder / f"{number}.rego").write_text("package a")
    assert "more than 5 files" in problem(folder).message


def test_all_problems_are_told_at_once(folder: Path) -> None:
    (folder / "a.yaml").write_text("a: [")
    (folder / "b.json").write_text("{")
    (folder / "c.rego").write_bytes(b"\xff")
    with pytest.raises(PolicyError) as caught:
        read([folder])
    assert [Path(each.file).name for each in caught.value.problems] == ["a.yaml", "b.json", "c.rego"]


def test_files_that_are_swapped_together_are_read_together(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: links into a generation, and one link to the generation."""
    for word in ("one", "two"):
        generation = tmp_path / f"..{word}"
        generation.mkdir()
        (generation / "main.rego").write_text(f"package weighbridge\nword := `{word}`\n")
        (generation / "word.yaml").write_text(f"word: {word}\n")
    (tmp_path / "..data").symlink_to("..one")
    for name in ("main.rego", "word.yaml"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    ended = threading.Event()

    def swap() -> None:
        for turn in itertools.count():
            if ended.wait(0.001 if turn % 20 == 0 else 0):  # now and then slowly: else nothing stays while it is read
                return
            (tmp_path / "..next").symlink_to("..two" if turn % 2 else "..one")
            (tmp_path / "..next").replace(tmp_path / "..data")

    swapping = threading.Thread(target=swap)
    swapping.start()
    words: set[str] = set()
    try:
        for _ in range(300):
            try:
                found = read([tmp_path])
            except PolicyError:  # it changed each time
                continue
            words.add(found.data["word"])
            assert f"`{found.data['word']}`" in found.modules[0].text
    finally:
        ended.set()
        swapping.join()
    assert words == {"one", "two"}
