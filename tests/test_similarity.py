"""Similarity: readers, both modes, figures, vectors of texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import NOUNS, one_thread, write_corpus  # noqa: F401

import minibert
from minibert.cli import main
from minibert.config import BertConfig
from minibert.errors import InputError, Interrupted
from minibert.exporting import export
from minibert.finetuning import finetune
from minibert.losses import squared_error
from minibert.metrics import pearson, spearman
from minibert.model import BertModel
from minibert.pretraining import pretrain
from minibert.sentence_head import BertForSentenceEmbedding, mean_of_real
from minibert.settings import FinetuneSettings
from minibert.tasks.base import Splits
from minibert.tasks.batches import TaskData
from minibert.tasks.scored import Scale, ScoredPair, read_stsb
from minibert.tasks.similarity import SimilarityTask, tfidf_cosines
from minibert.tasks.splits import cut_dev, parts_of


def write_pairs(path: Path, count: int = 48, seed: int = 0) -> str:
    """Pairs whose score, 1 to 5, is how many of four words they share."""
    rng = np.random.default_rng(seed)
    rows = ["first,second,grade"]
    for _ in range(count):
        shared = int(rng.integers(0, 5))
        words = rng.permutation(NOUNS).tolist()
        rows.append(
            f"{' '.join(words[:4])},{' '.join(words[4 - shared : 8 - shared])},{shared + 1}"
        )
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def read(tmp_path: Path, content: str, **values: Any) -> Splits[ScoredPair]:
    (tmp_path / "a.csv").write_text(content)
    values |= {"data": str(tmp_path / "a.csv"), "dev_fraction": 0.5}
    task = SimilarityTask(FinetuneSettings(task="similarity", **values))
    return task.read(task.find_data())


HEAD = "text,text_pair,score\n"
FOUR = f"{HEAD}a,b,0\nc,d,1\ne,f,2\ng,h,4\n"


@pytest.mark.parametrize(
    "taken",
    [{"text_column": "text_pair"}, {"text_pair_column": "text"}, {"label_column": "text"}],
    ids=["first", "second", "score"],
)
def test_a_column_has_one_role_also_by_default(tmp_path: Path, taken: dict[str, str]) -> None:
    with pytest.raises(InputError, match="are both 'text"):
        read(tmp_path, FOUR, **taken)


def test_a_file_without_rows_or_a_dev_without_scores_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "b.csv"
    for content, said in (
        (HEAD, "b.csv holds no row"),
        (f"{HEAD}a,b,\n", "has no scores, so that"),
    ):
        other.write_text(content)
        with pytest.raises(InputError, match=said):
            read(tmp_path, FOUR, dev_data=str(other))
    assert read(tmp_path, FOUR, test_data=str(other)).test is None
    other.write_text(HEAD)
    with pytest.raises(InputError, match="b.csv holds no row"):
        read(tmp_path, FOUR, test_data=str(other))


# --- figures and loss -----------------------------------------------------------------------------


def test_correlations_equal_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first = rng.normal(size=200)
    for second in (rng.normal(size=200), np.round(first + rng.normal(size=200), 0), -first):
        assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def test_a_constant_has_no_correlation() -> None:
    assert pearson(np.ones(4), np.arange(4.0)) == spearman(np.ones(4), np.arange(4.0)) == 0
    assert pearson(np.ones(1), np.ones(1)) == 0


def test_the_loss_is_the_sum_of_squares() -> None:
    total, count = squared_error(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.8]))
    assert float(total) == pytest.approx(0.29)
    assert int(count) == 2


def test_scores_come_back_from_the_scale() -> None:
    scale = Scale(1.0, 5.0)
    assert [scale.inside(s) for s in (1.0, 2.0, 5.0)] == [0, 0.25, 1]
    assert scale.outside(scale.inside(3.7)) == pytest.approx(3.7)


# --- reading --------------------------------------------------------------------------------------

BAD = {
    "word": (f"{HEAD}a,b,1\nc,d,high\n", "line 3: score 'high' is no finite number"),
    "infinite": (f"{HEAD}a,b,1\nc,d,inf\n", "line 3: score 'inf' is no finite number"),
    "constant": (f"{HEAD}a,b,3\nc,d,3\n", "only the score 3.0"),
    "nothing": (f"{HEAD}a,b,\nc,d,nan\n", "no scored pair"),
    "column": ("text,other,score\na,b,1\n", "no column 'text_pair' (--text-pair-column)"),
    "ragged": (f"{HEAD}a,b\n", "has 2 fields, expected 3"),
    "few": (f"{HEAD}a,b,1\nc,d,2\n", "2 pairs leave fewer than 2 for dev"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_an_input_error_of_one_line(tmp_path: Path, name: str) -> None:
    content, wanted = BAD[name]
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_odd_is_counted(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(f"{HEAD}x,y,9\nz,z,1\nd,c,1\n")
    content = f"{FOUR}i,j,\nk,l,NaN\nb,a,3\n,m,2\n"
    splits = read(tmp_path, content, test_data=str(tmp_path / "test.csv"))
    assert [e.score for e in splits.train] == [0, 1, 2, 4, 3]
    said = "; ".join(splits.notes)
    for words in (
        "2 rows of train without a score (train:6, train:7), left out",
        "1 pairs with an empty text in train, left out",
        "1 scores of test outside train's 0 to 4",
        "1 repeated within train",
        "1 train texts with several labels",
        "1 test texts occur in train",
        "scores from 0 to 4 are 0 to 1",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"class_weights": "balanced"}, "--class-weights has no use in "),
        ({"label_smoothing": 0.1}, "--label-smoothing has no use in "),
        ({"mode": "bi-encoder", "truncation": "windows"}, "head, tail or head"),
    ],
)
def test_settings_without_a_use_are_refused(
    tmp_path: Path, values: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(InputError, match=wanted):
        read(tmp_path, FOUR, **values)


def test_a_pair_and_its_mirror_stay_on_one_side() -> None:
    pairs = [
        ScoredPair(f"{i}{side}", *texts, 1.0)
        for i in range(12)
        for side, texts in (("a", (f"one {i}", f"Two {i}")), ("b", (f"two {i}", f"one  {i}")))
    ]
    task = SimilarityTask(FinetuneSettings(task="similarity"))
    train, dev = cut_dev(task, pairs, 0.3)
    assert {e.id[:-1] for e in train}.isdisjoint(e.id[:-1] for e in dev)
    assert len(dev) % 2 == 0


def test_stsb_is_read_as_glue_has_it_and_as_published(tmp_path: Path) -> None:
    glue, published = tmp_path / "glue", tmp_path / "published"
    glue.mkdir()
    published.mkdir()
    head = "index\tgenre\tsentence1\tsentence2\tscore\n"
    (glue / "train.tsv").write_text(f'{head}0\tnews\t"a\tb\t5.000\n1\tnews\tc\td\t0.0\n')
    (glue / "dev.tsv").write_text(f"{head}0\tnews\te\tf\t2.5\n1\tnews\tg\th\t1\n")
    (glue / "test.tsv").write_text("index\tgenre\tsentence1\tsentence2\n0\tnews\ti\tj\n")
    (glue / "sts-test.tsv").write_text("news\tx\t2012\t1\t3.0\ti\tj\tlicence\tlicence\n")
    splits = read_stsb(glue)
    assert splits.train[0] == ScoredPair("train:2", '"a', "b", 5.0)
    assert splits.test == [ScoredPair("test:1", "i", "j", 3.0)]
    (glue / "original").mkdir()  # where GLUE's archive has them
    (glue / "sts-test.tsv").rename(glue / "original" / "sts-test.tsv")
    assert read_stsb(glue).test == splits.test
    for name in ("train", "dev", "test"):
        rows = "news\tx\t2012\t1\t5\ta\tb\nnews\tx\t2012\t1\t4\tc\td\tlicence\n"
        (published / f"sts-{name}.csv").write_text(rows)
    assert [e.score for e in read_stsb(published).dev or ()] == [5, 4]
    (published / "sts-dev.csv").write_text("news\tx\t2012\t1\t5.2\ta\tb\n")
    with pytest.raises(InputError, match=r"line 1: score '5.2', expected 0 to 5"):
        read_stsb(published)
    (published / "sts-dev.csv").write_text("news\tx\t2012\t1\t5.2\ta\n")
    with pytest.raises(InputError, match=r"has 6 fields, expected 7 to 9"):
        read_stsb(published)


def test_the_sample_is_whole_and_calls_itself_one() -> None:
    task = SimilarityTask(FinetuneSettings(task="stsb"))
    source = task.find_data()
    assert source.is_sample
    splits = task.read(source)
    everything = [*splits.train, *(splits.dev or ()), *(splits.test or ())]
    assert len(everything) == 40
    assert len({task.same(e) for e in everything}) == 40
    assert task.scale == Scale(0, 5)


def test_the_baseline_is_the_cosine_of_tfidf_vectors() -> None:
    pytest.importorskip("sklearn")
    pairs = [ScoredPair("1", "storm river", "river storm", 1.0)]
    pairs += [ScoredPair("2", "storm", "castle", 0.0), ScoredPair("3", "", "castle", 0.0)]
    np.testing.assert_allclose(tfidf_cosines(pairs, pairs), [1, 0, 0], atol=1e-9)


# --- vectors --------------------------------------------------------------------------------------


def test_the_mean_leaves_padding_out(tiny_config: BertConfig) -> None:
    hidden = torch.randn(2, 3, 4)
    mean = mean_of_real(hidden, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    torch.testing.assert_close(mean[0], hidden[0, :2].mean(0))
    torch.testing.assert_close(mean[1], hidden[1].mean(0))
    torch.testing.assert_close(mean_of_real(hidden, None), hidden.mean(1))
    model = BertForSentenceEmbedding(tiny_config).eval()
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    both = model(ids, attention_mask=ids != 0).embeddings
    torch.testing.assert_close(both[:1], model(ids[:1, :3]).embeddings)


def test_both_texts_of_all_pairs_are_one_batch(tmp_path: Path) -> None:
    task = SimilarityTask(FinetuneSettings(task="stsb", mode="bi-encoder"))
    task.read(task.find_data())
    letters = [chr(97 + i) for i in range(26)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *letters]) + "\n")
    tokenizer = minibert.WordPiece.from_pretrained(tmp_path)
    task.learn([], tokenizer)
    pairs = [ScoredPair("1", "a b", "c", 5.0), ScoredPair("2", "d", "e f g", 0.0)]
    batch = task.collate([part for (part,) in task.encode(pairs)])
    a = tokenizer.ids(["a"])[0][0]
    rows = [
        [2, a, a + 1, 3, 0],
        [2, a + 3, 3, 0, 0],
        [2, a + 2, 3, 0, 0],
        [2, a + 4, a + 5, a + 6, 3],
    ]
    assert batch["input_ids"].tolist() == rows
    assert batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(1).tolist() == [4, 3, 3, 5]
    features = [part for (part,) in task.encode(pairs)]
    step = TaskData(features, task.collate, task.count, 2, 2, 0).take()
    assert sorted(step.lengths) == [3, 3, 4, 5]  # sequences that know nothing of each other


# --- whole runs -----------------------------------------------------------------------------------

LOOP: dict[str, Any] = {
    **{"max_seq_length": 24, "batch_size": 8, "device": "cpu", "precision": "fp32"},
}
COLUMNS = {"text_column": "first", "text_pair_column": "second", "label_column": "grade"}
MODES = ["cross-encoder", "bi-encoder"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("similarity")
    write_corpus(folder / "corpus.txt")
    where = {"output": str(folder / "start"), "cache_dir": str(folder / "cache")}
    corpus = [str(folder / "corpus.txt")]
    pretrain(corpus=corpus, preset="tiny", vocab_size=60, max_steps=2, **LOOP, **where)
    write_pairs(folder / "train.csv", 160)
    write_pairs(folder / "test.csv", 30, seed=1)
    for mode in MODES:
        tune(folder, mode, mode=mode, max_steps=80, learning_rate=1e-3)
    return folder


def tune(world: Path, output: str, **options: Any) -> Path:
    given = {**LOOP, "model": str(world / "start"), "output": str(world / output), **COLUMNS}
    given |= {"data": str(world / "train.csv"), "test_data": str(world / "test.csv")}
    return finetune(**{**given, "task": "similarity", **options}).folder


def json_of(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("cross-encoder", "--truncation windows reads all of the longer text"),
        ("bi-encoder", "a larger --max-seq-length reads more"),
    ],
)
def test_a_run_says_how_many_texts_it_cuts(
    world: Path, capsys: pytest.CaptureFixture[str], mode: str, said: str
) -> None:
    given: dict[str, Any] = {"mode": mode, "dry_run": True, "max_steps": 1, "dev_fraction": 0.5}
    tune(world, "dry", max_seq_length=128, **given)
    assert "\ncut: " not in capsys.readouterr().err
    tune(world, "dry", max_seq_length=8, **given)
    (line,) = (row for row in capsys.readouterr().err.splitlines() if row.startswith("cut: "))
    of = "80 pairs" if mode == "cross-encoder" else "160 texts"  # which it reads alone
    assert f" of {of} to learn from" in line
    assert line.endswith(said)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_learns_and_its_figures_are_those_of_its_predictions(world: Path, mode: str) -> None:
    folder = world / mode
    results = json_of(folder / "results.json")
    assert results["num_eval"] == 30
    assert "dev_spearman" in results
    assert "tfidf_spearman" in results or not pytest.importorskip("sklearn")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    keys = {"id", "text", "text_pair", "label", "prediction", "score"}
    assert all(row.keys() == keys and row["score"] == row["prediction"] for row in rows)
    found, gold = np.array([[row["score"], row["label"]] for row in rows]).T
    assert results["loss"] == pytest.approx(np.mean(((found - gold) / 4) ** 2))
    if mode == "bi-encoder":  # word order and position are nothing to a mean: quickly learnt
        assert results["spearman"] > 0.7
    assert json_of(folder / "similarity.json") == {"low": 1.0, "high": 5.0}
    worst = np.abs(found - gold).argmax()
    first = (folder / "errors.txt").read_text().split("\n\n")[0]
    assert first.split("\n")[1:] == [rows[worst]["text"], rows[worst]["text_pair"]]


@pytest.mark.parametrize("mode", MODES)
def test_figures_of_a_run_are_those_of_scipy(world: Path, mode: str) -> None:
    stats = pytest.importorskip("scipy.stats")
    lines = (world / mode / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found, gold = np.array([[row["score"], row["label"]] for row in rows]).T
    results = json_of(world / mode / "results.json")
    assert results["pearson"] == pytest.approx(stats.pearsonr(found, gold).statistic)
    assert results["spearman"] == pytest.approx(stats.spearmanr(found, gold).statistic)


@pytest.mark.parametrize("mode", MODES)
def test_evaluate_and_predict_repeat_the_run(
    world: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world / mode
    assert minibert.evaluate(folder)["spearman"] == pytest.approx(
        json_of(folder / "results.json")["spearman"], abs=1e-6
    )
    row = json.loads((folder / "predictions.jsonl").read_text().splitlines()[0])
    given = [
        f"{row['text']}\t{row['text_pair']}",
        json.dumps([row["text"], row["text_pair"]]),
        json.dumps({"text": row["text"], "text_pair": row["text_pair"]}),
    ]
    (world / "lines.txt").write_text("\n".join(given) + "\n")
    capsys.readouterr()
    assert main(["predict", str(folder), "--input", str(world / "lines.txt")]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 3
    for answer in answers:
        assert answer["score"] == pytest.approx(row["score"], abs=1e-4)
        assert answer.keys() == {"text", "text_pair", "prediction", "score"}


def test_a_killed_run_goes_on_to_the_same_weights(world: Path, monkeypatch: Any) -> None:
    options = {"mode": "bi-encoder", "max_steps": 8, "save_every": 3, "compile": False}
    whole = tune(world, "whole", **options)
    from minibert.tasks.batches import TaskData

    take, calls = TaskData.take, []

    def failing(self: TaskData) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise Interrupted("stopped", 130)
        return take(self)

    with monkeypatch.context() as patch:
        patch.setattr(TaskData, "take", failing)
        with pytest.raises(Interrupted):
            tune(world, "killed", **options)
    again = tune(world, "killed", **options, resume="yes")
    for name in ("model.safetensors", "predictions.jsonl"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_a_cross_encoder_is_a_regression_of_transformers(world: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = world / "cross-encoder"
    config = json_of(folder / "config.json")
    assert config["problem_type"] == "regression"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.num_labels == 1
    model = minibert.load(folder)
    (feature,) = model.task.encode([ScoredPair("1", "storm river", "castle", None)])[0]
    ids, segments = (torch.tensor(feature.inputs[k])[None] for k in ("input_ids", "token_type_ids"))
    logit = theirs(input_ids=ids, token_type_ids=segments).logits.item()
    (answer,) = model.predict([("storm river", "castle")])
    assert answer.score == pytest.approx(1 + 4 * logit, abs=1e-4)
    with pytest.raises(InputError, match="--mode bi-encoder"):
        model.embed(["storm"])


def test_a_bi_encoder_is_a_bert_of_transformers_with_mean_pooling(world: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = world / "bi-encoder"
    assert json_of(folder / "config.json")["architectures"] == ["BertModel"]
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(theirs).__name__ == "BertModel"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["storm river castle", "market", "storm river castle", ""]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = theirs(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    model: Any = minibert.load(folder)
    ours = model.embed(texts, normalize=False)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    unit = model.embed(texts, batch_size=1)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(unit[0], unit[2])
    (answer,) = model.predict([(texts[0], texts[1])])
    assert answer.score == pytest.approx(1 + 4 * float(unit[0] @ unit[1]), abs=1e-4)


def test_a_few_other_pairs_can_be_scored(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("first,second,grade\nstorm,storm,5\nriver,castle,0\n")
    figures = minibert.evaluate(world / "bi-encoder", data=str(tmp_path / "a.csv"))
    assert (figures["num_eval"], figures["spearman"]) == (2, pytest.approx(1))
    (tmp_path / "b.csv").write_text("first,second,grade\nstorm,,5\nriver,castle,4\nstorm,a,\n")
    capsys.readouterr()
    figures = minibert.evaluate(world / "bi-encoder", data=str(tmp_path / "b.csv"))
    assert (figures["num_eval"], figures["scored"]) == (2, "test")  # as test_data would be
    assert "1 rows of test without a score (test:4), left out" in capsys.readouterr().err
    (tmp_path / "c.csv").write_text("first,second,grade\nstorm,storm,\n")
    with pytest.raises(InputError, match=r"c.csv holds no scored pair"):
        minibert.evaluate(world / "bi-encoder", data=str(tmp_path / "c.csv"))
    (tmp_path / "d.csv").write_text("first,second,grade\nstorm,storm,5\nriver,river,5\n")
    with pytest.raises(InputError, match=r"2 pair\(s\) in test, all with the score 5; a correl"):
        minibert.evaluate(world / "bi-encoder", data=str(tmp_path / "d.csv"))


def test_a_dev_split_of_one_score_chooses_nothing(tmp_path: Path) -> None:
    """Its correlation would be 0 at every evaluation, and the first weights the best."""
    rows = ["text,text_pair,score", *(f"a{i},b{i},{int(i == 0)}" for i in range(20))]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    settings = FinetuneSettings(task="similarity", data=str(tmp_path / "a.csv"))
    task = SimilarityTask(settings)
    with pytest.raises(InputError, match=r"in dev, all with the score 0; .* raise --dev-fraction"):
        parts_of(task, task.read(task.find_data()), settings.dev_fraction, None)


def test_answers_on_a_narrow_scale_are_told_apart() -> None:
    pairs = [ScoredPair(str(i), "a", "b", 1e-6 * i / 8) for i in range(9)]
    task = SimilarityTask(FinetuneSettings(task="similarity"))
    for scale in (Scale(0.0, 1e-6), Scale(0.0, 5.0)):
        task.scale = scale
        found = task.decode(pairs, [], [[i / 8] for i in range(9)])
        assert task.score(pairs, found)["spearman"] == pytest.approx(1)
    assert task.decode(pairs, [], [[1 / 3]]) == [1.666667]  # of 0 to 5


@pytest.mark.parametrize("mode", MODES)
def test_half_a_surrogate_pair_is_one_unknown_character(world: Path, mode: str) -> None:
    model: Any = minibert.load(world / mode)
    whole, half = model.predict([("storm \ufffd", "river"), ("storm \ud83d", "river")])
    assert (half.text, half.score) == (whole.text, pytest.approx(whole.score, abs=1e-6))


def test_a_regression_of_others_answers_as_it_stands(world: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        (tmp_path / name).write_bytes((world / "cross-encoder" / name).read_bytes())
    ours, theirs = minibert.load(world / "cross-encoder"), minibert.load(tmp_path)
    (own,), (plain,) = (m.predict([("storm river", "castle")]) for m in (ours, theirs))
    assert own.score == pytest.approx(1 + 4 * plain.score, abs=1e-5)


def test_any_model_folder_gives_vectors(world: Path, tmp_path: Path) -> None:
    model: Any = minibert.load_embedder(world / "start")
    assert model.embed("storm").shape == (1, 128)
    assert model.embed([]).shape == (0, 128)
    with pytest.raises(InputError, match="text 2 is 3; expected a string"):
        model.embed(["storm", 3])
    with pytest.raises(InputError, match="batch_size is 0"):
        model.embed(["storm"], batch_size=0)
    again: Any = minibert.load_embedder(world / "bi-encoder")
    assert again.task.settings.max_seq_length == 24  # that of the run
    bare = tmp_path / "bare"
    BertModel.from_pretrained(world / "start").save_pretrained(bare)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (bare / name).write_bytes((world / "start" / name).read_bytes())
    (bare / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    plain: Any = minibert.load(bare)  # a bare BERT is a sentence model
    assert plain.task.settings.max_seq_length == 20
    np.testing.assert_allclose(plain.embed(["storm"]), model.embed(["storm"]), atol=1e-6)


def test_vectors_do_not_read_places_that_were_never_trained(world: Path) -> None:
    start: Any = minibert.load_embedder(world / "start")
    run = json.loads((world / "start" / "run.json").read_text())
    assert start.task.settings.max_seq_length == run["settings"]["max_seq_length"] < 512
    crossed: Any = minibert.load_embedder(world / "cross-encoder")
    run = json.loads((world / "cross-encoder" / "run.json").read_text())
    assert crossed.task.settings.max_seq_length == run["settings"]["max_seq_length"]


def test_published_models_of_another_vector_are_refused(world: Path, tmp_path: Path) -> None:
    bare, exported = tmp_path / "bare", tmp_path / "exported"
    BertModel.from_pretrained(world / "start").save_pretrained(bare)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (bare / name).write_bytes((world / "start" / name).read_bytes())
    known, changed = ["Transformer", "Pooling", "Normalize"], ["Transformer", "Pooling", "Dense"]

    def listed(parts: list[str]) -> str:
        return json.dumps([{"type": f"sentence_transformers.models.{part}"} for part in parts])

    (bare / "modules.json").write_text(listed(known))
    (bare / "1_Pooling").mkdir()
    modes = {"word_embedding_dimension": 128, "pooling_mode_mean_tokens": True}
    for more, is_mean in (
        ({"pooling_mode_cls_token": False, "include_prompt": True}, True),
        ({"pooling_mode_cls_token": True}, False),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, False),
    ):
        (bare / "1_Pooling" / "config.json").write_text(json.dumps(modes | more))
        if is_mean:
            minibert.load_embedder(bare)
            continue
        with pytest.raises(InputError, match="makes vectors by .*cls_token.*only the mean"):
            minibert.load_embedder(bare)
    (bare / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    for content, said in ((listed(changed), "with Dense .*only the mean"), ('{"a": 1}', "no list")):
        (bare / "modules.json").write_text(content)
        with pytest.raises(InputError, match=said):
            minibert.load_embedder(bare)
    export(bare, exported)  # all that its list of parts speaks of
    assert (exported / "1_Pooling" / "config.json").is_file()


def test_what_is_wrong_is_said_by_the_commands(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(f"{HEAD}a,b,1\nc,d,x\n")
    start = ["--model", str(world / "start"), "--output", str(tmp_path / "run")]
    line = ["finetune", "--task", "similarity", *start]
    for given, wanted in (
        ([*line, "--data", str(tmp_path / "a.csv")], "score 'x' is no finite number"),
        ([*line, "--data", str(tmp_path)], "is not a table"),
        (line, "name it with --data"),
        ([*line, "--mode", "bi"], "bi-encoder"),
        ([*line, "--data", str(world / "train.csv")], "no column 'text' (--text-column)"),
        (["finetune", "--task", "stsb", *start, "--label-column", "score"], "go with --data"),
        (
            ["predict", str(world / "bi-encoder"), "storm alone"],
            "text 1 is 'storm alone'; expected two texts",
        ),
    ):
        assert main(given) == 2
        (message,) = [t for t in capsys.readouterr().err.splitlines() if t.startswith("minibert: ")]
        assert wanted in message


def test_several_seeds_have_a_mean(world: Path) -> None:
    folder = tune(world, "seeds", mode="bi-encoder", max_steps=3, seeds=2)
    results = json_of(folder / "results.json")
    assert any("spearman" in key for key in results)
    assert math.isfinite(results["spearman"])
    assert (folder / "model.safetensors").is_file()


def test_a_bi_encoder_with_all_layers_frozen_has_nothing_to_train(world: Path) -> None:
    with pytest.raises(InputError, match="--freeze-layers 2 leaves nothing to train"):
        tune(world, "frozen", mode="bi-encoder", freeze_layers=2, max_steps=1)
