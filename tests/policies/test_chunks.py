"""What is lent at a time: as much as most answers need, of this agent and by this model."""

from policies.chunks import LARGEST, MOST_UNSEEN, SMALLEST, Chunks


def test_nothing_is_known_of_an_agents_first_answer() -> None:
    assert Chunks().usual("bot", "m") == SMALLEST


def test_nine_answers_out_of_ten_stay_below_what_is_usual() -> None:
    chunks = Chunks()
    for number in range(100):
        chunks.saw("bot", "m", 3000 if number % 20 == 7 else 900)
    assert chunks.usual("bot", "m") == 1024
    for _ in range(40):
        chunks.saw("bot", "m", 3000)
    assert chunks.usual("bot", "m") == 4096


def test_what_is_usual_has_its_bounds() -> None:
    chunks = Chunks()
    chunks.saw("bot", "m", 3)
    assert chunks.usual("bot", "m") == SMALLEST
    chunks.saw("bot", "long", 10**9)
    assert chunks.usual("bot", "long") == LARGEST


def test_agents_and_models_are_told_apart() -> None:
    chunks = Chunks()
    chunks.saw("bot", "m", 3000)
    assert chunks.usual("other", "m") == chunks.usual("bot", "other") == SMALLEST


def test_thoughts_that_are_not_shown_are_lent_for_beforehand_until_there_are_none() -> None:
    chunks = Chunks()
    chunks.saw("bot", "m", 30_100, unseen=30_000)
    assert chunks.usual("bot", "m") == SMALLEST + 30_000
    chunks.saw("bot", "m", 5_100, unseen=5_000)
    assert chunks.usual("bot", "m") > SMALLEST + 25_000
    for _ in range(200):
        chunks.saw("bot", "m", 100)
    assert chunks.usual("bot", "m") == SMALLEST
    chunks.saw("bot", "m", 10**9, unseen=10**9)
    assert chunks.usual("bot", "m") == SMALLEST + MOST_UNSEEN


def test_an_agent_that_makes_up_models_makes_nobody_else_forget_and_takes_little_room() -> None:
    chunks = Chunks()
    chunks.saw("bot", "m", 3000)
    for number in range(20_000):
        chunks.saw("hostile", f"m-{number}", 10)
    assert chunks.usual("bot", "m") == 4096
    assert len(chunks._seen["hostile"]) <= 32
