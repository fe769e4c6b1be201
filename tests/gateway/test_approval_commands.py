"""`weighbridge approvals`: what people are shown, what scripts get, and a terminal that asks as calls come in."""

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.remote import TOKEN
from gateway.terminal import MISTAKEN, OK, UNUSABLE
from tests.support.held_calls import Held, holding, written
from tests.support.process import ROOT
from tests.support.stores import in_memory
from tests.support.target import Target, target


class Shell:
    """A terminal on the machine of a running gateway."""

    def __init__(self, gateway: Held, model: Target, capsys: pytest.CaptureFixture[str]) -> None:
        self.gateway, self.model, self._capsys = gateway, model, capsys
        self.said = self.complained = ""

    async def run(self, *words: str, who: str = "finn") -> int:
        self._capsys.readouterr()
        os.environ[TOKEN] = f"{who}s-own-token"
        code = await asyncio.to_thread(main, ["approvals", *words, "--admin", self.gateway.address])
        self.said, self.complained = self._capsys.readouterr()
        return code

    async def json(self, *words: str, who: str = "finn") -> Any:
        assert await self.run(*words, "--json", who=who) == OK, self.complained
        return json.loads(self.said)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.fixture
async def shell(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shell]:
    monkeypatch.setenv(TOKEN, "")  # and back again afterwards
    async with target() as model, holding(written(folder, model.url)) as gateway:
        yield Shell(gateway, model, capsys)


async def test_list_shows_what_waits_and_for_whom(shell: Shell) -> None:
    assert await shell.run("list") == OK
    assert shell.said == "Nothing waits for people.\n"
    held = await shell.gateway.hold("finance")
    two = await shell.gateway.hold("finance", "security", agent="other-bot")
    await shell.gateway.post(f"/approvals/{two}/approve", "sean")
    assert await shell.run("list") == OK
    head, first, second = shell.said.splitlines()
    assert head.split() == ["id", "state", "left", "agent", "target", "operation", "risk", "needs", "why"]
    assert first.split()[:2] == [held, "pending"]
    assert "59 min  acme/support-bot  gpt-4o  chat       high  finance" in first
    assert second.endswith("high  finance, security (given)  Money would move.")
    assert await shell.run("list", "--agent", "other-bot", "--tenant", "globex", "--role", "finance", "--mine") == OK
    assert [line.split()[0] for line in shell.said.splitlines()] == ["id", two]
    assert await shell.run("list", "--exit-code") == MISTAKEN
    assert await shell.run("list", "--state", "denied", "--exit-code") == OK
    assert [each["id"] for each in (await shell.json("list", "--state", "all"))["items"]] == [held, two]
    assert await shell.run("list", "--state", "open") == UNUSABLE
    assert shell.complained.startswith("`state` is none, nor a list of some: pending, approved,")


async def test_show_prints_everything_that_would_run(shell: Shell) -> None:
    text = "pay\nto \u202eecila\u202c \x1b[2K now"
    held = await shell.gateway.hold("finance", "security", messages=[{"role": "user", "content": text}], amount=1.0)
    await shell.gateway.post(f"/approvals/{held}/approve", "sean", comment="known vendor")
    assert await shell.run("show", held) == OK
    shown = shell.said.splitlines()
    assert shown[0] == f"{held}  pending, 59 min left"
    for line in (
        "who asks   support-bot of acme",
        "session    s-1",
        "what       chat of gpt-4o (openai)",
        "sent as    POST /v1/chat/completions",
        "why held   Money would move.",
        "risk       high",
        "needs      finance, security (given)",
        "version    2",
    ):
        assert line in shown
    assert re.search(r"^cost       \$0\.\d+$", shell.said, re.MULTILINE)
    assert re.search(r"^said       sean said yes as security, [\d:TZ-]+: known vendor$", shell.said, re.MULTILINE)
    assert shown[shown.index("arguments") + 1 :] == [
        "{",
        '  "model": "gpt-4o",',
        '  "messages": [',
        "    {",
        '      "role": "user",',
        '      "content": "pay\\n',
        '|       to \\u{202e}ecila\\u{202c} \\u001b[2K now"',
        "    }",
        "  ],",
        '  "needs": [',
        '    "finance",',
        '    "security"',
        "  ],",
        '  "amount": 1.0',
        "}",
    ]
    assert (await shell.json("show", held))["arguments"]["messages"][0]["content"] == text
    assert '"amount":1.0}' in shell.said


