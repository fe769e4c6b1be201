"""What `make run` executes: stand-in model servers, the gateway in front of them, and a page of things to try.

Ends with 0 when told to (Ctrl-C, SIGTERM, SIGHUP), with 98 where a port is taken, with 2 where the configuration cannot
be used for a demonstration, and with a child's own exit code, or 1, where a child ended by itself.
"""

import argparse
import asyncio
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from config.errors import ConfigError
from config.load import load
from config.settings import Settings, TargetSettings, ToolSettings
from deploy.demo.models import BUSY_PORT, bound

CONFIG = Path("config/examples/demo.yaml")
READY = re.compile(r"weighbridge: agents (http://\S+) admin (http://\S+)")
READY_SECONDS = 60.0  # a fresh machine compiles every module on the way
STOP_SECONDS = 15.0
LAST_LINES = 20
UNUSABLE = 2


class DemoFailed(Exception):
    """The demonstration cannot go on; the message is for the person at the terminal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Child:
    """One process of the demonstration, its first line on standard output, and the last it said anywhere."""

    name: str
    process: asyncio.subprocess.Process
    first_line: "asyncio.Future[str]"
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    readers: "list[asyncio.Task[None]]" = field(default_factory=list)

    async def ended(self) -> None:
        await self.process.wait()
        await asyncio.wait(self.readers)  # unlike gather, it leaves them alone when it is cancelled

    def obituary(self) -> DemoFailed:
        """How it ended, where it should not have."""
        code = self.process.returncode
        how = f"ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        said = "".join(f"\n    {line}" for line in self.last_lines)
        return DemoFailed(
            f"{self.name}: {how}, so all was stopped.{said}", code if code is not None and 0 < code < 126 else 1
        )


async def demonstrate(config: Path) -> None:
    """Runs until a signal asks it to stop. Raises DemoFailed."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = _settings(config)
    targets = {kind: _stand_in_target(settings, kind, config) for kind in ("openai", "anthropic", "parallax")}
    ports = {kind: urlsplit(target.nodes[0]).port or 80 for kind, target in targets.items()}
    tool = _stand_in_tool(settings, config)
    ports["crm"] = urlsplit(tool.url).port or 80
    listeners = [(each.host, each.port) for each in (settings.listen, settings.admin.listen)]
    _insist_on_free_ports([*(("127.0.0.1", port) for port in ports.values()), *listeners])

    children: list[Child] = []
    tasks: list[asyncio.Task[object]] = []
    try:
        keys = {f"STANDIN_{kind.upper()}_KEY": t.key.reveal() if t.key else "" for kind, t in targets.items()}
        keys["STANDIN_CRM_KEY"] = tool.key.reveal() if tool.key else ""
        options = [f"--{kind}-port={port}" for kind, port in ports.items() if kind != "parallax"]
        children.append(await _start("stand-ins", ["deploy.demo.models", "--until-stdin-closes", *options], keys))
        # In a process of its own, because it stands still as a whole, as Parallax does.
        options = [f"--port={ports['parallax']}", "--scale=0.1"]
        children.append(await _start("cluster", ["deploy.demo.parallax_like", "--until-stdin-closes", *options], {}))
        children.append(await _start("gateway", ["gateway.cli", "serve", "--config", str(config)], {}))
        pids = ", ".join(f"{child.name} (pid {child.process.pid})" for child in children)
        _say(f"starting {pids} ...\n")
        tasks = [asyncio.create_task(child.ended()) for child in children]
        tasks.append(asyncio.create_task(stop.wait()))
        welcome = asyncio.create_task(_welcome(children, config, settings))
        await asyncio.wait([*tasks, welcome], return_when=asyncio.FIRST_COMPLETED)
        if welcome.done() and not any(task.done() for task in tasks):
            await welcome
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        else:
            tasks.append(welcome)
        if not stop.is_set():
            raise next(child for child, task in zip(children, tasks, strict=False) if task.done()).obituary()
        _say("\nStopping the gateway and the stand-ins ...\n")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _stop(children)


def _settings(config: Path) -> Settings:
    try:
        return load(config).settings
    except ConfigError as error:
        raise DemoFailed(f"The configuration cannot be used:\n{error}", UNUSABLE) from None


def _stand_in_target(settings: Settings, kind: str, config: Path) -> TargetSettings:
    for target in settings.targets:
        if target.kind == kind and urlsplit(target.nodes[0]).hostname == "127.0.0.1":
            return target
    raise DemoFailed(f"{config} has no target of kind {kind} on 127.0.0.1 for a stand-in to be.", UNUSABLE)


