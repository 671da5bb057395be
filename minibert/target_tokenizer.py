"""The vocabulary of texts that a model writes: byte-level BPE, cased, decoded to the exact text.

Pairs of pieces are merged by frequency (Sennrich et al. 2016) over the bytes of UTF-8, so that no
character is unknown and spaces, line ends and capitals survive. The ids are a pure function of the
text: unlike that of WordPiece, the trainer of `tokenizers` begins here from an alphabet in a fixed
order, the 256 bytes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minibert.errors import InputError
from minibert.files import write_atomically

TARGET_FILE = "target_tokenizer.json"  # in a model folder, beside the source's tokenizer.json
# Ids 0, 1, 2. Brackets and letters are never merged, so that no text gets such an id.
TARGET_MARKS = ("[PAD]", "[BOS]", "[EOS]")
DEFAULT_TARGET_VOCAB = 8000
_ALPHABET = 256
# As the byte-level alphabet writes bytes: white space, and the first bytes of kana and Chinese
# characters in UTF-8 (0xE3 to 0xE9), which are written without spaces.
_WORD_STARTS = frozenset("ĠĊĉč" + "ãäåæçèé")


class TargetTokenizer:
    """A byte-level BPE tokenizer whose `decode` gives back every text that it encoded.

    Example:
        tokenizer = train_target_tokenizer(["Ein Mann läuft.", "Zwei Hunde."], 300)
        tokenizer.decode(tokenizer.ids(["Zwei Hunde."]))   # ["Zwei Hunde."]
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        missing = [mark for mark in TARGET_MARKS if backend.token_to_id(mark) is None]
        if missing:
            raise InputError(f"the target vocabulary lacks {', '.join(missing)}")
        self.pad_id, self.bos_id, self.eos_id = (
            i for mark in TARGET_MARKS if (i := backend.token_to_id(mark)) is not None
        )
        # "[EOS]" in a text is five characters of text, not an end.
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()

    @property
    def vocab_size(self) -> int:
        """V, the number of token ids."""
        return self.backend.get_vocab_size()

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides which ids a text gets."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """(V,) bool, the tokens that begin a word: after white space, or a Chinese character.

        A text's first token begins a word, too. A mark behind a word is part of it.
        """
        starts = np.zeros(self.vocab_size, dtype=bool)
        for piece, i in self.backend.get_vocab().items():
            starts[i] = piece[0] in _WORD_STARTS
        return starts

    @functools.cached_property
    def spaced_ids(self) -> np.ndarray:
        """(V,) int64, the token that says the same behind a space; itself where there is none.

        A text's first word has no space before it, and so another first token than elsewhere.
        """
        vocab = self.backend.get_vocab()
        found = np.arange(self.vocab_size)
        for piece, i in vocab.items():
            if not self.word_starts[i]:
                found[i] = vocab.get(f"Ġ{piece}", i)
        return found

    def ids(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Ids of each text, the end mark behind them.

        Args:
            max_length: ids of a text at most, the end mark included; a longer one is cut.
        """
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        room = None if max_length is None else max(0, max_length - 1)
        return [[*e.ids[:room], self.eos_id] for e in encoded]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of ids; marks are left out, bytes that are no UTF-8 become U+FFFD."""
        texts: list[str] = self.backend.decode_batch([list(row) for row in ids])
        return texts

    def save(self, folder: str | Path) -> None:
        """Writes target_tokenizer.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TARGET_FILE, lambda p: self.backend.save(str(p)))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TargetTokenizer:
        """Loads target_tokenizer.json from a folder.

        Raises:
            InputError: the file is missing or no byte-level BPE tokenizer.
        """
        path = Path(folder) / TARGET_FILE
        if not path.is_file():
            raise InputError(f"{path} does not exist; a model that writes text keeps it there")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path} cannot be read: {error}") from None
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise InputError(f"{path} is not a byte-level tokenizer; its text would not survive")
        return cls(backend)


def train_target_tokenizer(
    texts: Iterable[str], vocab_size: int = DEFAULT_TARGET_VOCAB
) -> TargetTokenizer:
    """Trains a target vocabulary; pairs seen once are not merged, so a small text gives fewer.

    Args:
        texts: all training targets.
        vocab_size: V at most; the marks and the 256 bytes are part of it.

    Raises:
        InputError: vocab_size has no room for marks and bytes.
    """
    smallest = len(TARGET_MARKS) + _ALPHABET
    if vocab_size < smallest:
        raise InputError(
            f"a target vocabulary of {vocab_size} is too small: marks and bytes take {smallest}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(TARGET_MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return TargetTokenizer(backend)
