"""`docs/translation.md` names every member that goes over, stays behind or is refused."""

from pathlib import Path

from adapters.translation import to_anthropic, to_openai, words

PAGE = (Path(__file__).parents[3] / "docs" / "translation.md").read_text()
MEMBERS = sorted(
    to_anthropic._KNOWN
    | to_anthropic._NEUTRAL.keys()
    | to_anthropic._REMEDIES.keys()
    | to_openai._KNOWN
    | to_openai._REMEDIES.keys()
)


def test_the_manual_names_every_member() -> None:
    assert len(MEMBERS) > 40
    assert [name for name in MEMBERS if f"`{name}" not in PAGE] == []


def test_the_manual_names_every_reason_for_an_end() -> None:
    reasons = {*words.FINISH_REASONS, *words.STOP_REASONS} - {"pause_turn", "function_call"}
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in PAGE] == []
