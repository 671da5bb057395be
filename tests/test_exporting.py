"""Models to give away: what changes in them, what stays behind, and the one that is bundled."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import make_model_folder, one_thread, write_corpus, write_reviews  # noqa: F401

import minibert
from minibert import exporting
from minibert.cli import main
from minibert.errors import InputError
from minibert.exporting import export
from minibert.files import bundled_models
from minibert.model_folders import BUNDLED

ROOT = Path(__file__).parent.parent
RELEASED = [BUNDLED, "minibert-mini-en"]
MOST_BYTES = 48 << 20
# Of the history; the first two are earlier releases of what is minibert-mini-en now.
VERSIONS = {
    "9bf588577310d8dbf758ab3d63fb79c0b36a36bb",
    "b712088d35c7e9da4a155680956a5628a1631583",
    "e1e3b8935a7e79116d0669c50b44316da1096aef",
    "878191f021c25a5110ae78787ade83270982d243",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A finished run."""
    folder = make_model_folder(tmp_path / "model")
    settings = {"corpus": ["/data/texts/a.txt", "b.txt"], "output": "C:\\runs\\one", "seed": 3}
    run = {"command": "pretrain", "settings": settings, "resolved": {}, "versions": {}}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "results.json").write_text('{"mlm_loss": 2.5}')
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    for name in ("profile.json", "self-training.json"):
        (folder / name).write_text("{}")
    (folder / "checkpoints").mkdir()
    return folder


