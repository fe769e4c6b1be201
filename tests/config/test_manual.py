"""`docs/configuration.md` is what the models say."""

from __future__ import annotations

from config.manual import PAGE, manual
from config.settings import Section


def test_the_manual_in_the_repository_is_the_generated_one() -> None:
    assert PAGE.read_text() == manual(), "print it again: python -m config.manual > docs/configuration.md"


def test_every_key_says_what_it_is_for() -> None:
    for model in Section.__subclasses__():
        assert model.__doc__
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name}"
            assert info.description.endswith("."), f"{model.__name__}.{name}"


def test_every_key_has_its_row() -> None:
    page = manual()
    for model in Section.__subclasses__():
        for name, info in model.model_fields.items():
            assert any(
                line.startswith(f"| `{name}` |") and (info.description or "").split("|")[0] in line
                for line in page.splitlines()
            ), f"{model.__name__}.{name}"


def test_no_row_is_left_without_a_type_of_its_own() -> None:
    for line in manual().splitlines():
        if line.startswith("| `"):
            key, kind = line.split(" | ")[:2]
            assert kind != "section" or key.strip("| `") in SECTIONS, line


SECTIONS = {
    "listen",
    "admin",
    "credential",
    "ledger",
    "oauth",
    "decision_log",
    "policy",
    "opa",
    "bundle",
    "shadow",
    "rollback",
    "price",
    "timeouts",
    "health",
    "retry",
    "mirror",
    "rollout",
    "gates",
    "approvals",
    "webhook",
    "log",
}
