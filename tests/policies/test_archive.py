"""What an archive may cost and hold, and that every other one is refused in words, whatever its bytes are."""

import gzip
import io
import random
import tarfile
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import archive
from policies.archive import Unreadable, pack, unpack
from tests.policies.bundles import header, packed


def refusal(content: bytes) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        unpack(content)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "/", "./"])
def test_files_are_found_however_the_archive_was_written(format: int, prefix: str) -> None:
    long = "a" * 90 + "/" + "b" * 120 if format != tarfile.USTAR_FORMAT else "a" * 90 + "/" + "b" * 50
    names = ["main.rego", "deep/er/data.json", long]
    folder = header(prefix + "deep", tarfile.DIRTYPE)
    content = packed(folder, *((prefix + name, name) for name in names), format=format)
    assert {name: bytes(value) for name, value in unpack(content).items()} == {name: name.encode() for name in names}


@given(
    st.dictionaries(
        st.text("abcé/.-", min_size=1, max_size=150).filter(
            lambda name: all(part not in ("", ".", "..") for part in name.split("/")) and not name.startswith("./")
        ),
        st.binary(max_size=2000),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_packed_is_unpacked_again(files: dict[str, bytes]) -> None:
    content = pack(files)
    assert content == pack(files)
    assert {name: bytes(value) for name, value in unpack(content).items()} == files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../main.rego", "leads elsewhere"),
        ("a/../../main.rego", "leads elsewhere"),
        ("//etc/main.rego", "leads elsewhere"),
        ("a//main.rego", "leads elsewhere"),
        ("a/./main.rego", "leads elsewhere"),
        ("././main.rego", "leads elsewhere"),
        ("..", "leads elsewhere"),
        ("/", "leads elsewhere"),
        ("a\\..\\main.rego", "not everyone could read"),
        ("c:main.rego", "not everyone could read"),
        ("main\x1b[2J.rego", "not everyone could read"),
        ("main\n.rego", "not everyone could read"),
        ("main\u202e.rego", "not everyone could read"),
        ("x" * 2000, "more than 1024 characters"),
    ],
)
def test_a_name_that_leads_elsewhere_or_hides_something_is_refused(name: str, message: str) -> None:
    found = refusal(packed((name, "x"), format=tarfile.PAX_FORMAT))
    assert message in str(found)
    assert found.member.isprintable()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.CONTTYPE, "a contiguous file"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"V", "not known here"),
    ],
)
def test_only_files_and_folders_are_held(kind: bytes, message: str) -> None:
    found = refusal(packed(("a.rego", "x"), header("bad.rego", kind, linkname="/etc/passwd")))
    assert message in str(found)
    assert found.member == "bad.rego"


@pytest.mark.parametrize("twice", ["main.rego", "/main.rego", "./main.rego"])
def test_a_file_that_is_there_twice_is_refused(twice: str) -> None:
    found = refusal(packed(("main.rego", "x"), (twice, "y")))
    assert (str(found), found.member) == ("is there twice", "main.rego")


def test_a_pax_header_may_not_change_how_its_member_is_read() -> None:
    for key in ("size", "linkpath", "GNU.sparse.major", "hdrcharset"):
        entry = header("a.rego", tarfile.REGTYPE, pax_headers={key: "1"})
        assert f"`{key}`" in str(refusal(packed(entry, format=tarfile.PAX_FORMAT)))
    harmless = header("a.rego", tarfile.REGTYPE, pax_headers={"mtime": "1.5", "comment": "x\ny=z"})
    assert list(unpack(packed(harmless, format=tarfile.PAX_FORMAT))) == ["a.rego"]


def test_a_pax_header_without_end_is_refused_before_it_costs_anything() -> None:
    began = time.process_time()
    for keyword, count in ((b"a", 3_000_000), (b"path", 3_000_000)):
        record = b"%d %b=b\n" % (len(keyword) + 5, keyword)
        assert "more than 65536 bytes" in str(refusal(packed(_pax(record * count), format=tarfile.USTAR_FORMAT)))
    assert time.process_time() - began < 5


def test_many_records_in_a_pax_header_are_read_at_once() -> None:
    began = time.process_time()
    headers = [_pax(b"6 a=b\n" * 10_000) for _ in range(100)]
    members = [each for number, pax in enumerate(headers) for each in (pax, (f"{number}.rego", "x"))]
    assert len(unpack(packed(*members, format=tarfile.USTAR_FORMAT))) == 100
    assert time.process_time() - began < 10


