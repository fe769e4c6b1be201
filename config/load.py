"""The operator's file -> checked settings, or every mistake in it with its line; before anything is served."""

from __future__ import annotations

import errno
import json
import os
import re
import ssl
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args

from pydantic import ValidationError

from config import crosscheck, document
from config.document import Document, Fault
from config.errors import ConfigError, Mistake
from config.redis_url import RedisUrl
from config.secrets import Secret
from config.settings import Settings

STATE: Final[document.Path] = ("state",)

SECRETS: Final[tuple[document.Path, ...]] = (
    STATE,
    ("admin", "people", "*", "token"),
    ("decision_log", "token"),
    ("policy", "keys", "*", "key"),
    ("policy", "bundle", "token"),
    ("agents", "*", "key"),
    ("targets", "*", "key"),
    ("tools", "*", "key"),
    ("tools", "*", "credential", "value"),
    ("tools", "*", "oauth", "client_secret"),
    ("tools", "*", "env", "*", "value"),
    ("peers", "*", "key"),
    ("environments", "*", "key"),
    ("policy", "opa", "token"),
    ("routes", "*", "rollout", "webhook", "url"),
    ("routes", "*", "rollout", "webhook", "secret"),
    ("routes", "*", "rollout", "webhook", "previous_secret"),
    ("approvals", "webhook", "url"),
    ("approvals", "webhook", "secret"),
    ("approvals", "webhook", "previous_secret"),
)
"""Every place a secret can stand in; `*` is any item of a list. What stands in STATE need not be one."""

NOT_YET: Final[tuple[document.Path, ...]] = (
    ("peers",),
    ("environments",),
)
"""What this version reads and checks but does not act on: a warning each."""

_CAS: Final[tuple[document.Path, ...]] = (
    ("targets", "*", "ca"),
    ("policy", "opa", "ca"),
    ("policy", "bundle", "ca"),
    ("oauth", "issuers", "*", "ca"),
)

MOST_WARNINGS: Final = 20
"""Literal secrets that are named one by one; a reload must not fill the log."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings that are fit to serve with.

    `warnings` do not prevent serving; `files` are those whose change calls for loading again. `lines` are where the
    targets stand in the file at `path`.
    """

    settings: Settings
    warnings: list[Mistake]
    files: frozenset[Path]
    path: Path
    lines: Mapping[document.Path, int]

    def warning(self, at: document.Path, message: str, remedy: str) -> Mistake:
        """One that is found by whoever knows more than the file, about one of its targets."""
        return Mistake(self.path, self.lines[at], 0, crosscheck.dotted(at), message, remedy)


