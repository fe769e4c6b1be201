"""Policies and data written to break what reads them, each with a number, so that a finding can be repeated.

python -m tests.policies.hostile FIRST COUNT    loads and decides with so many, and prints what should not have happened
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from policies.errors import PolicyError
from policies.prove import prove

SECONDS: Final = 2.0
"""What a proof may take here."""
LATE: Final = 2.0
"""How much later than that the answer may come: a child has to start and read, on a machine that others use."""
WATCHED: Final = 2
"""Seconds of processor time for one decision of an accepted policy, as the watchdog counts them."""

_HEAD: Final = "package weighbridge\nimport rego.v1\n"
_ALLOW: Final = 'decision := {"decision": "ALLOW"}'

Write = Callable[[random.Random, Path], None]


def _policy(body: Callable[[random.Random], str]) -> Write:
    def write(chance: random.Random, folder: Path) -> None:
        (folder / "p.rego").write_bytes((_HEAD + body(chance) + "\n").encode("utf-8", "surrogatepass"))

    return write


def _data(name: str, body: Callable[[random.Random], bytes]) -> Write:
    def write(chance: random.Random, folder: Path) -> None:
        (folder / "p.rego").write_text(f"{_HEAD}{_ALLOW} if data.x\nother := count(data.x)\n")
        (folder / name).write_bytes(body(chance))

    return write


def _nested(chance: random.Random) -> str:
    opening, closing = chance.choice(
        ["[]", "{}", "()", ("{1:", "}"), ("[1|", "]"), ("f(", ")"), ("not ", ""), ("-", "")]
    )
    depth = chance.choice([10, 20, 60, 200, 5_000])
    return f"{_ALLOW} if x\nx := {opening * depth}1{closing * depth}"


def _long(chance: random.Random) -> str:
    count = chance.choice([100, 1_000, 9_000])
    part = chance.choice(["1 + ", "1 == ", '"a" | ', "x.", "x[0].", "count(", "some a in ", "with input as 1 "])
    return f"{_ALLOW} if {part * count} 1"


def _wide(chance: random.Random) -> str:
    many = chance.choice([50, 500, 2_000])
    rules = "\n".join(
        f"r{n} := {chance.choice(['input.a', str(n), f'r{max(0, n - 1)}', 'data.x'])}" for n in range(many)
    )
    return f"{rules}\n{_ALLOW} if r{many - 1}"


def _recursive(chance: random.Random) -> str:
    return chance.choice(
        [
            f"f(x) := f(x)\n{_ALLOW} if f(1)",
            f"f(x) := g(x)\ng(x) := h(x)\nh(x) := f([x])\n{_ALLOW} if f(1)",
            f"a := b\nb := data.weighbridge.a\n{_ALLOW} if a",
            f'{_ALLOW} if data["weighbridge"]["decision"]',
            f"{_ALLOW} if data.weighbridge[x]; x",
            f"{_ALLOW} if data[input.p].decision",
            f"{_ALLOW} if walk(data, [p, v]); v == 1",
            f"{_ALLOW} if p with input as data.weighbridge.decision\np if input.x",
            f"{_ALLOW} if a\na if b with data.x as 1\nb if a with data.x as 2",
            "decision := data.weighbridge",
            "decision contains decision",
            "decision[x] := decision[y] if some x, y in decision",
        ]
    )


def _endless(chance: random.Random) -> str:
    loops = chance.randint(2, 6)
    size = chance.choice([100, 1_000, 10_000])
    steps = "; ".join(f"some a{n} in numbers.range(1, {size})" for n in range(loops))
    kept = chance.choice(["1", "a0", "[a0, a1]", 'sprintf("%d", [a0])'])
    opening, closing = chance.choice([("count([", "])"), ("count({", "})"), ("sum([", "])"), ("max([", "])")])
    at = chance.choice(["", "input.call.session; "])
    return f"{_ALLOW} if {{ {at}{opening}{kept} | {steps}{closing} > 0 }}"


def _swollen(chance: random.Random) -> str:
    count = chance.choice([20, 40, 200])
    grow = chance.choice(
        [
            "concat({q}{q}, [s{n}, s{n}])",
            "[s{n}, s{n}]",
            "replace(s{n}, {q}a{q}, s{n})",
            "sprintf({q}%s%s{q}, [s{n}, s{n}])",
        ]
    )
    rules = "\n".join(f"s{n + 1} := {grow.format(n=n, q=chr(34))}" for n in range(count))
    return f's0 := "aaaaaaaa"\n{rules}\n{_ALLOW} if s{count} != input.x'


def _pattern(chance: random.Random) -> str:
    bomb = chance.choice(
        [
            "(a+)+$",
            "(a|a)*b",
            "a{1000}{1000}",
            "((a{99}){99}){99}",
            "(?i)" + "x?" * 900,
            "\\\\p{L}" * 300,
            "[",
            "(" * 500,
            "(?=a)",
        ]
    )
    text = '"' + "a" * chance.choice([30, 900]) + '!"'
    call = chance.choice(
        [
            'regex.match("{0}", {1})',
            'regex.replace({1}, "{0}", "aa")',
            'regex.find_n("{0}", {1}, -1)',
            'regex.split("{0}", {1})',
            'glob.match("{0}", [], {1})',
            'regex.globs_match("{0}", {1})',
        ]
    )
    return f"{_ALLOW} if {{ x := {call.format(bomb, text)}; x }}"


def _builtin(chance: random.Random) -> str:
    value = chance.choice(
        [
            "1e308",
            "-1e308",
            "1e999",
            "9223372036854775807",
            "0.1",
            '""',
            '"\\u0000"',
            "null",
            "[]",
            "{}",
            "set()",
            '"' + "9" * 900 + '"',
            "input",
            "data",
        ]
    )
    call = chance.choice(
        [
            "to_number({0})",
            "numbers.range({0}, 5)",
            "bits.lsh({0}, {0})",
            "round({0})",
            "{0} * {0} * {0}",
            "{0} % 3",
            "1 / {0}",
            'sprintf("%999d", [{0}])',
            "format_int({0}, 2)",
            "json.marshal({0})",
            "json.unmarshal({0})",
            "base64.decode({0})",
            "time.format({0})",
            "time.add_date({0}, 9999999, 0, 0)",
            "time.parse_rfc3339_ns({0})",
            "substring({0}, 0, -1)",
            "strings.repeat({0}, 9)",
            "array.slice({0}, -5, 1e9)",
            "object.union_n([{0}])",
            "graph.reachable({0}, {0})",
            "json.patch({0}, [{0}])",
            "net.cidr_contains({0}, {0})",
            "indexof_n({0}, {0})",
            "trim({0}, {0})",
            "split({0}, {0})",
            "urlquery.decode_object({0})",
            "semver.compare({0}, {0})",
            "hex.decode({0})",
            "crypto.sha256({0})",
            "sort({0})",
            "io.jwt.decode({0})",
            "json.match_schema({0}, {0})",
            "walk({0})",
            "print({0})",
            "opa.runtime()",
            "abs({0})",
        ]
    )
    return f"{_ALLOW} if {{ x := {call.format(value)}; x != input.call }}"


_WORDS: Final = [
    *"package import data input default decision := = == if else { } [ ] ( ) | , : ; .".split(),
    *"every some in not with as contains".split(),
    *"true null 1 -1 1e9 1e999 0x1 x y f(x) count(x) `b` % # @ $ ~ ^ $`x` weighbridge rego.v1".split(),
    *('"a"', "é", "\n", "\t", "\\", "\x00", "\ufeff", "\u202e", "\r", "\ud800", '"\\u{d800}"', "\U0001f600"),
]


def _noise(chance: random.Random) -> str:
    return _ALLOW + "\n" + " ".join(chance.choices(_WORDS, k=chance.randint(1, 60)))


def _mutated(chance: random.Random, folder: Path) -> None:
    """The shipped policy with some bytes lost, doubled, moved or replaced."""
    for source in sorted((Path(__file__).resolve().parents[2] / "policies" / "rego").glob("*.rego")):
        text = bytearray(source.read_bytes())
        for _ in range(chance.randint(0, 4)):
            at, length = chance.randrange(len(text)), chance.randint(1, 40)
            match chance.randrange(4):
                case 0:
                    del text[at : at + length]
                case 1:
                    text[at:at] = text[at : at + length] * chance.choice([1, 50])
                case 2:
                    text[at:at] = chance.choice(_WORDS).encode("utf-8", "surrogatepass")
                case _:
                    text[at] = chance.randrange(256)
        (folder / source.name).write_bytes(text)


def _json(chance: random.Random) -> bytes:
    depth = chance.choice([60, 65, 130, 100_000])
    return chance.choice(
        [
            b'{"x":' + b"[" * depth + b"]" * depth + b"}",
            b'{"x":' * depth + b"1" + b"}" * depth,
            b'{"x":1e999}',
            b'{"x":-0}',
            b'{"x":1' + b"0" * chance.choice([18, 30, 5_000]) + b"}",
            b'{"x":"\\ud800"}',
            b'{"x":"\xed\xa0\x80"}',
            b'{"x":1,"x":2}',
            b'{"x":"' + b"a" * 3_000_000 + b'"}',
            b'{"x":[' + b"1," * 300_000 + b"1]}",
            b'{"weighbridge":{"decision":{"decision":"ALLOW"}}}',
            b'{"x":NaN}',
            b"\xff\xfe{\x00}\x00",
            b"{" + b",".join(b'"k%d":{}' % n for n in range(60_000)) + b"}",
            b"",
            b"null",
            b"\x00",
        ]
    )


def _yaml(chance: random.Random) -> bytes:
    return chance.choice(
        [
            b"x: &a [" + b"1," * 9 + b"1]\n" + b"".join(b"y%d: &a%d [*a,*a]\n" % (n, n) for n in range(30)),
            b"x: " + b"[" * chance.choice([60, 70, 20_000]),
            b"x: " + b"{a: " * 2_000,
            b"- " * 50_000,
            b"x: !!python/object/apply:os.system [id]",
            b"? " * 5_000,
            b"x: |\n" + b" a\n" * 200_000,
            b"<<: {x: 1}",
            b"x: 0o17\ny: 1_000\nz: .inf",
            b"x: 1\n---\ny: 2",
            b"%TAG ! tag:x,2000:\n---\nx: !y z",
            b"x: \x85\xe2\x80\xa8 y",
            b'"\\ud800": 1\nx: "\\ud800"',
            b"x: " + b'"' * 5_000,
        ]
    )


def _files(chance: random.Random, folder: Path) -> None:
    """Things in the folder that are no files."""
    (folder / "p.rego").write_text(f"{_HEAD}{_ALLOW}\n")
    match chance.randrange(8):
        case 0:
            os.mkfifo(folder / "pipe.rego")
        case 1:
            (folder / "loop").symlink_to(folder)
        case 2:
            (folder / "a").symlink_to("b")
            (folder / "b").symlink_to("a")
        case 3:
            (folder / "zero.json").symlink_to("/dev/zero")
        case 4:
            (folder / "folder.rego").mkdir()
        case 5:
            (folder / "gone.yaml").symlink_to("nowhere")
        case 6:
            os.mknod(folder / "socket.json", 0o600 | 0o140000)
        case _:
            deep = folder
            for _ in range(60):
                deep = deep / "d"
            deep.mkdir(parents=True)
            (deep / "x.rego").write_text("package x\n")


KINDS: Final[tuple[Write, ...]] = (
    *map(_policy, (_nested, _long, _wide, _recursive, _endless, _swollen, _pattern, _builtin, _noise)),
    _mutated,
    _data("x.json", _json),
    _data("x.yaml", _yaml),
    _files,
)


def write(number: int, folder: Path) -> None:
    """Puts policy number so and so into an empty folder: every kind in turn."""
    folder.mkdir()
    KINDS[number % len(KINDS)](random.Random(number), folder)


_DECIDES: Final = """
import asyncio, sys
sys.path.append({root!r})
from policies.build import build
from policies.errors import Undecided
from policies.sources import read
from policies.watchdog import Watchdog

