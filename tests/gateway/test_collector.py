"""The upload of decisions: batches arrive whole, calls never wait for it, and what is lost is counted."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from config.settings import DecisionLogSettings
from gateway.collector import Collector
from gateway.ledger import FileLedger
from tests.support.collector import collecting
from tests.support.exchanges import exchange


@asynccontextmanager
async def collector(port: int, *, patience: float = 10.0, **more: Any) -> AsyncIterator[Collector]:
    given = {"url": f"http://127.0.0.1:{port}/logs", "token": "collectors-token", "max_delay": 0.01, **more}
    it = Collector(DecisionLogSettings.model_validate(given), first_pause=0.01, patience=patience)
    it.begin()
    try:
        yield it
    finally:
        await it.close(within=1.0)


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)  # what happens in another task tells nobody


def event(number: int, size: int = 0) -> bytes:
    return orjson.dumps({"req_id": number, "padding": "x" * size})


async def test_events_arrive_as_gzipped_arrays_in_order() -> None:
    async with collecting() as it, collector(it.port) as upload:
        for number in range(5):
            upload.take(event(number))
        await until(lambda: len(it.events) == 5)
    assert [each["req_id"] for each in it.events] == list(range(5))
    head = it.heads[0].lower()
    assert head.startswith(b"post /logs http/1.1")
    assert b"content-encoding: gzip" in head
    assert b"content-type: application/json" in head
    assert b"authorization: bearer collectors-token" in head
    assert upload.counts == {"sent": 5, "dropped": 0, "failed": 0}


async def test_a_full_batch_does_not_wait() -> None:
    async with collecting() as it, collector(it.port, max_delay=3600, max_batch=2048) as upload:
        for number in range(5):
            upload.take(event(number, 1000))
        await until(lambda: len(it.events) == 4)
        assert [len(batch) for batch in it.batches] == [2, 2] or len(it.batches) >= 3
    assert [each["req_id"] for each in it.events] == list(range(5)), "what waited went out at the end"


@pytest.mark.parametrize("trouble", [500, 401, 302, "hangs up", "hangs"])
async def test_what_a_collector_did_not_take_is_tried_again(trouble: int | str) -> None:
    async with collecting() as it, collector(it.port, patience=0.2) as upload:
        it.answers = [trouble, trouble, 200]
        upload.take(event(1))
        upload.take(event(2))
        await until(lambda: len(it.events) == 2)
    assert upload.counts == {"sent": 2, "dropped": 0, "failed": 4}


async def test_nobody_waits_for_a_collector_and_the_oldest_events_give_way() -> None:
    async with collecting() as it, collector(it.port, max_batch=1024, buffer=10_240, patience=0.1) as upload:
        it.answers = ["hangs"]
        began = time.perf_counter()
        for number in range(1000):
            upload.take(event(number, 1000))
        assert time.perf_counter() - began < 0.5
        it.answers = [200]
        await until(lambda: 999 in [each["req_id"] for each in it.events])
        numbers = [each["req_id"] for each in it.events]
    assert numbers == sorted(numbers)
    assert upload.counts["dropped"] == 1000 - len(numbers)
    assert upload.counts["dropped"] > 980


async def test_a_batch_that_is_too_large_is_halved_and_an_event_that_is_too_large_is_dropped() -> None:
    async with collecting() as it, collector(it.port, max_delay=0.05) as upload:
        it.answers = [413, 413, 413, 413, 200]
        for number in range(8):
            upload.take(event(number))
        await until(lambda: upload.counts["sent"] + upload.counts["dropped"] == 8)
    assert [each["req_id"] for each in it.events] == list(range(1, 8))
    assert upload.counts["dropped"] == 1


async def test_batches_grow_again_after_one_that_was_too_large() -> None:
    async with collecting() as it, collector(it.port, max_delay=0.05, max_batch=1024) as upload:
        it.answers = [413, 413, 413, 200]
        for number in range(8):
            upload.take(event(number, 50))
        await until(lambda: upload.counts["sent"] + upload.counts["dropped"] == 8)
        already = len(it.batches)
        for number in range(100, 300):
            upload.take(event(number, 50))
        await until(lambda: len(it.events) == 208)
    assert max(len(batch) for batch in it.batches[already:]) > 8


async def test_whatever_a_collector_says_beyond_its_status_is_not_kept() -> None:
    async with collecting() as it, collector(it.port) as upload:
        it.answers = ["rambles", 200]
        upload.take(event(1))
        await until(lambda: upload.counts["sent"] == 1)
        upload.take(event(2))
        await until(lambda: upload.counts["sent"] == 2)
    assert it.said < 1000


async def test_an_answer_that_trickles_holds_no_other_upload_up() -> None:
    async with collecting() as it, collector(it.port, patience=0.05) as upload:
        it.answers = ["trickles", 200]
        upload.take(event(1))
        await until(lambda: it.events)
    assert upload.counts == {"sent": 1, "dropped": 0, "failed": 1}


async def test_the_end_does_not_wait_for_ever_and_counts_what_it_left() -> None:
    async with collecting() as it, collector(it.port) as upload:
        it.answers = ["hangs"]
        upload.take(event(1))
        await it.asked.wait()
        upload.take(event(2))
        began = time.perf_counter()
        await upload.close(within=0.1)
        assert time.perf_counter() - began < 5
    assert upload.counts["dropped"] == 2


async def test_nobody_there_is_no_reason_to_stop() -> None:
    async with collecting() as it:
        port = it.port
    async with collector(port) as upload:
        upload.take(event(1))
        await until(lambda: upload.counts["failed"] > 2)
        assert upload.counts["sent"] == 0


async def test_every_decision_of_the_ledger_is_uploaded_once_and_without_what_is_the_ledgers_own(
    tmp_path: Path,
) -> None:
    async with collecting() as it, collector(it.port) as upload:
        ledger = FileLedger(tmp_path, collect=upload.take)
        made, refused = exchange(), exchange()
        await ledger.intend(made)
        ledger.conclude(made)
        ledger.conclude(refused)
        ledger.close()
        await until(lambda: len(it.events) == 2)
    assert [each["decision_id"] for each in it.events] == [f"{made.id}-1", f"{refused.id}-1"]
    assert not it.events[0].keys() & {"record", "call"}
