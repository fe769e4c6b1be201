"""`config.watch` with real files and the ways in which editors and orchestrators change them."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from config import watch
from config.watch import changes

SOON = 5.0
"""Seconds in which a change has to be reported, wide enough for a machine that is busy with other things."""


class Watched:
    """A running watch; `next()` is the next set of changed paths."""

    def __init__(self, paths: Callable[[], Iterable[Path]]) -> None:
        self.stop = asyncio.Event()
        self.queue: asyncio.Queue[frozenset[Path]] = asyncio.Queue()
        self._changes = changes(paths, stop=self.stop)

    async def run(self) -> None:
        async with aclosing(self._changes) as found:
            async for each in found:
                self.queue.put_nowait(each)

    async def next(self) -> frozenset[Path]:
        async with asyncio.timeout(SOON):
            return await self.queue.get()

    async def until(self, path: Path) -> None:
        """Wait until this path is among the changed ones; one save may be reported in two parts."""
        while path not in await self.next():
            pass


@asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[Watched]:
    async with watching_what(lambda: paths) as watched:
        yield watched


@asynccontextmanager
async def watching_what(paths: Callable[[], Iterable[Path]]) -> AsyncIterator[Watched]:
    """Watch, stop, and make sure that nothing is left running."""
    tasks = asyncio.all_tasks()
    watched = Watched(paths)
    task = asyncio.create_task(watched.run())
    try:
        yield watched
    finally:
        watched.stop.set()
        async with asyncio.timeout(SOON):
            await task
    assert asyncio.all_tasks() == tasks


def write(path: Path, text: str) -> None:
    path.write_text(text)


def read(path: Path) -> str:
    return path.read_text()


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path, text: str) -> None:
    """As most editors save: a temporary file beside it, renamed over it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


def publish_as_kubernetes(path: Path, text: str) -> None:
    """As a config map is updated: a new folder, and one symlink renamed over the one that led to the old folder."""
    version = path.parent / f"..{text.replace(' ', '-')}"
    version.mkdir()
    (version / path.name).write_text(text)
    (path.parent / "..data_tmp").symlink_to(version.name)
    (path.parent / "..data_tmp").rename(path.parent / "..data")
    if not path.is_symlink():
        path.symlink_to(f"..data/{path.name}")


def edit_behind_a_link(path: Path, text: str) -> None:
    """As a file that is kept elsewhere, in a repository say, and linked to."""
    real = path.parent / "elsewhere" / "real.yaml"
    real.parent.mkdir(exist_ok=True)
    real.write_text(text)
    if not path.is_symlink():
        path.symlink_to(real)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text("first")
    return path


async def test_a_file_written_in_place_is_reported(file: Path) -> None:
    async with watching(file) as watched:
        write(file, "second")
        assert await watched.next() == {file}


async def test_a_file_replaced_by_a_rename_is_reported_every_time(file: Path) -> None:
    async with watching(file) as watched:
        for text in ("second", "third", "fourth"):
            replace(file, text)
            assert await watched.next() == {file}


async def test_a_file_of_the_same_length_is_still_another_file(file: Path) -> None:
    async with watching(file) as watched:
        write(file, "FIRST")
        assert await watched.next() == {file}


async def test_a_file_that_is_deleted_and_comes_back_is_reported_both_times(file: Path) -> None:
    async with watching(file) as watched:
        delete(file)
        assert await watched.next() == {file}
        write(file, "back")
        assert await watched.next() == {file}
        write(file, "and watched as before")
        assert await watched.next() == {file}


async def test_a_file_that_does_not_exist_yet_is_reported_when_it_comes(tmp_path: Path) -> None:
    late = tmp_path / "folder" / "late.yaml"
    async with watching(late) as watched:
        late.parent.mkdir()
        write(late, "here")
        await watched.until(late)