async def test_people_say_yes_and_no_and_take_back(shell: Shell) -> None:
    one = await shell.gateway.hold("finance", "security", n=1)
    assert await shell.run("approve", one, "--comment", "fine", "--version", "1") == OK
    assert shell.said == f"{one} is pending, and still needs security.\n"
    assert await shell.run("approve", one, "--version", "1", who="sean") == UNUSABLE
    assert shell.complained == "It has changed since version 1: it is pending now, at 2.\n"
    assert await shell.run("show", one, "--exit-code") == MISTAKEN
    assert await shell.run("approve", one, who="sean") == OK
    assert shell.said == f"{one} is approved.\n"
    assert await shell.run("show", one, "--exit-code", "--wait", "30") == OK, "what is decided is not waited for"
    assert await shell.run("cancel", one, "--comment", "no need") == UNUSABLE
    assert shell.complained == "This needs the role `admin`, which finn does not have.\n"
    for word in ("ran", "not-run"):
        assert await shell.run(word, one, "--comment", "looked", who="dana") == UNUSABLE
        assert "only where that is unknown" in shell.complained
    assert await shell.run("cancel", one, "--comment", "no need", who="dana") == OK
    assert shell.said == f"{one} is revoked.\n"
    two = await shell.gateway.hold(n=2)
    assert await shell.run("deny", two, who="olga") == UNUSABLE
    assert (
        shell.complained
        == "You own support-bot, or did when the call was held: others decide on it. Who can: finn, fay, both.\n"
    )
    denied = await shell.json("deny", two, "--comment", "wrong account")
    assert (denied["state"], denied["reason"]) == ("denied", "wrong account")
    assert await shell.run("deny", await shell.gateway.hold(n=3)) == OK
    assert shell.complained == "You gave no reason (--comment): the agent is told that it may not, not why.\n"
    for name in ("apr_x", "stream", "../routes\n\x1b"):
        assert await shell.run("show", name) == await shell.run("approve", name) == UNUSABLE
        assert shell.complained == f"{name!r} is no approval's id; `weighbridge approvals list` shows them.\n"
    assert await shell.run("show", "apr_01ARZ3NDEKTSV4RRFFQ69G5FAV") == UNUSABLE
    assert shell.complained == "No approval has this id, or it was long ago. GET /approvals lists them.\n"


async def test_show_waits_for_people(shell: Shell) -> None:
    held = await shell.gateway.hold()
    waits = asyncio.create_task(shell.run("show", held, "--wait", "30"))
    async with asyncio.timeout(10):
        while not shell.gateway.app.holds.waiting:
            await asyncio.sleep(0.001)
        await shell.gateway.post(f"/approvals/{held}/deny", "finn", comment="no")
        assert await waits == OK
    assert shell.said.startswith(f"{held}  denied\n")


async def test_other_arguments_are_taken_from_a_file_as_they_are_written(shell: Shell, tmp_path: Path) -> None:
    held = await shell.gateway.hold(amount=500)
    file = tmp_path / "arguments.json"
    file.write_text(
        '{"model": "gpt-4o", "messages": [{"role": "user", "content": "pay"}], "needs": ["finance"], "amount": 5.0}'
    )
    assert await shell.run("change", held, "--arguments", str(file), "--comment", "less") == OK
    told = shell.said.splitlines()
    place = told.index("changed by a person")
    assert told[place + 1 : place + 4] == ["  /amount", "  - 500", "  + 5.0"]
    assert f"instead of  {held}" in shell.said
    assert '  "amount": 5.0' in told
    file.write_text('{"a": 1, "a": 2}')
    assert await shell.run("change", held, "--arguments", str(file)) == UNUSABLE
    assert "is no JSON that all read the same (it has a key twice in one object)" in shell.complained


