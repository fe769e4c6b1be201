"""A child process that reads and interprets policies before this one does: what they can break is then not the gateway.

The child gets its work on standard input, a line of JSON and then the bytes of bundles, limits itself, and answers in
frames on standard output: a letter, a length (four bytes, the most significant first), and a JSON object (`j`), a text
(`t`) or anything else (`b`) of so many bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from policies import history
from policies.errors import PolicyError
from policies.history import Kept
from policies.sources import ALL_DATA, Fetched, Module, Places, Sources, read

if TYPE_CHECKING:
    from policies.signatures import Key

_ROOT: Final = str(Path(__file__).resolve().parent.parent)
_ENVIRONMENT: Final = {
    "RUST_BACKTRACE": "0",
    # In KiB. The interpreter's allocator otherwise reserves a gigabyte at once, and a limit below it stops everything.
    "MIMALLOC_ARENA_RESERVE": "16384",
}
_MEMORY: Final = 512 * 1024 * 1024
_MEMORY_PER_DATA: Final = 24
"""Address space of a child in bytes: at least so much, and so much more for each byte of data."""
READING: Final = 30.0
"""Seconds for a child to start and to read the files it is about."""
_MOST_ANSWERED: Final = 256 * 1024 * 1024
_CHUNK: Final = 256 * 1024
_OTHER: Final = 97
"""The exit code of a child that has found another version than the one that runs here."""
_PROGRAM: Final = """\
import os, sys
sys.path[:] = {places!r}
try:
    from policies import child
    from policies.{module} import main
except ImportError:
    sys.exit({other})
if not os.path.samefile(child.__file__, {here!r}):
    sys.exit({other})
main()
"""
ONE_VERSION: Final = "Install one version of the gateway, and start it from where that is."
_HEAD: Final = struct.Struct(">cI")

Origin = Sequence[str | os.PathLike[str]] | Places | Kept | Sources
"""What a child is about: paths, bundles or a kept revision that it reads itself, or what was read before."""


@dataclass(slots=True)
class Answer:
    """What a child said before it ended, and how it ended: `failure` is None by itself, else why not, for people.

    `transient` failures say nothing about the policies: the machine did not let the child do its work. Nor do those of
    one that went `astray`: it has not found the code that runs here.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    failure: str | None = None
    transient: bool = False
    astray: bool = False


async def run(module: str, origin: Origin, seconds: float, arguments: Sequence[str] = ()) -> Answer:
    """Runs `policies.<module>.main` in a child, which this call never leaves behind. `arguments` are its
    `sys.argv[1:]`.

    It has READING seconds to read, and then `seconds` for its work. Raises OSError when no child can be started.
    """
    work, fetched = _work(origin, seconds)
    spent = _spent_by_children()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        program(module),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_ENVIRONMENT,
        limit=_CHUNK,
    )
    answer = Answer()
    allowed = READING
    try:
        async with asyncio.timeout(READING) as limit:
            feeding = asyncio.ensure_future(_feed(process, work, fetched))
            try:
                async for line in _listen(process, answer):
                    if "began" in line:
                        allowed = seconds
                        limit.reschedule(asyncio.get_running_loop().time() + seconds)
                await feeding
            finally:
                feeding.cancel()
            code_of_end = await process.wait()
        if code_of_end:
            answer.failure = _ended(code_of_end)
            answer.transient = -code_of_end == signal.SIGKILL
            answer.astray = code_of_end == _OTHER
    except TimeoutError:
        answer.failure = f"did not finish within {allowed:g} s"
    except ValueError:
        answer.failure = "said what cannot be read"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    if answer.failure is not None and answer.failure.startswith("did not finish"):
        # It did not get the processor, or waited for a disk.
        answer.transient = _spent_by_children() - spent < allowed / 2
    return answer


def program(module: str) -> str:
    """What a child runs: `policies.<module>.main` of the very code that runs here, whatever else is installed."""
    places = [each for each in sys.path if os.path.isabs(each)]
    if _ROOT not in places:
        places.append(_ROOT)
    return _PROGRAM.format(places=places, module=module, here=__file__, other=_OTHER)


def place(origin: Origin) -> str:
    """What to name when the child cannot tell where it was."""
    if isinstance(origin, Sources):
        return origin.modules[0].name
    if isinstance(origin, Kept):
        return str(origin.file)
    named = [*origin.paths, *(each.name for each in origin.fetched)] if isinstance(origin, Places) else origin
    return str(named[0]) if named else "policy"