def _stand_in_tool(settings: Settings, config: Path) -> ToolSettings:
    for tool in settings.tools:
        if tool.kind == "http" and urlsplit(tool.url).hostname == "127.0.0.1":
            return tool
    raise DemoFailed(f"{config} has no tool of kind http on 127.0.0.1 for a stand-in to be.", UNUSABLE)


def _insist_on_free_ports(addresses: Sequence[tuple[str, int]]) -> None:
    for host, port in addresses:
        try:
            bound(host, port).close()
        except OSError as error:
            raise DemoFailed(
                f"Port {port} on {host} cannot be used ({os.strerror(error.errno or 0)}): "
                "end the program that has it, or choose another port in the configuration.",
                BUSY_PORT,
            ) from None


async def _start(name: str, module: Sequence[str], env: Mapping[str, str]) -> Child:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *module,
        env={**os.environ, **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the others in order
    )
    child = Child(name, process, asyncio.get_running_loop().create_future())
    assert process.stdout is not None
    assert process.stderr is not None
    child.readers = [
        asyncio.create_task(_listen(child, process.stdout, expect_first_line=True)),
        asyncio.create_task(_listen(child, process.stderr, expect_first_line=False)),
    ]
    return child


async def _listen(child: Child, stream: asyncio.StreamReader, *, expect_first_line: bool) -> None:
    """Passes on what a child says, line by line, and keeps the last of it."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than the reader's limit; readline has dropped it
            continue
        if not line:
            return
        text = line.decode("utf-8", "replace").rstrip()
        child.last_lines.append(text)
        if expect_first_line and not child.first_line.done():
            child.first_line.set_result(text)
        else:
            _say(f"{child.name} | {text}\n")


async def _welcome(children: Sequence[Child], config: Path, settings: Settings) -> None:
    """Waits until everything answers, then says what to try. Raises DemoFailed."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            *_, line = [await child.first_line for child in children]
            ready = READY.fullmatch(line)
            if ready is None:
                raise DemoFailed(f"The gateway did not say where it listens, but: {line}", 1)
            await _answers(f"{ready[1]}/readyz")
    except TimeoutError:
        last = [f"\n    {child.name} | {line}" for child in children for line in child.last_lines]
        raise DemoFailed(f"Not ready after {READY_SECONDS:.0f} s.{''.join(last)}", 1) from None
    _say(what_to_try(ready[1], ready[2], config, settings))


async def _answers(url: str) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # not listening yet
            await asyncio.sleep(0.1)


async def _stop(children: Sequence[Child]) -> None:
    """Ends all children, the gateway first so that its calls still find their targets, and waits for each."""
    for child in reversed(children):
        if child.process.returncode is None:
            child.process.terminate()
            try:
                await asyncio.wait_for(child.process.wait(), STOP_SECONDS)
            except TimeoutError:
                _say(f"{child.name}: killed, since it did not stop within {STOP_SECONDS:.0f} s.\n")
        try:
            os.killpg(child.process.pid, signal.SIGKILL)  # whatever it had started itself
        except ProcessLookupError:
            pass
        await child.ended()
        if child.process.stdin is not None:
            child.process.stdin.close()


