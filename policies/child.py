"""A child process that interprets policies before this one does: what they can break is then not the gateway.

The child gets its work as JSON on standard input, limits itself, and answers in JSON lines on standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from policies.sources import Module, Sources

_ROOT: Final = str(Path(__file__).resolve().parent.parent)
_ENVIRONMENT: Final = {
    "RUST_BACKTRACE": "0",
    # In KiB. The interpreter's allocator otherwise reserves a gigabyte at once, and a limit below it stops everything.
    "MIMALLOC_ARENA_RESERVE": "16384",
}
_MEMORY: Final = 512 * 1024 * 1024
_MEMORY_PER_DATA: Final = 24
"""Address space of a child in bytes: at least so much, and so much more for each byte of data."""
_LONGEST_ANSWER: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child said before it ended, and how it ended: None by itself, else why not, for people."""

    lines: list[dict[str, Any]]
    failure: str | None


async def run(module: str, sources: Sources, seconds: float) -> Answer:
    """Runs `policies.<module>.main` in a child for at most `seconds`, which it never outlives."""
    work = await asyncio.to_thread(_work, sources, seconds)
    code = f"import sys; sys.path.append({_ROOT!r}); from policies.{module} import main; main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        code,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
        env=_ENVIRONMENT,
        limit=_LONGEST_ANSWER,
    )
    lines: list[dict[str, Any]] = []
    failure: str | None = None
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(_feed(process, work), _listen(process, lines))
            code_of_end = await process.wait()
        if code_of_end:
            failure = _ended(code_of_end)
    except TimeoutError:
        failure = f"did not finish within {seconds:g} s"
    except ValueError:
        failure = "said more than can be read"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    return Answer(lines, failure)


def _work(sources: Sources, seconds: float) -> bytes:
    data = orjson.dumps(sources.data)
    header = {
        "memory": _MEMORY + _MEMORY_PER_DATA * len(data),
        "seconds": int(seconds) + 2,
        "modules": [[module.name, module.text] for module in sources.modules],
        "tests": [[module.name, module.text] for module in sources.tests],
        "data": orjson.Fragment(data),
    }
    return orjson.dumps(header)


async def _feed(process: asyncio.subprocess.Process, work: bytes) -> None:
    assert process.stdin is not None, "the child was made with a pipe"
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(work)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def _listen(process: asyncio.subprocess.Process, lines: list[dict[str, Any]]) -> None:
    assert process.stdout is not None, "the child was made with a pipe"
    async for line in process.stdout:
        lines.append(orjson.loads(line))


def _ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        why = {"SIGXCPU": "used too much processor time", "SIGABRT": "ran out of memory"}
        return why.get(name, f"crashed the interpreter ({name})")
    return "failed in a way that was not foreseen"


def receive() -> Sources:
    """In the child: reads the work and takes on its limits."""
    import resource

    work = orjson.loads(sys.stdin.buffer.read())
    # Where memory is short, let it be this process that is ended.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for limit, most in (
        (resource.RLIMIT_AS, work["memory"]),
        (resource.RLIMIT_CPU, work["seconds"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    # What the interpreter itself prints must not be taken for an answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(answers, "w", buffering=1, encoding="utf-8")  # open until the child ends
    return Sources(
        tuple(Module(name, text) for name, text in work["modules"]),
        tuple(Module(name, text) for name, text in work["tests"]),
        work["data"],
        "",
        (),
    )


def answer(line: dict[str, Any]) -> None:
    """In the child: says one thing."""
    sys.stdout.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE).decode())
    sys.stdout.flush()
