"""WordPiece: trained on the user's text so that the ids depend on the text alone, or loaded.

The library's trainer numbers the first pieces in the order of a randomly seeded hash table, so
ids, and with them the ties between merges, differ from run to run. Here the alphabet is counted
first and handed to the trainer in sorted order as if it were special tokens; from there on every
choice of the trainer is determined by the counts.
"""

from __future__ import annotations

import functools
import hashlib
import re
import string
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from minibert.errors import InputError
from minibert.files import model_path, read_json, write_atomically, write_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Text size in bytes below which each vocabulary size is the default; see `default_vocab_size`.
_VOCAB_STEPS = ((1 << 20, 4096), (30 << 20, 8192), (1 << 30, 16384))
_LARGEST_DEFAULT = 30522
_LONGEST_WORD = 100  # characters; WordPiece makes a longer word [UNK]
# BERT makes every ASCII symbol a word of its own and drops control characters, so that a NUL is
# free to stand for the end of a text.
_TEXT_END = b"\0"
_MARKS = [bytes([c]) for c in string.punctuation.encode()] + [_TEXT_END]
_CONTROLS = bytes({*range(32), 127} - set(b"\t\n\r"))
# Nor do ideographs join others to words, where the normalizer parts them.
_IDEOGRAPHS = r"\u3400-\u4dbf\u4e00-\u9fff"
_CHINESE_WORDS = re.compile(rf"[{_IDEOGRAPHS}]|[^{_IDEOGRAPHS}]+")
_END_ID = (1 << 32) - 1  # what stands for the end of a text among ids
_REMEMBERED_PARTS, _REMEMBERED_BYTES = 1 << 17, 48  # longer parts seldom come again
# Where a word may be too long; marks in common use end it, others merely have the text looked at.
_WIDE_MARKS = "".join(
    chr(c)
    for c in (*range(0x2010, 0x3100), *range(0xFF00, 0xFFF0))
    if unicodedata.category(chr(c))[0] == "P"
)
_COVERAGE = 0.9999  # share of the text's characters that get a piece; rarer ones become [UNK]


def _long_run(chinese: bool) -> re.Pattern[str]:
    """Finds a run of characters that no space, mark or, if they are parted, ideograph ends."""
    ends = rf"\s{re.escape(string.punctuation + _WIDE_MARKS)}{_IDEOGRAPHS if chinese else ''}"
    return re.compile(rf"(?<![^{ends}])[^{ends}]{{{_LONGEST_WORD + 1}}}")


VOCAB_RULE = "4,096 below 1 MiB, 8,192 below 30 MiB, 16,384 below 1 GiB, then 30,522"


def default_vocab_size(text_bytes: int) -> int:
    """4,096 below 1 MiB of text, 8,192 below 30 MiB, 16,384 below 1 GiB, then 30,522."""
    for limit, size in _VOCAB_STEPS:
        if text_bytes < limit:
            return size
    return _LARGEST_DEFAULT


