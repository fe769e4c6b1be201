"""One running gateway and the edits of its files: whatever goes wrong with one, the next one is seen."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from config.load import load
from config.settings import Url
from gateway.app import App
from gateway.carrier import Origin
from policies.bundle import build, sign
from policies.signatures import SigningKey
from routing.health import State
from tests.support.bundle_server import bundle_server
from tests.support.parallax import Cluster, running_parallax
from tests.support.steps import longest_step

ALLOW = 'package weighbridge\n\ndecision := {"decision": "ALLOW"}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "main.rego").write_text(ALLOW)
    return configured(tmp_path, {"paths": ["main.rego"]})


def configured(folder: Path, policy: dict[str, Any], **sections: Any) -> Path:
    path = folder / "w.yaml"
    own = {"ledger": {"path": str(folder / "ledger")}, "state": f"sqlite:///{folder}/state.db"}
    path.write_text(yaml.safe_dump({**own, "policy": policy, **sections}))
    return path


@pytest.fixture
async def app(file: Path) -> AsyncIterator[App]:
    async with App(file, load(file)) as app:
        yield app


async def run_once(file: Path) -> str:
    """The revision that a gateway put to use, which has ended since."""
    async with App(file, load(file)) as app:
        assert app.deciding.engine is not None
        return app.deciding.engine.revision


@asynccontextmanager
async def without_threads() -> AsyncIterator[None]:
    """The running loop has no thread to read files in: a trouble that no reload foresees."""
    loop = asyncio.get_running_loop()
    exhausted = ThreadPoolExecutor(1)
    exhausted.shutdown()
    loop.set_default_executor(exhausted)
    yield
    loop.set_default_executor(ThreadPoolExecutor(1))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.02)  # the watch tells nobody but the app that it saw something


async def test_an_unforeseen_trouble_is_a_refused_reload_and_the_last_good_ones_stay(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    assembly, engine = app.pipeline.assembly, app.pipeline.engine
    async with without_threads():
        await app.reload_config("dana")
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", None)
        await app.deciding.reload("dana")
    for reload in (app.config, app.deciding.loading):
        (error,) = reload.errors
        assert "loading failed unexpectedly with " in error
        assert reload.count == 1
    assert app.telemetry.reloads["config", "refused"] == app.telemetry.reloads["policy", "refused"] == 1
    assert app.pipeline.assembly is assembly
    assert app.pipeline.engine is engine


async def test_new_targets_are_reached_for_without_holding_calls_up(app: App, tmp_path: Path) -> None:
    """For each, the trusted authorities are read, which takes twenty milliseconds."""
    names = [f"t{number}" for number in range(10)]
    targets = [{"name": each, "kind": "openai", "url": "https://127.0.0.1:9/v1"} for each in names]
    configured(tmp_path, {"paths": ["main.rego"]}, targets=targets)
    async with longest_step() as step:
        await app.reload_config("dana")
    assert app.pipeline.assembly.lines.keys() == set(names)
    assert step.seconds < 0.05


async def test_an_edit_made_during_an_unforeseen_trouble_is_loaded_after_it(app: App, tmp_path: Path) -> None:
    async with without_threads():
        (tmp_path / "main.rego").write_text(ALLOW + "# edited\n")
        await app.reload_config("dana")
    await until(lambda: app.deciding.loading.count == 2)
    assert app.deciding.loading.errors == ()
    assert app._watch is not None
    assert not app._watch.done()


async def test_a_policy_refused_only_for_lack_of_descriptors_is_loaded_again_by_itself(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", exhausted)
        (tmp_path / "main.rego").write_text(ALLOW + "# edited\n")
        await until(lambda: bool(app.deciding.loading.errors))
    (error,) = app.deciding.loading.errors
    assert "cannot be started: Too many open files. Give the gateway more files" in error
    await until(lambda: app.deciding.loading.count == 2)
    assert app.deciding.loading.errors == ()


async def test_a_policy_that_is_wrong_waits_for_its_edit(app: App, tmp_path: Path) -> None:
    (tmp_path / "main.rego").write_text("package weighbridge\ndecision := ]\n")
    await app.deciding.reload("dana")
    assert app.deciding.loading.errors
    assert app.deciding._again is None


async def test_a_start_without_a_sound_policy_falls_back_on_the_last_one(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    revision = await run_once(file)
    (tmp_path / "main.rego").write_text("package weighbridge\ndecision := ]\n")
    async with App(file, load(file)) as after:
        assert after.deciding.fallen_back
        assert after.pipeline.engine is after.deciding.engine is not None
        assert after.deciding.engine.revision == revision
        (error,) = after.deciding.loading.errors
        assert "main.rego:2" in error
        assert "the last good one before this start" in caplog.text
        await after.deciding.reload("dana")
        assert after.deciding.engine.revision == revision, "it stays until a sound one comes"
        (tmp_path / "main.rego").write_text(ALLOW + "# mended\n")
        await until(lambda: not after.deciding.fallen_back)
        assert after.deciding.engine.revision != revision
        assert after.deciding.loading.errors == ()


async def test_an_opa_server_that_is_away_is_not_said_to_be_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = configured(tmp_path, {"engine": "opa", "opa": {"url": f"unix://{tmp_path}/nobody"}})
    with caplog.at_level("INFO"):
        async with App(file, load(file)) as app:
            assert app.unready
    assert "is loaded" not in caplog.text
    assert "000000000000" not in caplog.text
    assert "an OPA server is to decide, and cannot yet: OPA at unix://" in caplog.text


async def test_where_no_policy_is_configured_any_more_none_decides(file: Path, tmp_path: Path) -> None:
    await run_once(file)
    configured(tmp_path, {})
    async with App(file, load(file)) as after:
        assert after.pipeline.engine is None
        assert not after.deciding.fallen_back


async def test_a_kept_policy_that_is_damaged_is_told_and_does_not_decide(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await run_once(file)
    for kept in (tmp_path / "ledger" / "policies").glob("*.tar.gz"):
        kept.write_bytes(kept.read_bytes()[:-9])
    (tmp_path / "main.rego").unlink()
    async with App(file, load(file)) as after:
        assert after.pipeline.engine is None
    assert "the last good policy cannot be loaded either" in caplog.text


async def test_a_bundle_server_is_asked_on_after_an_unforeseen_trouble(tmp_path: Path) -> None:
    async with bundle_server() as server:
        server.content = sign(build({"main.rego": ALLOW}, {}, "1"), "b", SigningKey("k", "HS256", "k" * 40))
        keys = [{"id": "k", "algorithm": "HS256", "key": "k" * 40}]
        bundle = {"url": f"{server.address}/bundle.tar.gz", "poll": "50ms"}
        file = configured(tmp_path, {"bundle": bundle, "keys": keys})
        loaded = load(file)
        async with without_threads():
            app = App(file, loaded)
            await app.__aenter__()
            await until(lambda: bool(app.deciding.loading.errors))
        await until(lambda: app.deciding.engine is not None)
        assert app.deciding.loading.errors == ()
        await app.__aexit__()


async def test_the_text_of_an_unforeseen_trouble_is_not_shown(app: App, caplog: pytest.LogCaptureFixture) -> None:
    async with without_threads():
        await app.reload_config("dana")
    shown = "".join(app.config.errors) + caplog.text
    assert "RuntimeError" in shown
    assert "cannot schedule" not in shown


_URLS = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(lambda rest: f"http://{rest}"),
    st.tuples(
        st.sampled_from(["http", "https", "HTTP"]),
        st.text("ab0-_.:[]%!", min_size=1, max_size=12),
        st.sampled_from(["", ":", ":0", ":1", ":80", ":080", ":65535", ":65536", ":x"]),
        st.sampled_from(["", "/", "/v1", "/v1/", "/%zz", "/;a=b", "//", "/|"]),
    ).map(lambda parts: f"{parts[0]}://{parts[1]}{parts[2]}{parts[3]}"),
)


@given(_URLS)
def test_every_url_that_settings_accept_is_one_the_carrier_takes(url: str) -> None:
    try:
        accepted = TypeAdapter[str](Url).validate_python(url)
    except ValidationError:
        return
    origin, _ = Origin.parse(accepted)
    assert origin.host


async def test_nodes_are_probed_while_it_runs_and_those_of_a_reload_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "main.rego").write_text(ALLOW)

    def to(cluster: Cluster) -> Path:
        own = {"name": "own", "kind": "parallax", "urls": [cluster.url]}
        targets = [own, {"name": "hosted", "kind": "openai", "url": "http://127.0.0.1:9/v1"}]
        arms = [{"target": "hosted", "weight": 50}, {"target": "own", "weight": 50}]
        routes = [{"name": "chat", "models": ["*"], "arms": arms}]
        return configured(tmp_path, {"paths": ["main.rego"]}, targets=targets, routes=routes)

    def probing() -> set[str]:
        return {name for each in asyncio.all_tasks() if (name := each.get_name()).startswith("probes of own")}

    with running_parallax() as first, running_parallax() as second:
        first.standin.available = second.standin.available = False
        file = to(first)
        async with App(file, load(file)) as app:

            def ejected() -> set[str]:
                nodes = app.pipeline.attempts.fleet.pools["own"].nodes
                return {node.url for node in nodes if node.unwell and node.state is State.EJECTED}

            await until(lambda: ejected() == {first.url})
            assert f"target own: {first.url} is not well: waiting" in caplog.messages
            to(second)
            await app.reload_config("dana")
            await until(lambda: ejected() == {second.url})
            assert probing() == {f"probes of own at {second.url}"}
        assert probing() == set()
