"""Single-text classification: readers, encoding, batches, head, figures and a baseline.

In: labelled texts, as the public data set lays them out. Out: padded batches of similar length for
`BertForSequenceClassification`, and accuracy, F1 and confusion matrix of its predictions.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minibert.errors import InputError, MissingExtraError
from minibert.files import bundled_data
from minibert.heads import BertForSequenceClassification
from minibert.losses import classification_loss
from minibert.metrics import classification_figures, confusion_matrix
from minibert.runtime import Runtime
from minibert.tokenizer import WordPiece
from minibert.train import Batch, StepData, Term
from minibert.world import ALONE, World

_MARKUP = re.compile(r"<[a-zA-Z/][^<>]{0,40}>")  # <br />, <i>, </b>
_SPLIT_SEED = 2019  # the dev split does not depend on the seed: seeds compare on the same examples
_POOL_BATCHES = 50  # batches whose examples are sorted by length together


class LabelledText(NamedTuple):
    """One example; `label` is a class index. `id` says where it comes from."""

    id: str
    text: str
    label: int


@dataclass(frozen=True)
class Splits:
    """The examples of a task, with what the reader noticed."""

    train: list[LabelledText]
    test: list[LabelledText]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A digest of every example."""
        digest = hashlib.sha256()
        for example in (*self.train, *self.test):
            digest.update(f"{example.id}\t{example.label}\t{example.text}\n".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ClassificationTask:
    """A named task: its classes, where its data lies, and how it is read."""

    name: str
    labels: tuple[str, ...]
    places: tuple[str, ...]  # looked in when no --data is given, below the working folder
    sample: str  # name of the bundled sample
    read: Callable[[Path], Splits]

    def find_data(self, data: str | None) -> tuple[Path, str]:
        """The data to use and a line that says which: what was named, downloaded, or bundled.

        Raises:
            InputError: a named path that does not exist, or no sample in this installation.
        """
        if data is not None:
            if not Path(data).exists():
                raise InputError(f"--data {data} does not exist; expected the {self.name} data")
            return Path(data), f"{self.name}, the data in {data}"
        for place in map(Path, self.places):
            if place.exists():
                return place, f"{self.name}, the full set in {place}"
        sample = bundled_data() / self.sample
        if not sample.is_dir():
            raise InputError(f"no data for {self.name}; name it with --data")
        return sample, (
            f"{self.name}, the bundled sample (small, for trying out); "
            f"`minibert download {self.name}` fetches the full set"
        )


# --- the public IMDb set --------------------------------------------------------------------------

_IMDB_CLASSES = ("neg", "pos")


def read_imdb(path: Path) -> Splits:
    """Reads the Large Movie Review Dataset (Maas et al. 2011), as folder or as tar archive.

    Files are `train|test/pos|neg/<id>_<stars>.txt`; other files are ignored. Markup such as
    `<br />` becomes a space.

    Raises:
        InputError: a split or a class is missing, or a file is not UTF-8.
    """
    found: dict[tuple[str, str], list[LabelledText]] = {}
    marked = 0
    for name, content in sorted(_imdb_files(path)):
        split, label, file = name.split("/")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: {name}, byte {error.start} is not UTF-8") from None
        clean = clean_text(text)
        marked += bool(_MARKUP.search(text))
        example = LabelledText(
            f"{split}/{label}/{file.removesuffix('.txt')}", clean, _IMDB_CLASSES.index(label)
        )
        found.setdefault((split, label), []).append(example)
    for split in ("train", "test"):
        for label in _IMDB_CLASSES:
            if (split, label) not in found:
                raise InputError(
                    f"{path} has no reviews under {split}/{label}; expected aclImdb with "
                    f"train and test, each with pos and neg"
                )
    train = [e for label in _IMDB_CLASSES for e in found["train", label]]
    test = [e for label in _IMDB_CLASSES for e in found["test", label]]
    seen = {_same(e.text) for e in train}
    shared = sum(_same(e.text) in seen for e in test)
    notes = [f"{len(train):,} reviews to train on, {len(test):,} to test on"]
    if marked:
        notes.append(f"{marked:,} with markup, which was dropped")
    if len(seen) < len(train):
        notes.append(f"{len(train) - len(seen):,} repeated within train")
    if shared:
        notes.append(f"{shared:,} test texts occur in train, too")
    empty = sum(not e.text for e in (*train, *test))
    if empty:
        notes.append(f"{empty:,} empty")
    return Splits(train, test, str(path), tuple(notes))


def clean_text(text: str) -> str:
    """A text without markup and NUL characters, white space made single spaces."""
    return " ".join(_MARKUP.sub(" ", text).replace("\0", "").split())


def _imdb_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(split/class/file, content) of the labelled reviews below a folder or in a tar archive."""
    pattern = re.compile(r"(?:^|/)((?:train|test)/(?:pos|neg)/[^/]+\.txt)$")
    if path.is_dir():
        root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
        for file in root.glob("*/*/*.txt"):
            name = file.relative_to(root).as_posix()
            if pattern.search(name):
                yield name, file.read_bytes()
        return
    try:
        with _open_archive(path) as plain:
            with tarfile.open(fileobj=plain, mode="r|") as archive:
                for member in archive:
                    match = pattern.search(member.name)
                    if match and member.isfile():
                        handle = archive.extractfile(member)
                        assert handle is not None  # a plain file
                        yield match.group(1), handle.read()
            while plain.read(1 << 20):  # to the end, where the checksum is compared
                pass
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} is neither a folder nor a whole tar archive: {error}") from None


def _open_archive(path: Path) -> IO[bytes]:
    """The tar stream of an archive, unpacked by what its first bytes say."""
    with path.open("rb") as handle:
        head = handle.read(6)
    openers: dict[bytes, Callable[..., Any]] = {
        b"\x1f\x8b": gzip.open,
        b"\xfd7zXZ": lzma.open,
        b"BZh": bz2.open,
    }
    opener = next((o for magic, o in openers.items() if head.startswith(magic)), open)
    stream: IO[bytes] = opener(path, "rb")
    return stream


IMDB = ClassificationTask("imdb", _IMDB_CLASSES, ("data/downloads/aclImdb",), "imdb", read_imdb)


# --- splits ---------------------------------------------------------------------------------------


def _same(text: str) -> str:
    """What two copies of a text share."""
    return " ".join(text.lower().split())


def cut_dev(
    examples: list[LabelledText], fraction: float
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Cuts a dev split off, class by class; copies of a text stay on one side.

    Args:
        fraction: share of each class that goes to dev, at least one example.

    Raises:
        InputError: a class with fewer than two different texts.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    groups: dict[str, list[LabelledText]] = {}
    for example in examples:
        groups.setdefault(_same(example.text), []).append(example)
    dev_ids: set[str] = set()
    for label in sorted({e.label for e in examples}):
        texts = sorted(text for text, group in groups.items() if group[0].label == label)
        if len(texts) < 2:
            raise InputError(
                f"class {label} has {len(texts)} different text(s); a dev split needs 2"
            )
        wanted = max(1, round(fraction * sum(len(groups[t]) for t in texts)))
        taken = 0
        for i in rng.permutation(len(texts))[:-1]:  # one text of each class stays in train
            if taken >= wanted:
                break
            dev_ids |= {e.id for e in groups[texts[i]]}
            taken += len(groups[texts[i]])
    train = [e for e in examples if e.id not in dev_ids]
    return train, [e for e in examples if e.id in dev_ids]


def limit_examples(examples: list[LabelledText], count: int) -> list[LabelledText]:
    """Draws `count` examples, as many of each class as there are classes to share them."""
    rng = np.random.default_rng(_SPLIT_SEED)
    labels = sorted({e.label for e in examples})
    chosen: list[LabelledText] = []
    for label in labels:
        own = [e for e in examples if e.label == label]
        share = count // len(labels) + (labels.index(label) < count % len(labels))
        order = rng.permutation(len(own))[:share]
        chosen += [own[i] for i in sorted(order)]
    return chosen


# --- encoding and batches -------------------------------------------------------------------------


def encode(
    texts: list[str], tokenizer: WordPiece, max_seq_length: int, truncation: str
) -> list[np.ndarray]:
    """[CLS] text [SEP] of each text, at most `max_seq_length` ids.

    Args:
        truncation: "head" keeps the beginning; "head+tail" keeps a quarter from the beginning and
            the rest from the end (Sun et al. 2019, section 5.3.1, keep 128 of 510 in front).
    """
    room = max_seq_length - 2
    head = room if truncation == "head" else room // 4
    encoded = []
    for start in range(0, len(texts), 1000):
        for ids in tokenizer.ids(texts[start : start + 1000]):
            if len(ids) > room:
                ids = ids[:head] + ids[len(ids) - (room - head) :]
            encoded.append(np.array([tokenizer.cls_id, *ids, tokenizer.sep_id], np.int64))
    return encoded


def pad(encoded: list[np.ndarray], pad_id: int) -> dict[str, Tensor]:
    """input_ids and attention_mask, (B, T) int64, padded to the longest of the batch."""
    length = max(len(ids) for ids in encoded)
    input_ids = np.full((len(encoded), length), pad_id, np.int64)
    mask = np.zeros((len(encoded), length), np.int64)
    for row, ids in enumerate(encoded):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}


class ClassificationData:
    """Optimiser steps over labelled texts; batches hold texts of similar length.

    Of several processes each takes its share of every batch.

    The order of an epoch is a pure function of the seed and the epoch.
    """

    def __init__(
        self,
        encoded: list[np.ndarray],
        labels: np.ndarray,
        pad_id: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self.encoded, self.labels, self.pad_id = encoded, labels, pad_id
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.world = world
        self.epoch = self.batch = 0
        self._order: list[np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.encoded) // self.batch_size)

    @property
    def epochs_done(self) -> float:
        return self.epoch + self.batch / self.steps_per_epoch

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def seek(self, state: dict[str, int]) -> None:
        self.epoch, self.batch, self._order = state["epoch"], state["batch"], None

    def order(self) -> list[np.ndarray]:
        """The epoch's batches as arrays of example numbers.

        Examples are shuffled, sorted by length within pools of 50 batches, cut into batches, and
        the batches are shuffled again.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.encoded))
        lengths = np.array([len(ids) for ids in self.encoded])
        pool = _POOL_BATCHES * self.batch_size
        pools = [shuffled[i : i + pool] for i in range(0, len(shuffled), pool)]
        flat = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools])
        batches = [flat[i : i + self.batch_size] for i in range(0, len(flat), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def largest(self, size: int) -> dict[str, Tensor]:
        """A batch of `size` texts as long as the longest, for trying what fits into memory."""
        batch = pad([max(self.encoded, key=len)] * size, self.pad_id)
        return batch | {"labels": torch.zeros(size, dtype=torch.int64)}

    def take(self) -> StepData:
        """The next batch, in micro-batches."""
        if self._order is None:
            self._order = self.order()
        chosen = self._order[self.batch]
        own = chosen[self.world.rank :: self.world.size]
        is_filler = not len(own)  # more processes than texts
        own = chosen[:1] if is_filler else own
        micro = []
        for start in range(0, len(own), self.micro_batch_size):
            part = own[start : start + self.micro_batch_size]
            batch = pad([self.encoded[i] for i in part], self.pad_id)
            micro.append(batch | {"labels": torch.from_numpy(self.labels[part])})
        self.batch += 1
        if self.batch == self.steps_per_epoch:
            self.epoch, self.batch, self._order = self.epoch + 1, 0, None
        num_slots = sum(batch["input_ids"].numel() for batch in micro)
        lengths = [len(self.encoded[i]) for i in chosen]
        return StepData(micro, {"task": len(chosen)}, lengths, num_slots, is_filler)


# --- loss, prediction, figures --------------------------------------------------------------------


def classification_terms(model: Callable[..., Any], batch: Batch) -> dict[str, Term]:
    """The one loss term of the task on a batch with input_ids, attention_mask and labels."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    out = model(**inputs, first_only=True)  # the classifier reads no other token
    hits = (out.logits.argmax(-1) == batch["labels"]).sum()
    return {"task": Term(*classification_loss(out.logits, batch["labels"]), hits)}


@torch.no_grad()
def predict_probabilities(
    model: BertForSequenceClassification,
    encoded: Sequence[np.ndarray],
    pad_id: int,
    batch_size: int,
    runtime: Runtime,
) -> np.ndarray:
    """Class probabilities (examples, C) in the order given; long texts are batched with long ones.

    The model should be in eval mode. Every process scores its share and returns the whole.
    """
    order = np.argsort([len(ids) for ids in encoded], kind="stable")
    found = np.zeros((len(encoded), model.config.num_labels), np.float32)
    rounds = runtime.world.rounds(range(0, len(order), batch_size))
    quiet = None if runtime.world.is_main else True
    # Shown where it takes long; a short evaluation leaves the training's own bar alone.
    bar = tqdm(rounds, desc="scoring", unit="batch", disable=quiet, leave=False, delay=5)
    for start, counts in bar:
        chosen = order[start : start + batch_size]
        batch = pad([encoded[i] for i in chosen], pad_id)
        with runtime.autocast():
            out = model(**runtime.place(batch), first_only=True)
        if counts:
            found[chosen] = out.logits.float().softmax(-1).cpu().numpy()
    whole: np.ndarray = runtime.world.sum(torch.from_numpy(found)).numpy()
    return whole


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, macro F1, Matthews and mean loss (nats) of class probabilities."""
    num_labels = probabilities.shape[1]
    matrix = confusion_matrix(labels, probabilities.argmax(-1), num_labels)
    own = probabilities[np.arange(len(labels)), labels]
    return classification_figures(matrix) | {"loss": float(-np.log(np.maximum(own, 1e-30)).mean())}


def tfidf_baseline(train: list[LabelledText], test: list[LabelledText]) -> dict[str, float]:
    """Accuracy and macro F1 of TF-IDF + logistic regression, the line a model has to pass.

    Words and word pairs, sublinear counts, scikit-learn's default strength.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError(
            "the TF-IDF baseline needs scikit-learn: pip install 'minibert[tasks]'"
        ) from None
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(train) >= 100 else 1
    )
    model = LogisticRegression(max_iter=1000)
    model.fit(vectorizer.fit_transform([e.text for e in train]), [e.label for e in train])
    predictions = model.predict(vectorizer.transform([e.text for e in test]))
    labels = np.array([e.label for e in test])
    num_labels = max(int(labels.max()), int(predictions.max())) + 1
    figures = classification_figures(confusion_matrix(labels, predictions, num_labels))
    return {"accuracy": figures["accuracy"], "f1": figures["f1"]}