class _KnownParts(dict[bytes, bytes]):
    """Ids of parts of text, four bytes each; a new part's are found when it is looked up."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self.encode, self.tokenize = backend.encode, backend.model.tokenize
        self.chinese = _normalizer_option(backend, "handle_chinese_chars")

    def __missing__(self, part: bytes) -> bytes:
        if part.isalnum():  # ASCII; nothing to normalise, its case has been seen to
            ids = [token.id for token in self.tokenize(part.decode())]
        elif part == _TEXT_END:
            ids = [_END_ID]
        else:
            text = part.decode()
            if self.chinese and len(words := _CHINESE_WORDS.findall(text)) > 1:
                return b"".join([self[word.encode()] for word in words])
            ids = self.encode(text, add_special_tokens=False).ids
        found = array("I", ids).tobytes()
        if len(self) >= _REMEMBERED_PARTS:
            self.clear()  # rather than closed: the text may have turned to other words
        if len(part) <= _REMEMBERED_BYTES:
            self[part] = found
        return found


class WordPiece:
    """A WordPiece tokenizer and the folder files that others read it by.

    Example:
        tokenizer = WordPiece.from_pretrained("runs/pretrain")
        tokenizer.ids(["A fine film."])   # one list of ids a text, without [CLS] and [SEP]
    """

    def __init__(self, backend: tokenizers.Tokenizer, lowercase: bool) -> None:
        self.backend = backend
        self.lowercase = lowercase
        missing = [t for t in SPECIAL_TOKENS if backend.token_to_id(t) is None]
        if missing:
            raise InputError(f"the vocabulary lacks {', '.join(missing)}; BERT needs all five")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            i for t in SPECIAL_TOKENS if (i := backend.token_to_id(t)) is not None
        )
        # "[MASK]" in a text is six characters of text, not a mask.
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._known = _KnownParts(backend)

    @functools.cached_property
    def vocab_size(self) -> int:
        """V, the number of token ids; the largest one + 1, as one may have no token."""
        return 1 + max(self.backend.get_vocab().values())

    @property
    def tokens(self) -> list[str]:
        """The vocabulary in the order of its ids, [unused:ID] where an id has no token."""
        found = {i: token for token, i in self.backend.get_vocab().items()}
        return [found.get(i, f"[unused:{i}]") for i in range(self.vocab_size)]

    @property
    def special_ids(self) -> list[int]:
        """Ids of [PAD] [UNK] [CLS] [SEP] [MASK], of any [unusedN], and those without a token."""
        known = set(SPECIAL_TOKENS)
        return [i for i, t in enumerate(self.tokens) if t in known or t.startswith("[unused")]

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides which ids a text gets."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens.

        Raises:
            InputError: a string in place of a list of them.
        """
        if isinstance(texts, str):  # whose letters would be taken for texts
            raise InputError(f"texts is {texts!r:.60}; expected a list of texts, [text] for one")
        ids, lengths = self.flat_ids(texts)
        flat, ends = ids.tolist(), np.cumsum(lengths).tolist()
        return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def flat_ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of all texts, one after the other, and how many each text has.

        WordPiece takes one word after the other, so words seen before are looked up, and the
        library is asked for new ones: one thread is then faster than the library alone on two
        cores (`benchmarks/tokenising.py`).
        """
        if not self._parts_text_alike:
            rows = self._ids_by_library(texts)
            flat = np.fromiter(chain.from_iterable(rows), np.uint32)
            return flat, np.array([len(row) for row in rows], np.int64)
        lines = "".join([text.replace("\n", " ") + "\n" for text in texts]).encode()
        parted = lines.translate(bytes.maketrans(b"\n", _TEXT_END), _CONTROLS)
        if self.backend.normalizer.lowercase:
            parted = parted.lower()  # ASCII alone
        for mark in _MARKS:
            parted = parted.replace(mark, b" %b " % mark)
        found = b"".join(map(self._known.__getitem__, parted.split()))
        ids = np.frombuffer(found, np.uint32)
        is_end = ids == _END_ID
        return ids[~is_end], np.diff(np.flatnonzero(is_end), prepend=-1) - 1

    def _ids_by_library(self, texts: list[str]) -> list[list[int]]:
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [e.ids for e in encoded]

    @functools.cached_property
    def _parts_text_alike(self) -> bool:
        """Whether the tokenizer parts text as `flat_ids` does: with BERT's own rules it does."""
        backend = self.backend
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        return (
            isinstance(backend.normalizer, normalizers.BertNormalizer)
            and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
            and backend.normalizer.clean_text
            and added <= set(SPECIAL_TOKENS)
        )

    def save(self, folder: str | Path, max_length: int | None = None) -> None:
        """Writes tokenizer.json, vocab.txt and tokenizer_config.json in the published layout.

        Args:
            max_length: tokens, special ones included, that the model has trained positions for, to
                which transformers then cuts texts with `truncation=True`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "tokenizer.json", lambda p: self.backend.save(str(p)))
        vocabulary = "".join(f"{token}\n" for token in self.tokens)
        write_atomically(folder / "vocab.txt", lambda p: p.write_text(vocabulary, encoding="utf-8"))
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        settings: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "tokenize_chinese_chars": _normalizer_option(self.backend, "handle_chinese_chars"),
            "strip_accents": _normalizer_option(self.backend, "strip_accents"),
            **dict(zip(names, SPECIAL_TOKENS, strict=True)),
        }
        if max_length is not None:
            settings["model_max_length"] = max_length
        write_json(folder / "tokenizer_config.json", settings)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> WordPiece:
        """Loads tokenizer.json, or vocab.txt with tokenizer_config.json, from a folder.

        A token that stands on two lines of vocab.txt has the id of the later one, as published
        models have it; nothing gets the other id. Where tokenizer_config.json says otherwise of
        case, accents or Chinese than tokenizer.json, it is followed, as transformers does.

        Raises:
            InputError: neither file is there, or it is not a WordPiece tokenizer.
        """
        folder = model_path(folder)
        fast, plain = folder / "tokenizer.json", folder / "vocab.txt"
        config_file = folder / "tokenizer_config.json"
        config = read_json(config_file, "") if config_file.is_file() else {}
        if fast.is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(fast))
            except Exception as error:  # the library raises bare Exception
                raise InputError(f"{fast} cannot be read: {error}") from None
            if not isinstance(backend.model, models.WordPiece):
                kind = type(backend.model).__name__
                raise InputError(f"{fast} is a {kind} tokenizer; BERT uses WordPiece")
            _follow_config(backend, config)
            return cls(backend, bool(_normalizer_option(backend, "lowercase")))
        if not plain.is_file():
            raise InputError(f"{folder} holds neither tokenizer.json nor vocab.txt")
        try:
            tokens = plain.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{plain} is not UTF-8: {error}") from None
        lowercase = bool(config.get("do_lower_case", True))
        chinese = bool(config.get("tokenize_chinese_chars", True))
        backend = _build(tokens, lowercase, chinese)
        if config.get("strip_accents") is not None:
            backend.normalizer.strip_accents = bool(config["strip_accents"])
        return cls(backend, lowercase)


def _normalizer_option(backend: tokenizers.Tokenizer, name: str) -> Any:
    """A setting of the BERT normalizer, or None where the tokenizer has another one."""
    return getattr(backend.normalizer, name, None)


def _follow_config(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Gives the BERT normalizer what tokenizer_config.json says, if that changes what it does.

    Classes that know no such settings have them from tokenizer.json alone.
    """
    found = backend.normalizer
    has_own = config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    if has_own or not isinstance(found, normalizers.BertNormalizer):
        return
    names = {"do_lower_case": found.lowercase, "tokenize_chinese_chars": found.handle_chinese_chars}
    lowercase, chinese = (
        before if config.get(name) is None else bool(config[name]) for name, before in names.items()
    )
    # Without a word on accents they go with the case; without one on either they stay.
    named = config.get("do_lower_case") is not None
    accents = config.get("strip_accents", None if named else found.strip_accents)
    accents = lowercase if accents is None else bool(accents)
    before = found.lowercase if found.strip_accents is None else found.strip_accents
    if (lowercase, chinese, accents) != (found.lowercase, found.handle_chinese_chars, before):
        found.lowercase, found.handle_chinese_chars = lowercase, chinese
        found.strip_accents = accents


