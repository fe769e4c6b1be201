"""Who is calling, and who is not."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.identity import Agent, Directory, People, Unauthenticated
from tests.support.exchanges import AGENT_KEY, TOKEN, settings


def directory(**agent: object) -> Directory:
    agents = [{"name": "support-bot", "tenant": "acme", **agent}]
    return Directory(settings(agents=agents).agents)


@pytest.mark.parametrize(
    "written", [{"key": AGENT_KEY}, {"key_sha256": hashlib.sha256(AGENT_KEY.encode()).hexdigest()}]
)
def test_a_key_is_known_by_itself_or_by_its_digest(written: dict[str, str]) -> None:
    agent = directory(**written).identify(b"Bearer " + AGENT_KEY.encode(), None)
    assert (agent.name, agent.tenant) == ("support-bot", "acme")


@given(key=st.binary(max_size=200))
def test_no_other_key_is_anybody(key: bytes) -> None:
    if key.strip() != AGENT_KEY.encode():
        with pytest.raises(Unauthenticated):
            directory(key=AGENT_KEY).identify(b"Bearer " + key, None)
        with pytest.raises(Unauthenticated):
            directory(key=AGENT_KEY).identify(None, key)


def test_the_same_key_in_both_headers_is_one_key() -> None:
    assert isinstance(directory(key=AGENT_KEY).identify(b"Bearer " + AGENT_KEY.encode(), AGENT_KEY.encode()), Agent)


def test_a_refusal_never_repeats_what_was_shown() -> None:
    with pytest.raises(Unauthenticated) as refused:
        directory(key=AGENT_KEY).identify(b"Bearer not-quite-the-key", b"another-key")
    assert "not-quite" not in str(refused.value)
    assert "another" not in str(refused.value)


def test_the_directory_does_not_keep_keys() -> None:
    kept = repr(vars(directory(key=AGENT_KEY)))
    assert AGENT_KEY not in kept


def test_people_are_recognised_by_their_tokens_alone() -> None:
    people = People(settings().admin.people)
    dana = people.recognise(f"Bearer {TOKEN}")
    assert dana is not None
    assert (dana.name, dana.roles) == ("dana", frozenset({"admin"}))
    for shown in (None, "", "Bearer ", "Bearer wrong", TOKEN, f"Basic {TOKEN}", f"Bearer {AGENT_KEY}"):
        assert people.recognise(shown) is None


def test_an_agent_is_known_by_its_subject_to_the_issuer_that_means_it() -> None:
    issuers = [{"issuer": f"https://{name}.test", "jwks_url": f"https://{name}.test/jwks"} for name in ("one", "two")]
    written = settings(
        agents=[
            {"name": "support-bot", "tenant": "acme", "subject": "bot", "issuer": "https://one.test"},
            {"name": "other-bot", "tenant": "acme", "subject": "bot", "key": AGENT_KEY},
        ],
        oauth={"resource": "https://gw.test", "issuers": issuers},
    )
    assert written.oauth is not None
    found = Directory(written.agents, written.oauth.issuers)
    known = found.logged_in("https://one.test", "bot")
    assert known is not None
    assert known.name == "support-bot"
    assert found.logged_in("https://two.test", "bot") is None, "the other one does not say whose word it goes by"
    assert found.logged_in("https://one.test", AGENT_KEY) is None
    assert found.holder(hashlib.sha256(AGENT_KEY.encode()).digest()) is found.find("acme", "other-bot")
    assert found.holder(hashlib.sha256(b"bot").digest()) is None


def test_a_refusal_says_whether_something_was_shown() -> None:
    for shown, key in ((False, b""), (True, b"Bearer nobodys")):
        with pytest.raises(Unauthenticated) as refused:
            directory(key=AGENT_KEY).identify(key, None)
        assert refused.value.shown is shown
