"""The WordPiece tokenizer: repeatable training, its folder, and who else can read it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from minibert.errors import InputError
from minibert.tokenizer import (
    SPECIAL_TOKENS,
    WordPiece,
    _build,
    _long_run,
    default_vocab_size,
    train_wordpiece,
)

ROOT = Path(__file__).resolve().parents[1]
WIKI = ROOT / "data" / "wiki.txt"
TEXTS = [
    "Jean-François Champollion read the Rosetta stone in 1822.",
    "Unbelievably, it works: 中文 and naïve café!",
    "",
    "\x00 odd \u200b characters \U0001f600 \t here",
    "a word that is quiteimprobableindeedandlongerthananyother" * 3,
]
TRAIN_TWICE_AND_PRINT = """
import json, sys
from minibert.tokenizer import train_wordpiece
lines = open(sys.argv[1], encoding="utf-8").read().split("\\n")
for _ in range(3):
    print(json.dumps(train_wordpiece(lambda: iter(lines), 2000).tokens))
"""


def texts_of(*texts: str) -> Callable[[], Iterator[str]]:
    return lambda: iter(texts)


def write_vocabulary(folder: Path, tokens: list[str], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def wiki() -> WordPiece:
    return train_wordpiece(texts_of(*WIKI.read_text(encoding="utf-8").split("\n")), 2000)


@pytest.fixture(scope="module")
def folder(wiki: WordPiece, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    wiki.save(path)
    return path


# --- training ----------------------------------------------------------------------------------


def test_vocabulary_and_its_order_do_not_depend_on_the_run(wiki: WordPiece) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN_TWICE_AND_PRINT, str(WIKI)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    printed = [line for run in runs for line in run.communicate(timeout=120)[0].splitlines()]
    assert [run.returncode for run in runs] == [0, 0]
    assert len(printed) == 6
    assert {*printed} == {json.dumps(wiki.tokens)}


def test_training_does_not_depend_on_how_the_text_comes_in_pieces(wiki: WordPiece) -> None:
    paragraphs = WIKI.read_text(encoding="utf-8").split("\n\n")
    assert train_wordpiece(texts_of(*paragraphs), 2000).tokens == wiki.tokens


def test_special_tokens_come_first_with_fixed_ids(wiki: WordPiece) -> None:
    assert wiki.tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (wiki.pad_id, wiki.unk_id, wiki.cls_id, wiki.sep_id, wiki.mask_id) == (0, 1, 2, 3, 4)
    assert wiki.special_ids == [0, 1, 2, 3, 4]


def test_vocabulary_has_the_size_asked_for_and_no_token_twice(wiki: WordPiece) -> None:
    assert wiki.vocab_size == len(wiki.tokens) == len({*wiki.tokens}) == 2000


def test_text_trained_on_needs_next_to_no_unknown_token(wiki: WordPiece) -> None:
    ids = [i for part in wiki.ids(WIKI.read_text(encoding="utf-8").split("\n")) for i in part]
    assert ids.count(wiki.unk_id) < 0.001 * len(ids)


def test_frequent_words_become_whole_pieces(wiki: WordPiece) -> None:
    assert {"the", "and", "which", "of"} <= {*wiki.tokens}
    assert wiki.ids(["the"]) == [[wiki.tokens.index("the")]]


def test_lower_casing_folds_case_and_accents() -> None:
    tokenizer = train_wordpiece(texts_of("Été été ÉTÉ ete Été"), 11)
    assert len({tuple(ids) for ids in tokenizer.ids(["Été", "ETE", "ete"])}) == 1
    assert not any(t != t.lower() for t in tokenizer.tokens[5:])


def test_without_lower_casing_case_and_accents_are_kept() -> None:
    tokenizer = train_wordpiece(texts_of("Bonn bonn Été ete " * 5), 24, lowercase=False)
    assert {"B", "b", "É", "##é"} <= {*tokenizer.tokens}
    upper, lower, accent, plain = tokenizer.ids(["Bonn", "bonn", "Été", "ete"])
    assert upper != lower
    assert accent != plain
    assert tokenizer.unk_id not in upper + lower + accent + plain


def test_chinese_characters_are_words_of_their_own() -> None:
    tokenizer = train_wordpiece(texts_of("中文中文 中文 文中"), 7)
    assert tokenizer.tokens[5:] == ["中", "文"]
    assert tokenizer.ids(["文中文"]) == [[6, 5, 6]]


def test_without_splitting_chinese_words_merge() -> None:
    tokenizer = train_wordpiece(texts_of("中文中文 中文 文中 中文"), 10, chinese=False)
    assert {"##文", "中文"} <= {*tokenizer.tokens}
    assert tokenizer.ids(["中文"]) == [[tokenizer.tokens.index("中文")]]


def test_rare_characters_beyond_the_coverage_become_unknown() -> None:
    tokenizer = train_wordpiece(texts_of("ab " * 20000, "z"), 10)
    assert "z" not in tokenizer.tokens
    assert tokenizer.ids(["z"]) == [[tokenizer.unk_id]]


def test_literal_control_and_space_characters_get_no_piece() -> None:
    tokenizer = train_wordpiece(texts_of("ab\x00 a\u00a0b\u2028ab\tab\r\nab"), 9)
    assert sorted(tokenizer.tokens[5:]) == ["##a", "##b", "a", "b"]


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        # 3 letters, alone and after "##", and 5 special tokens.
        (10, ["--vocab-size 10", "3 characters", "11 pieces"]),
        # "ab", "abc", "##bc" is all there is to merge beyond the 11.
        (500, ["--vocab-size 500", "pieces at most"]),
    ],
)
def test_sizes_that_the_text_cannot_give_are_refused_with_numbers(
    size: int, numbers: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        train_wordpiece(texts_of("abc abc ab"), size)
    for number in numbers:
        assert number in str(caught.value)


def test_both_sizes_that_an_error_names_work() -> None:
    text = "abc abc ab bca cab"
    with pytest.raises(InputError, match=r"it gives \d+ pieces") as caught:
        train_wordpiece(texts_of(text), 500)
    most = int(str(caught.value).split("gives ")[1].split()[0])
    assert train_wordpiece(texts_of(text), most).vocab_size == most
    assert train_wordpiece(texts_of(text), 11).vocab_size == 11


def test_a_size_that_nobody_gave_grows_to_the_next_that_holds_the_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minibert.tokenizer._VOCAB_STEPS", ((1, 6), (2, 9), (3, 12), (4, 14)))
    monkeypatch.setattr("minibert.tokenizer._LARGEST_DEFAULT", 16)
    # 3 letters, alone and after "##", and 5 special tokens: 11 pieces, 14 with all merges.
    text = texts_of("abc abc ab")
    assert train_wordpiece(text, 6, exact=False).vocab_size == 12
    assert train_wordpiece(text, 13, exact=False).vocab_size == 13
    # 5 letters: 15 pieces.
    assert train_wordpiece(texts_of("abcde abcde abc"), 6, exact=False).vocab_size == 16
    with pytest.raises(InputError, match="the default of 16 pieces .* take 19 .* a larger --vocab"):
        train_wordpiece(texts_of("abcdefg abcdefg"), 6, exact=False)


def test_text_without_any_character_is_refused() -> None:
    with pytest.raises(InputError, match="5 pieces at most"):
        train_wordpiece(texts_of("", " \n"), 100)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 4096), ((1 << 20) - 1, 4096), (1 << 20, 8192), (30 << 20, 16384), (1 << 30, 30522)],
)
def test_default_vocabulary_size_grows_with_the_text(size: int, expected: int) -> None:
    assert default_vocab_size(size) == expected


# --- folders -----------------------------------------------------------------------------------


def test_saved_folder_gives_the_same_ids(wiki: WordPiece, folder: Path) -> None:
    loaded = WordPiece.from_pretrained(folder)
    assert loaded.ids(TEXTS) == wiki.ids(TEXTS)
    assert (loaded.tokens, loaded.fingerprint) == (wiki.tokens, wiki.fingerprint)
    assert loaded.lowercase is True


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_vocab_txt_and_its_config_alone_give_the_same_ids(
    tmp_path: Path, lowercase: bool, chinese: bool
) -> None:
    text = "Été in Bonn, 中文 中文 and bonn. naïve"
    tokenizer = train_wordpiece(texts_of(text * 3), 40, lowercase, chinese)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    loaded = WordPiece.from_pretrained(tmp_path)
    assert loaded.ids([text, *TEXTS]) == tokenizer.ids([text, *TEXTS])
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.lowercase is lowercase


def test_accents_setting_of_the_config_is_honoured(tmp_path: Path) -> None:
    # Some published uncased models keep accents: do_lower_case true, strip_accents false.
    tokens = [*SPECIAL_TOKENS, "uber", "über"]
    config = {"do_lower_case": True, "strip_accents": False}
    tokenizer = WordPiece.from_pretrained(write_vocabulary(tmp_path, tokens, **config))
    assert tokenizer.ids(["Über uber"]) == [[6, 5]]


@pytest.mark.parametrize(
    "config",
    [
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": None},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
        {"do_lower_case": True, "tokenize_chinese_chars": True},
    ],
)
@pytest.mark.parametrize("lowercase", [True, False])
def test_config_is_followed_where_tokenizer_json_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lowercase: bool, config: dict[str, object]
) -> None:
    words = [*SPECIAL_TOKENS, "Über", "über", "uber", "Uber", "中", "中文", "##文", "文"]
    WordPiece(_build(words, lowercase, True), lowercase).save(tmp_path)
    write_vocabulary(tmp_path, words, tokenizer_class="BertTokenizer", **config)
    both = WordPiece.from_pretrained(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = "Über über 中文 Uber"
    ids = both.ids([text])[0]
    assert both.lowercase is config["do_lower_case"]
    (tmp_path / "tokenizer.json").rename(tmp_path / "kept.json")
    assert WordPiece.from_pretrained(tmp_path).ids([text]) == [ids]
    (tmp_path / "kept.json").rename(tmp_path / "tokenizer.json")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids


@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "PreTrainedTokenizerFast"}])
def test_config_that_says_nothing_of_it_leaves_tokenizer_json_alone(
    tmp_path: Path, config: dict[str, object]
) -> None:
    before = WordPiece(_build([*SPECIAL_TOKENS, "A", "a"], False, False), False)
    before.save(tmp_path)
    given = config | {"do_lower_case": True} if config else {"model_max_length": 512}
    write_vocabulary(tmp_path, before.tokens, **given)
    assert WordPiece.from_pretrained(tmp_path).fingerprint == before.fingerprint


def test_only_line_feeds_part_the_tokens_of_vocab_txt(tmp_path: Path) -> None:
    # Others split vocab.txt at "\n" alone; a token like U+2028 must not shift later ids.
    tokens = [*SPECIAL_TOKENS, "a", "\u2028", "\x85", "b"]
    tokenizer = WordPiece.from_pretrained(write_vocabulary(tmp_path, tokens))
    assert tokenizer.ids(["a b"]) == [[5, 8]]


def test_vocab_txt_with_crlf_line_ends_is_read(tmp_path: Path) -> None:
    content = "".join(f"{t}\r\n" for t in [*SPECIAL_TOKENS, "a", "b"])
    (tmp_path / "vocab.txt").write_bytes(content.encode())
    assert WordPiece.from_pretrained(tmp_path).ids(["a b"]) == [[5, 6]]


def test_vocab_txt_without_config_is_lower_cased(tmp_path: Path) -> None:
    tokenizer = WordPiece.from_pretrained(write_vocabulary(tmp_path, [*SPECIAL_TOKENS, "a"]))
    assert tokenizer.ids(["A"]) == [[5]]
    assert tokenizer.lowercase is True


def test_special_ids_follow_the_vocabulary_and_hold_unused_ones(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    tokenizer = WordPiece.from_pretrained(write_vocabulary(tmp_path, tokens))
    assert tokenizer.special_ids == [0, 1, 2, 3, 4, 5, 6]
    assert (tokenizer.unk_id, tokenizer.mask_id) == (3, 6)


def test_ids_hold_no_special_tokens_and_are_never_cut_or_padded(wiki: WordPiece) -> None:
    wiki.backend.enable_truncation(4)
    wiki.backend.enable_padding(length=9)
    tokenizer = WordPiece(wiki.backend, lowercase=True)
    short, long = tokenizer.ids(["the", "the " * 3000])
    assert (len(short), len(long)) == (1, 3000)


_CHARACTERS = [f"{before}{c}" for c in "abzABZ09éσßis.,-–“文" for before in ("", "##")]
# Words, symbols, what BERT drops or takes for white space, accents, ideographs.
_STRANGE = st.text(
    st.sampled_from(
        "aAzZ09 .,;!?$+^`|~_-'\"[]()<>@#\t\n\r\x00\x0b\x1c\x7f\x85\xa0\u2028\u3000éÉßİΣς–“中文́"
    )
)


_ODD_TEXTS = st.one_of(
    _STRANGE, st.text(), st.sampled_from(["see [MASK] [sep] x", "a" * 100, "b" * 101, "中a" * 60])
)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("chinese", [True, False])
@settings(max_examples=100, deadline=None)
@given(st.lists(_ODD_TEXTS, max_size=6))
def test_ids_are_those_that_the_library_gives_for_whole_texts(
    lowercase: bool, chinese: bool, texts: list[str]
) -> None:
    tokenizer = WordPiece(_build([*SPECIAL_TOKENS, *_CHARACTERS], lowercase, chinese), lowercase)
    for _ in range(2):  # new words, and words seen before
        assert tokenizer.ids(texts) == tokenizer._ids_by_library(texts)


@pytest.mark.parametrize("own_tokens", [[], ["a.b"]])
def test_flat_ids_are_the_ids_of_all_texts_in_a_row(own_tokens: list[str]) -> None:
    backend = _build([*SPECIAL_TOKENS, *_CHARACTERS, *own_tokens], True, True)
    backend.add_tokens(own_tokens)
    tokenizer = WordPiece(backend, True)
    for texts in ([], [""], ["", "a.b\nab", "\n", "9 \0 9", ""]):
        flat, lengths = tokenizer.flat_ids(texts)
        rows = tokenizer._ids_by_library(texts)
        assert flat.tolist() == [i for row in rows for i in row]
        assert lengths.tolist() == [len(row) for row in rows]


def test_ids_of_real_text_are_those_that_the_library_gives(wiki: WordPiece) -> None:
    lines = WIKI.read_text(encoding="utf-8").split("\n")
    assert wiki.ids(lines) == wiki._ids_by_library(lines)


def test_words_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibert.tokenizer._REMEMBERED_PARTS", 3)
    tokenizer = WordPiece(_build([*SPECIAL_TOKENS, *_CHARACTERS], True, True), True)
    long = "a" * 49
    for texts in (["ab", long], ["ba", "ab"], ["aa bb ab ba", long], ["abba", "aé"]):
        assert tokenizer.ids(texts) == tokenizer._ids_by_library(texts)
        assert len(tokenizer._known) <= 3
        assert long.encode() not in tokenizer._known
    assert "aé".encode() in tokenizer._known  # the newest; older ones have made room


def test_a_tokenizer_with_tokens_of_its_own_is_asked_for_everything() -> None:
    backend = _build([*SPECIAL_TOKENS, *_CHARACTERS, "a.b"], True, True)
    backend.add_tokens(["a.b"])
    tokenizer = WordPiece(backend, True)
    assert tokenizer.ids(["a.b"]) == [[tokenizer.tokens.index("a.b")]]


def test_fingerprint_changes_with_anything_that_changes_ids() -> None:
    text = texts_of("abc abd 中文 中文 Abc")
    variants = [
        train_wordpiece(text, 16),
        train_wordpiece(text, 17),
        train_wordpiece(text, 20, chinese=False),
        train_wordpiece(text, 20, lowercase=False),
    ]
    assert len({v.fingerprint for v in variants}) == 4
    assert train_wordpiece(text, 16).fingerprint == variants[0].fingerprint


def test_token_on_two_lines_has_the_later_id_and_no_other_id_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [*SPECIAL_TOKENS, "the", "a", "a", "cat", "the", "dog"]
    tokenizer = WordPiece.from_pretrained(write_vocabulary(tmp_path / "plain", tokens))
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_text().split("\n")[8] == "cat"
    for found in (tokenizer, WordPiece.from_pretrained(tmp_path / "saved")):
        assert found.ids(["the dog, a cat"]) == [[9, 10, 1, 7, 8]]
        assert found.vocab_size == len(found.tokens) == 11
        assert found.special_ids == [0, 1, 2, 3, 4, 5, 6]
        assert found.fingerprint == tokenizer.fingerprint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    for name in ("plain", "saved"):
        theirs = transformers.BertTokenizer.from_pretrained(tmp_path / name)
        assert theirs("the dog, a cat")["input_ids"] == [2, 9, 10, 1, 7, 8, 3]


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_vocabulary_without_a_special_token_is_refused_by_name(
    tmp_path: Path, missing: str
) -> None:
    tokens = [t for t in SPECIAL_TOKENS if t != missing] + ["a"]
    with pytest.raises(InputError, match=f"lacks \\{missing[:-1]}]"):
        WordPiece.from_pretrained(write_vocabulary(tmp_path, tokens))


def test_byte_pair_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"tokenizer\.json is a BPE tokenizer"):
        WordPiece.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"', "[1]"])
def test_damaged_tokenizer_json_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        WordPiece.from_pretrained(tmp_path)


def test_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither tokenizer.json nor vocab.txt"):
        WordPiece.from_pretrained(tmp_path)


def test_vocab_txt_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"vocab\.txt"):
        WordPiece.from_pretrained(tmp_path)


# --- other readers -----------------------------------------------------------------------------


def test_transformers_reads_the_folder_alike(
    wiki: WordPiece, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ours = wiki.backend.encode(text)
        encoded = theirs(text)
        assert encoded["input_ids"] == ours.ids == [2, *wiki.ids([text])[0], 3]
        assert encoded["token_type_ids"] == ours.type_ids == [0] * len(ours.ids)
    ours = wiki.backend.encode(TEXTS[0], TEXTS[1])
    encoded = theirs(TEXTS[0], TEXTS[1])
    first, second = wiki.ids(TEXTS[:2])
    assert encoded["input_ids"] == ours.ids == [2, *first, 3, *second, 3]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert encoded["token_type_ids"] == ours.type_ids == segments
    names = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    assert [getattr(theirs, name) for name in names] == [0, 1, 2, 3, 4]
    assert len(theirs) == wiki.vocab_size


@pytest.mark.parametrize(
    "word",
    ["abcdefghij" * 300, "\u0915\u093f" * 2000, "\u20ac\u00a3" * 2000],
    ids=["latin", "hindi", "symbols"],
)
def test_words_too_long_to_be_taken_apart_do_not_enter_the_vocabulary(word: str) -> None:
    text = "the miller kept silver in the garden\n" * 40

    def trained(texts: list[str]) -> list[str]:
        return train_wordpiece(lambda: iter(texts), 60, exact=False).tokens

    assert trained([text + word, text]) == trained([text, text])


def test_text_without_spaces_between_its_words_enters_the_vocabulary() -> None:
    chinese = "河边的磨坊主把银子藏在花园里" * 20
    url = "silver/garden?river=miller&" * 20
    tokens = train_wordpiece(lambda: iter([chinese, url]), 200, exact=False).tokens
    assert {"磨", "silver", "garden", "miller"} <= set(tokens)


_SAYING = "河边的磨坊主，把银子藏在花园里。他說：「走吧！」（笑）" * 20


@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        _SAYING,
        "silver，garden；river（miller）" * 20,
        "a" * 60 + "，" + "b" * 60 + "。" + "c" * 101 + "！" + "d" * 100,
        "x" * 60 + "中" + "y" * 60 + "中" * 101 + "z〇〒" * 50,
        "\u0915\u093f" * 120 + "–" + "…" * 120 + "\uac00" * 90,
    ],
    ids=["chinese", "wide marks", "long words", "mixed", "other"],
)
def test_only_text_that_may_hold_too_long_words_is_looked_at_and_none_is_missed(
    monkeypatch: pytest.MonkeyPatch, text: str, chinese: bool
) -> None:
    def trained() -> list[str]:
        texts = [text, "the miller kept silver " * 30]
        return train_wordpiece(lambda: iter(texts), 300, True, chinese, exact=False).tokens

    found = trained()
    monkeypatch.setattr("minibert.tokenizer._long_run", lambda chinese: re.compile(""))
    assert trained() == found


def test_chinese_text_is_not_taken_for_long_words() -> None:
    assert not _long_run(chinese=True).search(_SAYING)
    assert not _long_run(chinese=False).search(_SAYING)
    assert not _long_run(chinese=True).search("河边的磨坊主" * 30)
    assert _long_run(chinese=False).search("河边的磨坊主" * 30)
    assert _long_run(chinese=True).search("a" * 101)
    assert not _long_run(chinese=True).search(("a" * 100 + ",") * 3)


def test_a_string_is_no_list_of_its_letters(words: WordPiece) -> None:
    with pytest.raises(InputError, match=r"texts is 'a fine film'; expected a list of texts"):
        words.ids("a fine film")  # type: ignore[arg-type]
