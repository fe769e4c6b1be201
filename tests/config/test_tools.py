"""Settings of tools: a server has one place, and nothing is written that would mean nothing there."""

from typing import Any

import pytest
from pydantic import ValidationError

from config.settings import ToolSettings

URL = {"url": "http://127.0.0.1:9001/mcp"}
COMMAND = {"command": ["python", "server.py"]}


def tool(**written: Any) -> ToolSettings:
    return ToolSettings.model_validate({"name": "files", "kind": "mcp", **written})


def test_a_local_server_is_a_program_with_its_arguments_and_bounds() -> None:
    read = tool(**COMMAND, env=[{"name": "TOKEN", "value": "a-secret"}], memory="512MiB", restart="1m", shared=True)
    assert read.command == ("python", "server.py")
    assert (read.memory, read.restart, read.count, read.session_idle) == (512 * 2**20, 60.0, 32, 1800.0)
    assert "a-secret" not in repr(read)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({}, "does not say where it is"),
        (URL | COMMAND, "has url and command"),
        (COMMAND | {"kind": "http"}, "has a command and kind http"),
        (URL | {"count": 3}, "count is for tools with a command"),
        (URL | {"env": []}, "env is for tools with a command"),
        (COMMAND | {"name": "all"}, "has the name under which all MCP servers are joined"),
        (COMMAND | {"name": "a__b"}, "has a name that cannot stand before two underscores"),
        (COMMAND | {"name": "a_"}, "has a name that cannot stand before two underscores"),
        (COMMAND | {"name": "a" * 41}, "has a name too long to stand before those of its tools"),
        ({"command": [""]}, "is no word of a command"),
        ({"command": ["a\0b"]}, "is no word of a command"),
        (COMMAND | {"env": [{"name": "A-B", "value": "x"}]}, "is not the name of an environment variable"),
        (COMMAND | {"memory": "1MiB"}, "greater than or equal to"),
        (COMMAND | {"count": 0}, "greater than or equal to"),
        (COMMAND | {"lists_within": 0}, "greater than"),
    ],
)
def test_a_mistake_in_a_tool_is_told(written: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        tool(**written)


@pytest.mark.parametrize("name", ["a__b", "a_", "a" * 41])
def test_a_server_that_is_not_joined_may_have_any_name(name: str) -> None:
    assert tool(**COMMAND, name=name, joined=False).name == name