def _spent_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _work(origin: Origin, seconds: float) -> tuple[bytes, Sequence[bytes]]:
    if isinstance(origin, Sources):
        return orjson.dumps({"seconds": seconds, "sources": origin}), ()
    if isinstance(origin, Kept):
        return orjson.dumps({"seconds": seconds, "kept": os.fsencode(origin.file).hex()}), ()
    places = origin if isinstance(origin, Places) else Places(tuple(origin))
    header = {
        "seconds": seconds,
        "paths": [os.fsencode(path).hex() for path in places.paths],
        # Secrets of keys go through this pipe and nowhere else.
        "keys": places.keys,
        "fetched": [(each.name, len(each.content)) for each in places.fetched],
    }
    return orjson.dumps(header), [each.content for each in places.fetched]


async def _feed(process: asyncio.subprocess.Process, work: bytes, fetched: Sequence[bytes]) -> None:
    assert process.stdin is not None, "the child was made with a pipe"
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for content in (work, b"\n", *fetched):
            for start in range(0, len(content), _CHUNK):
                process.stdin.write(content[start : start + _CHUNK])
                await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def _listen(process: asyncio.subprocess.Process, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """Adds every frame to `answer`, and gives each line. Raises ValueError for what is no frame."""
    assert process.stdout is not None, "the child was made with a pipe"
    left = _MOST_ANSWERED
    with contextlib.suppress(asyncio.IncompleteReadError):  # it ended, which its exit code is to explain
        while True:
            letter, length = _HEAD.unpack(await process.stdout.readexactly(_HEAD.size))
            left -= length
            if left < 0 or letter not in (b"j", b"t", b"b"):
                raise ValueError("no frame")
            content = await process.stdout.readexactly(length)
            if letter == b"t":
                answer.texts.append(content.decode())
            elif letter == b"b":
                answer.contents.append(content)
            else:
                answer.lines.append(orjson.loads(content))
                yield answer.lines[-1]


def _ended(code: int) -> str:
    if code == _OTHER:
        return "found other code of the gateway than runs here, or none,"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        why = {
            "SIGXCPU": "used too much processor time",
            "SIGABRT": "ran out of memory",
            "SIGKILL": "was ended from outside, perhaps for want of memory,",
        }
        return why.get(name, f"crashed the interpreter ({name})")
    return "failed in a way that was not foreseen"


def receive() -> Sources:
    """In the child: takes on the limits and reads what the work is about. What is wrong with it is answered, and then
    the child ends.
    """
    line, _, fetched = sys.stdin.buffer.read().partition(b"\n")
    work = orjson.loads(line)
    # Where memory is short, let it be this process that is ended.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    # What the interpreter itself prints must not be taken for an answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(answers, "w", encoding="utf-8")  # open until the child ends
    if "sources" in work:
        sources = _sources(work["sources"])
    else:
        _limit(ALL_DATA, READING)
        origin = Kept(_path(work["kept"])) if "kept" in work else _places(work, fetched)
        answer({"at": (place(origin), "its files were read")})
        try:
            if isinstance(origin, Kept):
                sources = history.read(origin)
            else:
                sources = read(origin.paths, origin.keys, origin.fetched)
        except PolicyError as error:
            for problem in error.problems:
                answer({"problem": problem})
            sys.exit()
    _limit(len(orjson.dumps(sources.data)), work["seconds"])
    answer({"began": True})
    return sources


def _limit(data: int, seconds: float) -> None:
    """Limits on memory, for so many bytes of data, and on processor time from now on."""
    memory = _MEMORY + _MEMORY_PER_DATA * data
    processor = int(time.process_time() + seconds) + 2
    for limit, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, processor)):
        # The hard limit stays: there the kernel kills without saying why.
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _places(work: dict[str, Any], content: bytes) -> Places:
    keys: tuple[Key, ...] = ()
    if work["keys"]:
        from policies import signatures  # imports cryptography, which takes 40 ms

        keys = tuple(signatures.Key(**each) for each in work["keys"])
    fetched = []
    for name, size in work["fetched"]:
        fetched.append(Fetched(name, content[:size]))
        content = content[size:]
    return Places(tuple(map(_path, work["paths"])), keys, tuple(fetched))


def _path(encoded: str) -> Path:
    return Path(os.fsdecode(bytes.fromhex(encoded)))


def _sources(given: dict[str, Any]) -> Sources:
    modules, tests = (tuple(Module(**each) for each in given[key]) for key in ("modules", "tests"))
    given = {**given, "modules": modules, "tests": tests, "files": tuple(given["files"])}
    return Sources(**given)


def answer(line: dict[str, Any]) -> None:
    """In the child: says one thing."""
    _say(b"j", orjson.dumps(line))


def hand(content: str | bytes) -> None:
    """In the child: gives one text, or something else."""
    if isinstance(content, str):
        _say(b"t", content.encode())
    else:
        _say(b"b", content)


def _say(letter: bytes, content: bytes) -> None:
    sys.stdout.buffer.write(_HEAD.pack(letter, len(content)))
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
