"""The record: when it is written, what survives, and what it never contains."""

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from adapters.base import Usage
from gateway.exchange import Exchange
from gateway.ledger import FILE_NAME, FileLedger, LedgerUnavailable
from gateway.reader import LONGEST_LINE, Reader, decision_of, records
from gateway.records import LONGEST_PATH
from tests.support.door import connected, post
from tests.support.exchanges import AGENT_KEY, exchange
from tests.support.gate import AUTHORIZED, gate
from tests.support.process import serving_beside
from tests.support.target import target


async def test_an_intent_is_in_the_file_before_anything_else_happens(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    x = exchange()
    await ledger.intend(x)
    assert x.intended
    assert [record["call"] for record in records(ledger.path)] == [x.id]
    ledger.close()


async def test_outcomes_of_one_turn_share_one_write(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    for _ in range(3):
        ledger.conclude(exchange())
    assert ledger.path.stat().st_size == 0
    await asyncio.sleep(0)
    assert [record["record"] for record in records(ledger.path)] == ["decision", "outcome"] * 3
    ledger.close()


async def test_intents_of_one_turn_share_one_write(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    calls = [exchange() for _ in range(3)]
    intents = [asyncio.ensure_future(ledger.intend(x)) for x in calls]
    await asyncio.sleep(0)
    assert ledger.path.stat().st_size == 0
    assert not any(intent.done() for intent in intents)
    await intents[0]
    assert [record["call"] for record in records(ledger.path)] == [x.id for x in calls]
    await asyncio.gather(*intents)
    assert all(x.intended for x in calls)
    ledger.close()


@pytest.mark.parametrize("turns", [1, 2])
async def test_a_call_that_is_ended_while_its_intent_waits_is_recorded_once(tmp_path: Path, turns: int) -> None:
    ledger = FileLedger(tmp_path)
    stays, goes = exchange(), exchange()
    intents = [asyncio.ensure_future(ledger.intend(x)) for x in (stays, goes)]
    for _ in range(turns):  # the intent waits after the first, and is written after the second
        await asyncio.sleep(0)
    intents[1].cancel()
    await intents[0]
    with pytest.raises(asyncio.CancelledError):
        await intents[1]
    ledger.conclude(goes)
    ledger.close()
    found = [(record["record"], record["call"]) for record in records(ledger.path)]
    assert found == [("intent", stays.id), ("intent", goes.id), ("outcome", goes.id)]


async def test_an_intent_takes_waiting_outcomes_along_in_order(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    first, second = exchange(), exchange()
    ledger.conclude(first)
    await ledger.intend(second)
    assert [(record["record"], record["call"]) for record in records(ledger.path)] == [
        ("decision", first.id),
        ("outcome", first.id),
        ("intent", second.id),
    ]
    ledger.close()


async def test_a_decision_is_written_once_whether_or_not_the_call_was_made(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    made, refused = exchange(), exchange()
    await ledger.intend(made)
    ledger.conclude(made)
    ledger.conclude(refused)
    ledger.flush()
    assert [(record["record"], record["call"]) for record in records(ledger.path)] == [
        ("intent", made.id),
        ("outcome", made.id),
        ("decision", refused.id),
        ("outcome", refused.id),
    ]
    assert (decision_of(records(ledger.path), refused.id) or {})["result"] == {"decision": "ALLOW"}
    assert decision_of(records(ledger.path), "another") is None
    ledger.close()


async def test_the_outcome_says_who_what_where_and_how_long_and_leaves_why_to_the_decision(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    x = exchange(session="s-1")
    await ledger.intend(x)
    ledger.conclude(x)
    ledger.flush()
    _, record = records(ledger.path)
    assert record["agent"] == "support-bot"
    assert record["tenant"] == "acme"
    assert record["session"] == "s-1"
    assert (record["operation"], record["model"], record["decision"]) == ("chat", "gpt-4o-mini", "ALLOW")
    assert record["revision"] == "r1"
    assert record["seconds"] >= 0
    assert not record.keys() & {"target", "arguments", "explanation"}
    ledger.close()


async def test_a_torn_line_does_not_swallow_the_next_record(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"record":"outcome","call":"01"}\n{"record":"outc')
    ledger = FileLedger(tmp_path)
    x = exchange()
    await ledger.intend(x)
    ledger.close()
    assert [record["call"] for record in records(tmp_path / FILE_NAME)] == ["01", x.id]


async def test_two_processes_cannot_write_one_ledger(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    with pytest.raises(LedgerUnavailable, match="another process"):
        FileLedger(tmp_path)
    ledger.close()


async def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerUnavailable):
        FileLedger(tmp_path / "file" / "below")


def test_a_full_disk_refuses_calls_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    """In a process of its own: the file size limit stands in for a full disk."""
    program = Path(__file__).with_name("full_disk.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused", "recovered", "whole", "counted"]
    assert "outcomes were lost" in done.stderr


def test_only_the_owner_can_read_the_ledger(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    assert ledger.path.stat().st_mode & 0o077 == 0
    ledger.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: setattr(x, "usage", Usage(input_tokens=2 * (2**64 - 1), output_tokens=1)),
        lambda x: setattr(x, "path", "/\ud800"),
        lambda x: setattr(x, "ended", math.nan),
        lambda x: setattr(x, "call", object()),
    ],
    ids=["a count of 65 bits", "half a character", "no time", "no call"],
)
async def test_that_a_call_ended_is_recorded_whatever_was_made_of_it(
    spoil: Callable[[Exchange], None], tmp_path: Path
) -> None:
    ledger = FileLedger(tmp_path)
    x = exchange()
    x.code, x.status = "target_failed", 502
    spoil(x)
    ledger.conclude(x)
    ledger.note("reload", {"who": "\ud800"})
    ledger.close()
    _, outcome, reload = records(ledger.path)
    told = {name: outcome[name] for name in ("record", "call", "at", "code", "status", "agent", "detail")}
    assert told == {
        "record": "outcome",
        "call": x.id,
        "at": x.arrived_ns,
        "code": "target_failed",
        "status": 502,
        "agent": "support-bot",
        "detail": "the full record could not be written",
    }
    assert reload["record"] == "reload"


async def test_a_caller_without_a_key_cannot_fill_the_ledger() -> None:
    async with gate() as it, connected(it.port) as client:
        await client.say(b"GET /" + b"A" * 60_000 + b" HTTP/1.1\r\nhost: gateway\r\n\r\n")
        await client.answer()
        record = await it.ledger.outcome()
    assert record["path"] == "/" + "A" * (LONGEST_PATH - 1)
    assert len(orjson.dumps(record)) < 4096


async def test_a_ledger_that_is_deleted_under_a_gateway_is_begun_anew_and_misses_no_call(tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text('package weighbridge\n\ndecision := {"decision": "ALLOW"}\n')
    async with target() as upstream:
        configured = {
            "policy": {"paths": [str(tmp_path / "p.rego")]},
            "agents": [{"name": "support-bot", "key": AGENT_KEY}],
            "targets": [{"name": "primary", "kind": "openai", "url": upstream.url}],
            "routes": [{"name": "chat", "models": ["gpt-*"], "arms": [{"target": "primary"}]}],
        }
        async with serving_beside(configured, tmp_path) as gateway:
            path = tmp_path / "var" / "ledger" / FILE_NAME
            path.unlink()
            async with connected(int(gateway.url.rpartition(":")[2])) as client:
                await client.say(post("/v1/chat/completions", b'{"model":"gpt-4o","messages":[]}', AUTHORIZED))
                status, headers, _ = await client.answer()
            assert status == 200
            call = headers[b"x-weighbridge-call"].decode()
            assert await seen(path, call, "outcome") == [("intent", call), ("outcome", call)]


async def test_what_is_written_to_a_deleted_file_is_written_again(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    before, unseen, after = exchange(), exchange(), exchange()
    await ledger.intend(before)
    ledger.path.unlink()
    await ledger.intend(unseen)
    await seen(ledger.path, unseen.id, "intent")
    await ledger.intend(after)
    ledger.close()
    assert [record["call"] for record in records(ledger.path)] == [before.id, unseen.id, after.id]
    assert ledger.path.stat().st_mode & 0o077 == 0


async def test_a_ledger_whose_folder_is_moved_goes_on_in_its_place(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path / "ledger")
    calls = [exchange() for _ in range(3)]
    await ledger.intend(calls[0])
    (tmp_path / "ledger").rename(tmp_path / "moved")
    await ledger.intend(calls[1])
    await until(ledger.path.exists)
    await ledger.intend(calls[2])
    ledger.close()
    assert [record["call"] for record in records(tmp_path / "moved" / FILE_NAME)] == [calls[0].id, calls[1].id]
    assert [record["call"] for record in records(ledger.path)] == [calls[2].id]


async def test_calls_are_refused_while_a_ledger_cannot_be_begun_anew(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path / "ledger")
    await ledger.intend(exchange())
    (tmp_path / "ledger").rename(tmp_path / "moved")
    (tmp_path / "ledger").touch()
    await until(lambda: ledger.failure is not None)
    refused = exchange()
    with pytest.raises(LedgerUnavailable):
        await ledger.intend(refused)
    ledger.conclude(refused)
    (tmp_path / "ledger").unlink()
    # Nobody sends calls to a gateway that says it is not ready, so it has to find out by itself.
    await until(lambda: ledger.failure is None)
    ledger.close()
    assert [(record["record"], record["call"]) for record in records(ledger.path)] == [
        ("decision", refused.id),
        ("outcome", refused.id),
    ]


async def test_calls_are_refused_when_another_process_has_taken_the_place(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    await ledger.intend(exchange())
    ledger.path.unlink()
    other = FileLedger(tmp_path)
    await until(lambda: ledger.failure is not None)
    assert "another process writes here" in str(ledger.failure)
    other.close()
    ledger.close()


async def test_a_pipe_is_no_ledger(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(LedgerUnavailable, match="not a regular file"):
        FileLedger(tmp_path)


def test_a_reader_goes_on_where_it_was_and_never_with_half_a_record(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with path.open("ab", buffering=0) as file:
        with Reader(path) as reader:
            file.write(b'{"call":"1"}\n{"call":')
            assert list(reader) == [{"call": "1"}]
            file.write(b'"2"}')
            assert list(reader) == [{"call": "2"}]
            file.write(b'\nnot JSON\n[3]\n{"call":"4"}\n' + b"x" * LONGEST_LINE)
            assert list(reader) == [{"call": "4"}]
            file.write(b"x" * LONGEST_LINE + b'{"call":"5"}\n{"call":"6"}\n')
            assert list(reader) == [{"call": "6"}]


async def seen(path: Path, call: str, kind: str) -> list[tuple[str, str]]:
    """What a file holds of one call, as soon as it holds a record of this kind."""

    def found() -> list[tuple[str, str]]:
        there = records(path) if path.exists() else ()
        return [(record["record"], call) for record in there if record.get("call") == call]

    await until(lambda: (kind, call) in found())
    return found()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.02)  # the file system tells nobody
