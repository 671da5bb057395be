"""Checkpoints: all that a run needs to go on as if it had never stopped.

One folder a checkpoint, `checkpoints/step-000001234/`, with the weights, the optimiser's moments
and the loop's state, and a manifest of sizes and digests, those of the best weights included. A
checkpoint is written under another name and renamed, so it is there whole or not at all; the last
two are kept, and a damaged one is recognised by its manifest and passed over for the one before.
What several processes hold in parts is put together first, so nothing in the files tells how many
there were.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from minibert.convert import save_tensors
from minibert.files import remove, sync, write_atomically
from minibert.sharding import gathered, part_like
from minibert.world import ALONE, World

log = logging.getLogger(__name__)

_KEPT = 2


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    world: World = ALONE,
) -> Path:
    """Writes the checkpoint of a step whole or not at all, then drops all but the last two.

    Every process must ask, and the main one writes.

    Args:
        folder: the run's `checkpoints/`.
        state: JSON-ready; floats keep every bit.

    Raises:
        OSError: nothing of this checkpoint remains then, and older ones are untouched.
    """
    weights = gathered(model.state_dict(), world)  # asking makes parameters those of the optimiser
    moments = gathered(_moments(model, optimizer), world)
    final = folder / f"step-{step:09d}"
    if world.is_main:
        _write(final, weights, moments, state)
    return final


def _write(
    final: Path, weights: dict[str, Tensor], moments: dict[str, Tensor], state: dict[str, Any]
) -> None:
    folder = final.parent
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_tensors(weights, temporary / "model.safetensors")
        save_tensors(moments, temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(state))
        files = [*sorted(temporary.iterdir()), *_named_best(folder, state)]
        manifest = {os.path.relpath(p, temporary): [p.stat().st_size, _digest(p)] for p in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest))
        for path in temporary.iterdir():
            sync(path)
        shutil.rmtree(final, ignore_errors=True)  # damaged, or it would not be written again
        temporary.rename(final)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    _drop_unnamed_best(folder)


def _named_best(folder: Path, state: dict[str, Any]) -> list[Path]:
    """The best weights that a state refers to; they lie beside the checkpoints, not in them."""
    step = state.get("loop", {}).get("best_step")
    path = _best_path(folder, step or 0)
    return [path] if path.is_file() else []


def _drop_unnamed_best(folder: Path, *kept: int) -> None:
    """Removes best weights that no checkpoint refers to, but for those of steps to be kept."""
    named: set[int | None] = set(kept)
    for path in _checkpoints(folder):
        with contextlib.suppress(OSError, ValueError):
            named.add(
                json.loads((path / "state.json").read_text()).get("loop", {}).get("best_step")
            )
    for old in folder.glob("best-*.safetensors"):
        if int(old.stem.removeprefix("best-")) not in named:
            old.unlink()


def load_last_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World = ALONE
) -> dict[str, Any] | None:
    """Restores the last checkpoint that is whole; returns its state, None where there is none.

    Those after it are removed: they must not push out those that come. Of several processes the
    main one looks first, and removes. Where only the best weights of all are damaged, the last
    checkpoint is taken without them: the best of what follows is chosen then.

    Raises:
        OSError: a file cannot be read now, which is no damage; nothing is removed.
    """
    if world.is_main:
        for temporary in folder.glob(".*.tmp"):  # what a killed process left half-written
            remove(temporary)
    faults = {path: _faults(path) for path in reversed(_checkpoints(folder))}
    whole = [path for path, found in faults.items() if not found]
    others = [path for path, found in faults.items() if all(n.startswith("..") for n in found)]
    chosen = next(iter(whole or others), None)
    for path, found in faults.items():
        if path == chosen:
            break
        if world.is_main:
            name, fault = next(iter(found.items()))
            log.warning(
                "checkpoint %s is damaged (%s %s); trying the one before", path.name, name, fault
            )
            shutil.rmtree(path)
    if chosen is None:
        return None
    _load_weights(model, chosen / "model.safetensors")
    _restore_moments(model, optimizer, load_file(chosen / "optimizer.safetensors"))
    state: dict[str, Any] = json.loads((chosen / "state.json").read_text())
    if faults[chosen]:
        log.warning("the best weights so far are damaged; the best of what follows is chosen")
        state["loop"] |= {"best": None, "best_step": 0, "waited": 0}
    return state


def _load_weights(model: nn.Module, path: Path) -> None:
    """Restores the weights of a file, of which each process takes its part."""
    own, saved = model.state_dict(), load_file(path)
    for name in own.keys() & saved.keys():
        saved[name] = part_like(saved[name], own[name])
    model.load_state_dict(saved)


def save_best(folder: Path, step: int, model: nn.Module, world: World = ALONE) -> None:
    """Keeps the best weights so far, under their step; every process must ask.

    Those that were the best since the last checkpoint, which does not name them, are dropped.
    """
    tensors = gathered(model.state_dict(), world)
    if world.is_main:
        folder.mkdir(exist_ok=True)
        write_atomically(_best_path(folder, step), lambda path: save_tensors(tensors, path))
        _drop_unnamed_best(folder, step)


def load_best(folder: Path, step: int, model: nn.Module) -> None:
    """Restores what `save_best` kept at a step."""
    _load_weights(model, _best_path(folder, step))


def _best_path(folder: Path, step: int) -> Path:
    return folder / f"best-{step:09d}.safetensors"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _faults(path: Path) -> dict[str, str]:
    """What is wrong with a checkpoint, by file; the best weights, beside it, begin with `..`.

    Raises:
        OSError: a file is there, but cannot be read.
    """
    found = {}
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, (size, digest) in manifest.items():
            file = path / name
            if not file.is_file():
                found[name] = "is missing"
            elif file.stat().st_size != size:
                found[name] = f"has {file.stat().st_size} bytes, was written with {size}"
            elif _digest(file) != digest:
                found[name] = "has changed since it was written"
    except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
        found["manifest.json"] = f"is damaged: {error}"
    return found


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name, empty before the first step."""
    out = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{key}/{name}"] = torch.as_tensor(value)
    return out


def _restore_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    saved: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        key, name = path.split("/", 1)
        saved.setdefault(name, {})[key] = value
    for name, parameter in model.named_parameters():
        if name in saved:
            optimizer.state[parameter] = {
                # A copy of the part alone: the file, which is mapped, will be replaced.
                key: (
                    value.to(parameter.device) if key == "step" else part_like(value, parameter)
                ).clone()
                for key, value in saved[name].items()
            }
