"""Tools across reloads: what did not change stays as it is, what has gone gets no new calls."""

from typing import Any

import pytest

from adapters.errors import UnknownEndpoint
from config.settings import ToolSettings
from gateway.mcp.joined import JoinedServer
from gateway.tools.toolbox import Toolbox


def settings(name: str, **written: Any) -> ToolSettings:
    return ToolSettings.model_validate({"name": name, "kind": "mcp", "url": "http://127.0.0.1:9/mcp", **written})


async def test_what_a_reload_leaves_as_it_was_is_the_same_tool() -> None:
    first = Toolbox([settings("a"), settings("b")])
    second = Toolbox([settings("a"), settings("b")], first)
    assert [second.find("mcp", name) is first.find("mcp", name) for name in ("a", "b", "all")] == [True] * 3
    third = Toolbox([settings("a"), settings("b", timeout=3)], second)
    assert [third.find("mcp", name) is second.find("mcp", name) for name in ("a", "b", "all")] == [True, False, False]
    await third.close()


async def test_all_is_there_as_soon_as_there_is_something_to_join() -> None:
    assert isinstance(Toolbox([settings("a")]).find("mcp", "all"), JoinedServer)
    with pytest.raises(UnknownEndpoint):
        Toolbox([settings("a", joined=False)]).find("mcp", "all")


async def test_a_tool_that_has_gone_gets_no_new_calls_and_is_closed_with_the_others() -> None:
    first = Toolbox([settings("a"), settings("b")])
    gone = first.find("mcp", "b")
    second = Toolbox([settings("a")], first)
    second.succeed(first)
    with pytest.raises(UnknownEndpoint):
        second.find("mcp", "b")
    third = Toolbox([settings("a")], second)
    third.succeed(second)
    assert gone in third._left, "calls under way may still use it"
    await third.close()


@pytest.mark.parametrize(
    ("protocol", "name", "words"),
    [
        ("mcp", "", "There is no tool '' at /mcp/. Write its name behind that: /mcp/all joins them."),
        ("http", "notes", "There is no tool 'notes' at /tools/: it is at /mcp/notes."),
        ("mcp", "crm", "There is no tool 'crm' at /mcp/: it is at /tools/crm."),
        ("http", "", "There is no tool '' at /tools/. Write its name behind that."),
        ("http", "nothing", "There is no tool 'nothing' at /tools/."),
    ],
)
async def test_who_looks_for_a_tool_where_it_is_not_is_told_where_it_is(protocol: str, name: str, words: str) -> None:
    crm = ToolSettings.model_validate({"name": "crm", "kind": "http", "url": "http://127.0.0.1:9"})
    box = Toolbox([settings("notes"), crm])
    with pytest.raises(UnknownEndpoint) as raised:
        box.find(protocol, name)
    assert str(raised.value) == words
    await box.close()
