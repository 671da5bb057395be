"""The run folder: who may write to it, what is in it, and whether a run may go on in it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from minibert.errors import InputError
from minibert.files import read_json, remove, sync, whole_characters, write_json
from minibert.settings import DATA_PLACES, FinetuneSettings, PretrainSettings, says_none

# What a run writes, and so what --overwrite removes; anything else in the folder is left alone.
RUN_FILES = (
    "results.json",  # first: without it the run no longer counts as finished
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "README.txt",  # of a model that writes texts, else somebody's own
    "target_tokenizer.json",
    "classification.json",
    "qa.json",
    "similarity.json",
    "metrics.jsonl",
    "predictions.jsonl",
    "diverged.json",
    "errors.txt",
    "profile.json",
    "checkpoints",
    "adapted",
    "adapted.jsonl",
    "intermediate",
    "teacher",
    "teacher.jsonl",
    "student",
    "student.jsonl",
    "student-dev.jsonl",
    "self-training.json",
    "run.json",  # last: until then the folder is known as a run's
)
# However they are named: what lies there must be the same, see `RunFolder.check_same_data`.
_PLACES = ("corpus", *DATA_PLACES)
# Settings that may differ between a run and its resumption: none changes what is computed.
_MAY_DIFFER = frozenset(
    (
        *("output", "resume", "overwrite", "debug", "dry_run", "profile", "cache_dir"),
        *("save_every", "shard"),
        *_PLACES,
    )
)


class RunFolder:
    """A run's folder, locked for as long as this object is open.

    Of several processes of one run only the main one locks and writes; see `is_main`.

    Used as a context manager; a folder that was made here and stayed empty is removed on leaving.

    Args:
        kept: names of ours that `clear` leaves, such as what a run makes before its first step.

    Raises:
        InputError: another process is using it (its process id is named), or the path is a file or
            not UTF-8.
    """

    def __init__(self, path: str | Path, is_main: bool = True, kept: Collection[str] = ()) -> None:
        self.path, self.is_main, self.kept = Path(path), is_main, kept
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self._lock: TextIO | None = None
        self._aside: Path | None = None  # where an earlier run lies while one takes its place

    def __enter__(self) -> Self:
        if not self.is_main:
            return self
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output {self.path} is a file; name a folder")
        if self.path.is_symlink() and not self.path.exists():
            raise InputError(
                f"--output {self.path} is a link to {os.readlink(self.path)}, which is not there"
            )
        if (shown := whole_characters(str(self.path))) != str(self.path):
            raise InputError(f"--output {shown} is not UTF-8, as weights files want; name another")
        self._made = not self.path.exists()
        self._parents = [p for p in self.path.parents if not p.exists()]
        try:
            lock = self._locked()
        except NotADirectoryError:
            raise InputError(f"--output {self.path} lies below a file; name a folder") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        return self

    def _locked(self) -> TextIO:
        """The lock's file, taken; anew where another process, leaving, has removed it meanwhile."""
        path = self.path / ".lock"
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = path.open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
                lock.close()
                raise InputError(
                    f"{self.path} is in use by process {owner}; wait for it or choose another "
                    f"--output"
                ) from None
            except OSError as error:  # of some network disks
                lock.close()
                raise InputError(
                    f"{self.path}: files there cannot be locked ({error.strerror}), so that two "
                    f"runs could write at once; choose an --output on another disk"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
            lock.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.is_main:
            return
        assert self._lock is not None
        # The lock's file stays in a folder with content: two processes must see the same one.
        if not (self.path / "run.json").exists():
            (self.path / ".lock").unlink()
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()
            for parent in self._parents:
                if any(parent.iterdir()):
                    break
                parent.rmdir()
        self._lock.close()

    @property
    def results(self) -> dict[str, Any] | None:
        """The final figures of a finished run, else None."""
        path = self.path / "results.json"
        return read_json(path, "") if path.is_file() else None

    @property
    def diverged(self) -> str:
        """Why a run ended without a result: a loss that was no number; empty where it did not."""
        path = self.path / "diverged.json"
        return str(read_json(path, "").get("error", "")) if path.is_file() else ""

    def note_divergence(self, error: str) -> None:
        """Keeps why a run ended, for those who carry out many."""
        if self.is_main:
            write_json(self.path / "diverged.json", {"error": error})

    @property
    def is_empty(self) -> bool:
        """Nothing is here, or only what a start killed before its run.json has left."""
        names = [p.name for p in self.path.iterdir()]
        return all(n == ".lock" or (n[0] == "." and n.endswith(".tmp")) for n in names)

    def check_may_start(self, resume: str, overwrite: bool) -> bool:
        """Whether to go on (True) or to begin (False).

        Raises:
            InputError: the folder holds something and neither was asked for, or holds no run.
        """
        has_run = (self.path / "run.json").is_file()
        if resume != "no":
            if self._made and resume == "yes":
                raise InputError(
                    f"--resume: there is no run in {self.path}; leave --resume out to begin one"
                )
            if not has_run and not self.is_empty:
                raise InputError(f"--resume: {self.path} holds files, but no run of minibert")
            return has_run
        if self.is_empty:
            return False
        if not overwrite:
            hint = "--resume goes on, --overwrite starts anew" if has_run else "it is not a run"
            raise InputError(f"--output {self.path} exists ({hint}); or choose another --output")
        if not has_run:
            raise InputError(f"--overwrite: {self.path} holds files, but no run of minibert")
        return False

    def clear(self) -> None:
        """Removes an earlier run's files, with the runs of its seeds, and nothing else."""
        (self.path / RUN_FILES[0]).unlink(missing_ok=True)
        if self._has_seeds():
            self.drop_seeds()
        for path in self._earlier():
            remove(path)
        self.drop_half_written()

    @contextlib.contextmanager
    def replacing(self, *more: str, goes_on: bool = False) -> Iterator[None]:
        """Clears the folder; where the block fails before it trained anything, all comes back.

        So it does after an InputError; what was trained meanwhile in what is kept stays, too.

        Args:
            more: names to clear with the rest, though they be kept.
            goes_on: the run here was stopped in what is kept, so that this was trained.
        """
        self.drop_half_written()
        self._aside = self.path / f".before.{os.getpid()}.tmp"
        self._aside.mkdir()
        seeds = self.seed_runs() if self._has_seeds() else []
        others = [self.path / name for name in more if (self.path / name).exists()]
        own = list(self._earlier())  # the results first: what is half moved is not finished
        for path in dict.fromkeys([*own[:1], *seeds, *others, *own[1:]]):
            path.rename(self._aside / path.name)
        there = {name for name in self.kept if (self.path / name).exists()}
        for name in ("run.json", *there):  # left for what is kept, and soon replaced
            if (self.path / name).is_file():
                shutil.copy2(self.path / name, self._aside / name)
        before = {} if goes_on else self._trained()
        try:
            yield
        except BaseException as error:
            is_new, has_trained = not any(self._aside.iterdir()), self._trained() != before
            if (is_new or has_trained) and not isinstance(error, InputError):
                raise  # which --resume goes on with
            if is_new:
                self.forget()
            else:
                self.clear()
            if has_trained:  # what was gathered for it stays with it
                for name in there:
                    remove(self._aside / name)
            else:
                for name in {*self.kept} - there:
                    remove(self.path / name)
            for path in self._aside.iterdir():
                remove(self.path / path.name)
                path.rename(self.path / path.name)
            raise
        finally:
            shutil.rmtree(self._aside)
            self._aside = None

    def _trained(self) -> dict[str, Any]:
        """What was trained here, kept stages and seeds that learnt, by what each began from."""
        stages = [self.path / name for name in self.kept]
        seeds = [seed for seed in self.seed_runs() if _has_learnt(seed)]
        found = {path.name: path / "run.json" for path in (*stages, *seeds)}
        return {name: _began_from(run) for name, run in found.items() if run.is_file()}

    def _earlier(self) -> Iterator[Path]:
        """What `clear` removes beside the runs of seeds, in its order, as far as it is there."""
        left = any((self.path / name).exists() for name in self.kept)
        is_writer = (self.path / "target_tokenizer.json").exists()
        for name in RUN_FILES:
            if name in self.kept or (left and name == "run.json"):  # without it no run is known
                continue
            if (self.path / name).exists() and (name != "README.txt" or is_writer):
                yield self.path / name

    def _has_seeds(self) -> bool:
        """Whether the run here is one of several seeds; other runs' sub-folders are not theirs."""
        with contextlib.suppress(InputError):
            return int(self.read_run()["settings"].get("seeds", 1)) > 1
        return False

    def drop_seeds(self) -> None:
        """Removes the runs in `seed-N`, each at once: one half removed could not be gone on with.

        To be done while there is a run.json, without which the folder is no run's.
        """
        for seed in self.seed_runs():
            gone = self.path / f".{seed.name}.{os.getpid()}.tmp"
            shutil.rmtree(gone, ignore_errors=True)
            seed.rename(gone)
            shutil.rmtree(gone)

    def seed_runs(self) -> list[Path]:
        """The runs in `seed-N`."""
        return [s for s in self.path.glob("seed-*") if (s / "run.json").is_file()]

    def drop_half_written(self) -> None:
        """Removes what a killed process was about to write, or to remove; the lock must be held."""
        for path in self.path.glob(".*.tmp"):
            if path != self._aside:
                remove(path)

    def forget(self) -> None:
        """Removes a run that could not begin, unless something was trained in it."""
        if not self._trained():
            self.kept = ()
            self.clear()

    def write_run(self, run: dict[str, Any]) -> None:
        """Writes run.json: settings as given and as resolved, versions, data fingerprint."""
        write_json(self.path / "run.json", run)

    def read_run(self) -> dict[str, Any]:
        """Reads run.json."""
        path = self.path / "run.json"
        run = read_json(path, "every run folder holds it")
        lacking = [k for k in ("settings", "resolved", "versions") if not _is_object(run, k)]
        if lacking:
            raise InputError(f"{path} is damaged: it lacks {', '.join(lacking)}")
        return run

    def check_same_data(
        self, fingerprint: str, now: Mapping[str, Any] | None = None, what: str = ""
    ) -> None:
        """Compares the data of a run that is to go on with what it was begun with.

        Args:
            now: the settings that name where it lies now, for the message.
            what: whose data it is, for the message, as in "of --adapt ".

        Raises:
            InputError: they differ.
        """
        run, now = self.read_run(), now or {}
        before, then = run.get("data_fingerprint"), run["settings"]
        if before != fingerprint:
            moved = "".join(
                f"{name} was {then.get(name)!r}, now {now[name]!r}; "
                for name in _PLACES
                if name in now and now[name] != then.get(name)
            )
            raise InputError(
                f"--resume: {what}{moved}the data fingerprint was {before}, now {fingerprint}: the "
                f"text or the labels have changed; --overwrite starts anew"
            )

    def check_same_settings(self, command: str, now: dict[str, Any]) -> None:
        """Compares the settings of a run that is to go on with those it was begun with.

        Raises:
            InputError: the command or a setting differs; the difference is named.
        """
        before = self.read_run()
        if before.get("command") != command:
            raise InputError(
                f"--resume: the command was {before.get('command')}, now {command}; "
                f"--overwrite starts anew"
            )
        if differ := self.other_settings(now):
            raise InputError(f"--resume: {'; '.join(differ)}; --overwrite starts anew")

    def other_settings(self, now: dict[str, Any]) -> list[str]:
        """What differs between the settings of the run here and others of the same command.

        Of an older version's run, a setting that it did not know had what is its default now.
        """
        before = self.read_run()
        kind = PretrainSettings if before.get("command") == "pretrain" else FinetuneSettings
        then = {f.name: f.default for f in dataclasses.fields(kind)} | before["settings"]
        return [
            f"{name} was {then.get(name)!r}, now {now.get(name)!r}"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name) and not _may_differ(name, then, now)
        ]

    def respell_data(self, now: Mapping[str, Any]) -> None:
        """`respell` of the places of data, once `check_same_data` has found it the same."""
        self.respell(**{name: now[name] for name in _PLACES if name in now})

    def respell(self, **places: Any) -> None:
        """Has run.json name places as they are named now; what lies there must be the same."""
        run = self.read_run()
        settings = run["settings"] | places
        if settings != run["settings"]:
            self.write_run(run | {"settings": settings})

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one row to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl, for a checkpoint to come back to; it is on the disk then."""
        if not self.metrics.exists():
            return 0
        sync(self.metrics)
        return self.metrics.stat().st_size

    def cut_metrics(self, length: int) -> None:
        """Drops the rows beyond a checkpoint, and a row that was cut by a kill or a power cut."""
        content = self.metrics.read_bytes()[:length] if self.metrics.exists() else b""
        whole = content.rfind(b"\n") + 1
        if self.metrics.exists() and self.metrics.stat().st_size != whole:
            os.truncate(self.metrics, whole)


def _may_differ(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a setting may be another than it was; text without labels only where it lies.

    A model may be named otherwise where it is the same folder.
    """
    was, given = then.get(name), now.get(name)
    if name == "model" and was and given:
        return Path(was).is_dir() and Path(was).resolve() == Path(given).resolve()
    was, given = (None if says_none(name, value) else value for value in (was, given))
    if was is None and given is None:  # nothing said, and the word for nothing
        return True
    is_text = name in ("adapt", "self_training")
    return name in _MAY_DIFFER or (is_text and None not in (was, given))


def _began_from(run: Path) -> Any:
    """What of a run.json says that it is another run: settings may be spelt anew."""
    try:
        content = read_json(run, "")
    except InputError:  # damaged, which is told where it is needed
        return run.read_bytes()
    return [content.get(key) for key in ("resolved", "versions", "data_fingerprint")]


def _has_learnt(run: Path) -> bool:
    """Whether a run's folder holds more than what it was begun with: rows, states or a stage."""
    own = any((run / name).exists() for name in ("metrics.jsonl", "checkpoints", "results.json"))
    return own or any(run.glob("*/run.json"))


def _is_object(run: dict[str, Any], key: str) -> bool:
    return isinstance(run.get(key), dict)


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The whole rows of a run's metrics.jsonl; evaluations carry `eval_…` keys.

    A run that was killed, or that writes it just now, may leave part of a row at its end.
    """
    path = Path(folder) / "metrics.jsonl"
    content = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in content.split("\n")[:-1]]
