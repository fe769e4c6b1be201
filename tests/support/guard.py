"""Ends what a test has started, should the test be ended itself before it can: by its timeout, by kill -9."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_WATCH: Final = "read -r pid && { read -r over || kill -9 $pid $(cat /proc/$pid/task/$pid/children 2>/dev/null); }"
"""For a shell that is told what runs, and then that it runs no more: where nobody is left to tell that, it ends it."""


@contextmanager
def guard() -> Iterator[Callable[[int], None]]:
    """Gives what a process is put under guard with, by its id: it is killed, with its children, should this process end
    before the block does."""
    with subprocess.Popen(
        ["/bin/sh", "-c", _WATCH],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as shell:
        assert shell.stdin is not None
        told = shell.stdin

        def say(line: object) -> None:
            print(line, file=told, flush=True)

        try:
            yield say
        finally:
            say("over")