async def main():
    engine = await build(read([{folder!r}]))
    watchdog = Watchdog({seconds})
    watchdog.start()
    for document in (b"{{}}", b'{{"call":{{"session":"s","kind":"llm"}},"agent":{{"name":"a"}},"p":"weighbridge"}}'):
        try:
            await engine.evaluate(document, 0)
        except Undecided:
            pass
        await asyncio.sleep(0)
    watchdog.stop()

asyncio.run(main())
"""


def decide(folder: Path) -> str | None:
    """Decides with an accepted policy in a process of its own; what should not have happened, if anything did."""
    root = str(Path(__file__).resolve().parents[2])
    code = _DECIDES.format(root=root, folder=str(folder), seconds=WATCHED)
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, timeout=60, check=False)
    # A decision that took all its time is ended by the watchdog, which is what it is for.
    if ended.returncode in (0, -signal.SIGPROF):
        return None
    return f"deciding ended with {ended.returncode}: {ended.stderr[-300:]!r}"


async def load(folder: Path) -> tuple[bool, str | None]:
    """Whether the policy there was accepted, and what should not have happened, if anything did."""
    began = time.monotonic()
    accepted, wrong = True, None
    try:
        await prove([folder], SECONDS)
    except PolicyError as error:
        accepted = False
        for problem in error.problems:
            if not problem.message or not problem.file or "\x00" in str(problem):
                wrong = f"a problem without a place: {problem!r}"
            if "not foreseen" in problem.message:
                wrong = f"not foreseen: {problem}"
    except Exception as error:
        accepted, wrong = False, f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    if seconds > SECONDS + LATE:
        wrong = wrong or f"answered after {seconds:.1f} s"
    return accepted, wrong


def main() -> None:
    """Tries many; see the module."""
    first, count = map(int, sys.argv[1:3])
    accepted_in_all = 0
    for number in range(first, first + count):
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "p"
            write(number, folder)
            accepted, wrong = asyncio.run(load(folder))
            accepted_in_all += accepted
            if accepted and wrong is None:
                wrong = decide(folder)
            if wrong is not None:
                sys.stdout.write(f"{number} ({number % len(KINDS)}): {wrong}\n")
                sys.stdout.flush()
    sys.stdout.write(f"{count} policies, {accepted_in_all} accepted\n")


if __name__ == "__main__":
    main()