def what_to_try(agents: str, admin: str, config: Path, settings: Settings) -> str:
    """The page printed once everything answers. Every `curl` line in it works as it stands."""
    rego = next((path for path in settings.policy.paths if path.is_dir() or path.suffix == ".rego"), Path("policies"))
    here = Path.cwd()
    rego = rego.resolve()
    rules = rego.relative_to(here) if rego.is_relative_to(here) else rego
    chat = '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}'
    streamed = chat.replace('{"model"', '{"stream": true, "model"')
    denied = chat.replace("gpt-4o-mini", "llama-3.1-8b")
    held = chat.replace("gpt-4o-mini", "gpt-4o").replace('{"model"', '{"max_tokens": 99, "model"')
    message = '{"model": "claude-haiku-4-5", "max_tokens": 99, "messages": [{"role": "user", "content": "Hello"}]}'
    as_json = "-H 'content-type: application/json'"
    support, intern, batch, dana = (
        f"-H 'authorization: Bearer demo-{who}'" for who in ("support-key", "intern-key", "batch-key", "dana-token")
    )
    refund = '{"amount": 120}'
    waiting = f"curl -s '{admin}/approvals?state=pending' {dana}"
    first = f"$({waiting} | grep -o 'apr_[0-9A-Z]*' | head -1)"
    stop = '{"state": "quarantined", "reason": "a look at its prompts"}'
    half = '{"weights": {"openai-stand-in": 50, "parallax-stand-in": 50}}'
    arm = "curl -s -o /dev/null -w '%header{x-weighbridge-arm} '"
    again_and_again = "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do curl -s -o /dev/null -w '%{http_code} '"
    return f"""
Weighbridge is ready. Agents call {agents}, people look after it at {admin}.
Behind it stand-in models answer: no key, no network, no cost. Stock clients work too:

    OPENAI_BASE_URL={agents}/v1 OPENAI_API_KEY=demo-support-key      (any openai client)
    ANTHROPIC_BASE_URL={agents} ANTHROPIC_API_KEY=demo-support-key   (any anthropic client)

A chat that policy allows, whole and streamed:

    curl -i {agents}/v1/chat/completions {support} {as_json} -d '{chat}'

    curl -N {agents}/v1/chat/completions {support} {as_json} -d '{streamed}'

The same through the Anthropic API:

    curl -i {agents}/v1/messages {support} {as_json} -H 'anthropic-version: 2023-06-01' -d '{message}'

One that policy denies (the envelope of intern-bot does not have this model), with the reason:

    curl -i {agents}/v1/chat/completions {intern} {as_json} -d '{denied}'

One that people decide on. The agent is told so; you look what waits, allow it, and the same call again is answered.
On the page at {admin}/ it is a button: log in with the token demo-dana-token.

    curl -i {agents}/v1/chat/completions {intern} {as_json} -H 'prefer: respond-async' -d '{held}'

    {waiting}

    curl -s -X POST {admin}/approvals/{first}/approve {dana} -d '{{"comment": "go on"}}'

    curl -i {agents}/v1/chat/completions {intern} {as_json} -d '{held}'

Stop an agent at once, whatever it is doing, and let it go on:

    curl -s -X PUT {admin}/agents/intern-bot/state {dana} -d '{stop}'

    curl -s -X PUT {admin}/agents/intern-bot/state {dana} -d '{{"state": "active"}}'

Money is lent before it is spent. batch-bot has a budget for a dozen short calls a day, and then is told so:

    {again_and_again} {agents}/v1/chat/completions {batch} {as_json} -d '{chat}'; done

How the budgets stand, what was spent, and more for this one:

    curl -s {admin}/budgets {dana}

    curl -s '{admin}/spend?group_by=agent,model' {dana}

    curl -s -X PUT {admin}/budgets/acme/batch-bot {dana} -d '{{"limit_usd": 1, "comment": "go on"}}'

A route can go to several places. Half of the calls to a cluster of your own, and how the two compare after some more:

    curl -s -X PUT {admin}/routes/chat/weights {dana} -d '{half}'

    for n in 1 2 3 4 5 6; do {arm} {agents}/v1/chat/completions {support} {as_json} -d '{chat}'; done

    curl -s {admin}/routes/chat {dana}

A canary grows step by step, and is taken back when it fails. Begin one for the calls of Anthropic's API, which the
cluster gets translated; make some; look how it stands and what its next step takes; and take it back yourself:

    curl -s -X POST {admin}/routes/claude/rollout/start {dana}

    for n in 1 2 3 4 5 6 7 8 9; do {arm} {agents}/v1/messages {support} {as_json} -d '{message}'; done

    curl -s {admin}/routes/claude/rollout {dana}

    curl -s -X POST {admin}/routes/claude/rollout/abort {dana}

Tools are decided on, too. Look for a ticket; try what nobody may; and ask for a refund, which waits for finance:

    curl -s '{agents}/tools/crm/tickets?q=invoice' {support}

    curl -s -X DELETE {agents}/tools/crm/tickets/1 {support}

    curl -s {agents}/tools/crm/tickets/1/refund {support} {as_json} -H 'prefer: respond-async' -d '{refund}'

    curl -s '{admin}/approvals?state=pending' {dana}

The policy in force, its revision and its last error; the numbers:

    curl -s {admin}/policy {dana}

    curl -s {admin}/metrics

Now change the rules: edit {rules}/ or what agents may do in {config.parent}/envelopes.yaml
and repeat a call. The next decision is made by the new text; a mistake is reported here, and the last good text stays.

Ctrl-C stops all.
"""


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> int:
    """Returns the exit code that the module's first sentence explains."""
    parser = argparse.ArgumentParser(description="The gateway in front of stand-in models, with things to try.")
    parser.add_argument("--config", type=Path, default=CONFIG)
    given = parser.parse_args()
    try:
        asyncio.run(demonstrate(given.config))
    except DemoFailed as failed:
        sys.stderr.write(f"{failed}\n")
        return failed.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
