"""Reading text: files, documents, sentences, and everything that can be wrong with a file."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import os
import re
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert import corpus
from minibert.corpus import (
    Piece,
    ReaderOptions,
    check_readable,
    find_files,
    other_files,
    read_pieces,
    readable_files,
    sentences_of,
    split_sentences,
)
from minibert.errors import InputError

MIB = 1 << 20
PLAIN = ReaderOptions()
REPLACE = ReaderOptions(encoding_errors="replace")
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
# The suite gives the same examples on every run.
fuzz = settings(deadline=None, derandomize=True, max_examples=150)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def documents(path: Path, options: ReaderOptions = PLAIN) -> list[list[str]]:
    """Lines of each document, the parts of long ones put together."""
    found: list[list[str]] = []
    for piece in read_pieces(path, options):
        if piece.starts_document:
            found.append([])
        found[-1] += piece.lines
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for tests that hypothesis calls many times."""
    return tmp_path_factory.mktemp("scratch")


# --- documents ---------------------------------------------------------------------------------


def test_blank_lines_end_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\none\ntwo\n\n \t \n\nthree\n")
    assert documents(path) == [["one", "two"], ["three"]]


def test_last_line_needs_no_line_end(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a.txt", "one\n\ntwo")) == [["one"], ["two"]]


def test_windows_line_ends_and_byte_order_mark_leave_no_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert documents(path) == [["one", "two"], ["three"]]


def test_only_a_leading_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeff\ufeffa\n\ufeffb")
    assert documents(path) == [["\ufeffa", "\ufeffb"]]


def test_document_per_file_keeps_blank_lines_from_ending_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n\ntwo\n\n\nthree\n")
    assert documents(path, ReaderOptions(document_per_file=True)) == [["one", "two", "three"]]


def test_nul_characters_are_dropped_and_counted() -> None:
    assert sentences_of(["a\0b. C\0\0", "\0"], PLAIN) == (["ab.", "C"], 4)


def test_one_sentence_per_line_leaves_lines_whole() -> None:
    lines = [" One. Two. ", "Three? Four!"]
    whole = ReaderOptions(one_sentence_per_line=True)
    assert sentences_of(lines, whole) == (["One. Two.", "Three? Four!"], 0)
    assert sentences_of(lines, PLAIN) == (["One.", "Two.", "Three?", "Four!"], 0)


def test_long_document_comes_in_parts_and_starts_once(tmp_path: Path) -> None:
    line = "word " * 2000
    path = write(tmp_path / "a.txt", f"{line}\n" * 500 + "\nlast\n")
    pieces = list(read_pieces(path, PLAIN))
    assert [p.starts_document for p in pieces] == [True, False, False, False, False, True]
    assert max(sum(map(len, p.lines)) for p in pieces) < 1.1 * MIB
    assert documents(path) == [[line] * 500, ["last"]]


WIKITEXT = """ \n = A = B = \n \n A @-@ B is \u201c <unk> \u201d , 1 @,@ 000 @.@ 5 m .\r
 \n = = Plot = = \n \n Two . It = 2 .\n \n = Next = \n \n End .\n"""


def test_wikitext_is_documents_of_plain_lines(tmp_path: Path) -> None:
    (tmp_path / "wiki.train.tokens").write_text(WIKITEXT, encoding="utf-8", newline="")
    (found,) = find_files(tmp_path)
    first = ["A = B", " A-B is \u201c \u201d , 1,000.5 m .", "Plot", " Two . It = 2 ."]
    assert documents(found) == [first, ["Next", " End ."]]
    assert documents(found, ReaderOptions(document_per_file=True)) == [[*first, "Next", " End ."]]


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        (" = A = ", "A"),
        ("= = A = B = =", "A = B"),
        ("= A", "= A"),
        ("A = B =", "A = B ="),
        ("= " * 30_000 + "end", "= " * 30_000 + "end"),
        ("= a" + " =" * 30_000 + " end", "= a" + " =" * 30_000 + " end"),
    ],
    ids=["title", "section", "begun", "ended", "signs in front", "signs within"],
)
def test_only_headings_lose_their_signs(line: str, plain: str) -> None:
    assert corpus.plain_line(line) == plain


