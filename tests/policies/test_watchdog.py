"""A policy that does not come to an end ends its process, in time and with a trace; a live one is left alone."""

import os
import signal
import subprocess
import sys
import time

from policies.watchdog import RUNAWAY
from tests.policies.support import ROOT

_SPINNING = """
import asyncio
from policies.watchdog import Watchdog
from tests.policies.support import engine, llm, NOW

async def serve():
    watchdog = Watchdog(0.5)
    spinning = await engine('''
        many := numbers.range(1, 9999)
        decision := {"decision": "ALLOW"} if {
            input.call
            every a in many { every b in many { a < b + 10000 } }
        }
    ''')
    watchdog.start()
    print("deciding", flush=True)
    spinning.answer(llm(), NOW)

asyncio.run(serve())
"""
_ALIVE = """
import asyncio
from policies.watchdog import Watchdog

async def serve():
    watchdog = Watchdog(0.3)
    watchdog.start()
    await asyncio.sleep(1)
    watchdog.stop()
    watchdog.stop()
    import time
    until = time.process_time() + 0.6
    while time.process_time() < until:
        pass
    print("lived", flush=True)

asyncio.run(serve())
"""
_PAUSED = """
import asyncio, sys
from policies.watchdog import Watchdog

async def serve():
    watchdog = Watchdog(0.3)
    watchdog.start()
    print("watching", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.sleep(0.3)
    watchdog.stop()
    print("lived", flush=True)

asyncio.run(serve())
"""


def test_a_policy_that_spins_ends_the_process_and_leaves_a_trace() -> None:
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", _SPINNING], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ended.stdout == "deciding\n"
    assert ended.returncode == -RUNAWAY
    assert "in answer" in ended.stderr
    assert time.monotonic() - began < 20


def test_a_loop_that_lives_is_left_alone_and_a_stopped_watchdog_does_nothing() -> None:
    ended = subprocess.run([sys.executable, "-c", _ALIVE], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "lived\n", "")


def test_a_process_that_was_stopped_for_longer_than_allowed_goes_on_afterwards() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PAUSED], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watched:
        assert watched.stdout is not None
        assert watched.stdout.readline() == "watching\n"
        os.kill(watched.pid, signal.SIGSTOP)
        time.sleep(1)  # the passing of time is what is tested
        os.kill(watched.pid, signal.SIGCONT)
        said, _ = watched.communicate("go on\n", timeout=30)
    assert (watched.returncode, said) == (0, "lived\n")
