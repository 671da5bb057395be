"""Models by name: which one fine-tuning starts from, the bundled one, and hubs, on loopback."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from samples import make_model_folder, one_thread, write_reviews  # noqa: F401

import minibert
from minibert import files, model_folders
from minibert.cli import main
from minibert.errors import InputError
from minibert.model_folders import BUNDLED, bundled_names, open_model_folder, pinned
from minibert.settings import FinetuneSettings
from minibert.starts import choose_model

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of bundled models, and a working folder without runs."""
    folder = tmp_path / "bundled"
    for module in (files, model_folders):
        monkeypatch.setattr(module, "bundled_models", lambda: folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def finetuned_from(model: str | None = None) -> Path:
    return choose_model(FinetuneSettings(task="imdb", model=model))


# --- which model ----------------------------------------------------------------------------------


def test_without_a_model_the_command_that_makes_one_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["finetune", "--task", "imdb", "--max-steps", "1"]) == 2
    assert "minibert pretrain --corpus" in capsys.readouterr().err.splitlines()[-1]


def test_the_bundled_model_is_the_default(
    bundled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model_folder(bundled / BUNDLED)
    assert finetuned_from() == bundled / BUNDLED
    assert "bundled, since runs/pretrain holds no finished run" in capsys.readouterr().err


def test_an_own_finished_run_comes_before_the_bundled_model(
    bundled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model_folder(bundled / BUNDLED)
    own = make_model_folder(Path("runs/pretrain"))
    assert finetuned_from() == bundled / BUNDLED  # not finished
    (own / "results.json").write_text('{"dataset": "corpus.txt"}')
    assert finetuned_from() == own
    wanted = "model: runs/pretrain (weights; the finished run here, of corpus.txt; --model mini"
    assert wanted in capsys.readouterr().err
    assert finetuned_from(BUNDLED) == bundled / BUNDLED


def test_a_folder_comes_before_a_bundled_model_of_its_name(bundled: Path) -> None:
    make_model_folder(bundled / BUNDLED)
    own = make_model_folder(Path(BUNDLED), seed=1)
    assert open_model_folder(BUNDLED) == own
    assert finetuned_from() == bundled / BUNDLED  # unless none was named


def test_a_misspelt_name_is_told_the_nearest(bundled: Path) -> None:
    make_model_folder(bundled / BUNDLED)
    (bundled / "unfinished").mkdir()
    assert bundled_names() == [BUNDLED]
    with pytest.raises(InputError, match="did you mean 'minibert-small-en'"):
        open_model_folder("minibert-smal-en")


def test_a_run_without_its_model_yet_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("stopped/checkpoints").mkdir(parents=True)
    Path("stopped/run.json").write_text("{}")
    for line in ("predict stopped text", "evaluate stopped", "fill-mask --model stopped [MASK]"):
        assert main(line.split()) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told == "minibert: stopped holds an unfinished run; --resume finishes it"


def test_fine_tuning_from_the_bundled_model_and_all_that_loads_it(
    bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model_folder(tmp_path / "full")
    minibert.export(tmp_path / "full", bundled / BUNDLED)  # bf16
    data = write_reviews(tmp_path / "aclImdb")
    few = ["--max-steps", "2", "--max-seq-length", "16", "--data", str(data), "--output", "run"]
    assert main(["finetune", "--task", "imdb", *few]) == 0
    run = json.loads(Path("run/run.json").read_text())
    assert run["resolved"]["start"] == str(bundled / BUNDLED)
    assert "dtype" not in json.loads(Path("run/config.json").read_text())
    Path("lines.txt").write_text("storm river\nsilver garden\n")
    capsys.readouterr()
    search = ["search", BUNDLED, "storm", "--input", "lines.txt", "--cache-dir", "cache"]
    assert main(search) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["predict", BUNDLED, "storm"]) == 2
    assert "fine-tune it first" in capsys.readouterr().err
    assert main(["evaluate", BUNDLED]) == 2
    assert minibert.load_embedder(BUNDLED).embed(["storm"]).shape == (1, 32)
    model = minibert.BertForPreTraining.from_pretrained(BUNDLED)
    assert not model.load_report.newly_initialised
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert minibert.WordPiece.from_pretrained(BUNDLED).ids(["storm"]) == [[6]]


def test_pretraining_goes_on_from_the_bundled_model(bundled: Path) -> None:
    make_model_folder(bundled / BUNDLED)
    text = "storm river . silver garden .\nwinter valley . miller castle .\n\n" * 30
    Path("text.txt").write_text(text)
    few: dict[str, Any] = {"max_steps": 2, "max_seq_length": 16, "batch_size": 8, "device": "cpu"}
    where = {"output": "more", "cache_dir": "cache"}
    minibert.pretrain(corpus=["text.txt"], model=BUNDLED, **few, **where)
    assert json.loads(Path("more/config.json").read_text())["hidden_size"] == 32


# --- hubs -----------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """A hub with one model, and one without safetensors; keeps what was asked for.

    gated, broken: what it answers instead. cut: hangs up halfway through files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.models = {
            "some/model": {p.name: p.read_bytes() for p in folder.iterdir()}
            | {"pytorch_model.bin": b"never", "code.py": b"never", "onnx/config.json": b"{}"},
            "old/bin": {"config.json": b"{}", "pytorch_model.bin": b"never"},
            "in/parts": {"config.json": b"{}", "model.safetensors.index.json": b"{}"},
        }
        self.main = COMMIT  # what the branch stands at
        self.asked: list[str] = []
        self.gated = self.broken = self.cut = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def fetched(self) -> set[str]:
        """Files whose content was asked for."""
        found = (re.search(r"^GET /\w+/\w+/resolve/\w+/(.+)", line) for line in self.asked)
        return {match[1] for match in found if match}


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if self.server.broken:
            self._say(500, b"")
        elif self.server.gated:
            self._say(403, b"", {"X-Error-Code": "GatedRepo"})
        elif found := re.fullmatch(r"/api/models/(\w+/\w+)(?:/(revision|tree)/(.+))?", path):
            self._api(found[1], found[2], found[3] or "main")
        elif found := re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.+)", path):
            content = self.server.models[found[1]][found[3]]
            self._say(200, content, {"X-Repo-Commit": found[2], "ETag": f'"{hash(content):x}"'})
        else:
            self._say(404, b"")

    def _api(self, name: str, what: str, revision: str) -> None:
        commit = {"main": self.server.main, "v1": OLDER}.get(revision, revision)
        if name not in self.server.models:
            self._say(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif not re.fullmatch("[0-9a-f]{40}", commit):
            self._say(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif what == "tree":
            files = self.server.models[name].items()
            self._json([{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in files])
        else:
            names = [{"rfilename": p} for p in self.server.models[name]]
            self._json({"id": name, "sha": commit, "siblings": names})

    def _json(self, content: Any) -> None:
        self._say(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cut and "/resolve/" in self.path
            self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(make_model_folder(tmp_path / "published"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    _use(monkeypatch, server.url)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does before the library is imported."""
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_hub_id_is_fetched_once_as_safetensors(
    hub: Hub, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_model_folder("some/model", str(cache))
    assert not minibert.BertForPreTraining.from_pretrained(folder).load_report.newly_initialised
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert hub.fetched == wanted | {"vocab.txt"}
    assert f"--model some/model@{COMMIT} names this revision" in capsys.readouterr().err
    hub.asked.clear()
    assert open_model_folder(f"some/model@{COMMIT}", str(cache)) == folder
    assert hub.asked == []  # a pinned model that is there needs no hub
    assert "for good" not in capsys.readouterr().err


def test_a_revision_can_be_pinned(hub: Hub, cache: Path) -> None:
    assert open_model_folder("some/model@v1", str(cache)).name == OLDER
    assert open_model_folder("some/model@main", str(cache)).name == COMMIT


def test_a_folder_named_like_an_owner_hides_ids_without_a_revision(hub: Hub, cache: Path) -> None:
    Path("some").mkdir()
    with pytest.raises(InputError, match="folder some hides .*; some/model@main asks the hub"):
        open_model_folder("some/model", str(cache))
    assert hub.asked == []
    assert open_model_folder("some/model@main", str(cache)).name == COMMIT
    with pytest.raises(InputError, match="names no revision"):
        open_model_folder("some/model@", str(cache))
    make_model_folder(Path("some/model@main"))
    assert open_model_folder("some/model@main", str(cache)) == Path("some/model@main")


def test_what_was_fetched_is_used_without_a_network(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_model_folder("some/model", str(cache))
    _use(monkeypatch, closed_port())
    assert open_model_folder("some/model", str(cache)) == folder


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_without_a_network_the_command_ends_with_status_2(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _use(monkeypatch, closed_port())
    data = write_reviews(tmp_path / "aclImdb")
    argv = ["finetune", "--task", "imdb", "--data", str(data), "--model", "some/model"]
    assert main([*argv, "--cache-dir", str(cache), "--max-steps", "1", "--output", "run"]) == 2
    assert "does not answer, and the cache does not hold it" in capsys.readouterr().err
    assert not Path("run").exists()


def test_offline_by_the_variable_says_so(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, and the cache does not hold it"):
        open_model_folder("some/model", str(cache))
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such", "has no no/such; check the spelling"),
        ("some/model@gone", "some/model has no revision 'gone'"),
        ("some/model@", "names no revision"),
        ("old/bin", "old/bin has no model.safetensors"),
        ("in/parts", "fetched from a hub; its weights lie in several files"),
        ("so--me/mo..del", "is neither a model folder nor a hub id that can be fetched"),
        ("a/b/c", "is not a model folder"),
    ],
)
def test_ids_that_cannot_be_fetched_are_input_errors(
    hub: Hub, cache: Path, name: str, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        open_model_folder(name, str(cache))
    assert "pytorch_model.bin" not in hub.fetched


def test_a_gated_model_says_so(hub: Hub, cache: Path) -> None:
    hub.gated = True
    with pytest.raises(InputError, match="it is gated"):
        open_model_folder("some/model", str(cache))


def test_a_hub_that_fails_is_an_input_error(hub: Hub, cache: Path) -> None:
    hub.broken = True
    with pytest.raises(InputError, match="does not answer"):
        open_model_folder("some/model", str(cache))


def test_a_transfer_that_breaks_off_is_an_input_error(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut = True
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match=r"hub id that can be fetched \("):
        open_model_folder("some/model", str(cache))
    hub.cut = False
    assert (open_model_folder("some/model", str(cache)) / "model.safetensors").is_file()


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_from_a_branch_goes_on_from_the_revision_it_began_with(
    stage: str, hub: Hub, cache: Path, tmp_path: Path
) -> None:
    text = "storm river . silver garden .\nwinter valley . miller castle .\n\n" * 30
    Path("text.txt").write_text(text)
    data = {"pretrain": ["--corpus", "text.txt", "--batch-size", "8"]}
    data["finetune"] = ["--task", "imdb", "--data", str(write_reviews(tmp_path / "aclImdb"))]
    flags = [*data[stage], "--model", "some/model", "--cache-dir", str(cache), "--output", "run"]
    flags += ["--max-steps", "2", "--max-seq-length", "16", "--device", "cpu"]
    assert main([stage, *flags]) == 0
    Path("run/results.json").unlink()
    # The branch moves on to other weights.
    weights = load(hub.models["some/model"]["model.safetensors"])
    hub.models["some/model"]["model.safetensors"] = save({k: v + 1 for k, v in weights.items()})
    hub.main = "c" * 40
    assert main([stage, *flags, "--resume"]) == 0
    assert json.loads(Path("run/run.json").read_text())["resolved"]["start"].endswith(COMMIT)
    assert main([stage, *flags, "--overwrite"]) == 0
    assert json.loads(Path("run/run.json").read_text())["resolved"]["start"].endswith("c" * 40)


def test_a_pinned_name_is_a_hubs_alone(hub: Hub, cache: Path, bundled: Path) -> None:
    make_model_folder(bundled / BUNDLED)
    make_model_folder(Path("own/model"))
    for name in (BUNDLED, "own/model"):
        assert pinned(name, open_model_folder(name)) == name
    for name in ("some/model", "some/model@main", f"some/model@{COMMIT}"):
        assert pinned(name, open_model_folder(name, str(cache))) == f"some/model@{COMMIT}"


def test_an_embedder_opens_a_hub_id(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert minibert.load_embedder("some/model").embed(["storm"]).shape == (1, 32)
    shutil.rmtree(tmp_path / "hub")