def test_other_text_keeps_what_wikitext_would_lose(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", " = A = \n 1 @-@ 2 <unk>\n")
    assert documents(path) == [[" = A = ", " 1 @-@ 2 <unk>"]]


# --- JSON lines --------------------------------------------------------------------------------


def test_json_lines_are_documents_of_their_lines(tmp_path: Path) -> None:
    rows = [{"text": "One.\n\nTwo."}, {"text": ""}, {"text": "中文", "id": 3}]
    content = "\n\n".join(json.dumps(row) for row in rows)
    assert documents(write(tmp_path / "a.jsonl", content)) == [["One.", "Two."], [], ["中文"]]


def test_text_field_names_the_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"text": "no", "body": "yes"}\r\n')
    assert documents(path, ReaderOptions(text_field="body")) == [["yes"]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{oops", "is not JSON"),
        ('{"body": "x", "id": 1}', r"no text under 'text' \(it has: body, id\)"),
        ('{"text": 5}', 'has 5 under \'text\'; expected {"text": "..."}'),
        ('{"text": null}', "has null under 'text'; expected"),
        ('{"text": ["One.", "Two."]}', r'has \["One.", "Two."\] under'),
        ('["text"]', r'has \["text"\]; expected {"text": "..."}'),
        ('"text"', 'has "text"; expected'),
        ("17", "has 17; expected"),
        ("[" * 100_000, "is not JSON"),  # nested too deep for the parser
        ("1" * 5000, "line 3"),  # an integer beyond Python's limit
    ],
)
def test_wrong_json_line_is_named_by_file_and_number(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "x"}}\n\n{line}\n')
    with pytest.raises(InputError, match=said) as caught:
        list(read_pieces(path, PLAIN))
    assert f"{path}, line 3" in str(caught.value)


def test_json_line_longer_than_a_block_is_read_whole(tmp_path: Path) -> None:
    text = "中文 words " * 200_000
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert documents(path) == [[text]]