def test_a_keyword_of_a_pax_header_that_is_no_text_is_shown_all_the_same() -> None:
    found = refusal(packed(_pax(b"18 GNU.sparse\xff=bb\n"), format=tarfile.USTAR_FORMAT))
    assert "`GNU.sparse\\\\xff`" in str(found)


def test_a_name_as_large_as_the_archive_costs_no_more_than_reading_it() -> None:
    name = header("longname", b"L")
    name.size = 20_000_000
    tarred = name.tobuf(tarfile.USTAR_FORMAT) + b"/" * name.size + b"\0" * (-name.size % 512)
    began = time.process_time()
    found = refusal(gzip.compress(tarred + header("a", tarfile.REGTYPE).tobuf(), compresslevel=1))
    assert "more than 1024 characters" in str(found)
    assert time.process_time() - began < 2


def _pax(records: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return header("pax", tarfile.XHDTYPE), records


def test_a_bomb_costs_no_more_than_was_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST_UNPACKED", 4 * 1024 * 1024)
    bomb = zlib.compressobj(9, wbits=31)
    content = b"".join(bomb.compress(bytes(1024 * 1024)) for _ in range(256)) + bomb.flush()
    assert len(content) < 300_000
    began = time.process_time()
    assert "inflates to more" in str(refusal(content))
    assert time.process_time() - began < 0.5


def test_zeros_up_to_the_limit_are_an_empty_archive_soon() -> None:
    began = time.process_time()
    assert unpack(gzip.compress(bytes(archive.LARGEST_UNPACKED), compresslevel=1)) == {}
    assert time.process_time() - began < 2


def test_the_number_of_members_has_a_limit_whatever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 5)
    assert len(unpack(packed(*((f"{number}.rego", "") for number in range(5))))) == 5
    assert "more than 5" in str(refusal(packed(*((f"{number}.rego", "") for number in range(6)))))
    folders = [header(f"{number}", tarfile.DIRTYPE) for number in range(6)]
    assert "more than 5" in str(refusal(packed(*folders)))


def test_the_packed_size_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST_PACKED", 100)
    assert "larger than 100" in str(refusal(bytes(101)))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    refusal(content)


def test_what_is_cut_or_goes_on_is_refused() -> None:
    whole = packed(("main.rego", "x" * 5000), ("b.rego", "y"))
    for length in range(0, len(whole), 7):
        refusal(whole[:length])
    assert "goes on after its end" in str(refusal(whole + b"x"))
    assert "goes on after its end" in str(refusal(whole + whole))
    tarred = gzip.decompress(whole)
    assert "goes on after its end" in str(refusal(gzip.compress(tarred + tarred)))
    for length in (100, 512 + 100, 512 + 5120 + 10):
        refusal(gzip.compress(tarred[:length]))


def test_damaged_archives_are_refused_or_read_but_never_break_the_reader() -> None:
    tarred = gzip.decompress(packed(("a/main.rego", "x" * 600), ("é" * 80, "y" * 30), format=tarfile.PAX_FORMAT))
    chance = random.Random(3)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(tarred)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            unpack(gzip.compress(bytes(damaged), compresslevel=0))
        except Unreadable:
            refused += 1
    assert 500 < refused < 2000


def test_a_header_that_lies_about_its_size_or_checksum_is_refused() -> None:
    tarred = bytearray(gzip.decompress(packed(("main.rego", "x"))))
    tarred[124:136] = b"7" * 11 + b"\0"
    assert "checksum" in str(refusal(gzip.compress(bytes(tarred))))
    tarred[148:156] = b"%06o\0 " % (sum(tarred[:148]) + sum(tarred[156:512]) + 8 * 32)
    assert "ends within a member" in str(refusal(gzip.compress(bytes(tarred))))
    tarred[124:136] = b"\x80" + b"\xff" * 11
    assert refusal(gzip.compress(bytes(tarred)))


def test_an_archive_agrees_with_python_on_what_it_holds() -> None:
    content = packed(("a.rego", "1"), ("b/c.json", "2"), format=tarfile.GNU_FORMAT)
    with tarfile.open(fileobj=io.BytesIO(content)) as theirs:
        assert [member.name for member in theirs] == list(unpack(content))
