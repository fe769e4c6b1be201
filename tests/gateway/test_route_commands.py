"""`weighbridge routes`: what people are shown, what is asked for them, and the exit codes that scripts rely on."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.remote import ADMIN, TOKEN
from gateway.terminal import MISTAKEN, OK, UNUSABLE
from tests.support.route_desk import TOKEN as DANAS
from tests.support.route_desk import RouteDesk, open_desk
from tests.support.route_told import told


class Shell:
    """A terminal on the machine of a running gateway."""

    def __init__(self, desk: RouteDesk, admin: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.desk, self.admin, self._capsys = desk, admin, capsys
        self.said = self.complained = ""

    async def run(self, *words: str) -> int:
        self._capsys.readouterr()
        code = await asyncio.to_thread(main, ["routes", *words, "--admin", self.admin])
        self.said, self.complained = self._capsys.readouterr()
        return code


@pytest.fixture
async def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shell]:
    monkeypatch.setenv(TOKEN, DANAS)
    desk = RouteDesk([told(), {**told(days=6.0), "name": "drafts", "rollout": None}])
    async with open_desk(desk) as admin:
        yield Shell(desk, admin, capsys)


# --- list ------------------------------------------------------------------------------------------------------------


async def test_list_shows_every_arm_of_every_route_with_its_figures(shell: Shell) -> None:
    assert await shell.run("list") == OK
    head, openai, parallax, drafts, _, empty, *times = shell.said.splitlines()
    assert head.split()[:5] == ["route", "target", "weight", "model", "health"]
    calls = [f"{arm['calls']:,}" for arm in shell.desk.routes[0]["arms"]]
    assert openai.split()[:8] == ["chat", "openai", "100", "%", "as", "asked", "ok", calls[0]]
    assert parallax.split()[:6] == ["parallax", "0", "%", "Qwen/Qwen3-0.6B", "ejected", calls[1]]
    assert drafts.startswith("drafts  openai")
    assert len(openai) == len(parallax) == len(head), "numbers end below each other"
    assert openai.count("$") == parallax.count("$") == 2
    assert [empty, *times] == [
        "",
        "Figures of chat are of 2025-11-19T00:00:00Z to 2025-11-28T00:00:00Z.",
        "Figures of drafts are of 2025-11-19T00:00:00Z to 2025-11-25T00:00:00Z.",
    ]


async def test_list_names_the_nodes_that_get_no_calls_once_each(shell: Shell) -> None:
    ejected = {"url": "http://10.0.0.5:3001", "state": "ejected", "why": "5 calls in a row failed", "until": "then"}
    tried = {"url": "http://10.0.0.6:3001", "state": "trying", "why": "a probe has found it unwell", "until": None}
    for route in shell.desk.routes:
        route["arms"][1]["nodes_out"] = [ejected, tried]
    assert await shell.run("list") == OK
    assert shell.said.splitlines()[-3:] == [
        "",
        "parallax: http://10.0.0.5:3001 is ejected until then: 5 calls in a row failed",
        "parallax: http://10.0.0.6:3001 is trying: a probe has found it unwell",
    ]


async def test_list_can_tell_a_script_that_an_arm_with_a_weight_is_not_well(shell: Shell) -> None:
    assert await shell.run("list", "--exit-code") == OK
    shell.desk.routes[1]["arms"][1]["health"] = "ejected"
    assert await shell.run("list", "--exit-code") == MISTAKEN


async def test_list_without_a_call_or_a_route_says_so(shell: Shell) -> None:
    shell.desk.routes[:] = [told(days=0.0)]
    assert await shell.run("list") == OK
    assert shell.said.splitlines()[1].split()[-6:] == ["-"] * 6
    assert shell.said.splitlines()[-1] == "Figures are of 2025-11-19T00:00:00Z to 2025-11-19T00:00:00Z."
    shell.desk.answer = 200, {"items": [], "next": None}
    assert await shell.run("list") == OK
    assert shell.said == "No routes are configured.\n"


async def test_list_tells_scripts_all_pages_with_every_digit(shell: Shell) -> None:
    assert await shell.run("list", "--json") == OK
    listed = json.loads(shell.said, parse_float=Decimal)
    assert [route["name"] for route in listed["items"]] == ["chat", "drafts"]
    assert listed["items"][0] == shell.desk.routes[0]


async def test_list_asks_every_page_for_the_same_window(shell: Shell) -> None:
    assert await shell.run("list", "--window", "7d") == OK
    assert shell.desk.queries == [{"window": "7d"}, {"window": "7d", "after": "1"}]


# --- weights ---------------------------------------------------------------------------------------------------------


async def test_weights_are_put_and_what_holds_now_is_shown(shell: Shell) -> None:
    assert await shell.run("weights", "drafts", "openai=67.5", "parallax=32.5", "--comment", "the launch") == OK
    body = {"weights": {"openai": 67.5, "parallax": 32.5}, "comment": "the launch"}
    assert shell.desk.asked == [("PUT", "/routes/drafts/weights", body)]
    assert ["67.5", "32.5"] == [line.split("%")[0].split()[-1] for line in shell.said.splitlines()[1:3]]
    assert await shell.run("weights", "chat", "openai=0", "parallax=100", "--json") == OK
    assert [arm["weight"] for arm in json.loads(shell.said)["arms"]] == [0, 100]


@pytest.mark.parametrize(
    "words", [[], ["openai"], ["=5"], ["openai="], ["openai=-1"], ["openai=101"], ["openai=1e2"], ["openai=nan"]]
)
async def test_weights_that_are_none_are_refused_before_anything_is_asked(shell: Shell, words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        await shell.run("weights", "chat", *words)
    assert refused.value.code == UNUSABLE
    assert shell.desk.asked == []


async def test_a_target_named_twice_is_refused_and_so_is_what_the_gateway_refuses(shell: Shell) -> None:
    assert await shell.run("weights", "chat", "openai=50", "openai=50") == UNUSABLE
    assert shell.complained == "A target is named more than once.\n"
    assert shell.desk.asked == []
    assert await shell.run("weights", "chat", "openai=70", "parallax=20") == UNUSABLE
    assert shell.complained == "The weights must sum to 100.\n"


# --- rollout ---------------------------------------------------------------------------------------------------------


async def test_a_rollout_shows_where_it_stands_why_and_what_happened(shell: Shell) -> None:
    shell.desk.routes[0] = told(days=6.0)
    assert await shell.run("rollout", "chat", "status") == OK
    assert shell.said.splitlines() == [
        "chat: canary parallax, running, step 2 of 4, at 30 %",
        "verdict                HOLD",
        "missing                18 d more at this step",
        "missing                needs ~1,310 more calls",
        "limit                  0.5 % of its calls may fail",
        "fails above the limit  1:50; 100:1 is enough",
        "is below the limit     3:1; 20:1 is enough to promote",
        "",
        "2025-11-19T00:01:00Z  dana         dana started the rollout.",
        "2025-11-22T00:00:00Z  weighbridge  Step 1 of 4 is passed: 1 of 600 calls failed, 0.167 %.",
    ]
    shell.desk.routes[0]["rollout"]["evidence"] = {"so_far": shell.desk.routes[0]["rollout"]["history"][0]["facts"]}
    assert await shell.run("rollout", "chat", "status") == OK
    said = "so far   since 2025-11-19T00:01:00Z, 1 of 600 calls failed (0.17 %); of the other arms' 4 of 5,400"
    assert said in shell.said
    assert await shell.run("rollout", "chat", "status", "--exit-code") == OK


async def test_a_rollout_that_nobody_judges_any_more_and_a_canary_that_is_out_are_told_as_that(shell: Shell) -> None:
    shell.desk.routes[0]["rollout"] |= {"state": "PROMOTED", "unjudged_since": 1_763_511_000, "evidence": None}
    shell.desk.routes[0]["rollout"]["health"] = "ejected"
    assert await shell.run("rollout", "chat", "status") == OK
    said = shell.said.splitlines()
    assert said[2] == "judged   no more, since 2025-11-19T00:10:00Z: `routes list` tells how it does"
    assert said[3] == "health   ejected, at this gateway"


async def test_weights_that_leave_an_arm_alone_are_warned_of(shell: Shell) -> None:
    shell.desk.routes[0]["warning"] = "When parallax fails, no other arm takes its calls."
    assert await shell.run("weights", "chat", "parallax=100") == OK
    assert shell.complained == "When parallax fails, no other arm takes its calls.\n"


async def test_weights_that_are_not_the_files_and_calls_that_were_rejected_are_marked(shell: Shell) -> None:
    shell.desk.routes[0]["arms"][1] |= {"weight": 50, "configured_weight": 10, "rejected": 782, "errors": 0}
    assert await shell.run("list") == OK
    assert "50 % (file: 10 %)" in shell.said
    assert "0, 782 rejected" in shell.said


async def test_a_rollout_that_has_not_begun_says_that_nobody_judges_its_canary(shell: Shell) -> None:
    shell.desk.routes[0]["rollout"] |= {"state": "DRAFT", "step": 0, "weight": None, "history": []}
    assert await shell.run("rollout", "chat", "status") == OK
    first = shell.said.splitlines()[0]
    assert first == "chat: canary parallax, draft: it has its configured weight, and nobody judges it before `start`"


async def test_a_rollout_that_has_stopped_can_be_told_by_a_script(shell: Shell) -> None:
    assert await shell.run("rollout", "chat", "status", "--exit-code") == MISTAKEN
    assert "canary parallax, rolled back by weighbridge, step 2 of 4" in shell.said
    aborted = {**shell.desk.routes[0]["rollout"]["history"][0], "what": "abort", "by": "dana"}
    edited = {**aborted, "what": "plan", "by": "weighbridge"}
    shell.desk.answer = 200, {**shell.desk.routes[0]["rollout"], "history": [edited, aborted]}
    assert await shell.run("rollout", "chat", "status") == OK
    assert "canary parallax, rolled back by dana, step 2 of 4" in shell.said
    shell.desk.answer = None
    assert await shell.run("rollout", "chat", "status", "--json") == OK
    assert json.loads(shell.said, parse_float=Decimal) == shell.desk.routes[0]["rollout"]


@pytest.mark.parametrize(
    ("move", "state"),
    [
        ("start", "running"),
        ("pause", "paused"),
        ("resume", "running"),
        ("promote", "running"),
        ("abort", "rolled back"),
    ],
)
async def test_a_rollout_is_moved_by_a_person_and_shown(shell: Shell, move: str, state: str) -> None:
    assert await shell.run("rollout", "chat", move, "--comment", "why not") == OK
    assert shell.desk.asked == [("POST", f"/routes/chat/rollout/{move}", {"comment": "why not"})]
    assert f"canary parallax, {state}" in shell.said


async def test_a_route_without_a_rollout_says_so(shell: Shell) -> None:
    assert await shell.run("rollout", "drafts", "start") == UNUSABLE
    assert shell.complained == "This route has no rollout.\n"
    with pytest.raises(SystemExit):
        await shell.run("rollout", "chat", "rewind")


# --- report ----------------------------------------------------------------------------------------------------------


async def test_a_report_is_written_and_its_answers_told(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "chat.html"
    assert await shell.run("report", "chat", "-o", str(file)) == OK
    assert file.read_text().startswith("<!doctype html>")
    assert shell.said.splitlines() == [
        "parallax in place of openai: not enough data (added p95 go, saving go, availability not enough data: about "
        "5,300 more calls to parallax)",
        f"The report is in {file}",
    ]
    assert os.listdir(tmp_path) == ["chat.html"]
    assert await shell.run("report", "chat", "-o", "-") == OK
    assert shell.said.startswith("<!doctype html>")
    assert shell.said.endswith("</html>\n")


async def test_a_report_is_asked_for_with_the_window_and_the_criteria_that_are_wanted(shell: Shell) -> None:
    criteria = ("--added-p95-ms", "200", "--saving", "0.1", "--availability", "0.99")
    assert await shell.run("report", "chat", "-o", "-", "--window", "24h", *criteria) == OK
    assert shell.desk.queries == [{"window": "24h", "added_p95_ms": "200", "saving": "0.1", "availability": "0.99"}]
    assert await shell.run("report", "chat", "-o", "-") == OK
    assert shell.desk.queries[-1] == {}


async def test_a_report_can_tell_a_script_whether_it_is_a_go(shell: Shell, tmp_path: Path) -> None:
    words = "report", "chat", "-o", str(tmp_path / "page"), "--exit-code"
    assert await shell.run(*words) == MISTAKEN
    shell.desk.routes[0]["comparisons"][0]["answer"] = "go"
    assert await shell.run(*words) == OK
    shell.desk.routes[0]["comparisons"] = []
    assert await shell.run("report", "chat", "--exit-code") == MISTAKEN
    assert shell.said == "chat: there is nothing to compare, so no go. It has one arm, or none but the canary.\n"


async def test_an_arm_that_stands_by_without_a_weight_is_not_asked_for_a_go(shell: Shell) -> None:
    route = shell.desk.routes[0]
    [comparison] = route["comparisons"]
    route["arms"].append({**route["arms"][0], "target": "claude", "weight": 0})
    route["comparisons"] = [{**comparison, "answer": "go"}, {**comparison, "arm": "claude", "answer": "no_go"}]
    assert await shell.run("report", "chat", "--exit-code") == OK, "the canary is asked, whatever its weight"
    first, second = shell.said.splitlines()
    assert first.startswith("parallax in place of openai: go (")
    assert second.endswith("It stands by at weight 0, and is not asked for a go.")
    route["arms"][2]["weight"] = 5
    assert await shell.run("report", "chat", "--exit-code") == MISTAKEN
    route["rollout"], route["comparisons"][:1], route["arms"][2]["weight"] = None, [], 0
    assert await shell.run("report", "chat", "--exit-code") == MISTAKEN, "it is the only one there is to ask"


async def test_a_price_that_is_not_known_is_named_with_its_target(shell: Shell) -> None:
    saving = shell.desk.routes[0]["comparisons"][0]["findings"][1]
    saving |= {"answer": "not_enough_data", "missing": None, "unpriced": ["parallax", "openai"]}
    assert await shell.run("report", "chat") == OK
    assert "saving not enough data: the price of parallax and openai is not known, see targets[].price," in shell.said


async def test_a_report_without_a_file_tells_the_answers_alone(shell: Shell) -> None:
    assert await shell.run("report", "chat") == OK
    [line] = shell.said.splitlines()
    assert line.startswith("parallax in place of openai: not enough data (added p95 go, ")
    assert await shell.run("report", "chat", "--json") == OK
    assert json.loads(shell.said, parse_float=Decimal) == shell.desk.routes[0]


async def test_a_report_on_what_is_no_route_leaves_no_file(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "page"
    assert await shell.run("report", "chit", "-o", str(file)) == UNUSABLE
    assert shell.complained == "There is no such route. There are: chat, drafts.\n"
    for answer in ({"name": "chat"}, {**told(), "until": "soon"}, {**told(), "arms": 3}):
        shell.desk.answer = 200, answer
        assert await shell.run("report", "chat", "-o", str(file)) == UNUSABLE
        assert "Is it of another version?" in shell.complained
    shell.desk.answer = None
    assert await shell.run("report", "chat", "-o", str(tmp_path / "no" / "such")) == UNUSABLE
    assert "No such file or directory" in shell.complained
    assert os.listdir(tmp_path) == []


_ARM = told()["arms"][0]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("list", {}),
        ("list", {"items": 5, "next": None}),
        ("list", {"items": [], "next": 1}),
        ("list", {"items": [{**told(), "name": []}], "next": None}),
        ("list", {"items": [{**told(), "arms": [{**_ARM, "weight": "much"}]}], "next": None}),
        ("list --exit-code --json", {"items": [{}], "next": None}),
        ("weights chat openai=100", {"arms": None}),
        ("rollout chat status", {}),
        ("rollout chat abort", {**told()["rollout"], "history": [{"at": 1e308, "by": "", "text": ""}]}),
        ("rollout chat status", {**told()["rollout"], "state": 5}),
        ("rollout chat status --exit-code --json", {"state": "PAUSED "}),
        ("report chat -o -", {**told(), "comparisons": [{}]}),
    ],
)
async def test_an_answer_that_is_none_is_said_in_one_line(shell: Shell, words: str, answer: Any) -> None:
    shell.desk.answer = 200, answer
    assert await shell.run(*words.split()) == UNUSABLE
    assert shell.said == ""
    assert shell.complained.count("\n") == 1
    assert "Is it of another version?" in shell.complained


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"items":[],"next":1e999999999}', b'{"items":[],"next":1e-99999}'])
async def test_an_answer_without_measure_is_no_gateways(shell: Shell, raw: bytes) -> None:
    shell.desk.raw = raw
    assert await shell.run("list") == UNUSABLE
    assert "is no gateway's admin API" in shell.complained


@pytest.mark.parametrize("words", [["list"], ["weights", "chat", "a=100"], ["rollout", "chat", "abort"]])
async def test_who_may_not_ask_is_told(shell: Shell, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "somebody-elses")
    assert await shell.run(*words) == UNUSABLE
    assert "does not know the token in WEIGHBRIDGE_ADMIN_TOKEN" in shell.complained


async def test_names_cannot_paint_the_terminal(shell: Shell) -> None:
    route: dict[str, Any] = {**told(), "name": "a\x1b[31m\nb"}
    shell.desk.routes[:] = [route]
    assert await shell.run("list") == OK
    assert "a\\x1b[31m\\nb" in shell.said


async def test_a_share_is_written_in_per_cent_or_as_a_fraction(shell: Shell) -> None:
    assert await shell.run("report", "chat", "--json", "--saving", "20%", "--availability", "99.5%") == OK
    assert shell.desk.queries == [{"saving": "0.2", "availability": "0.995"}]
    for share in ("20", "101%", "-1%", "%", "much", "1.1"):
        with pytest.raises(SystemExit) as refused:
            await shell.run("report", "chat", "--json", f"--saving={share}")
        assert refused.value.code == UNUSABLE
    assert len(shell.desk.queries) == 1


async def test_the_address_can_stand_in_the_environment_for_every_command(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADMIN, shell.admin)
    capsys.readouterr()
    assert await asyncio.to_thread(main, ["routes", "list", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["items"][0]["name"] == "chat"
    monkeypatch.setenv(ADMIN, "http://127.0.0.1:9")
    assert await shell.run("list") == OK, "what a command is given comes first"
    assert await asyncio.to_thread(main, ["routes", "list"]) == UNUSABLE
    complained = capsys.readouterr().err
    assert complained.startswith("Nothing answers at http://127.0.0.1:9 ")
    assert "--admin URL, or in WEIGHBRIDGE_ADMIN." in complained