def load(path: Path, environ: Mapping[str, str] | None = None, *, resolve: bool = True) -> Loaded:
    """Read and check a configuration file; `environ` stands in for the process's environment.

    With `resolve` every secret has to be there and fit for use already now. Raises ConfigError with all mistakes.
    """
    path = Path(path)
    folder = path.absolute().parent
    files = frozenset({path.absolute()})
    try:
        content = _content(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise ConfigError([Mistake(path, 0, 0, "", f"cannot be read: {reason}", "Name a file.")], files) from None
    read = document.read(content)
    settings: Settings | None = None
    faults = list(read.faults)
    warnings: list[Fault] = []
    if read.data is not None:
        context = {"folder": folder, "environ": os.environ if environ is None else environ}
        settings, invalid = _validate(read, context)
        secrets = list(_secrets(read.data, context))
        files = files | {file for _, secret in secrets if (file := secret.file)} | set(_authorities(read.data, folder))
        files = files | {
            folder / each for _, each in _at(read.data, ("tools", "*", "openapi")) if isinstance(each, str)
        }
        complaints = [
            *crosscheck.names(read.data),
            *crosscheck.listeners(read.data),
            *_distrusted(read.data, folder),
            *_keyless(read.data, folder),
            *crosscheck.logins(read.data),
        ]
        if resolve:
            complaints += crosscheck.credentials(read.data, secrets)
        known = [fault.path for fault in faults if fault.path]
        faults += [fault for fault in invalid if not _follows(fault, known)]
        invalid_at = {fault.path for fault in faults}
        faults += [_fault(read, *each) for each in complaints if each[0] not in invalid_at]
        warnings = [_fault(read, *each) for each in _warnings(read.data, secrets)]
    if faults or settings is None:
        raise ConfigError(_mistakes(path, faults), files)
    lines: dict[document.Path, int] = {
        ("targets", number): read.mark(("targets", number))[0] for number in range(len(settings.targets))
    }
    return Loaded(settings, _mistakes(path, warnings), files, path, lines)


def _validate(read: Document, context: dict[str, Any]) -> tuple[Settings | None, list[Fault]]:
    try:
        return Settings.model_validate(read.data, context=context), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    # Out of the handler, so that no exception raised later carries the validator's own, which holds the input.
    faults = []
    for detail in details:
        path = tuple(detail["loc"])
        if detail["type"] == "extra_forbidden":
            faults.append(_unknown_key(read, path))
            continue
        if detail["type"] == "too_short" and detail["input"]:
            continue  # what is written in the list is wrong, and told by itself
        message, remedy = _explained(detail, path, read.booleans.get(path))
        faults.append(Fault(read.mark(path), path, message, remedy))
    return None, faults


def _follows(fault: Fault, known: list[document.Path]) -> bool:
    """Whether a fault only says again what is known of a value in it or around it."""
    at = fault.path
    return any(at[: len(path)] == path or (path[: len(at)] == at and fault.message != _UNKNOWN) for path in known)


def _unknown_key(read: Document, path: document.Path) -> Fault:
    """An unknown key is repeated only where it is a plain word: `{key:sk-...}` makes a key out of a secret."""
    known = sorted(_keys_at(path[:-1]))
    guess = crosscheck.nearest(path[-1], known)
    remedy = f"Did you mean {guess}?" if guess else f"Known here: {', '.join(known)}."
    place = path if _WORD.fullmatch(str(path[-1])) else path[:-1]
    return Fault(read.keys.get(path, read.mark(path)), place, _UNKNOWN, remedy)


def _keys_at(path: document.Path) -> list[str]:
    """The keys that the model at a place knows; KeyError where there is no model."""
    return list(_model_at(path).model_fields)


def _field_at(path: document.Path) -> Any:
    """The field that a place such as ("routes", 0, "arms", 1, "weight") is an instance of."""
    return _model_at(path[:-1]).model_fields[path[-1]]


def _model_at(path: document.Path) -> Any:
    model: Any = Settings
    for part in path:
        if isinstance(part, str):
            model = _model_of(model.model_fields[part].annotation)
    return model


def _model_of(annotation: Any) -> Any:
    """The section inside `Section`, `Section | None` or a list of them; KeyError when there is none."""
    while not hasattr(annotation, "model_fields"):
        inner = [each for each in get_args(annotation) if each not in (NoneType, ...)]
        if not inner:
            raise KeyError(annotation)
        annotation = inner[0]
    return annotation


def _explained(detail: Any, path: document.Path, boolean: str | None) -> tuple[str, str]:
    """What is wrong and what to write, in our words; only numbers are repeated, since a text may be a secret."""
    kind: str = detail["type"]
    bounds: dict[str, Any] = detail.get("ctx", {})
    value = detail["input"]
    number = _plain(value) if isinstance(value, int | float) and not isinstance(value, bool) else "this"
    if kind == "mistake":
        return bounds["message"], (bounds["message"] == _NO_TEXT and _for_a_boolean(boolean)) or bounds["remedy"]
    if kind == "missing":
        return "is missing", "Add it."
    if kind == "literal_error":
        allowed = str(bounds["expected"]).replace("'", "")
        guess = crosscheck.nearest(value, allowed.replace(" or ", ", ").split(", "), likeness=0.7)
        return "is not one of the possible words", f"Did you mean {guess}?" if guess else f"Write {allowed}."
    if kind in _BOUNDS:
        relation, bound = _BOUNDS[kind]
        return f"{number} is {relation} {_plain(bounds[bound])}", _range(path)
    if kind in ("too_short", "string_too_short"):
        return "is empty", "Write at least one."
    if kind == "model_type" and number != "this" and (wanted := _only_key(path)):
        return _EXPECTED[kind][0], f"Write {{{wanted}: {number}}}."
    if kind in _EXPECTED:
        return _EXPECTED[kind][0], (kind == "string_type" and _for_a_boolean(boolean)) or _EXPECTED[kind][1]
    return "is not usable", "Compare it with docs/configuration.md."


def _only_key(path: document.Path) -> str | None:
    """The one key that the section at a place must have, None where there is none or another one."""
    required = [name for name, info in _model_at(path).model_fields.items() if info.is_required()]
    return required[0] if len(required) == 1 else None


_UNKNOWN: Final = "has an unknown key in this place"
_WORD: Final = re.compile(r"[a-z]{1,16}(_[a-z]{1,16}){0,3}")
"""What keys look like, and secrets do not: a few lower-case words."""
_NO_TEXT: Final = "is not text"
_BOUNDS: Final = {
    "greater_than": ("not above", "gt"),
    "greater_than_equal": ("less than", "ge"),
    "less_than": ("not below", "lt"),
    "less_than_equal": ("more than", "le"),
}
_EXPECTED: Final = {
    "string_type": (_NO_TEXT, "Quote it."),
    "int_type": ("is not a whole number", "Write plain digits, without quotes or a point."),
    "int_from_float": ("is not a whole number", "Write plain digits, without a point."),
    "float_type": ("is not a number", "Write digits, without quotes."),
    "finite_number": ("is not a finite number", "Write an ordinary number."),
    "tuple_type": ("is not a list", "Write [a, b], or one - line for each."),
    "model_type": ("does not have keys of its own", "Write key: value pairs here."),
    "string_too_long": ("is too long", "Use at most 256 characters."),
}


def _for_a_boolean(written: str | None) -> str | None:
    return f'Unquoted, {written} means true or false to YAML; write "{written}" if it is text.' if written else None


def _range(path: document.Path) -> str:
    """What a number at a place may be, in one sentence."""
    bounds: dict[str, float] = {}
    for constraint in _field_at(path).metadata:
        for name in ("gt", "ge", "lt", "le"):
            bounds |= {name: value} if (value := getattr(constraint, name, None)) is not None else {}
    if "ge" in bounds and "le" in bounds:
        return f"Write a number from {_plain(bounds['ge'])} to {_plain(bounds['le'])}."
    if "gt" in bounds:
        below = f" and below {_plain(bounds['lt'])}" if "lt" in bounds else ""
        at_most = f", at most {_plain(bounds['le'])}" if "le" in bounds else ""
        return f"Write a number above {_plain(bounds['gt'])}{below}{at_most}."
    return f"Write {_plain(bounds.get('ge', 0))} or more."


def _plain(number: float) -> str:
    """A number as people write it: a limit of 9000000 is not 9e+06."""
    return f"{number:.15g}"


def _secrets(data: dict[str, Any], context: dict[str, Any]) -> Iterator[tuple[document.Path, Secret]]:
    """Every well-formed secret of the file; malformed ones were refused by the models."""
    for pattern in SECRETS:
        for path, written in _at(data, pattern):
            if isinstance(written, str) and (path != STATE or _is_secret_state(written)):
                try:
                    yield path, Secret(written, folder=context["folder"], environ=context["environ"])
                except ValueError:
                    continue


def _is_secret_state(written: str) -> bool:
    try:
        return written.startswith(("env:", "file:")) or RedisUrl.parse(written).is_secret
    except ValueError:
        return False


def _at(data: Any, pattern: document.Path, path: document.Path = ()) -> Iterator[tuple[document.Path, Any]]:
    """The values of the file that stand at a pattern such as ("routes", "*", "rollout")."""
    if not pattern:
        yield path, data
    elif pattern[0] == "*" and isinstance(data, list):
        for index, item in enumerate(data):
            yield from _at(item, pattern[1:], (*path, index))
    elif isinstance(data, dict) and pattern[0] in data:
        yield from _at(data[pattern[0]], pattern[1:], (*path, pattern[0]))


def _authorities(data: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Files beside the configuration whose change is one of it: whom to trust, and whose keys."""
    for _, name in (*_authority_files(data), *_key_files(data)):
        yield folder / name


def _distrusted(data: dict[str, Any], folder: Path) -> Iterator[crosscheck.Complaint]:
    """Files of authorities that no connection could be made with."""
    for path, ca in _authority_files(data):
        if ca.isprintable() and (wrong := _wrong_with(folder / ca)) is not None:
            yield path, wrong, "Name a PEM file, relative to this file's folder."


def _authority_files(data: dict[str, Any]) -> Iterator[tuple[document.Path, str]]:
    for pattern in _CAS:
        for path, ca in _at(data, pattern):
            if isinstance(ca, str):
                yield path, ca


def _keyless(data: dict[str, Any], folder: Path) -> Iterator[crosscheck.Complaint]:
    """Files that have to hold an issuer's keys and do not."""
    for path, keys in _key_files(data):
        try:
            held = json.loads(_content(folder / keys))
        except OSError:
            yield path, "cannot be read", "Name a file, relative to this file's folder."
            continue
        except ValueError:
            held = None
        if not isinstance(held, dict) or not isinstance(held.get("keys"), list) or not held["keys"]:
            yield path, "holds no JWK set", 'Write {"keys": [...]} into it, as RFC 7517 says.'


def _key_files(data: dict[str, Any]) -> Iterator[tuple[document.Path, str]]:
    for path, keys in _at(data, ("oauth", "issuers", "*", "jwks_file")):
        if isinstance(keys, str) and keys.isprintable():
            yield path, keys


def _wrong_with(authorities: Path) -> str | None:
    try:
        if not authorities.is_file():  # a pipe would keep its reader waiting
            return "is not a file" if authorities.exists() else "cannot be read"
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(authorities)
    except ssl.SSLError:
        return "holds no certificates"
    except OSError:
        return "cannot be read"
    return None


def _warnings(data: dict[str, Any], secrets: Iterable[tuple[document.Path, Secret]]) -> Iterator[crosscheck.Complaint]:
    literals = [path for path, secret in secrets if secret.is_literal]
    for number, path in enumerate(literals[:MOST_WARNINGS], 1):
        more = len(literals) - number if number == MOST_WARNINGS else 0
        message = "the secret itself stands in the file" + (f", as do {more} more further on" if more else "")
        yield path, message, "Use env:NAME or file:PATH."
    for pattern in NOT_YET:
        for path, _ in _at(data, pattern):
            yield path, "read and checked, but not enforced by this version", "Do not rely on it."
    written = data.get("policy")
    policy = written if isinstance(written, dict) else {}
    if policy.get("engine") == "opa":
        for key in ("paths", "bundle", "keys"):
            if policy.get(key):
                yield ("policy", key), "not read with engine: opa", "Give this to the OPA server."
    elif not policy.get("paths") and not policy.get("bundle"):
        yield ("policy",), "no policy is given, so every call is refused", "Add policy.paths."
    for path, route in crosscheck.each(data, ("routes",)):
        weights = [arm.get("weight", 100) for _, arm in crosscheck.each(route, ("arms",))]
        if len(weights) > 1 and all(isinstance(weight, int | float) for weight in weights) and sum(weights) != 100:
            message = f"the weights add up to {sum(weights):g}, not 100; each is a share of that sum"
            yield (*path, "arms"), message, "Make them add up to 100."
    for path, target in crosscheck.each(data, ("targets",)):
        yield from _misaddressed(path, target)
    for path, tool in crosscheck.each(data, ("tools",)):
        if tool.get("definitions") == "configured" and not tool.get("pins"):
            message = "is configured, and there are no pins, so no tool of it can be called"
            yield (*path, "definitions"), message, "Write what `weighbridge tools list --pins` prints as pins."
    for pattern in (("oauth", "issuers", "*", "jwks_url"), ("tools", "*", "oauth", "token_url")):
        for path, url in _at(data, pattern):
            if isinstance(url, str) and re.match(r"http://(?!(127\.[0-9.]+|localhost|\[::1\])([:/]|$))", url):
                yield path, "is not encrypted, and what comes from there is trusted", "Write https://."
    roles = {role for _, person in crosscheck.each(data, ("admin", "people")) for role in _texts(person.get("roles"))}
    for path, wanted in _at(data, ("routes", "*", "rollout", "approval")):
        if isinstance(wanted, list) and roles.isdisjoint(_texts(wanted)):
            yield path, "nobody has one of these roles, so nobody can promote", "Give it to one of admin.people."
    for path, budget in crosscheck.each(data, ("budgets",)):
        share = budget.get("warn_at", 0)
        if isinstance(share, int | float) and 0 < share < 1:
            message = f"{_plain(share)} is less than one per cent of the limit"
            yield (*path, "warn_at"), message, f"Write {_plain(share * 100)} for {_plain(share * 100)} per cent."


def _misaddressed(path: document.Path, target: dict[str, Any]) -> Iterator[crosscheck.Complaint]:
    """URLs of a target whose path is most likely not where its API begins."""
    for key in ("url", "urls"):
        for at, url in _at(target, (key,) if key == "url" else (key, "*")):
            if not isinstance(url, str):
                continue
            below = re.sub(r"^\w+://[^/]*", "", url).rstrip("/")
            if target.get("kind") in ("parallax", "anthropic") and below.endswith("/v1"):
                yield (*path, *at), "ends in /v1, which is added to it, so calls go to /v1/v1/...", "Write it without."
            elif target.get("kind") == "openai" and not below:
                remedy = "Write it with the path, as https://api.openai.com/v1."
                yield (*path, *at), "has no path, so calls go to /chat/completions, without a /v1", remedy


def _texts(listed: Any) -> set[str]:
    return {each for each in listed if isinstance(each, str)} if isinstance(listed, list) else set()


def _content(path: Path) -> bytes:
    """At most a byte more than a configuration may have. Raises OSError, ValueError."""
    # A named pipe in the file's place must not make a running gateway wait for someone to write into it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return stream.read(document.LARGEST + 1)


def _fault(read: Document, path: document.Path, message: str, remedy: str) -> Fault:
    return Fault(read.mark(path), path, message, remedy)


def _mistakes(path: Path, faults: Iterable[Fault]) -> list[Mistake]:
    ordered = sorted(faults, key=lambda fault: fault.mark)
    return [Mistake(path, *each.mark, _shown(each.path), each.message, each.remedy) for each in ordered]


def _shown(path: document.Path) -> str:
    """A place by its known keys, and by plain words; anything else may be a secret that lost its colon."""
    known = list(path)
    for index in range(len(path)):
        try:
            keys = _keys_at(path[:index])
        except KeyError:
            keys = []
        key = path[index]
        if isinstance(key, str) and key not in keys and not _WORD.fullmatch(key):
            known = known[:index]
            break
    return crosscheck.dotted(tuple(known))
