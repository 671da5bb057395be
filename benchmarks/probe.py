"""What a model's vectors know of IMDb before any fine-tuning: logistic regression on frozen layers.

    python -m benchmarks.probe minibert-small-en minibert-mini-en --data aclImdb

Of every layer the mean of a review's vectors, and of the last [CLS]; of the review its first tokens
alone, as many as --length says. Reviews are drawn from the train split by a fixed seed, the test
split is not touched. The strength of the regression is chosen by cross-validation among those it
learns from.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import told_in_a_line
from minibert.errors import InputError
from minibert.model import BertModel
from minibert.model_folders import open_model_folder
from minibert.tasks.labelled import LabelledText
from minibert.tasks.labelled_sets import read_imdb
from minibert.tokenizer import WordPiece

_STRENGTHS = (1e-3, 1e-2, 1e-1)
_SEED, _AT_ONCE = 0, 16


@torch.no_grad()
def vectors(folder: Path, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """(texts, D) by what they are: "0" to "N", the mean of a layer's vectors, and "[CLS]"."""
    model, tokenizer = BertModel.from_pretrained(folder).eval(), WordPiece.from_pretrained(folder)
    ids = [ids[: length - 2] for ids in tokenizer.ids(list(texts))]
    rows = [torch.tensor([tokenizer.cls_id, *own, tokenizer.sep_id]) for own in ids]
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(rows), _AT_ONCE):
        batch = rows[start : start + _AT_ONCE]
        padded = torch.nn.utils.rnn.pad_sequence(batch, True, tokenizer.pad_id)
        lengths = torch.tensor([len(row) for row in batch])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        out = model(padded, attention_mask=mask, output_hidden_states=True)
        for number, states in enumerate(out.hidden_states):  # 0 at the padding
            found.setdefault(str(number), []).append(states.sum(1) / lengths[:, None])
        found.setdefault("[CLS]", []).append(out.last_hidden_state[:, 0])
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def score(known: np.ndarray, labels: np.ndarray, train: int) -> float:
    """The share of what comes after the first `train` that logistic regression has right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaled = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    chosen = GridSearchCV(scaled, {"logisticregression__C": _STRENGTHS}, cv=5)
    fitted = chosen.fit(known[:train], labels[:train])
    return float(fitted.score(known[train:], labels[train:]))


def drawn(reviews: Sequence[LabelledText], count: int) -> tuple[list[str], np.ndarray]:
    """Texts and labels, 0 or 1, of reviews drawn at random."""
    order = np.random.default_rng(_SEED).permutation(len(reviews))[:count]
    names = sorted({str(review.label) for review in reviews})
    labels = np.array([names.index(str(reviews[i].label)) for i in order])
    return [reviews[i].text for i in order], labels


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.probe", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", nargs="+", help="folders or names")
    parser.add_argument("--data", type=Path, required=True, help="aclImdb, or its archive")
    parser.add_argument("--train", type=int, default=1600, help="reviews to learn from")
    parser.add_argument("--test", type=int, default=800, help="others to score")
    parser.add_argument("--length", type=int, default=256, help="tokens of a review")
    args = parser.parse_args(arguments)
    with told_in_a_line("probe"):  # before minutes are spent on the vectors
        if importlib.util.find_spec("sklearn") is None:
            raise InputError("scikit-learn is not installed; pip install 'minibert[tasks]'")
        folders = {name: open_model_folder(name) for name in args.models}
        reviews, wanted = read_imdb(args.data).train, args.train + args.test
        if len(reviews) < wanted:
            raise InputError(
                f"{args.data} has {len(reviews):,} reviews to train on, of which --train and "
                f"--test want {wanted:,}"
            )
    texts, labels = drawn(reviews, wanted)
    for name, folder in folders.items():
        known = vectors(folder, texts, args.length)
        figures = {part: score(own, labels, args.train) for part, own in known.items()}
        print(f"| {name} | " + " | ".join(f"{p}: {100 * v:.1f}" for p, v in figures.items()) + " |")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
