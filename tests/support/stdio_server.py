"""A local MCP server, written by hand, that misbehaves as it is asked to: tools are behaviours. Standard library only.

Arguments: `stubborn` ignores SIGTERM and the end of its input; `mute` answers nothing at all; `dies` ends at once;
`children` starts a process that starts another in a session of its own, and tells their ids on standard error.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

LISTED = ("echo", "whoami", "never", "slow", "raw_progress", "die")
SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(identity: Any, said: str) -> None:
    say({"id": identity, "result": {"content": [{"type": "text", "text": said}], "isError": False}})


def call(identity: Any, name: str, arguments: dict[str, Any], meta: dict[str, Any]) -> None:
    match name:
        case "echo":
            text(identity, arguments["text"])
        case "whoami":
            text(identity, str(os.getpid()))
        case "environment":
            text(identity, json.dumps({"environ": dict(os.environ), "cwd": os.getcwd()}))
        case "raw_progress":
            for step in (1, 2):
                params = {"progressToken": meta.get("progressToken"), "progress": step}
                say({"method": "notifications/progress", "params": params})
            text(identity, "done")
        case "never":
            return
        case "slow":
            threading.Timer(arguments["seconds"], text, (identity, "at last")).start()
        case "die":
            os._exit(7)
        case "garbage":
            sys.stdout.write("hello, I am a banner\n\n[1, 2]\n{oops\n\xff\n")
            text(identity, "after all")
        case "nonsense":
            while True:
                sys.stdout.write("nonsense\n" * 100)
        case "flood_stderr":
            for number in range(arguments["lines"]):
                sys.stderr.write(f"line {number} \x1b[31m {arguments['secret']}\n")
            sys.stderr.flush()
            text(identity, "flooded")
        case "long_line":
            sys.stdout.write('{"jsonrpc":"2.0","result":"' + "x" * arguments["bytes"] + '"}\n')
            sys.stdout.flush()
            text(identity, "never seen")
        case "eat":
            try:
                eaten = bytearray(arguments["bytes"])
            except MemoryError:
                text(identity, "no memory")
            else:
                text(identity, f"ate {len(eaten)}")
        case "ask":
            say({"id": "q1", "method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 5}})
            asked[identity] = True
        case "announce":
            say({"method": "notifications/tools/list_changed"})
            say({"method": "notifications/message", "params": {"level": "info", "data": "psst"}})
            text(identity, "announced")
        case "sleep":
            time.sleep(600)
        case _:
            say({"id": identity, "error": {"code": -32602, "message": f"Unknown tool: {name}"}})


asked: dict[Any, bool] = {}
cancelled: list[Any] = []


def main() -> None:
    modes = set(sys.argv[1:])
    if "stubborn" in modes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "dies" in modes:
        sys.exit(3)
    if "children" in modes:
        child = subprocess.Popen(SLEEPER, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        other = subprocess.Popen(SLEEPER, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        sys.stderr.write(f"children {child.pid} {other.pid}\n")
        sys.stderr.flush()
    for line in sys.stdin:
        message = json.loads(line)
        method, identity, params = message.get("method"), message.get("id"), message.get("params") or {}
        if "mute" in modes:
            continue
        if method == "initialize":
            abilities = {"tools": {"listChanged": True}, "logging": {}, "resources": {"subscribe": True}}
            info = {"name": "by-hand", "version": "1"}
            version = params["protocolVersion"]
            say({"id": identity, "result": {"protocolVersion": version, "capabilities": abilities, "serverInfo": info}})
        elif method == "tools/call":
            call(identity, params["name"], params.get("arguments") or {}, params.get("_meta") or {})
        elif method == "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in LISTED]
            say({"id": identity, "result": {"tools": tools}})
        elif method == "tests/cancelled":
            say({"id": identity, "result": {"cancelled": cancelled}})
        elif method == "notifications/cancelled":
            cancelled.append(params["requestId"])
        elif method == "ping" or method in ("resources/subscribe", "resources/unsubscribe", "logging/setLevel"):
            say({"id": identity, "result": {}})
        elif method is None and asked:
            waiting, _ = asked.popitem()
            text(waiting, json.dumps(message.get("result") or message.get("error")))
        elif identity is not None:
            say({"id": identity, "error": {"code": -32601, "message": "Method not found"}})
    if "stubborn" in modes:
        time.sleep(600)


main()
