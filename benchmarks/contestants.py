"""Who is measured: how each contestant is started in front of the upstream, and how it is called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import bare, fleet, peers
from benchmarks.children import PYTHON, Child, Children, free_port
from benchmarks.machine import CONTESTANT_CORE
from benchmarks.scenarios import PATH

FEW, MANY = 10, 10_000


@dataclass(frozen=True, slots=True)
class Running:
    """A contestant that serves: where, the keys that calls carry in turn (an empty one is not shown), and headers that
    each call needs."""

    child: Child
    port: int
    keys: Sequence[str]
    headers: tuple[tuple[str, str], ...] = ()
    expects: tuple[tuple[str, str], ...] = field(default=())
    """Headers that prove in an answer that the contestant did its work."""
    ledger: Path | None = None
    """A folder in which every call leaves a line or more."""
    path: str = PATH
    sessions: Sequence[str] = ()
    """The session that each key's calls belong to, where they do."""

    def recorded(self) -> int:
        """Lines in the ledger so far."""
        lines = 0
        for file in self.ledger.glob("*.jsonl") if self.ledger is not None else ():
            with file.open("rb") as opened:
                while piece := opened.read(2**20):
                    lines += piece.count(b"\n")
        return lines


@dataclass(frozen=True, slots=True)
class Contestant:
    """`start(children, folder, upstream)` raises StartFailed. `peer` names what has to be installed for it."""

    name: str
    what: str
    start: Callable[[Children, Path, int], Running]
    peer: str = ""


def _bare(children: Children, folder: Path, upstream: int) -> Running:
    command = [PYTHON, "-m", "benchmarks.bare", str(upstream)]
    child, told = children.start("bare", command, core=CONTESTANT_CORE, ready=bare.READY)
    return Running(child, int(told), ["any-key"])


def _gateway(agents: int, *, reuse: bool = True) -> Callable[[Children, Path, int], Running]:
    def start(children: Children, folder: Path, upstream: int) -> Running:
        name = f"all-on-{agents}" if reuse else f"all-on-{agents}-afresh"
        own = folder / name
        own.mkdir()
        command = [
            PYTHON,
            "-m",
            "gateway.cli",
            "serve",
            "--config",
            str(fleet.write(own, agents, upstream, reuse=reuse)),
        ]
        child, told = children.start(name, command, core=CONTESTANT_CORE, ready="weighbridge: agents ")
        port = int(told.split(" ", 1)[0].rpartition(":")[2])
        expects = (("x-weighbridge-decision", "ALLOW"),)
        return Running(child, port, fleet.keys(agents), expects=expects, ledger=own / "ledger")

    return start


def _envoy(children: Children, folder: Path, upstream: int) -> Running:
    port = free_port()
    config = folder / "envoy.json"
    config.write_text(peers.envoy_config(port, upstream))
    command = [str(peers.PEERS["envoy"].program), "-c", str(config), "--concurrency", "1", "--log-level", "error"]
    command += ["--disable-hot-restart"]
    child, _ = children.start("envoy", command, core=CONTESTANT_CORE, ready=port, environment=peers.quiet("envoy"))
    return Running(child, port, ["any-key"])


def _litellm(children: Children, folder: Path, upstream: int) -> Running:
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(peers.litellm_config(upstream))
    command = [str(peers.PEERS["litellm"].program), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    child, _ = children.start("litellm", command, core=CONTESTANT_CORE, ready=port, environment=peers.quiet("litellm"))
    return Running(child, port, [peers.LITELLM_KEY])


def _portkey(children: Children, folder: Path, upstream: int) -> Running:
    port = free_port()
    command = ["node", str(peers.PEERS["portkey"].program), f"--port={port}", "--headless"]
    child, _ = children.start("portkey", command, core=CONTESTANT_CORE, ready=port, environment=peers.quiet("portkey"))
    headers = (("x-portkey-provider", "openai"), ("x-portkey-custom-host", f"http://127.0.0.1:{upstream}/v1"))
    return Running(child, port, ["any-key"], headers)


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("bare", "the gateway's server and carrier with nothing in between", _bare),
        Contestant("all-on", f"the gateway with everything on, {FEW} agents", _gateway(FEW)),
        Contestant("all-on-afresh", "the same, every decision evaluated afresh", _gateway(FEW, reuse=False)),
        Contestant("all-on-10k", f"the gateway with everything on, {MANY} agents", _gateway(MANY)),
        Contestant("envoy", "plain Envoy: one worker, the router filter only", _envoy, "envoy"),
        Contestant("litellm", "LiteLLM's proxy: one worker, one model, a master key", _litellm, "litellm"),
        Contestant("portkey", "Portkey's gateway on node, custom host", _portkey, "portkey"),
    )
}
