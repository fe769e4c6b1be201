"""The `weighbridge policy` commands that make bundles: built of proven policies, signed, verified before they go."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from config.errors import SecretMissing
from config.secrets import Secret
from gateway.logs import printable
from gateway.policy_commands import Commands
from gateway.terminal import MISTAKEN, OK, UNUSABLE, complain
from policies import archive, bundle, sources
from policies.errors import PolicyError, Problem
from policies.prove import prove
from policies.signatures import ALGORITHMS, Key, SigningKey, check

_PROVE: Final = 30.0
"""Seconds in which policies have to prove themselves before they are built."""


def add(rules: Commands[argparse.ArgumentParser]) -> None:
    """Adds `build`, `sign` and `verify` to the subcommands of `policy`."""
    command = rules.add_parser("build", help="make a bundle of policies and data")
    command.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a .rego file, a folder, data, or a bundle"
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE.tar.gz", help="the file to write")
    command.add_argument("--revision", default="", metavar="TEXT", help="its name (default: the hash of its contents)")
    command.set_defaults(run=_told(build))

    command = rules.add_parser("sign", help="sign a bundle")
    command.add_argument("bundle", type=Path, metavar="BUNDLE.tar.gz")
    _takes_key(command, "the PEM private key, or the secret of an HS algorithm")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="write here instead of replacing BUNDLE")
    command.set_defaults(run=_told(sign))

    command = rules.add_parser("verify", help="verify a bundle's signature")
    command.add_argument("bundle", type=Path, metavar="BUNDLE.tar.gz")
    _takes_key(command, "the PEM public key or certificate, or the secret of an HS algorithm")
    command.add_argument("--json", action="store_true", help="for scripts")
    command.set_defaults(run=_told(verify))


def _takes_key(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--key", required=True, metavar="FILE|env:NAME", help=what)
    command.add_argument("--algorithm", choices=ALGORITHMS, default="RS256", help="(default RS256)", metavar="NAME")
    command.add_argument("--key-id", default="", metavar="ID", help="the key's id under policy.keys")
    command.add_argument("--scope", default="", metavar="TEXT", help="what the signature says it is for")


def build(given: argparse.Namespace) -> int:
    """Proves policies as the gateway would, and writes them as a bundle; tests are left out."""
    read = sources.read(given.paths)
    asyncio.run(prove(read, _PROVE))
    modules = _relative({module.name: module.text for module in read.modules}, given.paths)
    content = bundle.build(modules, read.data, given.revision or read.revision)
    made = bundle.unpack(content, str(given.output))
    _write(given.output, content)
    print(printable(f"{given.output}: revision {made.revision}, {len(content)} bytes"))
    _list(made.files)
    return OK


def sign(given: argparse.Namespace) -> int:
    """Signs all files of a bundle; a signature that is there is replaced."""
    key = SigningKey(given.key_id, given.algorithm, _material(given.key), given.scope)
    content = bundle.sign(_read(given.bundle), str(given.bundle), key)
    _write(given.output or given.bundle, content)
    return OK


def verify(given: argparse.Namespace) -> int:
    """Whether the gateway would accept a bundle's signature, and what is in it."""
    key = Key(given.key_id, given.algorithm, _material(given.key), given.scope)
    if (wrong := check(key)) is not None:
        complain(f"{given.key}: {wrong.message}. {wrong.remedy}")
        return UNUSABLE
    found = bundle.unpack(_read(given.bundle), str(given.bundle), [key])
    if given.json:
        roots = ["/".join(root) for root in found.roots]
        print(json.dumps({"revision": found.revision, "roots": roots, "files": found.files}))
        return OK
    print(printable(f"{given.bundle}: verified, revision {found.revision or '(none)'}"))
    _list(found.files)
    return OK


def _told(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The command, its failures told."""

    def run(given: argparse.Namespace) -> int:
        try:
            return command(given)
        except PolicyError as error:
            complain("\n".join(map(str, error.problems)))
            return MISTAKEN
        except SecretMissing as missing:
            complain(f"--key {missing.reference}: {missing.reason}.")
            return UNUSABLE

    return run


def _material(written: str) -> str:
    return Secret(written if written.startswith(("env:", "file:")) else f"file:{written}").reveal_text()


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(archive.LARGEST_PACKED + 1)


def _write(file: Path, content: bytes) -> None:
    """Puts a whole file in place, so that a gateway watching it never sees a part."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        beside.unlink(missing_ok=True)


def _relative(modules: Mapping[str, str], paths: Sequence[Path]) -> dict[str, str]:
    """Modules by their paths below the one of `paths` they came from, with that one's name where two would be one."""
    named: dict[str, str] = {}
    for name, text in modules.items():
        root = next(path for path in paths if Path(name).is_relative_to(path))
        inner = root.name if Path(name) == root else Path(name).relative_to(root).as_posix()
        if inner in named:
            inner = f"{root.absolute().name}/{inner}"
        if inner in named:
            raise PolicyError(
                [Problem(name, None, "has the same name in the bundle as another", "Rename one of them.")]
            )
        named[inner] = text
    return named


def _list(files: Sequence[str]) -> None:
    for file in files:
        print(printable(f"  {file}"))
