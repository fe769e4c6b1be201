"""OpenAPI documents in files: read as YAML and JSON, and their mistakes told where the operator finds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.errors import ConfigError
from config.settings import ToolSettings
from gateway.tools.operations import Described, current, mistakes

YAML = """\
openapi: 3.0.3
info: {title: crm, version: "1"}
paths:
  /tickets:
    post:
      operationId: createTicket
      requestBody:
        content:
          application/json:
            schema:
              type: object
              properties:
                title: {type: string, default: null, example: 0x10}
                due: {type: string, format: date, example: 2026-11-22}
      responses: {200: {description: made}}
"""


def written(folder: Path, text: str, name: str = "crm.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Described(path)
    return str(caught.value).splitlines()


def test_a_document_is_read_from_yaml_and_from_json(tmp_path: Path) -> None:
    as_json = json.dumps({"openapi": "3.1.0", "paths": {"/tickets": {"post": {"operationId": "createTicket"}}}})
    for path in (written(tmp_path, YAML), written(tmp_path, as_json, "crm.json")):
        found = Described(path).operations.find("POST", "/tickets")
        assert found is not None
        assert found.name == "createTicket"


def test_a_mistake_is_told_with_file_line_and_pointer(tmp_path: Path) -> None:
    path = written(tmp_path, YAML.replace("operationId: createTicket", "operationId: ''"))
    assert refused(path) == [
        f"{path}:6: /paths/~1tickets/post/operationId: is not a name: write 1 to 128 visible ASCII characters."
    ]


def test_what_is_no_yaml_no_json_or_no_file_is_told(tmp_path: Path) -> None:
    assert refused(written(tmp_path, "a: ["))[0].startswith(f"{tmp_path}/crm.yaml:2: is not YAML: did not find")
    assert refused(written(tmp_path, '{"a": }', "a.json"))[0].startswith(f"{tmp_path}/a.json:1: is not JSON")
    assert refused(tmp_path / "none.yaml") == [f"{tmp_path}/none.yaml: is not a file. Name an OpenAPI document."]


def test_another_text_is_another_document(tmp_path: Path) -> None:
    path = written(tmp_path, YAML)
    digest = Described(path).digest
    assert current(path, digest)
    written(tmp_path, YAML + "\n# more\n")
    assert not current(path, digest)


def test_the_mistakes_of_all_tools_are_found_once_each(tmp_path: Path) -> None:
    path = written(tmp_path, "openapi: 2.0")
    tools = [ToolSettings(name=name, kind="http", url="http://127.0.0.1:9", openapi=path) for name in ("one", "two")]
    assert len(mistakes(tools)) == 1
