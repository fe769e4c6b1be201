"""`check` sees what would keep a sound configuration from being served, or its calls from being paid for."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from config.load import Loaded, load
from config.settings import Settings
from gateway.foresight import unpriced, unwritable

PRICE = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
MINE = {"name": "mine", "kind": "openai", "url": "http://127.0.0.1:9/v1"}
BOT = {"node": "acme", "window": "day", "limit_usd": 1}


def settings(folder: Path, **sections: Any) -> Settings:
    return loaded(folder, **sections).settings


def loaded(folder: Path, **sections: Any) -> Loaded:
    own = {
        "policy": {"paths": ["main.rego"]},
        "agents": [{"name": "bot", "tenant": "acme", "key": "key-of-the-bot"}],
        "ledger": {"path": str(folder / "ledger")},
        "state": f"sqlite:///{folder}/state.db",
    }
    (folder / "main.rego").write_text('package weighbridge\n\ndecision := {"decision": "ALLOW"}\n')
    (folder / "w.yaml").write_text(yaml.safe_dump({**own, **sections}))
    return load(folder / "w.yaml")


def test_places_that_can_be_made_or_are_there_are_fine_and_nothing_is_made(tmp_path: Path) -> None:
    deep = settings(tmp_path, state=f"sqlite:///{tmp_path}/a/b/state.db", ledger={"path": str(tmp_path / "c" / "d")})
    assert list(unwritable(deep)) == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["main.rego", "w.yaml"]
    (tmp_path / "state.db").touch()
    assert list(unwritable(settings(tmp_path))) == []


def test_a_state_that_is_a_folder_and_a_ledger_below_a_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = settings(tmp_path, state=f"sqlite:///{tmp_path}", ledger={"path": str(tmp_path / "file" / "ledger")})
    assert list(unwritable(found)) == [
        f"state: {tmp_path} is not a file.",
        f"ledger: {tmp_path}/file/ledger/calls.jsonl cannot be made, for {tmp_path}/file is not a folder.",
    ]


@contextmanager
def nobody() -> Iterator[None]:
    """What root may do tells nothing: for as long as this lasts, access is asked for as somebody else."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, -1, -1)
    try:
        yield
    finally:
        os.setresuid(0, -1, -1)


def test_what_this_user_may_not_write_is_told() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        found = settings(folder)
        (folder / "state.db").touch(0o666)
        (folder / "state.db").chmod(0o666)
        with nobody():
            assert list(unwritable(found)) == []
        (folder / "state.db").chmod(0o444)
        folder.chmod(0o555)
        with nobody():
            state, ledger = unwritable(found)
        folder.chmod(0o700)
    assert state == f"state: {folder}/state.db may not be written by this user."
    assert ledger.endswith(f"for this user may not write into {folder}.")


def routed(folder: Path, **sections: Any) -> Loaded:
    arms = [{"target": "mine"}]
    routes = [{"name": "chat", "models": ["odd", "odd-*"], "arms": arms}]
    return loaded(folder, **{"targets": [MINE], "routes": routes, "budgets": [BOT], **sections})


def test_a_model_that_budgets_cannot_pay_for_is_told_where_it_is_routed_by_name(tmp_path: Path) -> None:
    (told,) = unpriced(routed(tmp_path))
    assert (told.path, told.message, told.remedy) == (
        "targets[0]",
        "nobody knows what mine charges for 'odd', so calls that a strict or adaptive budget has to pay for are "
        "refused",
        "Write its `price`.",
    )
    assert (tmp_path / "w.yaml").read_text().splitlines()[told.line - 1] == "- kind: openai"
    renamed = [{"name": "chat", "models": ["*"], "arms": [{"target": "mine", "model": "[odd]"}]}]
    (told,) = unpriced(routed(tmp_path, routes=renamed))
    assert "charges for '[odd]'" in told.message


def test_a_price_that_is_written_or_published_is_known_and_without_hard_budgets_none_is_needed(tmp_path: Path) -> None:
    assert list(unpriced(routed(tmp_path, targets=[{**MINE, "price": PRICE}]))) == []
    published = [{"name": "chat", "models": ["gpt-4o-mini"], "arms": [{"target": "mine"}]}]
    assert list(unpriced(routed(tmp_path, routes=published))) == []
    assert list(unpriced(routed(tmp_path, budgets=[{**BOT, "mode": "soft"}]))) == []


def test_arms_that_are_compared_need_a_price_without_any_budget_too(tmp_path: Path) -> None:
    own = {"name": "own", "kind": "parallax", "url": "http://127.0.0.1:9"}
    priced = {**MINE, "price": PRICE}
    two = {"name": "chat", "models": ["*"], "arms": [{"target": "mine"}, {"target": "own", "weight": 0}]}
    (told,) = unpriced(routed(tmp_path, targets=[priced, own], routes=[two], budgets=[]))
    assert (told.path, told.message) == (
        "targets[1]",
        "nobody knows what own charges for '*', so what it saves is not known",
    )
    mirrored = {**two, "arms": [{"target": "mine"}], "mirror": {"target": "own", "share": 1, "model": "Qwen"}}
    (told,) = unpriced(routed(tmp_path, targets=[priced, own], routes=[mirrored]))
    assert told.message.endswith("charges for 'Qwen', so what it saves is not known"), "no budget pays for copies"
    own_priced = {**own, "price": dict(PRICE)}
    assert list(unpriced(routed(tmp_path, targets=[priced, own_priced], routes=[two], budgets=[]))) == []
