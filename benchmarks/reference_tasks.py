"""The tasks of the comparison with the reference: their slices, and transformers' side of each.

In: the public sets, in the folders and formats that `minibert.finetune` reads, too. Out: a slice of
each in the same format, and for transformers' models features, decoded predictions and figures, as
its own examples make them (run_glue, run_ner, run_qa). Both sides read the same files; both sides'
predictions are scored here by the field's scorer.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minibert.tasks.squad_scores import squad_figures

IGNORED = -100  # a label that has no loss, by torch's and transformers' convention


@dataclass(frozen=True)
class Recipe:
    """What both sides do alike.

    train, dev, test: examples; dev is drawn beside train and is ours alone to look at.
    ours: further settings of `minibert.finetune`.
    """

    train: int
    test: int
    epochs: int
    batch_size: int
    max_seq_length: int
    learning_rate: float
    warmup_ratio: float = 0.1
    dev: int = 200
    ours: dict[str, Any] = field(default_factory=dict)


class Inputs(NamedTuple):
    """What a model reads of some examples.

    rows: of each feature its ids, masks and labels. origins: of each the number of its example, and
    what decoding must know of it.
    """

    rows: list[dict[str, Any]]
    origins: list[tuple[int, Any]]


class Work(ABC):
    """A task with its recipe.

    Attributes:
        figure: the key of results.json that is compared, and `scale` what makes it 0..100.
        auto: the name of transformers' class.
        source: the names of the set's training, and of its labelled test file.
        files: the slice's train, dev and test file.
    """

    figure: ClassVar[str]
    scale: ClassVar[float] = 100.0
    auto: ClassVar[str]
    source: ClassVar[tuple[str, str]]
    files: ClassVar[tuple[str, str, str]]
    recipe: ClassVar[Recipe]

    # --- slices ----------------------------------------------------------------------------------

    def cut(self, source: Path, folder: Path, recipe: Recipe) -> None:
        """Writes the slice of a set; the same examples whenever and wherever it is called."""
        folder.mkdir(parents=True, exist_ok=True)
        pool, last = self.pools(source)
        rng = np.random.default_rng(0)
        order = rng.permutation(len(pool))
        ends = (recipe.train, recipe.train + recipe.dev)
        parts = [[pool[i] for i in sorted(p)] for p in np.split(order, ends)[:2]]
        kept = sorted(rng.permutation(len(last))[: recipe.test])
        for name, part in zip(self.files, [*parts, [last[i] for i in kept]], strict=True):
            (folder / name).write_text(self.written(part, name), encoding="utf-8")

    def pools(self, source: Path) -> tuple[list[Any], list[Any]]:
        """The raw examples to train on, and those to score on."""
        first, second = (self.raw((source / name).read_text("utf-8")) for name in self.source)
        return first, second

    @abstractmethod
    def raw(self, text: str) -> list[Any]:
        """The examples of a file, as they stand in it."""

    @abstractmethod
    def written(self, examples: list[Any], name: str) -> str:
        """The text of a file of the slice."""

    @abstractmethod
    def read(self, path: Path) -> list[Any]:
        """The examples of a file of the slice, as transformers' side takes them."""

    # --- transformers' side ----------------------------------------------------------------------

    def model_arguments(self, train: list[Any]) -> dict[str, Any]:
        """What the model's class must know beside the checkpoint."""
        return {}

    def collator(self, tokenizer: Any) -> Any:
        """What makes a batch of rows."""
        import transformers

        return transformers.DataCollatorWithPadding(tokenizer)

    @abstractmethod
    def inputs(self, tokenizer: Any, examples: list[Any], options: dict[str, Any]) -> Inputs:
        """The features of examples.

        Args:
            options: max_length and padding, of the tokenizer's call.
        """

    @abstractmethod
    def decode(
        self, examples: list[Any], inputs: Inputs, outputs: Sequence[dict[str, np.ndarray]]
    ) -> list[Any]:
        """A prediction for each example, from each feature's logits by name."""

    # --- figures ---------------------------------------------------------------------------------

    def told(self, row: dict[str, Any]) -> Any:
        """The prediction in a row of our predictions.jsonl."""
        return row["prediction"]

    @abstractmethod
    def figures(self, examples: list[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """The field's scorer on predictions; `figure` is one of its keys."""


def _plain(rows: Any, count: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Columns of a tokenizer's answer as rows."""
    return [{name: rows[name][i] for name in names if name in rows} for i in range(count)]


_READ = ("input_ids", "token_type_ids", "attention_mask")


class Sst2(Work):
    """SST-2 (Socher et al. 2013), GLUE's dev scored."""

    figure, auto = "accuracy", "AutoModelForSequenceClassification"
    source, files = ("train.tsv", "dev.tsv"), ("train.tsv", "dev.tsv", "test.tsv")
    recipe = Recipe(3000, 872, 2, 16, 128, 1e-4)
    labels = ("negative", "positive")

    def raw(self, text: str) -> list[str]:
        return text.rstrip("\n").split("\n")[1:]

    def written(self, examples: list[str], name: str) -> str:
        return "\n".join(["sentence\tlabel", *examples, ""])

    def read(self, path: Path) -> list[tuple[str, int]]:
        parted = (line.split("\t") for line in self.raw(path.read_text("utf-8")))
        return [(text.strip(), int(label)) for text, label in parted]

    def model_arguments(self, train: list[Any]) -> dict[str, Any]:
        return {"num_labels": len(self.labels)}

    def inputs(self, tokenizer: Any, examples: list[Any], options: dict[str, Any]) -> Inputs:
        encoded = tokenizer([text for text, _ in examples], truncation=True, **options)
        rows = _plain(encoded, len(examples), _READ)
        rows = [r | {"labels": label} for r, (_, label) in zip(rows, examples, strict=True)]
        return Inputs(rows, [(i, None) for i in range(len(rows))])

    def decode(self, examples: list[Any], inputs: Inputs, outputs: Sequence[Any]) -> list[int]:
        return [int(out["logits"].argmax()) for out in outputs]

    def told(self, row: dict[str, Any]) -> int:
        return self.labels.index(row["prediction"])

    def figures(self, examples: list[Any], predictions: Sequence[int]) -> dict[str, float]:
        hits = [label == p for (_, label), p in zip(examples, predictions, strict=True)]
        return {"accuracy": sum(hits) / len(hits)}


class Stsb(Work):
    """STS-B (Cer et al. 2017) as regression of the score, GLUE's dev scored."""

    figure, auto = "pearson", "AutoModelForSequenceClassification"
    source, files = ("train.tsv", "dev.tsv"), ("train.tsv", "dev.tsv", "sts-test.tsv")
    recipe = Recipe(2400, 1500, 2, 16, 128, 2e-4, ours={"mode": "cross-encoder"})
    header = "index genre filename year old_index source1 source2 sentence1 sentence2 score"

    def raw(self, text: str) -> list[str]:
        return text.rstrip("\n").split("\n")[1:]

    def written(self, examples: list[str], name: str) -> str:
        if name != self.files[2]:
            return "\n".join(["\t".join(self.header.split()), *examples, ""])
        rows = [line.split("\t") for line in examples]  # the original's layout, without a header
        return "".join("\t".join((*r[1:5], r[9], r[7], r[8])) + "\n" for r in rows)

    def read(self, path: Path) -> list[tuple[str, str, float]]:
        text = path.read_text("utf-8")
        if path.name == self.files[2]:
            rows = [line.split("\t") for line in text.rstrip("\n").split("\n")]
            return [(r[5], r[6], float(r[4])) for r in rows]
        rows = [line.split("\t") for line in self.raw(text)]
        return [(r[7], r[8], float(r[9])) for r in rows]

    def model_arguments(self, train: list[Any]) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def inputs(self, tokenizer: Any, examples: list[Any], options: dict[str, Any]) -> Inputs:
        first, second, scores = (list(part) for part in zip(*examples, strict=True))
        rows = _plain(tokenizer(first, second, truncation=True, **options), len(first), _READ)
        rows = [r | {"labels": score} for r, score in zip(rows, scores, strict=True)]
        return Inputs(rows, [(i, None) for i in range(len(rows))])

    def decode(self, examples: list[Any], inputs: Inputs, outputs: Sequence[Any]) -> list[float]:
        return [float(out["logits"][0]) for out in outputs]

    def figures(self, examples: list[Any], predictions: Sequence[float]) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        gold = [score for *_, score in examples]
        return {
            "pearson": float(pearsonr(gold, predictions).statistic),
            "spearman": float(spearmanr(gold, predictions).statistic),
        }


class Conll2003(Work):
    """CoNLL-2003 (Tjong Kim Sang and De Meulder 2003), its test split scored by seqeval."""

    figure, auto = "f1", "AutoModelForTokenClassification"
    source, files = ("train.txt", "test.txt"), ("train.txt", "valid.txt", "test.txt")
    recipe = Recipe(2000, 1500, 2, 8, 256, 1e-4)

    def raw(self, text: str) -> list[str]:
        blocks = (block.strip("\n") for block in text.split("\n\n"))
        return [b for b in blocks if b and not b.startswith("-DOCSTART-")]

    def written(self, examples: list[str], name: str) -> str:
        return "\n\n".join(examples) + "\n"

    def read(self, path: Path) -> list[tuple[list[str], list[str]]]:
        found = []
        for block in self.raw(path.read_text("utf-8")):
            fields = [line.split(" ") for line in block.split("\n")]
            found.append(([f[0] for f in fields], [f[-1] for f in fields]))
        return found

    def model_arguments(self, train: list[Any]) -> dict[str, Any]:
        self.tags = sorted({tag for _, tags in train for tag in tags})
        return {"num_labels": len(self.tags)}

    def collator(self, tokenizer: Any) -> Any:
        import transformers

        return transformers.DataCollatorForTokenClassification(tokenizer)

    def inputs(self, tokenizer: Any, examples: list[Any], options: dict[str, Any]) -> Inputs:
        words = [words for words, _ in examples]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, **options)
        rows, origins = _plain(encoded, len(words), _READ), []
        for number, (_, tags) in enumerate(examples):
            places = encoded.word_ids(number)
            firsts = {word: place for place, word in reversed([*enumerate(places)])}
            firsts.pop(None, None)
            labels = [IGNORED] * len(places)
            for word, place in firsts.items():
                # A tag that train does not have can only be missed.
                labels[place] = self.tags.index(tags[word]) if tags[word] in self.tags else IGNORED
            rows[number]["labels"] = labels
            origins.append((number, firsts))
        return Inputs(rows, origins)

    def decode(
        self, examples: list[Any], inputs: Inputs, outputs: Sequence[Any]
    ) -> list[list[str]]:
        found = []
        for (number, firsts), out in zip(inputs.origins, outputs, strict=True):
            tags = ["O"] * len(examples[number][0])  # a word that was cut off has no entity
            for word, place in firsts.items():
                tags[word] = self.tags[int(out["logits"][place].argmax())]
            found.append(tags)
        return found

    def figures(self, examples: list[Any], predictions: Sequence[list[str]]) -> dict[str, float]:
        """As run_ner counts: an I- that continues nothing begins an entity."""
        from seqeval.metrics import f1_score, precision_score, recall_score

        gold, found = [tags for _, tags in examples], list(predictions)
        scorers = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
        return {name: float(scorer(gold, found)) for name, scorer in scorers.items()}


class Squad(Work):
    """SQuAD 1.1 (Rajpurkar et al. 2016): of the dev file 38 articles to train on, 10 to score."""

    figure, scale, auto = "f1", 1.0, "AutoModelForQuestionAnswering"
    source = ("dev-v1.1.json", "dev-v1.1.json")
    files = ("train-v1.1.json", "dev-v1.1.json", "test-v1.1.json")
    recipe = Recipe(800, 300, 2, 8, 384, 2e-4, dev=100)
    train_articles = 38
    stride, n_best, longest = 128, 20, 30  # run_qa's defaults

    def pools(self, source: Path) -> tuple[list[Any], list[Any]]:
        content = (source / self.source[0]).read_text("utf-8")
        articles = json.loads(content)["data"]
        cut = min(self.train_articles, len(articles) * 4 // 5)
        return self._questions(articles[:cut]), self._questions(articles[cut:])

    def _questions(self, articles: list[Any]) -> list[tuple[str, str, Any]]:
        return [
            (article["title"], paragraph["context"], question)
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]

    def raw(self, text: str) -> list[tuple[str, str, Any]]:
        return self._questions(json.loads(text)["data"])

    def written(self, examples: list[Any], name: str) -> str:
        articles: dict[str, dict[str, list[Any]]] = {}
        for title, context, question in examples:
            articles.setdefault(title, {}).setdefault(context, []).append(question)
        data = [
            {"title": t, "paragraphs": [{"context": c, "qas": q} for c, q in paragraphs.items()]}
            for t, paragraphs in articles.items()
        ]
        return json.dumps({"version": "1.1", "data": data})

    def read(self, path: Path) -> list[Any]:
        return self.raw(path.read_text("utf-8"))

    def inputs(self, tokenizer: Any, examples: list[Any], options: dict[str, Any]) -> Inputs:
        encoded = tokenizer(
            [question["question"].lstrip() for _, _, question in examples],
            [context for _, context, _ in examples],
            truncation="only_second",
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            **options,
        )
        owners = encoded["overflow_to_sample_mapping"]
        rows, origins = _plain(encoded, len(owners), _READ), []
        for number, owner in enumerate(owners):
            is_context = [part == 1 for part in encoded.sequence_ids(number)]
            spans = [
                span if inside else None
                for span, inside in zip(encoded["offset_mapping"][number], is_context, strict=True)
            ]
            start, end = self._place(spans, examples[owner][2]["answers"][0])
            rows[number] |= {"start_positions": start, "end_positions": end}
            origins.append((owner, spans))
        return Inputs(rows, origins)

    def _place(self, spans: list[Any], answer: dict[str, Any]) -> tuple[int, int]:
        """The answer's first and last token; [CLS] where the window does not have the whole."""
        first = answer["answer_start"]
        last = first + len(answer["text"])
        inside = [i for i, span in enumerate(spans) if span is not None]
        if not inside or spans[inside[0]][0] > first or spans[inside[-1]][1] < last:
            return 0, 0
        start = max(i for i in inside if spans[i][0] <= first)
        end = min(i for i in inside if spans[i][1] >= last)
        return start, end

    def decode(self, examples: list[Any], inputs: Inputs, outputs: Sequence[Any]) -> list[str]:
        best: list[tuple[float, str]] = [(float("-inf"), "")] * len(examples)
        for (owner, spans), out in zip(inputs.origins, outputs, strict=True):
            for score, start, end in self._stretches(out, spans):
                if score > best[owner][0]:
                    best[owner] = score, examples[owner][1][spans[start][0] : spans[end][1]]
        return [text for _, text in best]

    def _stretches(
        self, out: dict[str, np.ndarray], spans: list[Any]
    ) -> Iterator[tuple[float, int, int]]:
        """Score, first and last token of all pairs of the likeliest starts and ends."""
        starts, ends = out["start_logits"], out["end_logits"]
        for start in np.argsort(-starts)[: self.n_best]:
            for end in np.argsort(-ends)[: self.n_best]:
                inside = max(start, end) < len(spans) and spans[start] and spans[end]
                if inside and start <= end < start + self.longest:
                    yield float(starts[start] + ends[end]), int(start), int(end)

    def figures(self, examples: list[Any], predictions: Sequence[str]) -> dict[str, float]:
        golds = [[a["text"] for a in question["answers"]] for _, _, question in examples]
        return squad_figures(golds, predictions)


WORKS: dict[str, Work] = {
    "sst2": Sst2(),
    "stsb": Stsb(),
    "conll2003": Conll2003(),
    "squad": Squad(),
}