async def test_calls_are_allowed_beforehand_and_no_more(shell: Shell) -> None:
    assert await shell.run("grants") == OK
    assert shell.said == "Nothing is allowed beforehand.\n"
    held = await shell.gateway.hold(amount=5)
    words = ("--for", "1h", "--uses", "3", "--cost", "0.5", "--comment", "month's end")
    assert await shell.run("grant", "--from", held, *words) == OK
    assert "exactly one call" in shell.said
    assert await shell.run("grant", "--from", held, "--all-sessions", "--any-arguments", *words) == OK
    where = ("--where", "/amount=5.0", "--where", '/to="vendor"')
    facts = ("--agent", "support-bot", "--protocol", "openai", "--target", "gpt-4o", "--operation", "chat")
    made = await shell.json("grant", *facts, *where, *words)
    assert made["where"] == {"/amount": 5.0, "/to": "vendor"}
    assert '"where":{"/amount":5.0,' in shell.said
    assert await shell.run("grants", "--agent", "support-bot", "--tenant", "acme") == OK
    head, first, second, third = shell.said.splitlines()
    assert head.split() == "id agent session target operation where role left uses cost by why".split()
    assert re.search(r" s-1 +gpt-4o +chat +exactly one call +finance +59 min  1 of 3  \$0.0\d+ of \$0.500 +finn", first)
    assert re.search(r" all +gpt-4o +chat +any ", second)
    assert '/amount=5.0, /to="vendor"' in third
    assert await shell.run("revoke", made["id"], who="sean") == UNUSABLE
    assert await shell.run("revoke", made["id"]) == OK
    assert shell.said == f"{made['id']} is no more.\n"
    assert await shell.run("revoke", made["id"]) == UNUSABLE
    assert len((await shell.json("grants"))["items"]) == 2
    for option, value in (("--cost", "0"), ("--uses", "0")):
        with pytest.raises(SystemExit) as refused:
            await shell.run("grant", "--from", held, "--for", "1h", option, value)
        assert refused.value.code == UNUSABLE


async def test_a_constraint_that_is_no_json_is_a_text_and_the_person_is_told(shell: Shell) -> None:
    facts = ("--agent", "support-bot", "--tenant", "acme", "--protocol", "openai", "--target", "gpt-4o")
    words = (*facts, "--operation", "chat", "--for", "1h", "--uses", "3")
    assert await shell.run("grant", *words, "--where", "/to=vendor 7", "--where", "/amount=5", "--session", "") == OK
    assert shell.complained == '/to is to be the text "vendor 7".\n'
    assert ' none     gpt-4o  chat       /to="vendor 7", /amount=5' in shell.said
    for where, said in (
        ((), "For which arguments? Write --where /POINTER=VALUE, or --any-arguments."),
        (("amount=5",), "'amount=5' is no constraint. Write /POINTER=VALUE, as /base=main or /amount=5."),
        (("/amount",), "'/amount' is no constraint. Write /POINTER=VALUE, as /base=main or /amount=5."),
        (("/a=1", "/a=2"), "'/a' stands twice: no call can have two values there."),
        (('/a={"b": 1',), "The value of '/a' is no JSON that all read the same"),
        (("/a=1", "--any-arguments"), "`any_arguments` and values in `where` exclude each other"),
    ):
        options = [word for each in where for word in ((each,) if each.startswith("--") else ("--where", each))]
        assert await shell.run("grant", *words, *options) == UNUSABLE
        assert shell.complained.startswith(said)
        assert shell.complained.count("\n") == 1


