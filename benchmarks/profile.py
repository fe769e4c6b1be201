"""Where the gateway spends a call: its worker under cProfile and load, and the functions that took the most time.

The profiler slows Python down and C not at all, so the shares lean towards Python; calls of each function are exact.
"""

import io
import os
import pstats
import signal
import socket
import subprocess
from pathlib import Path

from benchmarks import fleet, mcp, wrk
from benchmarks.children import PYTHON, ROOT, Child, Children, StartFailed
from benchmarks.compare import Say, checked, start_upstream
from benchmarks.contestants import FEW, Running
from benchmarks.machine import CONTESTANT_CORE, on
from benchmarks.scenarios import SCENARIOS

SHOWN = 40


def run(children: Children, folder: Path, scenario: str, seconds: float, say: Say) -> str:
    """The table of functions, most time of their own first. Raises StartFailed."""
    tools = scenario in mcp.SCENARIOS
    _, upstream = start_upstream(children, "benchmarks.mcp_upstream" if tools else "benchmarks.upstream")
    config = mcp.configured(folder, upstream) if tools else fleet.write(folder, FEW, upstream)
    asked, dump = mcp.SCENARIOS[scenario] if tools else SCENARIOS[scenario], folder / "profile"
    data, admin = (socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(2))
    ours, theirs = socket.socketpair()
    inherited = {"data": data, "admin": admin, "supervisor": theirs}
    command = [PYTHON, "-m", "cProfile", "-o", str(dump), "-m", "gateway.worker", "--config", str(config)]
    for name, each in inherited.items():
        command += [f"--{name}", str(each.fileno())]
    words = folder / "worker.log"
    with words.open("wb") as log, on(CONTESTANT_CORE):
        worker = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[each.fileno() for each in inherited.values()],
            start_new_session=True,
        )
    child = Child("worker", worker, words)
    children.adopt(child)
    theirs.close()
    ours.settimeout(60)
    if not ours.recv(64):
        raise StartFailed(f"the worker did not start. Its last words:\n{child.last_words()}")
    port, keys = data.getsockname()[1], fleet.keys(FEW)
    running = Running(child, port, keys)
    if tools:
        running = Running(child, port, keys, path=mcp.PATH, sessions=mcp.begun(port, mcp.PATH, keys))
    if mistake := checked(running, asked, upstream):
        raise StartFailed(f"the worker serves wrongly: {mistake}")
    lua = wrk.script(folder, running, asked)
    report = wrk.run(running.port, lua, seconds)
    say(f"{report.rate:.0f} calls/s under the profiler, {report.requests} calls")
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    for each in (ours, data, admin):
        each.close()
    out = io.StringIO()
    pstats.Stats(str(dump), stream=out).strip_dirs().sort_stats("tottime").print_stats(SHOWN)
    return out.getvalue()
