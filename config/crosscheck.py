"""Mistakes that only show between sections: names that lead nowhere, names used twice, keys shared by two.

Works on plain data of any shape, so that one wrong number does not hide a dangling name elsewhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, Final

from config.document import Path
from config.errors import SecretMissing
from config.redis_url import RedisUrl
from config.secrets import Secret
from config.settings import NAME

Complaint = tuple[Path, str, str]
"""Where, what, and what to write instead."""

SHORTEST_CREDENTIAL: Final = 8
"""Characters of the shortest key or token that lets someone in."""

_NAMED: Final[tuple[Path, ...]] = (
    ("admin", "people"),
    ("agents",),
    ("targets",),
    ("routes",),
    ("tools",),
    ("peers",),
    ("environments",),
)


def names(data: dict[str, Any]) -> Iterator[Complaint]:
    """Names used twice and names that lead nowhere."""
    for section in _NAMED:
        yield from _twice(each(data, section), "name")
    yield from _twice(each(data, ("policy", "keys")), "id")
    # A peer and an environment are both served at /a2a/NAME.
    peers = _texts(each(data, ("peers",)), "name")
    for path, item in each(data, ("environments",)):
        if isinstance(name := item.get("name"), str) and name in peers:
            yield (*path, "name"), "is also the name of a peer, and both are served at /a2a/NAME", "Rename one of them."
    targets = _texts(each(data, ("targets",)), "name")
    for path, route in each(data, ("routes",)):
        arms = [((*path, *at), arm) for at, arm in each(route, ("arms",))]
        yield from _twice(arms, "target")
        for at, arm in arms:
            yield from _known((*at, "target"), arm.get("target"), targets, "target", "targets")
        rollout = route.get("rollout")
        if isinstance(rollout, dict):
            at = (*path, "rollout", "canary")
            yield from _known(at, rollout.get("canary"), _texts(arms, "target"), "arm of this route", "its arms")
        mirror = route.get("mirror")
        if isinstance(mirror, dict):
            yield from _known((*path, "mirror", "target"), mirror.get("target"), targets, "target", "targets")
    yield from _nodes(data)


def logins(data: dict[str, Any]) -> Iterator[Complaint]:
    """Whose tokens say what of which agent: no two agents may be one and the same to an issuer."""
    issuers = each(data, ("oauth", "issuers"))
    yield from _twice(issuers, "issuer")
    known = [item["issuer"] for _, item in issuers if isinstance(item.get("issuer"), str)]
    taken: dict[tuple[str, str], Path] = {}
    for path, agent in each(data, ("agents",)):
        subject, issuer = agent.get("subject"), agent.get("issuer")
        if not isinstance(subject, str):
            continue
        if not issuers:
            yield (*path, "subject"), "is the subject of tokens, and none are taken", "Add oauth, or give it a key."
        elif issuer is None and len(known) > 1:
            yield path, "does not say which issuer knows it by its subject", "Add issuer, one of oauth.issuers."
        elif isinstance(issuer, str) and issuer not in known:
            yield (*path, "issuer"), "names no issuer", "Write one of oauth.issuers, letter by letter."
        elif known:
            identity = (issuer if isinstance(issuer, str) else known[0], subject)
            if identity in taken:
                yield (
                    (*path, "subject"),
                    f"is the same as {dotted((*taken[identity], 'subject'))}",
                    "Give each its own.",
                )
            taken.setdefault(identity, path)


def listeners(data: dict[str, Any]) -> Iterator[Complaint]:
    """The admin API must never answer on the port that agents can reach."""
    admin = data.get("admin")
    agents_at = _address(data.get("listen"), 8080)
    admin_at = _address(admin.get("listen") if isinstance(admin, dict) else None, 8081)
    same_host = agents_at[0] == admin_at[0] or any(each[0] in ("0.0.0.0", "::") for each in (agents_at, admin_at))
    if same_host and agents_at[1] == admin_at[1] != 0:
        at = ("admin", "listen", "port") if isinstance(admin, dict) else ("listen", "port")
        yield at, "is the port of both the agents' and the admin listener", "Give each its own."


def credentials(data: dict[str, Any], secrets: Iterable[tuple[Path, Secret]]) -> Iterator[Complaint]:
    """Secrets that do not resolve, credentials too short to trust, and two holders of the same one.

    `secrets` are those of the file with their places.
    """
    digests: list[tuple[Path, str]] = []
    for path, secret in secrets:
        try:
            value = secret.reveal_text() if path[:2] == ("policy", "keys") else secret.reveal()
        except SecretMissing as missing:
            where = "" if secret.is_literal else f" ({secret.reference})"
            yield path, f"{missing.reason}{where}", "Provide the secret before the gateway starts."
            continue
        if path == ("state",):
            yield from _unusable_state(path, value)
        if _lets_in(path):
            if len(value) < SHORTEST_CREDENTIAL:
                remedy = f"Use {SHORTEST_CREDENTIAL} characters or more, random ones."
                yield path, f"is shorter than {SHORTEST_CREDENTIAL} characters", remedy
            digests.append((path, sha256(value.encode()).hexdigest()))
    for path, agent in each(data, ("agents",)):
        digest = agent.get("key_sha256")
        if isinstance(digest, str) and "key" not in agent:
            digests.append(((*path, "key_sha256"), digest.lower()))
    owners: dict[str, str] = {}
    for path, digest in digests:
        owner = _owner(data, path)
        if digest in owners:
            yield path, f"{owner} has the same credential as {owners[digest]}", "Give each its own."
        owners.setdefault(digest, owner)


def each(data: Any, section: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The mappings listed in a section, with their places; empty where the file has something else there."""
    for key in section:
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, list):
        return []
    return [((*section, index), item) for index, item in enumerate(data) if isinstance(item, dict)]


