"""Notices that the operator's files changed, so that they are loaded again while calls go on."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from watchfiles import awatch

log = logging.getLogger("weighbridge.watch")

POLL: Final = 0.5
"""Seconds after which files are looked at even if the system reported nothing (network mounts, far symlinks)."""
DEBOUNCE: Final = 50
"""Milliseconds in which one save's several events are gathered."""
SETTLED: Final = 0.02
"""Seconds a file has to stay the same before it counts as written."""
PATIENCE: Final = 0.25
"""Seconds after which a file that keeps changing is reported all the same."""
MOST_LINKS: Final = 40
"""Symlinks followed on the way to one file, as the kernel does."""
MOST_ENTRIES: Final = 10_000
"""Files and folders that are looked at under one watched folder."""

Fingerprint = tuple[object, ...]


@dataclass(slots=True)
class _Look:
    """One look at the disk: what every watched path is now, and the folders whose events would tell of a change."""

    seen: dict[Path, Fingerprint] = field(default_factory=dict)
    folders: dict[Path, tuple[int, int]] = field(default_factory=dict)


def changes(
    paths: Callable[[], Iterable[Path]], *, stop: asyncio.Event, busy: Collection[Path] = ()
) -> AsyncGenerator[frozenset[Path], None]:
    """Yield the watched paths that changed, usually within 100 ms, until `stop` is set.

    What counts is what changed since this function was called: call it before reading the files, and no edit falls
    between. `paths` is asked again after every yield, so it may name other files after a reload. A folder stands
    for all files in it, however deep, except names that begin with a dot or end with ~. A path may be missing: its
    coming, like its going, is a change. What is compared is identity, size and times, so a rename over the file, a
    symlink swapped anywhere on the way to it and a deletion are all seen. To end it early, close it (`aclosing`).

    Folders that are `busy` hold files that are written all the time: what happens in them is not listened to, and an
    edit in one is found by POLL.
    """
    return _changes(_look(paths()), paths, stop, busy)


async def _changes(
    before: _Look, paths: Callable[[], Iterable[Path]], stop: asyncio.Event, busy: Collection[Path]
) -> AsyncGenerator[frozenset[Path], None]:
    woken = asyncio.Event()
    listener = _Listener(woken)
    blind = False
    ending = asyncio.create_task(_pass_on(stop, woken), name="configuration watch ends")
    try:
        while not stop.is_set():
            await listener.listen(_quiet(before.folders, busy))
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await woken.wait()
            woken.clear()
            if stop.is_set():
                return
            try:
                now = await asyncio.to_thread(_look, list(paths()))
                changed = _differences(before, now)
                if changed:
                    now = await _settled(paths, now)
                    changed |= _differences(before, now)
            except Exception as error:
                # Out of threads or memory, perhaps. The last look stays the one to compare with, so nothing is missed.
                if not blind:
                    log.error("edits cannot be seen for the time being: %s", type(error).__name__)
                blind = True
                continue
            before, blind = now, False
            if changed:
                yield frozenset(changed)
                # The reload may have named files that were not looked at so far; the others keep their last look,
                # for what changed while they were being read.
                before = _look(paths())
                before.seen |= {path: seen for path, seen in now.seen.items() if path in before.seen}
    finally:
        ending.cancel()
        await listener.close()


class _Listener:
    """Sets an event whenever something happens in a set of folders; the set can be replaced."""

    def __init__(self, woken: asyncio.Event) -> None:
        self._woken = woken
        self._folders: dict[Path, tuple[int, int]] = {}
        self._task: asyncio.Task[None] | None = None

    async def listen(self, folders: dict[Path, tuple[int, int]]) -> None:
        """Listen to these folders. A folder that was deleted and made again counts as another one."""
        if folders == self._folders and self._task is not None and not self._task.done():
            return
        await self.close()
        moved, self._folders = folders != self._folders, folders
        if folders:
            self._task = asyncio.create_task(self._run(list(folders)), name="configuration watch")
            # The watch stands once the task has run its first step; what happened before that is found by a look. It is
            # not hurried where the watch only begins anew: on a system out of watches it would do so without end.
            await asyncio.sleep(0)
            if moved:
                self._woken.set()

    async def close(self) -> None:
        """Stop listening and wait until the system's watch is released."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self, folders: list[Path]) -> None:
        # A folder may vanish before the watch stands, or the system may be out of watches: then POLL still looks.
        with suppress(OSError, RuntimeError):
            events = awatch(
                *folders,
                watch_filter=None,
                debounce=DEBOUNCE,
                step=10,
                rust_timeout=1000,
                recursive=False,
                ignore_permission_denied=True,
            )
            async with aclosing(events):
                async for _ in events:
                    self._woken.set()


async def _settled(paths: Callable[[], Iterable[Path]], now: _Look) -> _Look:
    """Look again until nothing moves, so that a half-written file is not the one that is read."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(SETTLED)
        again = await asyncio.to_thread(_look, list(paths()))
        if again.seen == now.seen:
            return again
        now = again
    return now


def _quiet(folders: dict[Path, tuple[int, int]], busy: Collection[Path]) -> dict[Path, tuple[int, int]]:
    """Those that are not busy, by whatever name."""
    look = _Look()
    for each in busy:
        _note(each, look)
    known = set(look.folders.values())
    return {folder: identity for folder, identity in folders.items() if identity not in known}


async def _pass_on(stop: asyncio.Event, woken: asyncio.Event) -> None:
    await stop.wait()
    woken.set()


def _differences(before: _Look, now: _Look) -> set[Path]:
    """Watched paths that are not what they were. A path that was not watched before is new, not changed."""
    return {path for path, fingerprint in now.seen.items() if path in before.seen and before.seen[path] != fingerprint}


def _look(paths: Iterable[Path]) -> _Look:
    look = _Look()
    for path in paths:
        look.seen[path] = _fingerprint(path, look)
    return look


def _fingerprint(path: Path, look: _Look) -> Fingerprint:
    _note_folders(path, look)
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ("missing",)
    if not stat.S_ISDIR(status.st_mode):
        return _of_file(status)
    found: list[tuple[object, ...]] = []
    pending, visited = [path], set[tuple[int, int]]()
    while pending and len(found) < MOST_ENTRIES:
        folder = pending.pop()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        # A symlink may lead back up; a folder is entered once.
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        look.folders[folder] = (status.st_dev, status.st_ino)
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith("~"):
                continue
            try:
                status = entry.stat()
            except OSError:
                found.append((entry.path, "missing"))
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append(Path(entry.path))
                found.append((entry.path, "folder"))
            else:
                found.append((entry.path, *_of_file(status)))
    return tuple(found)


def _of_file(status: os.stat_result) -> Fingerprint:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _note_folders(path: Path, look: _Look) -> None:
    """Note the folder that holds a path, and the one that holds each symlink on the way to what it stands for."""
    parts = list(path.absolute().parts[::-1])
    current = Path(parts.pop())
    links = 0
    while parts:
        folder, current = current, current.parent if parts[-1] == ".." else current / parts[-1]
        parts.pop()
        try:
            target = Path(os.readlink(current))
        except (OSError, ValueError):  # not a symlink, or nothing at all
            if not parts:
                _note(folder, look)
            continue
        _note(folder, look)
        links += 1
        if links > MOST_LINKS:
            return
        current = Path(target.anchor) if target.is_absolute() else folder
        parts += [part for part in target.parts[::-1] if part != target.anchor]


def _note(folder: Path, look: _Look) -> None:
    with suppress(OSError, ValueError):
        status = folder.stat()
        look.folders[folder] = (status.st_dev, status.st_ino)
