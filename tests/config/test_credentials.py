"""What the gateway shows a plain HTTP tool: where it stands has to be a place."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from config.settings import CredentialSettings


@pytest.mark.parametrize("name", [" key", "key ", "a\x01b", ""])
def test_the_parameter_of_a_credential_has_a_name_that_can_be_read(name: str) -> None:
    with pytest.raises(ValidationError):
        CredentialSettings.model_validate({"query": name, "value": "the-tools-own"})


def test_the_parameter_of_a_credential_may_have_any_other_name() -> None:
    assert CredentialSettings.model_validate({"query": "api[key]", "value": "the-tools-own"}).query == "api[key]"