def nearest(word: object, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The known word that was probably meant. Where another word would do great harm, ask for more than `likeness`."""
    matches = difflib.get_close_matches(word, sorted(known), n=1, cutoff=likeness) if isinstance(word, str) else []
    return matches[0] if matches else None


def _address(listen: Any, port: int) -> tuple[Any, Any]:
    listen = listen if isinstance(listen, dict) else {}
    return listen.get("host", "127.0.0.1"), listen.get("port", port)


def _texts(items: Iterable[tuple[Path, dict[str, Any]]], key: str) -> set[str]:
    return {item[key] for _, item in items if _is_name(item.get(key))}


def _is_name(word: object) -> bool:
    """Whether a text may be shown as a name; what is no name may be a secret in the wrong place."""
    return isinstance(word, str) and re.fullmatch(NAME, word) is not None


def _twice(items: Iterable[tuple[Path, dict[str, Any]]], key: str) -> Iterator[Complaint]:
    first: dict[str, Path] = {}
    for path, item in items:
        name = item.get(key)
        if isinstance(name, str) and name in first:
            yield (*path, key), f"is the same as {dotted((*first[name], key))}", f"Give each its own {key}."
        elif isinstance(name, str):
            first[name] = path


def _known(path: Path, word: object, known: set[str], what: str, where: str) -> Iterator[Complaint]:
    # What was written is not repeated: it stands at the line named, and may be a secret in the wrong place.
    if isinstance(word, str) and word not in known:
        guess = nearest(word, known)
        choice = ", ".join(sorted(known)[:10]) or "none is defined"
        yield path, f"names no {what}", f"Did you mean {guess}?" if guess else f"Name one of {where}: {choice}."


def _nodes(data: dict[str, Any]) -> Iterator[Complaint]:
    known: set[str] = set()
    listed = each(data, ("agents",))
    agents = {
        (item.get("tenant", "default"), item["name"])
        for _, item in listed
        if _is_name(item.get("name")) and _is_name(item.get("tenant", "default"))
    }
    for path, agent in listed:
        tenant, name, team = agent.get("tenant", "default"), agent.get("name"), agent.get("team")
        if _is_name(tenant):
            known.add(tenant)
            known.update(f"{tenant}/{part}" for part in (name, team) if _is_name(part))
        if _is_name(team) and _is_name(tenant) and (tenant, team) in agents:
            # Both would be the node tenant/name.
            yield (*path, "team"), "is also the name of an agent of this tenant", "Rename one of them."
    for section, distinct in (("budgets", ("node", "window")), ("limits", ("node",))):
        seen: dict[tuple[str, ...], Path] = {}
        for path, item in each(data, (section,)):
            yield from _known((*path, "node"), item.get("node"), known, "tenant, team or agent", "these")
            identity = tuple(str(item.get(key)) for key in distinct)
            if identity in seen:
                yield (*path, "node"), f"repeats {dotted(seen[identity])}", "Keep one of them."
            seen.setdefault(identity, path)


def _lets_in(path: Path) -> bool:
    return path[0] == "agents" or path[:2] == ("admin", "people")


def _unusable_state(path: Path, value: str) -> Iterator[Complaint]:
    try:
        RedisUrl.parse(value)
    except ValueError as error:
        reason = str(error)
    else:
        return
    yield path, f"the secret {reason}", "Let it be a whole URL such as redis://:PASSWORD@127.0.0.1:6379/0."


def _owner(data: dict[str, Any], path: Path) -> str:
    holder: Any = data
    for key in path[:-1]:
        holder = holder[key]
    name = holder.get("name")
    kind = "agent" if path[0] == "agents" else "person"
    return f"{kind} {name}" if _is_name(name) else dotted(path[:-1])


def dotted(path: Path) -> str:
    """("routes", 2, "arms", 0, "weight") -> `routes[2].arms[0].weight`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return re.sub(r"^\.", "", text)
