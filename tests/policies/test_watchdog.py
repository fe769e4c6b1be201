"""A policy that does not come to an end ends its process, in time and with a trace; a live one is left alone."""

import subprocess
import sys
import time

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
    spinning.evaluate(llm(), NOW)

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
    time.sleep(0.6)
    print("lived", flush=True)

asyncio.run(serve())
"""


def test_a_policy_that_spins_ends_the_process_and_leaves_a_trace() -> None:
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", _SPINNING], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ended.stdout == "deciding\n"
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "in evaluate" in ended.stderr
    assert time.monotonic() - began < 20


def test_a_loop_that_lives_is_left_alone_and_a_stopped_watchdog_does_nothing() -> None:
    ended = subprocess.run([sys.executable, "-c", _ALIVE], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "lived\n", "")
