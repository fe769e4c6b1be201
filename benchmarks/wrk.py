"""Load as fast as it goes: wrk with a closed set of connections, every request carrying one agent's key in turn."""

import contextlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import Running
from benchmarks.machine import LOAD_CORE, on
from benchmarks.scenarios import COUNT, Scenario

CONNECTIONS = 32
SESSION = "Mcp-Session-Id"
"""The header that says which session a call belongs to."""

_MARK = "summary: "

_SCRIPT = """
local keys, before, between, after, n, calls = {}, nil, nil, nil, 0, 0
function init(args)
  for line in io.lines(%(keys)s) do
    local key, session = line:match("^(%%S*) ?(%%S*)$")
    local own = (key ~= "" and "Authorization: Bearer " .. key .. "\\r\\n" or "")
      .. (session ~= "" and "%(session)s: " .. session .. "\\r\\n" or "")
    keys[#keys + 1] = "POST %(path)s HTTP/1.1\\r\\nHost: %(host)s\\r\\nContent-Type: application/json\\r\\n"
      .. own .. "%(headers)sContent-Length: %(length)d\\r\\n\\r\\n"
  end
  local file = io.open(%(body)s, "rb")
  local body = file:read("*a")
  file:close()
  local at = string.find(body, "%(count)s", 1, true)
  before, after = body:sub(1, at - 1), body:sub(at + #"%(count)s")
  at = string.find(after, "%(count)s", 1, true)
  if at then
    between, after = after:sub(1, at - 1), after:sub(at + #"%(count)s")
  end
end
function request()
  n = n %% #keys + 1
  calls = calls + 1
  local count = string.format("%%0%(digits)dd", calls)
  if between then
    return keys[n] .. before .. count .. between .. count .. after
  end
  return keys[n] .. before .. count .. after
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '%(mark)s{"requests":%%d,"bytes":%%d,"microseconds":%%d,"connect":%%d,"read":%%d,"write":%%d,"status":%%d,'
    .. '"timeout":%%d,"p50":%%.3f,"p99":%%.3f}\\n',
    summary.requests, summary.bytes, summary.duration, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class WrkMissing(Exception):
    """wrk is not there, and could not be installed."""


@dataclass(frozen=True, slots=True)
class Report:
    """What wrk counted; latencies in milliseconds, of calls that waited for their connection's previous one."""

    requests: int
    bytes: int
    seconds: float
    p50: float
    p99: float
    mistakes: str

    @property
    def rate(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    def mistake(self, shortest: int) -> str:
        """Why this run does not count, or nothing: an error of any kind, or answers that were cut short."""
        if self.mistakes:
            return self.mistakes
        if not self.requests:
            return "no call was answered"
        mean = self.bytes / self.requests
        return "" if mean >= shortest else f"answers of {mean:.0f} bytes on average, where {shortest} were due"


def parse(output: str) -> Report:
    """Reads what the script wrote at the end. Raises ValueError where it did not."""
    _, mark, rest = output.partition(_MARK)
    if not mark:
        raise ValueError(f"wrk ended without a summary: {output[-300:]}")
    counted = json.loads(rest.splitlines()[0])
    kinds = ("connect", "read", "write", "status", "timeout")
    mistakes = ", ".join(f"{counted[kind]} {kind} errors" for kind in kinds if counted[kind])
    seconds = counted["microseconds"] / 1e6
    p50, p99 = counted["p50"] / 1e3, counted["p99"] / 1e3
    return Report(counted["requests"], counted["bytes"], seconds, p50, p99, mistakes)


def script(folder: Path, running: Running, scenario: Scenario) -> Path:
    """Writes the Lua script of one contestant and scenario, with the files it reads, and returns its path."""
    stem = folder / f"{running.port}-{scenario.name}"
    key_file, body_file = stem.with_suffix(".keys"), stem.with_suffix(".body")
    sessions = running.sessions if scenario.in_session else [""] * len(running.keys)
    lines = (f"{key} {session}" for key, session in zip(running.keys, sessions, strict=True))
    key_file.write_text("\n".join(lines) + "\n")
    body_file.write_bytes(scenario.body)
    headers = "".join(f"{name}: {value}\\r\\n" for name, value in (*running.headers, *scenario.headers))
    text = _SCRIPT % {
        "keys": json.dumps(str(key_file)),
        "body": json.dumps(str(body_file)),
        "path": running.path,
        "host": f"127.0.0.1:{running.port}",
        "headers": headers,
        "session": SESSION,
        "length": len(scenario.body),
        "mark": _MARK,
        "count": COUNT,
        "digits": len(COUNT),
    }
    written = stem.with_suffix(".lua")
    written.write_text(text)
    return written


def run(port: int, lua: Path, seconds: float, connections: int = CONNECTIONS) -> Report:
    """Loads 127.0.0.1:port for about so many whole seconds. Raises ValueError, subprocess.CalledProcessError."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    command += ["--timeout", "60s", "-s", str(lua), f"http://127.0.0.1:{port}"]
    with on(LOAD_CORE):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return parse(output)


def present() -> str:
    """wrk's version. Installs the system's package where it is missing and we may. Raises WrkMissing."""
    if shutil.which("wrk") is None and shutil.which("apt-get") and os.geteuid() == 0:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["apt-get", "install", "-y", "-q", "wrk"], check=True, stdout=subprocess.DEVNULL)
    if shutil.which("wrk") is None:
        raise WrkMissing("wrk is missing; install it with the system's package manager (Debian: apt-get install wrk).")
    shown = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return " ".join(shown.split()[:2])
