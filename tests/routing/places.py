"""Targets for tests, by name and kind."""

from typing import Any

from config.settings import TargetSettings
from routing.target import Target, target


def place(name: str, kind: str, **settings: Any) -> Target:
    return target(TargetSettings.model_validate({"name": name, "kind": kind, "url": "http://127.0.0.1:9"} | settings))
