"""The target vocabulary: texts come back exactly, ids depend on the text alone."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.errors import InputError
from minibert.target_tokenizer import TargetTokenizer, train_target_tokenizer

GERMAN = [
    "Ein Mädchen läuft über die Straße.",
    "Zwei Männer  sitzen auf einer Bank,  und die Katze schläft.",  # double spaces
    "Die Großmutter sagt: „Schöne Grüße!“ – und geht.",
    "Ein Junge hüpft;\nseine Schwester lacht.\n\n",
    " Am Fluß ÄÖÜ äöü ß ẞ … 3,50 € ",
    "\tEin Tabulator, ein geschütztes\u00a0Leerzeichen, ein 🙂.",
    "e\u0301 ist nicht é.",  # no normalisation
    "Die Marke [EOS] und [PAD] stehen im Text. [EOS] [EOS]",
    "",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> TargetTokenizer:
    return train_target_tokenizer(GERMAN, 400)


def test_every_training_target_comes_back_exactly(tokenizer: TargetTokenizer) -> None:
    assert tokenizer.decode(tokenizer.ids(GERMAN)) == GERMAN


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_exactly(text: str) -> None:
    tokenizer = train_target_tokenizer(GERMAN[:3], 300)
    assert tokenizer.decode(tokenizer.ids([text])) == [text]


def test_marks_stand_at_the_end_alone(tokenizer: TargetTokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    for ids in tokenizer.ids(GERMAN):
        assert ids[-1] == tokenizer.eos_id
        assert not {0, 1, 2} & set(ids[:-1])
    assert tokenizer.ids([""]) == [[2]]


def test_words_begin_after_spaces_and_with_chinese_characters(tokenizer: TargetTokenizer) -> None:
    def words(text: str) -> list[str]:
        ids = tokenizer.ids([text])[0][:-1]
        starts = [0, *(i for i in range(1, len(ids)) if tokenizer.word_starts[ids[i]]), len(ids)]
        return tokenizer.decode([ids[a:b] for a, b in itertools.pairwise(starts)])

    assert words("#Person1# läuft, Überholt\n#Person2#s Hund.") == (
        ["#Person1#", " läuft,", " Überholt", "\n#Person2#s", " Hund."]
    )
    assert words("我爱你 カ한국어") == ["我", "爱", "你", " ", "カ한국어"]
    assert not tokenizer.word_starts[[0, 1, 2]].any()


def test_the_first_word_of_a_text_is_known_behind_a_space() -> None:
    tokenizer = train_target_tokenizer(["The cat. The  cat and the cat"] * 9, 400)
    ids = tokenizer.ids(["The", " The", " ", "and", "(", "猫"])
    the, spaced, space, other, mark, chinese = (row[0] for row in ids)
    assert the != spaced == tokenizer.spaced_ids[the]
    for token in (spaced, space, mark, chinese, tokenizer.eos_id):  # a space is not two spaces
        assert tokenizer.spaced_ids[token] == token
    first = tokenizer.decode([[other]])[0]
    assert tokenizer.decode([[tokenizer.spaced_ids[other]]]) == [f" {first}"]


def test_frequent_words_are_one_piece(tokenizer: TargetTokenizer) -> None:
    whole = train_target_tokenizer(["der Hund läuft"] * 5, 300)
    assert [len(ids) for ids in whole.ids(["der Hund läuft", "der Hund"])] == [4, 3]
    assert len(tokenizer.ids(["Ein Mädchen läuft über die Straße."])[0]) < 20


def test_a_long_target_is_cut_and_still_ends(tokenizer: TargetTokenizer) -> None:
    (whole,), (cut,) = (tokenizer.ids([GERMAN[1]], n) for n in (None, 5))
    assert cut == [*whole[:4], tokenizer.eos_id]
    assert tokenizer.ids([GERMAN[1]], len(whole)) == [whole]
    assert tokenizer.ids([GERMAN[1]], 1) == [[tokenizer.eos_id]]


def test_half_a_character_is_no_error(tokenizer: TargetTokenizer) -> None:
    (ids,) = tokenizer.ids(["\U0001f9ff"])  # four bytes, never merged
    assert tokenizer.decode([ids[:2]]) == ["\ufffd"]


def test_a_saved_tokenizer_is_the_same(tokenizer: TargetTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["target_tokenizer.json"]
    loaded = TargetTokenizer.from_pretrained(tmp_path / "run")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.ids(GERMAN) == tokenizer.ids(GERMAN)
    assert loaded.decode(loaded.ids(GERMAN)) == GERMAN


PROGRAM = """
import json, sys
from minibert.target_tokenizer import train_target_tokenizer
words = "See Fuß Tür Bär Öl Uhr Hof Weg Tal Ast Eis Hut Rad Dom Zug".split()
lines = [f"{a}{b.lower()} und {b}" for a in words for b in words]
print(train_target_tokenizer(lines, 400).fingerprint)
"""


def test_ids_are_the_same_from_process_to_process() -> None:
    """Many pairs are equally frequent there, so ties decide most merges."""
    found = set()
    for seed, threads in (("1", "1"), ("2", "4"), ("3", "2")):
        env = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=env
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="target vocabulary of 200 is too small.*take 259"):
        train_target_tokenizer(GERMAN, 200)


def test_a_wrong_file_is_named(tokenizer: TargetTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="target_tokenizer.json does not exist"):
        TargetTokenizer.from_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    path = tmp_path / "target_tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"decoder": None}), encoding="utf-8")
    with pytest.raises(InputError, match="is not a byte-level tokenizer"):
        TargetTokenizer.from_pretrained(tmp_path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        TargetTokenizer.from_pretrained(tmp_path)