def test_time_to_read_a_json_line_grows_with_the_line_not_its_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks of 256 bytes: a line of 8 MiB joined anew with each would copy 128 GiB.
    monkeypatch.setattr(corpus, "_BLOCK", 1 << 8)
    line = '{"text": "' + "word " * (8 * MIB // 5) + '"}'
    path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{line}\n{{"text": "b"}}')
    started = time.process_time()
    assert [len(lines[0]) for lines, _ in read_pieces(path, PLAIN)] == [
        1,
        len(line) - 12,
        1,
    ]
    assert time.process_time() - started < 2


# --- compression -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "one 中\n\ntwo\n"), ("a.jsonl", '{"text": "one 中"}\n{"text": "two"}\n')],
)
def test_compressed_file_reads_as_its_content(
    tmp_path: Path, name: str, content: str, ending: str
) -> None:
    plain = write(tmp_path / name, content)
    packed = write(tmp_path / (name + ending.upper()), COMPRESSORS[ending](content.encode()))
    check_readable(packed)
    assert list(read_pieces(packed, PLAIN)) == list(read_pieces(plain, PLAIN))
    assert find_files([str(tmp_path)]) == [plain]  # of the two, as `gzip -k` leaves them
    plain.unlink()
    assert find_files([str(tmp_path)]) == [packed]


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_cut_off_compressed_file_is_named(tmp_path: Path, ending: str) -> None:
    noise = hashlib.shake_128(b"x").hexdigest(300_000).encode()
    packed = COMPRESSORS[ending](noise)
    path = write(tmp_path / f"a.txt{ending}", packed[: len(packed) // 2])
    with pytest.raises(InputError, match=f"a.txt{ending} is damaged"):
        list(read_pieces(path, PLAIN))


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_streams_one_after_the_other_are_read_to_the_end(tmp_path: Path, ending: str) -> None:
    """As parallel packers write them; what stands behind the first is not taken for the end."""
    first, second = (COMPRESSORS[ending](line) for line in (b"One.\n\n", b"Two.\n"))
    path = tmp_path / f"a.txt{ending}"
    write(path, first + COMPRESSORS[ending](b"") + second + bytes(4))
    assert documents(path) == [["One."], ["Two."]]
    damaged = bytearray(second)
    damaged[1] ^= 1  # of the second header
    for behind in (bytes(damaged), b"more", second[:-3]):
        write(path, first + behind)
        with pytest.raises(InputError, match=f"a.txt{ending} is damaged"):
            documents(path)


@pytest.mark.parametrize("ending", COMPRESSORS)
@fuzz
@given(where=st.floats(0, 0.999), value=st.integers(1, 255), cut=st.booleans())
def test_any_damage_to_a_compressed_file_is_an_input_error(
    scratch: Path, ending: str, where: float, value: int, cut: bool
) -> None:
    packed = bytearray(COMPRESSORS[ending](hashlib.shake_128(b"x").hexdigest(2000).encode()))
    at = int(where * len(packed))
    packed[at] ^= value
    path = write(scratch / f"damaged.txt{ending}", bytes(packed[: at if cut else None]))
    for read in (check_readable, lambda p: list(read_pieces(p, REPLACE))):
        try:
            read(path)
        except InputError as error:
            assert path.name in str(error)


# --- which files -------------------------------------------------------------------------------


def test_folder_is_searched_through_in_order_for_text_files_only(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    names = ["b.txt", "a.txt", "sub/c.jsonl", "sub/d.TXT.gz", "e.csv", "f.zip", "g", "h.gz"]
    for name in names:
        write(tmp_path / name, "x")
    expected = ["a.txt", "b.txt", "sub/c.jsonl", "sub/d.TXT.gz"]
    assert find_files([str(tmp_path)]) == [tmp_path / name for name in expected]


def test_files_of_a_folder_that_are_no_text_are_counted_by_their_names(tmp_path: Path) -> None:
    assert other_files(tmp_path) == ""
    for name in ("a.txt", "b/c.csv", "b/d.csv", "e.md.gz", ".f.csv", "g"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "x")
    told = other_files([tmp_path, tmp_path / "b", tmp_path / "a.txt"])
    assert told.startswith("4 other file(s) left out, by their names (.csv 2, ")
    assert set(re.findall(r"(\S+) 1\b", told)) == {".md", "ending"}
    for name in "hijk":
        write(tmp_path / f"l.{name}", "x")
    assert other_files(tmp_path).endswith(", ...)")


def test_hidden_files_and_folders_below_a_folder_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / ".home"  # the folder itself may be
    for name in ("a.txt", "._a.txt", ".git/b.txt", "c/.cache/d/e.txt", "c/f.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, "x")
    assert find_files([str(folder)]) == [folder / "a.txt", folder / "c" / "f.txt"]


def test_what_lies_in_a_folder_and_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.txt", "A.\n")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")  # by its name no text
    assert find_files(tmp_path) == [tmp_path / "a.txt"]
    link = tmp_path / "b.txt"
    link.symlink_to("nowhere.txt")
    with pytest.raises(InputError, match=r"b\.txt is a link to nowhere\.txt, which is gone"):
        find_files(tmp_path)
    link.unlink()
    closed = tmp_path / "closed"
    closed.mkdir()
    scan = os.scandir

    def scandir(place: str) -> Any:  # root may search what others may not
        if Path(place) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="closed cannot be searched: Permission denied"):
        find_files(tmp_path)


@pytest.mark.parametrize("pattern", ["*.txt", "b.txt"])
def test_a_broken_link_is_told_by_a_glob_too(tmp_path: Path, pattern: str) -> None:
    """As where a disk is not there: a run would go on with less text."""
    write(tmp_path / "a.txt", "A.\n")
    (tmp_path / "b.txt").symlink_to("nowhere.txt")
    with pytest.raises(InputError, match=r"b\.txt is a link to nowhere\.txt, which is gone"):
        find_files(str(tmp_path / pattern))


@pytest.mark.parametrize("content", ['{"crawl": 2024}', "[]", "no JSON"])
def test_a_run_json_of_others_hides_no_text(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    write(folder / "a.txt", "A.\n")
    write(folder / "run.json", content)
    assert find_files(tmp_path) == [folder / "a.txt"]
    write(folder / "run.json", '{"command": "pretrain", "settings": {}}')  # one of ours
    with pytest.raises(InputError, match=r"holds no \.txt"):
        find_files(tmp_path)


def test_a_packed_copy_beside_its_text_is_not_read_again(tmp_path: Path) -> None:
    for name in ("a.txt", "a.txt.gz", "b.jsonl.xz", "c.txt.bz2", "c.jsonl"):
        write(tmp_path / name, "x")
    expected = ["a.txt", "b.jsonl.xz", "c.jsonl", "c.txt.bz2"]
    assert find_files(tmp_path) == [tmp_path / name for name in expected]
    assert find_files(tmp_path / "*.gz") == [tmp_path / "a.txt.gz"]  # by name
    write(tmp_path / "a.txt", "")  # as where unpacking broke off
    assert tmp_path / "a.txt.gz" in find_files(tmp_path)


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for place in (folder / "a", elsewhere):
        place.mkdir(parents=True)
        write(place / "t.txt", "x")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b").symlink_to(elsewhere)
    (folder / "c").symlink_to(elsewhere)
    (elsewhere / "self").symlink_to(elsewhere)
    assert find_files([str(folder)]) == [folder / "a" / "t.txt", folder / "b" / "t.txt"]


@pytest.mark.parametrize("beside", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_vocabulary_in_a_folder_is_no_text(tmp_path: Path, beside: str) -> None:
    for name in (beside, "vocab.txt", "text.txt", "alone/vocab.txt", "text.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "x")
    expected = ["alone/vocab.txt", "text.jsonl", "text.txt"]
    assert find_files([str(tmp_path)]) == [tmp_path / name for name in expected]
    assert find_files([str(tmp_path / "vocab.txt")]) == [tmp_path / "vocab.txt"]  # outright


def test_globs_are_sorted_and_leave_folders_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep.txt/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "x")
    assert find_files([str(tmp_path / "*.txt")]) == [tmp_path / "a.txt", tmp_path / "b.txt"]
    deep = find_files([str(tmp_path / "**" / "*.txt")])
    assert deep == [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "deep.txt" / "c.txt"]


def test_a_glob_of_folders_alone_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "2001").mkdir()
    write(tmp_path / "2001" / "a.txt", "x")
    with pytest.raises(InputError, match=r"matches no file, but folders.*\*/\*\.txt"):
        find_files([str(tmp_path / "*")])


def test_each_file_comes_once_in_the_order_of_the_flags(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        write(tmp_path / name, "x")
    corpus_flags = [str(tmp_path / "c.txt"), str(tmp_path), str(tmp_path / "*.txt")]
    assert [p.name for p in find_files(corpus_flags)] == ["c.txt", "a.txt", "b.txt"]


def test_file_named_in_two_ways_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", "x")
    monkeypatch.chdir(tmp_path)
    assert len(find_files(["a.txt", "./a.txt", str(tmp_path / "a.txt")])) == 1


def test_one_path_or_several_may_be_strings_or_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    for names in (path, str(path), [path], [str(path)]):
        assert find_files(names) == [path]


def test_file_whose_name_looks_like_a_glob_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", "x")
    assert find_files([str(path)]) == [path]


def test_half_a_surrogate_pair_ends_no_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "Hi \\ud83d There Bob."}\n')
    ((line,),) = documents(path)
    assert split_sentences(line) == ["Hi \ufffd There Bob."]


def test_file_named_outright_may_have_any_ending(tmp_path: Path) -> None:
    path = write(tmp_path / "README.md", "One.\n\nTwo.")
    assert find_files([str(path)]) == [path]
    assert documents(path) == [["One."], ["Two."]]


@pytest.mark.parametrize("name", ["missing.txt", "missing/", "missing*.txt"])
def test_missing_corpus_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"missing.* does not exist"):
        find_files([str(tmp_path / name)])


def test_text_of_a_folder_in_another_packing_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text\n")
    (tmp_path / "notes.zip").write_bytes(b"PK")  # of whatever
    (tmp_path / "a.txt.zst").write_bytes(b"packed")  # beside what it holds
    assert find_files(tmp_path) == [tmp_path / "a.txt"]
    endings = [".zst", ".ZST", ".zstd", ".rar", ".lz", ".lzma", ".Z", ".tar", ".tgz"]
    for name in (f"b.jsonl{end}" for end in endings):
        (tmp_path / name).write_bytes(b"packed")
        with pytest.raises(InputError, match=rf"{name} would be left out: .* is not read"):
            find_files(tmp_path)
        (tmp_path / name).unlink()


def test_folder_without_text_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "x")
    with pytest.raises(InputError, match=r"holds no \.txt, \.jsonl or \.tokens") as caught:
        find_files([str(tmp_path)])
    assert str(tmp_path) in str(caught.value)


# --- what is no text ---------------------------------------------------------------------------


def zipped(content: bytes, folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.txt", content)
    return (folder / "a.zip").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\r\n\t", "is empty"),
        ("text".encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + "text".encode("utf-16-be"), "UTF-16"),
        ("text without a mark".encode("utf-16-le"), "binary"),
        (bytes(range(256)) * 10, "binary"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0" * 40, "binary"),
        (gzip.compress(b"text", mtime=0), "is a gzip file"),
        (b"(\xb5/\xfd\x04X!\x00\x00text\n", "is a zstd file; unpack it"),
        (lzma.compress(b"text"), "is a xz file"),
        (bz2.compress(b"text"), "is a bzip2 file"),
        (None, "is a zip file"),
    ],
)
def test_file_that_is_no_text_is_named_with_the_reason(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = write(tmp_path / "some.txt", zipped(b"x", tmp_path) if content is None else content)
    with pytest.raises(InputError, match=said) as caught:
        check_readable(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"One.\rTwo.\r\rThree.\r", b" \r\rOne.\rTwo." + b"x" * 99_999])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_lines_that_end_in_cr_alone_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(InputError, match=r"CR as its line end.*tr '\\r' '\\n'"):
        check_readable(path)


@pytest.mark.parametrize(
    "content", [b"One.\r\nTwo.\r\n", b"One.\r", b"One.\rTwo.\n", b"x" * 65_535 + b"\r\nTwo."]
)
def test_other_lines_that_have_cr_are_readable(tmp_path: Path, content: bytes) -> None:
    check_readable(write(tmp_path / "a.txt", content))


JSON_LINE = b'{"text": "One.", "id": 3}\n'


@pytest.mark.parametrize(
    "content",
    [
        JSON_LINE * 3,
        b"\xef\xbb\xbf" + JSON_LINE,
        b"\n \n" + JSON_LINE[:-1],
        b'{ "a \\" b" :' + b"5" * 70_000 + b"}",
    ],
    ids=["lines", "mark", "blank", "long"],
)
@pytest.mark.parametrize("name", ["c4.json", "train.ndjson", "a.txt", "c4.json.gz"])
def test_json_lines_under_another_name_are_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(InputError, match=r"holds JSON lines; name it \.jsonl"):
        check_readable(path)


@pytest.mark.parametrize(
    "content",
    [
        *(b'{"oops": said he}', b"{name}: text\n", b'"Hm": {"a": 1}\n', b'["Hm."] he said.\n'),
        *(b"[Illustration: a bridge]\n\nOne.", b"[1] One.\n[2] Two.", b"[1]", b"[[File:a.png]]"),
        *(b'["Stop!"\n' + b"He ran.\n" * 9_999, b'["Stop!\n' + b"He ran.\n" * 9_999),
        *(b'["Hm."] [He left.]', b'{"a"} is a set.', b"[" * 99_999, b'{\n"He ran," she said.\n}'),
    ],
)
def test_text_that_looks_like_json_is_readable(tmp_path: Path, content: bytes) -> None:
    check_readable(write(tmp_path / "a.txt", content))


ROWS = [{"text": "One. “Two.”", "id": 3}, {"text": "Three."}]
IN_LINES = json.dumps(ROWS, indent=1, ensure_ascii=False)


@pytest.mark.parametrize(
    "content",
    [
        *(IN_LINES, json.dumps(ROWS), '["One.", "Two."]', '\ufeff\n[["One."],\n["Two."]]\n'),
        *('{\n "text": "One."\n}', '{\n"a": 1}\n{\n"a": 2}\n', '["One."]\n["Two."]\n'),
        *(json.dumps(ROWS * 2000), IN_LINES[:-2] + f', {{"text": "{"x" * 99_999}"}}]'),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.txt.gz"])
def test_json_that_is_not_in_lines_is_refused(tmp_path: Path, name: str, content: str) -> None:
    packed = gzip.compress(content.encode()) if name.endswith("gz") else content
    with pytest.raises(InputError, match=r"is JSON, not plain text; .* JSON lines named \.jsonl"):
        check_readable(write(tmp_path / name, packed))


@pytest.mark.parametrize("cut", range(65_530, 65_545))
def test_json_is_known_wherever_its_head_is_cut(tmp_path: Path, cut: int) -> None:
    rows = '[{"a": "' + "x" * (cut - 40) + '", "b中\\u00e9": true}, {"c": -1.5e3}, ' + "null, " * 99
    with pytest.raises(InputError, match="is JSON"):
        check_readable(write(tmp_path / "a.txt", rows))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(("a.csv", "a table"), ("a.TSV.gz", "a table"), ("a.html", "HTML"), ("a.htm", "HTML")),
        ("a.json", "JSON"),
    ],
)
def test_a_table_or_page_named_outright_is_refused(tmp_path: Path, name: str, said: str) -> None:
    content = gzip.compress(b"id,text\n") if name.endswith("gz") else b"id,text\n"
    with pytest.raises(InputError, match=f"{name} is {said}, not plain text; expected that, or"):
        check_readable(write(tmp_path / name, content))


def test_a_zip_file_is_not_to_be_renamed(tmp_path: Path) -> None:
    zipped(b"x", tmp_path)
    with pytest.raises(InputError, match="is a zip file; unpack it"):
        check_readable(tmp_path / "a.zip")


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_an_archive_of_text_is_refused(tmp_path: Path, name: str, mode: Any) -> None:
    text = write(tmp_path / "a.txt", "Some words.\n" * 2000)
    with tarfile.open(tmp_path / name, mode) as archive:
        archive.add(text, arcname="a.txt")
    with pytest.raises(InputError, match="is a tar archive; unpack it"):
        check_readable(tmp_path / name)


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_plain_text_under_a_compressed_name_is_named(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.txt{ending}", "plain text")
    with pytest.raises(InputError, match=r"a\.txt.* cannot be read"):
        check_readable(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.txt cannot be read"):
        check_readable(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    "content", ["plain", "中文" * 9, "a\0" + "b" * 200, "\x1b[1mbold\x1b[0m\f\n", "\ufeffmark"]
)
def test_text_with_small_blemishes_is_readable(tmp_path: Path, content: str) -> None:
    check_readable(write(tmp_path / "a.txt", content))


# --- encoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at", [0, 3, 1000, MIB - 2, MIB - 1, MIB, MIB + 1, 2 * MIB - 1, 2 * MIB, 2 * MIB + 77]
)
@pytest.mark.parametrize("bad", [b"\xff", b"\x80", b"\xe4\xb8"])
def test_strict_reading_names_the_first_wrong_byte_exactly(
    tmp_path: Path, at: int, bad: bytes
) -> None:
    # Lines, so that the position does not come from the length of a line.
    text = (b"some words\n" * (at // 11 + 1))[:at]
    path = write(tmp_path / "a.txt", text + bad + b" and more\xff\n")
    with pytest.raises(InputError, match=rf"byte {at} is not UTF-8 \(0x{bad[0]:02x}\)") as caught:
        list(read_pieces(path, PLAIN))
    assert str(path) in str(caught.value)
    assert "".join(documents(path, REPLACE)[-1]).endswith("\ufffd and more\ufffd")


def test_position_counts_bytes_of_the_file_not_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeff中文\r\n".encode() * 100_000 + b"\xc3(")
    with pytest.raises(InputError, match="byte 1100000 is not UTF-8"):
        list(read_pieces(path, PLAIN))


@pytest.mark.parametrize("tail", [b"\xe4", b"\xe4\xb8", b"\xf0\x9f\x98"])
def test_character_cut_off_by_the_end_of_the_file_is_wrong(tmp_path: Path, tail: bytes) -> None:
    path = write(tmp_path / "a.txt", b"text " + tail)
    with pytest.raises(InputError, match="byte 5 is not UTF-8"):
        list(read_pieces(path, PLAIN))
    assert documents(path, REPLACE) == [["text \ufffd"]]


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("char", ["é", "中", "\U0001f600"])
@pytest.mark.parametrize("options", [PLAIN, REPLACE])
def test_characters_cut_by_a_block_border_survive(
    tmp_path: Path, char: str, shift: int, options: ReaderOptions
) -> None:
    size = len(char.encode())
    text = "a" * (MIB - 12 + shift) + char * 12 + "\n\n" + char * (MIB // size + 9)
    path = write(tmp_path / "a.txt", text)
    assert "\n\n".join("".join(d) for d in documents(path, options)) == text


@fuzz
@given(
    content=st.lists(
        st.sampled_from([b"a", b"\n", b" ", b"\xff", b"\x80", b"\xe4", b"\xb8\xad", b"\xf0\x9f"])
        | st.characters(min_codepoint=0x21).map(lambda c: c.encode("utf-8", "replace")),
        max_size=30,
    ).map(b"".join),
    block=st.integers(1, 9),
)
def test_replacing_does_not_depend_on_where_blocks_end(
    scratch: Path, content: bytes, block: int
) -> None:
    path = write(scratch / "blocks.txt", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_BLOCK", block)
        parts = [line for piece in read_pieces(path, REPLACE) for line in piece.lines]
    expected = content.decode(errors="replace").removeprefix("\ufeff")
    assert "".join("".join(parts).split()) == "".join(expected.split())


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [" ", ""])
def test_line_without_end_is_read_in_bounded_memory_and_loses_nothing(
    tmp_path: Path, separator: str
) -> None:
    path = tmp_path / "a.txt"
    written, read = hashlib.sha256(), hashlib.sha256()
    with path.open("wb") as handle:
        for i in range(20):
            part = separator.join(f"word{i}x{k}" for k in range(100_000)).encode()
            written.update(part)
            handle.write(part)
    assert path.stat().st_size > 18 * MIB
    tracemalloc.start()
    try:
        for number, piece in enumerate(read_pieces(path, PLAIN)):
            assert piece.starts_document == (number == 0)
            for line in piece.lines:
                read.update(line.encode())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read.digest() == written.digest()
    assert peak < 10 * MIB


def test_long_line_is_cut_between_words(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "lengthyword " * 200_000)
    words = {word for line in documents(path)[0] for word in line.split()}
    assert words == {"lengthyword"}


# --- any text ----------------------------------------------------------------------------------

ANY_TEXT = st.lists(
    st.sampled_from(["\n", "\n\n", "\r\n", "\r", " ", "\t", "\x0c", "\u2028", "\0", "\ufeff", "中"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=25,
).map("".join)


@fuzz
@given(text=ANY_TEXT)
def test_pieces_hold_every_line_of_any_text(scratch: Path, text: str) -> None:
    path = write(scratch / "any.txt", text)
    expected = [s.strip() for s in text.removeprefix("\ufeff").split("\n") if s.strip()]
    for options in (PLAIN, ReaderOptions(document_per_file=True)):
        pieces = list(read_pieces(path, options))
        assert [line.strip() for piece in pieces for line in piece.lines] == expected
        assert all(piece.lines for piece in pieces)
    assert len(documents(path, ReaderOptions(document_per_file=True))) == bool(expected)


@fuzz
@given(text=ANY_TEXT, block=st.integers(1, 12))
def test_blocks_change_neither_documents_nor_text(scratch: Path, text: str, block: int) -> None:
    path = write(scratch / "any.txt", text)
    whole = ["".join("".join(d).split()) for d in documents(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_BLOCK", block)
        assert ["".join("".join(d).split()) for d in documents(path)] == whole


JSON_LINES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "body", ""]), inner, max_size=3)
    ),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("name", ["any.txt", "any.jsonl"])
@fuzz
@given(content=st.lists(st.binary(max_size=20) | JSON_LINES, max_size=6).map(b"\n".join))
def test_arbitrary_bytes_raise_nothing_but_input_errors(
    scratch: Path, name: str, errors: str, content: bytes
) -> None:
    path = write(scratch / name, content)
    options = ReaderOptions(encoding_errors=errors)
    try:
        pieces = list(read_pieces(path, options))
    except InputError as error:
        assert str(path) in str(error)
        assert errors == "strict" or name == "any.jsonl"
    else:
        assert all(isinstance(piece, Piece) for piece in pieces)
        for piece in pieces:
            sentences_of(piece.lines, options)
    try:
        check_readable(path)
    except InputError as error:
        assert str(path) in str(error)


# --- sentences ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        # plain ends
        ["One is here.", "Two is there."],
        ["Really?", "Yes!", "Good."],
        ["What!?", "No way?!", "It is."],
        ["Wait...", "Who is it?"],
        ["So it ended…", "Then came rain."],
        # abbreviations, initials, letters with inner stops
        ["Dr. Wu met Mrs. Lee and Prof. Ray.", "They left."],
        ["J. R. R. Tolkien wrote it.", "He was English."],
        ["He served in the U.S. Army until May.", "Then he left."],
        ["Some fruit, e.g. Apples, is sweet.", "Some is not."],
        ["Smith et al. Found nothing in vol. 3 of no. 7.", "Others did."],
        ["Chelsea vs. Leeds ended 2:1.", "Fans cheered."],
        ["So did I.", "Then we left."],
        # numbers
        ["It costs 3.14 dollars or 1.000,5 euros.", "That is fair."],
        ["He came in 1999.", "2000 was better."],
        # quotes and brackets
        ['"Stop."', "He ran."],
        ["“Stop!”", "‘Why?’", "He ran."],
        ["(He left.)", "[She stayed.]", "All was well."],
        ['He said: "No."', '"Why?"', "“Because.”"],
        # lower-case continuation
        ['"Is it true?" he asked.', '"Yes."'],
        ["He bought approx. five at Yahoo! and left.", "Good."],
        # Chinese
        ["他走了。", "她说：“好。”", "然后他笑了！", "为什么？"],
        ["他走了！？", "Then English.", "又是中文。"],
        # one sentence
        ["One sentence without an end"],
        ["One sentence with an end."],
        ["A title: with colons; and semicolons, only"],
        ["www.example.com/a.b?c=d!e"],
    ],
)
def test_line_is_cut_into_its_sentences(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences
    assert split_sentences(f"  {' '.join(sentences)} \t") == sentences


def test_chinese_sentences_need_no_space_between_them() -> None:
    sentences = ["他走了。", "她说：“好。”", "然后（他笑了！）", "为什么？！", "是"]
    assert split_sentences("".join(sentences)) == sentences


@pytest.mark.parametrize("line", ["", " ", "\t\r\f\u3000"])
def test_blank_line_has_no_sentence(line: str) -> None:
    assert split_sentences(line) == []


SENTENCE_PARTS = st.lists(
    st.sampled_from(list(".!?…。！？\"'”’」）)] \t") + ["Dr", "U.S", "I", "a", "The", "中"])
    | st.text(max_size=4),
    max_size=40,
).map("".join)


@fuzz
@given(line=SENTENCE_PARTS)
def test_sentences_hold_every_character_of_any_line(line: str) -> None:
    sentences = split_sentences(line)
    assert "".join("".join(sentences).split()) == "".join(line.split())
    assert all(s and s == s.strip() for s in sentences)


@fuzz
@given(line=SENTENCE_PARTS)
def test_sentences_end_only_after_stops(line: str) -> None:
    for sentence in split_sentences(line)[:-1]:
        assert sentence.rstrip("\"'”’»)]」』）")[-1] in ".!?…。！？"


@fuzz
@given(line=SENTENCE_PARTS)
def test_stops_are_found_where_a_plainer_pattern_has_them(line: str) -> None:
    plain = r"""(?<![.!?…])[.!?…]++["'”’»)\]]*\s+|[。！？]+[”’」』）]*\s*"""
    spans = [stop.span() for stop in corpus._STOP.finditer(line)]
    assert spans == [stop.span() for stop in re.finditer(plain, line)]


@pytest.mark.parametrize("text", [".", '."', "!?", ". ", "。”", "a. ", '"'])
def test_time_to_split_grows_with_the_line_not_its_square(text: str) -> None:
    # A dotted line in a table of contents, or rubbish; quadratic time takes seconds here.
    line = text * 30_000 + "x"
    split_sentences("warm. Up.")
    started = time.process_time()
    split_sentences(line)
    assert time.process_time() - started < 0.25


# --- what a cache is keyed by ------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5000, 3 * MIB])
def test_content_digest_sees_both_ends_and_the_size(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    digests = {
        corpus.content_digest(write(tmp_path / "a", changed))
        for changed in (
            content,
            bytes([content[0] ^ 1]) + content[1:],
            content + b"x",
            content[:-1],
            *([content[:-1] + bytes([content[-1] ^ 1])] if size > 1 else []),
        )
    }
    assert len(digests) == 4 + (size > 1)
    assert corpus.content_digest(write(tmp_path / "b", content)) in digests


def test_content_digest_of_a_large_file_is_that_of_its_copy_and_sees_blocks_all_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_DIGEST_WHOLE", 64 << 10)  # 1,024 blocks of 64 bytes
    content = os.urandom(1 << 20)
    path, copy = write(tmp_path / "a", content), write(tmp_path / "b", content)
    os.utime(copy, (1, 1))
    digest = corpus.content_digest(path)
    assert corpus.content_digest(copy) == digest
    for at in (0, len(content) // 3, len(content) // 2, len(content) - 1200):
        # An edit of a line or more, which a block falls into wherever it begins.
        changed = content[:at] + bytes(1200) + content[at + 1200 :]
        assert corpus.content_digest(write(tmp_path / "c", changed)) != digest
    assert corpus.content_digest(write(tmp_path / "c", content + b"x")) != digest


def test_text_size_of_a_compressed_file_is_estimated_as_four_times_its_own(tmp_path: Path) -> None:
    assert corpus.text_bytes(write(tmp_path / "a.txt", "x" * 100)) == 100
    assert corpus.text_bytes(write(tmp_path / "a.txt.gz", "x" * 100)) == 400


def test_empty_files_among_others_are_left_out_and_counted(tmp_path: Path) -> None:
    text, empty = write(tmp_path / "a.txt", b"Text.\n"), write(tmp_path / "b.txt", b" \n")
    assert readable_files([text, empty, empty]) == ([text], 2)
    with pytest.raises(InputError, match="b.txt is empty"):
        readable_files([empty])


def test_text_after_much_blank_space_is_found(tmp_path: Path) -> None:
    check_readable(write(tmp_path / "a.txt", b"\n" * 200_000 + b"Text.\n"))