async def test_a_folder_that_is_removed_and_made_again_is_watched_as_before(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "gateway.yaml"
    file.parent.mkdir()
    write(file, "first")
    async with watching(file) as watched:
        file.unlink()
        file.parent.rmdir()
        await watched.until(file)
        file.parent.mkdir()
        write(file, "second")
        await watched.until(file)
        replace(file, "third")
        await watched.until(file)


async def test_a_symlink_swapped_on_the_way_is_reported_as_kubernetes_does_it(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    publish_as_kubernetes(file, "one")
    async with watching(file) as watched:
        for text in ("two", "three"):
            publish_as_kubernetes(file, text)
            assert await watched.next() == {file}
            assert read(file) == text


async def test_the_file_behind_a_symlink_is_watched_where_it_really_is(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.yaml"
    real.parent.mkdir()
    write(real, "first")
    link = tmp_path / "here" / "gateway.yaml"
    link.parent.mkdir()
    link.symlink_to("../elsewhere/real.yaml")
    async with watching(link) as watched:
        write(real, "second")
        assert await watched.next() == {link}


async def test_a_folder_stands_for_all_files_in_it_however_deep(tmp_path: Path) -> None:
    folder = tmp_path / "rego"
    (folder / "a" / "b").mkdir(parents=True)
    deep = folder / "a" / "b" / "deep.rego"
    write(deep, "package a")
    async with watching(folder) as watched:
        replace(deep, "package b")
        assert await watched.next() == {folder}
        new = folder / "c"
        new.mkdir()
        await watched.until(folder)
        write(new / "new.rego", "package c")
        await watched.until(folder)
        (new / "new.rego").unlink()
        await watched.until(folder)


async def test_a_folder_with_a_symlink_back_to_itself_is_looked_at_once(tmp_path: Path) -> None:
    (tmp_path / "rego").mkdir()
    (tmp_path / "rego" / "loop").symlink_to("..")
    (tmp_path / "rego" / "itself").symlink_to("itself")
    rule = tmp_path / "rego" / "rule.rego"
    async with watching(tmp_path / "rego") as watched:
        write(rule, "package a")
        await watched.until(tmp_path / "rego")


async def test_an_editors_own_files_in_a_folder_are_no_change_of_it(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "rego"
    folder.mkdir()
    async with watching(folder, file) as watched:
        write(folder / ".rule.rego.swp", "swap")
        write(folder / "rule.rego~", "backup")
        write(file, "a change that is one")
        assert await watched.next() == {file}
    assert watched.queue.empty()


async def test_another_file_in_the_same_folder_is_nobodys_business(tmp_path: Path, file: Path) -> None:
    async with watching(file) as watched:
        (tmp_path / "other.yaml").write_text("x")
        write(file, "second")
        assert await watched.next() == {file}
    assert watched.queue.empty()


async def test_files_that_change_together_are_reported_together(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.yaml" for number in range(20)]
    for each in files:
        write(each, "first")
    async with watching(*files) as watched:
        for each in files:
            write(each, "second")
        seen: set[Path] = set()
        reports = 0
        while seen != set(files):
            seen |= await watched.next()
            reports += 1
    assert reports <= 3


async def test_the_files_may_be_others_after_a_reload(tmp_path: Path, file: Path) -> None:
    other_folder = tmp_path / "secrets"
    other_folder.mkdir()
    other = other_folder / "key"
    write(other, "one")
    current = [file]
    async with watching_what(lambda: current) as watched:
        current.append(other)
        write(file, "now points at the other")
        assert await watched.next() == {file}
        replace(other, "two")
        assert await watched.next() == {other}
        current.remove(file)
        replace(other, "three")
        assert await watched.next() == {other}
        write(file, "nobody looks at this any more")
        replace(other, "four")
        assert await watched.next() == {other}


async def test_a_file_is_reported_when_it_is_written_not_while(file: Path) -> None:
    """A reader woken by the first of several writes would find half a file."""
    pieces = iter(range(5))

    def paths() -> Iterable[Path]:
        # Whenever the watch is about to look, the slow writer has added something.
        for piece in pieces:
            with file.open("a") as stream:
                stream.write(f"\nline {piece}")
            break
        return [file]

    async with aclosing(changes(paths, stop=asyncio.Event())) as found, asyncio.timeout(SOON):
        assert await anext(found) == {file}
        assert read(file).splitlines() == ["first", *(f"line {piece}" for piece in range(5))]


async def test_a_file_that_never_rests_is_reported_all_the_same(file: Path) -> None:
    def paths() -> Iterable[Path]:
        with file.open("a") as stream:
            stream.write("more\n")
        return [file]

    async with aclosing(changes(paths, stop=asyncio.Event())) as found, asyncio.timeout(SOON):
        assert await anext(found) == {file}


@pytest.mark.parametrize("publish", [replace, publish_as_kubernetes, edit_behind_a_link])
async def test_a_change_is_reported_within_a_blink(publish: Callable[[Path, str], None], tmp_path: Path) -> None:
    """Sooner than a look now and then would find it: the best of several, so that a busy machine does not decide."""
    file = tmp_path / "gateway.yaml"
    publish(file, "first")
    async with watching(file) as watched:
        times = []
        for number in range(6):
            began = monotonic()
            publish(file, f"text {number}")
            await watched.next()
            times.append(monotonic() - began)
    # The first is found by the look that begins the watch.
    assert min(times[1:]) < watch.POLL / 2


async def test_a_cancelled_watch_ends_at_once(file: Path) -> None:
    watched = Watched(lambda: [file])
    task = asyncio.create_task(watched.run())
    await asyncio.to_thread(file.write_text, "second")
    began = monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert monotonic() - began < SOON


async def test_a_watch_that_is_stopped_before_it_began_yields_nothing(file: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    assert [each async for each in changes(lambda: [file], stop=stop)] == []


async def test_an_edit_between_the_call_and_the_first_wait_is_not_missed(file: Path) -> None:
    found = changes(lambda: [file], stop=asyncio.Event())
    write(file, "second")
    async with aclosing(found), asyncio.timeout(SOON):
        assert await anext(found) == {file}


async def test_an_edit_during_the_reload_is_not_missed(file: Path) -> None:
    write(file, "second")
    async with aclosing(changes(lambda: [file], stop=asyncio.Event())) as found, asyncio.timeout(SOON):
        write(file, "third")
        assert await anext(found) == {file}
        write(file, "fourth")
        assert await anext(found) == {file}


async def test_an_edit_in_a_busy_folder_is_found_by_looking(file: Path) -> None:
    noise = file.with_name("state.db")
    async with aclosing(changes(lambda: [file], stop=asyncio.Event(), busy=[file.parent])) as found:
        async with asyncio.timeout(SOON):
            edit = asyncio.ensure_future(anext(found))
            while not edit.done():
                write(noise, str(monotonic()))
                write(file, "edited")
                await asyncio.wait([edit], timeout=0.001)
    assert edit.result() == {file}


def test_a_busy_folder_is_not_listened_to_by_whatever_name(tmp_path: Path, file: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    other = elsewhere / "other.rego"
    write(other, "a")
    link = tmp_path / "link"
    link.symlink_to(file.parent)
    folders = watch._look([file, other]).folders
    assert set(folders) == {tmp_path, elsewhere}
    assert set(watch._quiet(folders, [])) == {tmp_path, elsewhere}
    assert set(watch._quiet(folders, [link])) == {elsewhere}


async def test_nothing_to_watch_is_no_error() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_soon(stop.set)
    assert [each async for each in changes(list, stop=stop)] == []


async def test_a_system_without_watches_is_looked_at_now_and_then(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """inotify instances run out on a crowded machine; reloading has to go on."""

    def no_watches(*folders: Path, **options: object) -> AsyncIterator[object]:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(watch, "awatch", no_watches)
    async with watching(file) as watched:
        write(file, "second")
        assert await watched.next() == {file}


async def test_a_watch_that_cannot_look_for_a_while_misses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    write(path, "1")
    loop = asyncio.get_running_loop()
    exhausted = ThreadPoolExecutor(1)
    exhausted.shutdown()
    looks = asyncio.Queue[None]()

    def counted() -> list[Path]:
        looks.put_nowait(None)
        return [path]

    async with watching_what(counted) as watched:
        loop.set_default_executor(exhausted)
        write(path, "22")
        while not looks.empty():
            looks.get_nowait()
        for _ in range(2):
            await looks.get()
        with ThreadPoolExecutor(1) as restored:
            loop.set_default_executor(restored)
            assert await watched.next() == {path}
            watched.stop.set()


async def test_a_system_out_of_watches_is_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_left(*folders: Path, **options: Any) -> AsyncIterator[set[tuple[int, str]]]:
        if folders:
            raise OSError(errno.EMFILE, "Too many open files")
        yield set()

    path = tmp_path / "a.yaml"
    write(path, "1")
    monkeypatch.setattr(watch, "awatch", none_left)
    looks: list[float] = []

    def counted() -> list[Path]:
        looks.append(monotonic())
        return [path]

    async with watching_what(counted) as watched:
        await asyncio.sleep(3 * watch.POLL)
        assert len(looks) < 8
        write(path, "22")
        assert await watched.next() == {path}