def _build(tokens: Iterable[str], lowercase: bool, chinese: bool) -> tokenizers.Tokenizer:
    """The whole tokenizer around a vocabulary given in the order of its ids."""
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = _normalizer(lowercase, chinese)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    present = [t for t in SPECIAL_TOKENS if t in vocab]
    backend.add_special_tokens(present)
    if "[CLS]" in vocab and "[SEP]" in vocab:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
        )
    return backend


def _normalizer(lowercase: bool, chinese: bool) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=lowercase, lowercase=lowercase
    )


def train_wordpiece(
    texts: Callable[[], Iterator[str]],
    vocab_size: int,
    lowercase: bool = True,
    chinese: bool = True,
    exact: bool = True,
) -> WordPiece:
    """Trains a WordPiece vocabulary; ids and order are a pure function of the text.

    Devlin et al. 2019 use WordPiece (Wu et al. 2016); the trainer is that of `tokenizers`, which
    merges the most frequent pair first.

    Args:
        texts: called twice, gives the text in pieces that do not part words.
        vocab_size: V wanted, special tokens included.
        lowercase: lower-case and strip accents (the published "uncased" models).
        chinese: split Chinese characters into words of one character.
        exact: refuse a text that supports fewer pieces; otherwise take those it supports, and the
            next default size that holds its single characters where they are more.

    Raises:
        InputError: the text has fewer distinct pieces than an exact vocab_size, or more single
            characters than that or any default.
    """
    normalizer, splitter = _normalizer(lowercase, chinese), pre_tokenizers.BertPreTokenizer()
    long_run = _long_run(chinese)

    def usable() -> Iterator[str]:
        """The text without words that become [UNK] for their length: they cost its square."""
        for text in texts():
            if long_run.search(text):
                words = splitter.pre_tokenize_str(normalizer.normalize_str(text))
                text = " ".join(word for word, _ in words if len(word) <= _LONGEST_WORD)
            yield text

    alphabet = _alphabet(usable(), lowercase, chinese)
    first = [*alphabet, *(f"##{c}" for c in alphabet if not _stands_alone(c, chinese))]
    vocab_size = _fitting_size(vocab_size, len(SPECIAL_TOKENS) + len(first), len(alphabet), exact)
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = _normalizer(lowercase, chinese)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *first],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(usable(), trainer)
    vocab = backend.get_vocab()
    if exact and len(vocab) < vocab_size:
        raise InputError(
            f"--vocab-size {vocab_size} is more than this text supports; it gives {len(vocab)} "
            f"pieces at most"
        )
    return WordPiece(_build(sorted(vocab, key=vocab.__getitem__), lowercase, chinese), lowercase)


