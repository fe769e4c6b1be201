"""The arithmetic of a benchmark run, and the reading of what wrk says."""

from pathlib import Path

import pytest

from benchmarks import soak, wrk
from benchmarks.scenarios import SCENARIOS, answer_body, answer_events
from benchmarks.table import BEGIN, END, Goal, Results, Sample, markdown, number, quantile, replaced, rows, slope


def results(**rates: list[float]) -> Results:
    found = Results("small")
    for contestant, figures in rates.items():
        for rate in figures:
            found.add(contestant, Sample(rate=rate, own=0.99, p50=1, p99=2))
    return found


def test_a_ratio_is_taken_within_each_round_so_that_a_slow_round_does_not_bend_it() -> None:
    assert results(ours=[100, 10, 120], envoy=[200, 20, 240]).ratio("ours", "envoy") == pytest.approx(0.5)


def test_a_ratio_to_somebody_who_was_not_measured_is_unknown() -> None:
    assert results(ours=[100]).ratio("ours", "envoy") is None


def test_one_invalid_round_makes_the_row_invalid_and_says_why() -> None:
    found = results(ours=[100], envoy=[200])
    found.add("ours", Sample(invalid="3 status errors"))
    row = rows(found)[0]
    assert row[0] == "ours"
    assert row[-1] == "INVALID: 3 status errors"
    assert "100" not in row
    assert found.ratio("ours", "envoy") is None


def test_a_contestant_that_left_its_core_idle_is_marked() -> None:
    found = Results("small")
    found.add("ours", Sample(rate=100, own=0.5, core=0.5, p50=1, p99=1))
    row = rows(found)[0]
    assert row[-1] == "not limited by its core"
    assert row[4] == "200", "calls for each second of its own core"


def test_a_row_says_that_others_used_the_core() -> None:
    found = Results("small")
    found.add("ours", Sample(rate=100, own=0.8, core=1.0, p50=1, p99=1))
    assert rows(found)[0][-1] == "others used its core"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12345.6, "12346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.2, "0.200"), (0.0, "0"), (None, "-")],
)
def test_numbers_keep_three_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "at_most", "verdict"),
    [
        (0.2, False, "met"),
        (0.19, False, "MISSED"),
        (0.19, True, "met"),
        (0.21, True, "MISSED"),
        (None, True, "not measured"),
    ],
)
def test_a_goal_is_met_at_its_bound_and_missed_beyond(value: float | None, at_most: bool, verdict: str) -> None:
    assert Goal("", value, 0.2, at_most).verdict == verdict


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50, 99, 100)
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_slope_is_found_through_noise_that_cancels() -> None:
    assert slope([(0, 10), (1, 13), (2, 13), (3, 16)]) == pytest.approx(1.8)
    with pytest.raises(ValueError, match="two different moments"):
        slope([(1, 1), (1, 2)])


def test_a_soak_is_judged_after_its_warm_up() -> None:
    mib = 2**20
    points = [(second, 100 * mib + min(second, 60) * mib) for second in range(0, 600, 5)]
    verdict = soak.judge(points, calls=1)
    assert verdict.flat
    assert verdict.slope == pytest.approx(0)
    assert "flat" in str(verdict)


def test_a_leak_of_a_mebibyte_a_minute_is_seen() -> None:
    verdict = soak.judge([(second, 10**8 + round(second / 60 * 2**20)) for second in range(0, 600, 5)], calls=1)
    assert not verdict.flat
    assert verdict.slope == pytest.approx(1024, rel=0.01)
    assert "GROWING" in str(verdict)


def test_a_soak_with_a_mistake_is_never_flat() -> None:
    assert not soak.judge([(float(second), 1) for second in range(100)], 1, "2 read errors").flat


def test_a_soak_that_was_too_short_to_tell_is_never_flat() -> None:
    verdict = soak.judge([(second, 1) for second in range(0, 60, 5)], 1)
    assert not verdict.flat
    assert "soak for longer" in str(verdict)


SUMMARY = (
    'Running 2s test\nsummary: {"requests":1000,"bytes":2000000,"microseconds":2000000,"connect":0,"read":0,"write":0,'
    '"status":%d,"timeout":%d,"p50":540.000,"p99":754.500}\n  1000 requests in 2.00s\n'
)


def test_wrk_is_read_in_seconds_and_milliseconds() -> None:
    report = wrk.parse(SUMMARY % (0, 0))
    assert (report.rate, report.p50, report.p99) == (500, 0.54, 0.7545)
    assert report.mistake(1500) == ""


def test_errors_and_short_answers_make_a_run_invalid() -> None:
    assert wrk.parse(SUMMARY % (3, 1)).mistake(0) == "3 status errors, 1 timeout errors"
    assert "2000 bytes on average" in wrk.parse(SUMMARY % (0, 0)).mistake(2001)


def test_wrk_without_a_summary_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a summary"):
        wrk.parse("unable to connect")


def test_each_command_has_markers_of_its_own() -> None:
    ours = [mark.replace("benchmarks", "benchmarks decisions") for mark in (BEGIN, END)]
    document = f"{ours[0]}\nold\n{ours[1]}\n{BEGIN}\nstays\n{END}\n"
    after = replaced(document, "new", "decisions")
    assert after == f"{ours[0]}\n\nnew\n\n{ours[1]}\n{BEGIN}\nstays\n{END}\n"
    manual = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert replaced(manual, "new", "decisions") != replaced(manual, "new") != manual


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(document, "new\n") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replaced(replaced(document, "new"), "new") == replaced(document, "new")
    with pytest.raises(ValueError, match="markers"):
        replaced("before\nafter\n", "new")


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    lines = markdown(("name", "n", "note"), [["a", "1", ""], ["longer", "12345", "x"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ------ | ----: | ---- |"


def test_requests_have_exactly_the_size_they_are_named_for() -> None:
    sizes = {"small": 1024, "large": 200 * 1024, "stream": 1024, "long": 1024}
    assert {name: len(scenario.body) for name, scenario in SCENARIOS.items()} == sizes


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_upstreams_answer_passes_the_check_and_a_damaged_one_does_not(name: str) -> None:
    scenario = SCENARIOS[name]
    answer = b"".join(answer_events(scenario.events)) if scenario.events else answer_body()
    assert scenario.mistake(200, answer) == ""
    assert scenario.mistake(403, answer)
    assert scenario.mistake(200, answer[:-20])
    assert scenario.mistake(200, answer.replace(b"word7" if scenario.events else b"Weigh", b"other"))
    assert scenario.arrived(scenario.body) == ""
    assert scenario.arrived(scenario.body[:-1])
    assert scenario.arrived(b'{"messages":[]}')