def test_matrices_become_bf16_and_the_largest_change_is_told(model: Path, tmp_path: Path) -> None:
    figures = export(model, tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (model, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, value in after.items():
        wanted = torch.bfloat16 if value.ndim > 1 else torch.float32
        assert value.dtype == wanted, name
        assert torch.equal(value, before[name].to(wanted))
    changes = {name: float((before[name] - after[name].float()).abs().max()) for name in before}
    where = figures["largest_change_of"]
    assert figures["largest_change"] == changes[where] == max(changes.values()) > 0
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert figures["bytes"] == size < 0.6 * (model / "model.safetensors").stat().st_size
    assert figures["parameters"] == sum(value.numel() for value in before.values())


def test_the_log_goes_along_without_places_of_this_machine(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    own = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == own | {"vocab.txt", "run.json", "results.json", "metrics.jsonl"}
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings == {"corpus": ["a.txt", "b.txt"], "output": "one", "seed": 3}
    export(model, tmp_path / "out", log=False, overwrite=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == own | {"vocab.txt"}


def test_what_others_wrote_beside_a_model_names_no_place(model: Path, tmp_path: Path) -> None:
    def add(name: str, **more: Any) -> None:
        found = json.loads((model / name).read_text()) if (model / name).is_file() else {}
        (model / name).write_text(json.dumps(found | more))

    home, labels = "/data/alice/secret", {"0": "/no", "1": "/yes"}
    add("config.json", _name_or_path=home, tokenizer_path=f"{home}/own", id2label=labels)
    places = {"name_or_path": "../secret/own", "special_tokens_map_file": f"{home}/map.json"}
    tokens = {"5": {"content": "/secret-token"}}
    add("tokenizer_config.json", **places, tokenizer_file=home, added_tokens_decoder=tokens)
    add("trainer_state.json", best_model_checkpoint=f"{home}/checkpoint-5", epoch=1)
    (model / "modules.json").write_text('[{"type": "a.Transformer"}]')
    export(model, tmp_path / "out")
    texts = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.json")}
    assert not any("alice" in text or "../secret" in text for text in texts.values())
    found = {name: json.loads(text) for name, text in texts.items()}
    assert found["config.json"]["id2label"] == labels
    assert found["config.json"]["tokenizer_path"] == "own"
    assert found["tokenizer_config.json"]["added_tokens_decoder"] == tokens
    assert found["trainer_state.json"] == {"best_model_checkpoint": "checkpoint-5", "epoch": 1}
    assert texts["tokenizer.json"] == (model / "tokenizer.json").read_text()
    assert texts["modules.json"] == (model / "modules.json").read_text()


def test_what_a_real_run_says_of_itself_names_no_place(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "start")
    write_corpus(tmp_path / "own.txt")
    data = write_reviews(tmp_path / "aclImdb")
    few: dict[str, Any] = {"max_steps": 1, "max_seq_length": 32, "device": "cpu", "seeds": 2}
    own = {"adapt": [str(tmp_path / "own.txt"), "auto"], "adapt_epochs": 0.1}
    where = {"data": str(data), "output": str(tmp_path / "run")}
    minibert.finetune(task="imdb", model=str(tmp_path / "start"), **few, **own, **where)
    for name, dataset in (("run", "aclImdb"), ("run/adapted", "own.txt, adapted.jsonl")):
        out = tmp_path / "out" / name
        export(tmp_path / name, out)
        for log in exporting._LOG:
            assert str(tmp_path) not in (out / log).read_text(), log
        assert json.loads((out / "results.json").read_text())["dataset"] == dataset
    # As it was written before.
    results = tmp_path / "run/adapted/results.json"
    results.write_text(json.dumps({"dataset": "a.txt, /data/b.txt, C:\\texts\\c.txt", "loss": 1.5}))
    export(tmp_path / "run/adapted", tmp_path / "old")
    found = json.loads((tmp_path / "old/results.json").read_text())
    assert found == {"dataset": "a.txt, b.txt, c.txt", "loss": 1.5}


def test_classes_and_columns_that_look_like_places_stay_in_the_log(
    model: Path, tmp_path: Path
) -> None:
    run: dict[str, Any] = {
        "settings": {
            "positive_label": "/r/spam",
            "class_weights": "/r/spam=2",
            "text_column": "/body",
            "data": "/data/me/a.csv",
        },
        "resolved": {"model": {"id2label": {"0": "/r/ham", "1": "/r/spam"}}},
    }
    (model / "run.json").write_text(json.dumps(run))
    notes = {"data_notes": ["2 of test with labels that train lacks (/r/x, /r/y)"]}
    (model / "results.json").write_text(json.dumps(notes))
    export(model, tmp_path / "out")
    assert json.loads((tmp_path / "out/results.json").read_text()) == notes
    run["settings"]["data"] = "a.csv"
    assert json.loads((tmp_path / "out/run.json").read_text()) == run


def test_fp32_changes_nothing(model: Path, tmp_path: Path) -> None:
    assert export(model, tmp_path / "out", dtype="fp32")["largest_change"] == 0
    before, after = (load_file(f / "model.safetensors") for f in (model, tmp_path / "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_tied_tensors_of_an_old_file_are_written_once(
    model: Path, tmp_path: Path, dtype: str
) -> None:
    tensors = load_file(model / "model.safetensors")
    tied = tensors | {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }
    torch.save(tied, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    figures = export(model, tmp_path / "out", dtype=dtype)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()
    assert figures["parameters"] == sum(value.numel() for value in tensors.values())
    ours = minibert.BertForPreTraining.from_pretrained(tmp_path / "out")
    assert not ours.load_report.newly_initialised
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs.cls.predictions.decoder.bias, ours.mlm.bias)
    assert torch.equal(theirs.cls.predictions.decoder.weight, ours.bert.embeddings.word.weight)


def test_a_decoder_of_its_own_stays(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    words = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = words + 1
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")  # stored alone
    save_file(tensors, model / "model.safetensors")
    export(model, tmp_path / "out", dtype="fp32")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()


def test_parts_are_put_together_again(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "whole", dtype="fp32")
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    export(model, tmp_path / "parts", dtype="fp32")
    exporting._cut(tmp_path / "parts", 20_000)
    parts = sorted((tmp_path / "parts").glob("model.safetensors*"))
    assert [p.stat().st_size for p in parts[:-1]] == [20_000] * (len(whole) // 20_000)
    with pytest.raises(InputError, match=r"in parts; `minibert export .*parts --output DIR`"):
        minibert.BertModel.from_pretrained(tmp_path / "parts")
    export(tmp_path / "parts", tmp_path / "joined", dtype="fp32")
    assert (tmp_path / "joined" / "model.safetensors").read_bytes() == whole
    content = bytearray(parts[1].read_bytes())
    content[7] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(InputError, match="damaged or incomplete"):
        export(tmp_path / "parts", tmp_path / "again")
    parts[1].unlink()
    with pytest.raises(InputError, match=f"lacks the part {re.escape(parts[1].name)}"):
        export(tmp_path / "parts", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_command_cuts_and_joins(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, joined = tmp_path / "parts", tmp_path / "joined"
    assert main(["export", str(model), "--output", str(parts), "--part-mib", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bf16"
    assert not (parts / "model.safetensors").exists()
    assert main(["export", str(parts), "--output", str(joined)]) == 0
    assert json.loads(capsys.readouterr().out)["largest_change"] == 0
    minibert.BertForPreTraining.from_pretrained(joined)
    assert not (joined / "parts.json").exists()
    # Parts where a whole model was leave no other weights beside them, and the reverse.
    assert main(["export", str(model), "--output", str(parts), "--overwrite"]) == 0
    assert [p.name for p in parts.glob("*part*")] == []


def test_a_model_card_stays_and_nothing_is_replaced_unasked(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("card")
    export(model, tmp_path / "out")
    with pytest.raises(InputError, match="--overwrite"):
        export(model, tmp_path / "out")
    export(model, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "README.md").read_text() == "card"


@pytest.mark.parametrize(
    "name",
    [
        *("run.json", "results.json", "metrics.jsonl", "model.safetensors.part-01-of-02"),
        *("qa.json", "similarity.json", "target_tokenizer.json"),
        *("added_tokens.json", "special_tokens_map.json", "1_Pooling/config.json"),
        *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    ],
)
def test_what_another_run_left_is_not_removed_unasked(
    model: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(InputError, match=f"holds {re.escape(name)}; name another or --overwrite"):
        export(model, tmp_path / "out", log=False)
    assert (tmp_path / "out" / name).is_file()
    export(model, tmp_path / "out", log=False, overwrite=True)
    assert not (tmp_path / "out" / name).exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_another_models_tokenizer_does_not_stay(model: Path, tmp_path: Path, name: str) -> None:
    export(model, tmp_path / "out")  # whose other file a reader might take
    for unused in {"tokenizer.json", "vocab.txt", "tokenizer_config.json"} - {name}:
        (model / unused).unlink()
    if name == "vocab.txt":
        tokens = (model / name).read_text().splitlines()
        (model / name).write_text("\n".join([*tokens[:5], *tokens[:4:-1]]))
    export(model, tmp_path / "out", overwrite=True)
    before, after = (minibert.WordPiece.from_pretrained(f) for f in (model, tmp_path / "out"))
    assert after.fingerprint == before.fingerprint
    kept = {p.name for p in (tmp_path / "out").iterdir()}
    assert not kept & ({"tokenizer.json", "vocab.txt", "tokenizer_config.json"} - {name})


def test_a_fine_tuned_model_predicts_as_before(tmp_path: Path) -> None:
    make_model_folder(tmp_path / "start")
    data = write_reviews(tmp_path / "aclImdb")
    few: dict[str, Any] = {"max_steps": 2, "max_seq_length": 16, "device": "cpu"}
    where = {"data": str(data), "output": str(tmp_path / "run")}
    minibert.finetune(task="imdb", model=str(tmp_path / "start"), **few, **where)
    export(tmp_path / "run", tmp_path / "out")
    texts = ["storm river", "silver garden candle"]
    before, after = (minibert.load(tmp_path / f).predict(texts) for f in ("run", "out"))
    for one, other in zip(before, after, strict=True):
        assert abs(one.score - other.score) < 0.02


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        ("unfinished", {}, "unfinished run"),
        ("infinite", {}, "not finite"),
        ("no tokenizer", {}, "neither tokenizer.json nor vocab.txt"),
        ("no bert", {}, "no tensor of a BERT"),
        ("", {"dtype": "int4"}, "expected bf16 or fp32"),
        ("", {"part_mib": 0}, "must be a whole number of at least 1"),
        ("", {"part_mib": 1.5}, "is 1.5, must be a whole number"),
        ("", {"output": "model"}, "own folder"),
        ("", {"output": "model/vocab.txt"}, "is a file"),
    ],
)
def test_what_cannot_be_exported_is_an_input_error(
    model: Path, tmp_path: Path, spoil: str, options: dict[str, Any], message: str
) -> None:
    if spoil == "unfinished":
        (model / "results.json").unlink()
    if spoil == "no tokenizer":
        for name in ("tokenizer.json", "vocab.txt"):
            (model / name).unlink()
    if spoil in ("infinite", "no bert"):
        tensors = load_file(model / "model.safetensors")
        tensors["bert.pooler.dense.weight"][0, 0] = float("inf")
        found = tensors if spoil == "infinite" else {"w": torch.ones(2)}
        save_file(found, model / "model.safetensors")
    output = tmp_path / options.pop("output", "out")
    with pytest.raises(InputError, match=message):
        export(model, output, **options)
    assert not (tmp_path / "out").exists()


# --- the released model ---------------------------------------------------------------------------


@pytest.fixture(params=["stand-in", *RELEASED])
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The bundled models, and a small one made by the same command."""
    if request.param == "stand-in":
        export(make_model_folder(tmp_path / "model"), tmp_path / "out")
        return tmp_path / "out"
    return bundled(request.param)


def bundled(name: str) -> Path:
    folder = bundled_models() / name
    if not folder.is_dir():
        pytest.skip(f"there is no {name} in this copy")
    return folder


def test_transformers_opens_the_released_model_with_the_same_outputs(released: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = minibert.BertForPreTraining.from_pretrained(released)
    assert not ours.load_report.newly_initialised
    theirs = transformers.BertForPreTraining.from_pretrained(released).eval()
    assert theirs.dtype == torch.float32
    text = "The storm took the bridge. A castle garden in winter, silver and valley."
    tokenizer = transformers.AutoTokenizer.from_pretrained(released)
    own = minibert.WordPiece.from_pretrained(released)
    ids = [own.cls_id, *own.ids([text])[0], own.sep_id]
    assert tokenizer(text)["input_ids"] == ids
    batch = torch.tensor([ids, [*ids[:5], *[own.pad_id] * (len(ids) - 5)]])
    inputs = {"input_ids": batch, "attention_mask": (batch != own.pad_id).long()}
    with torch.no_grad():
        expected = theirs(**inputs)
        found = ours(**inputs)
    kept = inputs["attention_mask"].bool()
    for mine, other in (
        (found.mlm_logits[kept], expected.prediction_logits[kept]),
        (found.nsp_logits, expected.seq_relationship_logits),
    ):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_the_released_model_is_whole(released: Path) -> None:
    types = {v.dtype for v in load_file(released / "model.safetensors").values() if v.ndim > 1}
    assert types == {torch.bfloat16}
    for name in ("config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        assert (released / name).is_file()


def test_all_bundled_models_together_are_small() -> None:
    weights = [bundled(name) / "model.safetensors" for name in RELEASED]
    assert sum(path.stat().st_size for path in weights) <= MOST_BYTES


@pytest.mark.parametrize("model", RELEASED)
def test_a_bundled_model_brings_its_card_and_its_log(model: str) -> None:
    for name in ("README.md", "run.json", "results.json", "metrics.jsonl"):
        assert (bundled(model) / name).is_file(), name
    assert (bundled(model) / "README.md").read_text().startswith(f"# {model}\n")


def test_no_other_weights_are_in_the_repository_or_its_history() -> None:
    command = ["git", "log", "--format=", "--name-only", "--diff-filter=A", "-z", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    names = set(f"{done.stdout}\0{tracked.stdout}".replace("\n", "\0").split("\0"))
    assert "minibert/model.py" in names
    weights = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|onnx|npz|npy|h5|msgpack|gguf)\b")
    released = {f"minibert/models/{name}/model.safetensors" for name in RELEASED}
    assert {name for name in names if weights.search(name)} <= released
    objects = ["git", "rev-list", "--objects", "HEAD", "--", *released]
    found = subprocess.run(objects, capture_output=True, text=True, cwd=ROOT).stdout.split("\n")
    versions = {line.split(" ")[0] for line in found if line.endswith("model.safetensors")}
    assert versions <= VERSIONS, "weights are in the history for good: is this their release?"