def _fitting_size(wanted: int, needed: int, characters: int, exact: bool) -> int:
    """The vocabulary size wanted or, unless it is exact, the next default that is enough."""
    size = wanted
    if not exact and needed > wanted:
        larger = [step for _, step in _VOCAB_STEPS if step >= needed]
        size = min([*larger, max(wanted, _LARGEST_DEFAULT)])
    if needed > size:
        named = f"--vocab-size {size}" if exact else f"the default of {size} pieces"
        raise InputError(
            f"{named} is too small for this text: its {characters} characters alone take "
            f"{needed} pieces{'' if exact else '; give a larger --vocab-size'}"
        )
    return size


def _alphabet(texts: Iterator[str], lowercase: bool, chinese: bool) -> list[str]:
    """The commonest characters of the normalised text, up to `_COVERAGE` of it, sorted."""
    normalizer = _normalizer(lowercase, chinese)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    for char in [c for c in counts if c.isspace() or unicodedata.category(c) in ("Cc", "Cs")]:
        del counts[char]
    kept, covered, wanted = [], 0, _COVERAGE * counts.total()
    for char in sorted(counts, key=lambda c: (-counts[c], c)):  # ties by code point
        if covered >= wanted:
            break
        kept.append(char)
        covered += counts[char]
    return sorted(kept)


def _stands_alone(char: str, chinese: bool) -> bool:
    """Whether the pre-tokenizer always makes this character a word, so it never follows "##"."""
    ascii_symbol = char.isascii() and not char.isalnum()
    ideograph = "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf"
    return ascii_symbol or unicodedata.category(char)[0] == "P" or (chinese and ideograph)