class Terminal:
    """A terminal in which `watch` runs: what it prints is read, and a person types."""

    def __init__(self, process: subprocess.Popen[bytes], number: int) -> None:
        self.process, self._number = process, number
        self._said = ""

    async def until(self, text: str) -> str:
        """What was printed up to this text, which has to come."""
        async with asyncio.timeout(15):
            while text not in self._said:
                self._said += (await asyncio.to_thread(os.read, self._number, 65536)).decode().replace("\r\n", "\n")
        before, _, self._said = self._said.partition(text)
        return before

    def type(self, line: str) -> None:
        os.write(self._number, line.encode() + b"\n")


@contextlib.contextmanager
def terminal(shell: Shell, *words: str, who: str = "finn") -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    env = {**os.environ, TOKEN: f"{who}s-own-token", "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    command = [sys.executable, "-m", "gateway.cli", "approvals", "watch", *words, "--admin", shell.gateway.address]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, close_fds=True) as process:
        os.close(theirs)
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            os.close(ours)


async def test_watch_asks_at_a_terminal_as_calls_come_in(shell: Shell) -> None:
    first = await shell.gateway.hold(n=1)
    with terminal(shell) as person:
        await person.until(f"{first}  pending")
        await person.until("approve it? [y]es, [n]o, Enter to leave it: ")
        person.type("what?")
        await person.until("approve it? [y]es, [n]o, Enter to leave it: ")
        person.type("y")
        await person.until("comment: ")
        person.type("go on")
        await person.until(f"{first} is approved.\n")
        not_theirs = await shell.gateway.hold("security", n=2)
        second = await shell.gateway.hold(n=3)
        shown = await person.until("approve it? [y]es, [n]o, Enter to leave it: ")
        assert not_theirs in shown, "what others decide on is shown, and not asked about"
        assert f"{second}  pending" in shown
        await shell.gateway.post(f"/approvals/{second}/deny", "fay")
        person.type("y")
        await person.until("comment: ")
        person.type("")
        await person.until("It has changed since version 1: it is denied now, at 2.")
        await person.until(f"{second}  denied")
        two = await shell.gateway.hold("finance", "security", n=4)
        await person.until("approve it? [y]es, [n]o, Enter to leave it: ")
        await shell.gateway.post(f"/approvals/{two}/approve", "sean")
        person.type("yes")
        await person.until("comment: ")
        person.type("")
        assert "sean said yes as security" in await person.until("approve it? [y]es, [n]o, Enter to leave it: ")
        person.type("n")
        await person.until("comment: ")
        person.type("no need")
        await person.until(f"{two} is denied.")
    assert (await shell.gateway.get(f"/approvals/{first}"))["votes"][0]["comment"] == "go on"


async def test_what_was_typed_before_a_call_was_shown_is_no_word_on_it(shell: Shell) -> None:
    with terminal(shell) as person:
        person.type("y")
        person.type("a comment")
        held = await shell.gateway.hold()
        await person.until(f"{held}  pending")
        await person.until("approve it? [y]es, [n]o, Enter to leave it: ")
        person.type("n")
        await person.until("comment: ")
        person.type("")
        await person.until(f"{held} is denied.")


async def test_watch_tells_scripts_each_new_one_and_what_became_of_it(shell: Shell) -> None:
    with terminal(shell, "--mine", "--json") as script:
        while not shell.gateway.app.holds.store._listeners:  # type: ignore[attr-defined]  # it may not listen yet
            await asyncio.sleep(0.001)
        await shell.gateway.hold("security", n=1)
        held = await shell.gateway.hold(n=2, text="a\u2028b")
        line = (await script.until("\n")).strip()
        assert json.loads(line)["id"] == held
        await shell.gateway.post(f"/approvals/{held}/deny", "finn")
        ended = json.loads((await script.until("\n")).strip())
        assert (ended["id"], ended["state"]) == (held, "denied")


async def test_watch_without_a_gateway_ends_at_once(shell: Shell) -> None:
    with terminal(shell, who="nobody") as person:
        await person.until("does not know the token in")
        assert await asyncio.to_thread(person.process.wait, 15) == UNUSABLE
