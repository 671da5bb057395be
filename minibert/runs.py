"""What both stages do around the loop: find a model, record the run, report its end."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from minibert.errors import InputError
from minibert.optim import Budget
from minibert.run_folder import RunFolder
from minibert.runtime import Runtime, versions
from minibert.settings import RunSettings
from minibert.train import LoopSettings, clock


@dataclass(frozen=True)
class RunResult:
    """What `pretrain` and `finetune` return.

    folder: the run folder. figures: the content of results.json. model: in eval mode; None when
    the run was finished before, or after a dry run.
    """

    folder: Path
    figures: dict[str, Any]
    model: nn.Module | None = None


def log_line(topic: str, text: str) -> None:
    """One line of the run's log, on standard error."""
    print(f"{topic}: {text}", file=sys.stderr, flush=True)


def begun_run(
    folder: RunFolder | None, command: str, settings: RunSettings
) -> dict[str, Any] | None:
    """The run.json of a run that is to go on, None for one that begins.

    Raises:
        InputError: the folder may not be used so (see `RunFolder.check_may_start`), or the run
            was begun with other settings.
    """
    if folder is None or not folder.check_may_start(settings.resume, settings.overwrite):
        return None
    folder.check_same_settings(command, settings.to_dict())
    run = folder.read_run()
    differ = {k: v for k, v in versions().items() if run["versions"].get(k) != v}
    if differ:
        log_line("versions", f"not those the run began with, so bits may differ: now {differ}")
    return run


def check_not_start(folder: RunFolder | None, start: Path | None) -> None:
    """Refuses to write a run over the model that it starts from."""
    if folder and start and folder.path.resolve() == start.resolve():
        raise InputError(f"--output {folder.path} is the --model folder; choose another --output")


def finished_run(folder: RunFolder) -> RunResult:
    """The result of a run that had ended before, which is said."""
    log_line("finished", f"{folder.path} holds a finished run; nothing to do")
    return RunResult(folder.path, folder.results or {})


def open_model_folder(name: str) -> Path:
    """The folder of a model: a path as it is, or a hub id fetched through huggingface_hub.

    Raises:
        InputError: neither a folder nor the id of a repository.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~", "runs/")) or name.count("/") != 1:
        raise InputError(
            f"{name} is not a model folder; expected one with config.json, or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    files = ["config.json", "*.safetensors", "pytorch_model.bin", "*token*", "vocab.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name} is neither a model folder nor a hub id that can be fetched ({reason})"
        ) from None


def weights_digest(folder: Path) -> str:
    """A digest of a model folder's weights file, to know it again by."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            with (folder / name).open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    raise InputError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


def loop_settings(
    settings: RunSettings, learning_rate: float, budget: Budget, select: str | None = None
) -> LoopSettings:
    """The loop's part of a run's settings, with the peak rate and the budget as resolved."""
    return LoopSettings(
        learning_rate=learning_rate,
        budget=budget,
        warmup_ratio=settings.warmup_ratio,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        save_every=settings.save_every,
        select=select,
    )


def run_record(
    command: str, settings: RunSettings, data_fingerprint: str, runtime: Runtime
) -> dict[str, Any]:
    """The content of run.json: settings as given, as resolved, versions, data."""
    return {
        "command": command,
        "settings": settings.to_dict(),
        "resolved": {"device": str(runtime.device), "precision": runtime.precision},
        "versions": versions(),
        "data_fingerprint": data_fingerprint,
    }


def closing_table(results: dict[str, Any], folder: Path) -> None:
    """The final figures on standard output, one a line."""
    rows = []
    for key, value in results.items():
        if isinstance(value, (dict, list)):
            continue
        text = (
            f"{value:,.4f}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        rows.append((key, clock(value) if key == "seconds" else text))
    width = max(len(key) for key, _ in rows)
    print("\n".join(f"{key:<{width}}  {text}" for key, text in rows))
    print(f"{'folder':<{width}}  {folder}", flush=True)
