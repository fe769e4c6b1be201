"""The record: when it is written, what survives, and what it never contains."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.ledger import FILE_NAME, FileLedger, LedgerUnavailable, records
from tests.support.exchanges import exchange


async def test_an_intent_is_in_the_file_before_anything_else_happens(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    x = exchange()
    ledger.intend(x)
    assert x.intended
    assert [record["call"] for record in records(ledger.path)] == [x.id]
    ledger.close()


async def test_outcomes_of_one_turn_share_one_write(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    for _ in range(3):
        ledger.conclude(exchange())
    assert ledger.path.stat().st_size == 0
    await asyncio.sleep(0)
    assert len(list(records(ledger.path))) == 3
    ledger.close()


async def test_an_intent_takes_waiting_outcomes_along_in_order(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    first, second = exchange(), exchange()
    ledger.conclude(first)
    ledger.intend(second)
    assert [(record["record"], record["call"]) for record in records(ledger.path)] == [
        ("outcome", first.id),
        ("intent", second.id),
    ]
    ledger.close()


async def test_the_outcome_says_who_what_why_where_and_how_long(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    x = exchange(session="s-1")
    ledger.conclude(x)
    ledger.flush()
    (record,) = records(ledger.path)
    assert record["agent"] == "support-bot"
    assert record["tenant"] == "acme"
    assert record["session"] == "s-1"
    assert (record["operation"], record["model"], record["decision"]) == ("chat", "gpt-4o-mini", "ALLOW")
    assert record["revision"] == "r1"
    assert record["seconds"] >= 0
    assert "target" not in record
    ledger.close()


async def test_masked_fields_do_not_reach_the_file(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    ledger.conclude(exchange(arguments={"model": "gpt-4o-mini", "messages": [{"content": "my secret"}], "n": 1}))
    ledger.flush()
    (record,) = records(ledger.path)
    assert record["masked"] == ["/messages"]
    assert record["arguments"]["n"] == 1
    assert b"my secret" not in ledger.path.read_bytes()
    ledger.close()


async def test_arguments_too_long_to_record_are_masked_whole(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    ledger.conclude(exchange(arguments={"model": "gpt-4o-mini", "padding": "x" * 100_000}))
    ledger.flush()
    (record,) = records(ledger.path)
    assert record["arguments"] is None
    assert "" in record["masked"]
    ledger.close()


async def test_a_torn_line_does_not_swallow_the_next_record(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"record":"outcome","call":"01"}\n{"record":"outc')
    ledger = FileLedger(tmp_path)
    x = exchange()
    ledger.intend(x)
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


def test_a_full_disk_refuses_calls_and_recovers(tmp_path: Path) -> None:
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
    assert done.stdout.split() == ["refused", "recovered"]
    lines = [(record["record"], record["call"]) for record in records(tmp_path / FILE_NAME)]
    assert [kind for kind, _ in lines] == ["intent", "intent", "outcome", "intent"]
    assert len(lines) == len(set(lines))


def test_only_the_owner_can_read_the_ledger(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    assert ledger.path.stat().st_mode & 0o077 == 0
    ledger.close()
