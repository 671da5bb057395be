"""The name of a model -> the folder that holds it: a path, a bundled model, or one from a hub."""

from __future__ import annotations

import sys
from pathlib import Path

from minibert.errors import InputError, did_you_mean
from minibert.files import bundled_models, model_path
from minibert.machine import launched

BUNDLED = "minibert-small-en"  # what fine-tuning starts from where nothing was pretrained
# What is fetched of a hub's repository: of its first level, nothing that could run code; and of
# 1_Pooling/, where sentence models say how their vectors are made.
_FETCHED = ["config.json", "model.safetensors", "vocab.txt", "*.json"]
_BELOW = ["[!1]*/*"]


def bundled_names() -> list[str]:
    """The models that travel with the package and can be named instead of a folder."""
    found = bundled_models().glob("*/model.safetensors")
    return sorted(p.parent.name for p in found if (p.parent / "config.json").is_file())


def bundled_model() -> Path | None:
    """The folder of the bundled model that fine-tuning starts from; None where there is none."""
    return bundled_models() / BUNDLED if BUNDLED in bundled_names() else None


def open_model_folder(name: str, cache_dir: str | None = None) -> Path:
    """The folder of a model.

    Args:
        name: a folder; the name of a bundled model; or a hub's `owner/name`, also
            `owner/name@revision` with a branch, tag or commit, fetched through huggingface_hub
            (`model.safetensors`, `vocab.txt` and JSON files alone).
        cache_dir: where fetched models are kept; None for the hub's own cache.

    Raises:
        InputError: none of these, a run that has no model yet, or one that cannot be fetched and
            was not before.
    """
    path = model_path(name)
    if path.is_dir():
        begun, written = path / "run.json", (path / "results.json", path / "model.safetensors")
        if begun.is_file() and not any(file.is_file() for file in written):
            raise InputError(f"{path} holds an unfinished run; --resume finishes it")
        return path
    repository, at, revision = name.partition("@")
    local = path.exists() or name.startswith((".", "/", "~", "runs/"))
    if local or repository.count("/") != 1:
        bundled = bundled_names()
        tail = did_you_mean(name, bundled) if bundled and "/" not in name else ""
        expected = "one with config.json, or a hub id, owner/name"
        raise InputError(f"{name} is not a model folder; expected {expected}{tail}")
    # What lies beside existing folders is a path that was misspelt, unless it has a revision.
    if not at and path.parent.is_dir():
        hides = f"the folder {path.parent} hides a hub's {name}; {name}@main asks the hub"
        raise InputError(f"{name} is not a model folder; expected one with config.json; {hides}")
    if at and not revision:
        raise InputError(f"{name} names no revision; expected owner/name@revision, or no @")
    return _fetched(repository, revision or None, cache_dir)


def pinned(name: str, folder: Path) -> str:
    """The name that means this model for good: a hub's with its revision, others as they are.

    Args:
        folder: what `open_model_folder` found for it.
    """
    if model_path(name).resolve() == folder.resolve():
        return name
    return f"{name.partition('@')[0]}@{folder.name}"


def _fetched(repository: str, revision: str | None, cache_dir: str | None) -> Path:
    """A repository's files in the cache; asks the hub only for what is not there."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{repository}@{revision}" if revision else repository
    unusable = f"{name} is neither a model folder nor a hub id that can be fetched"
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=_FETCHED,
                ignore_patterns=_BELOW,
                cache_dir=cache_dir,
            )
        )
    except GatedRepoError:
        raise InputError(f"{unusable}: it is gated; ask for access on its page") from None
    except RepositoryNotFoundError:
        hint = "check the spelling; a private one needs `hf auth login`"
        raise InputError(f"{unusable}: {constants.ENDPOINT} has no {repository}; {hint}") from None
    except RevisionNotFoundError:
        raise InputError(f"{unusable}: {repository} has no revision {revision!r}") from None
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise InputError(
                f"{unusable}: HF_HUB_OFFLINE is set, and the cache does not hold it; "
                f"name a folder, or unset the variable"
            ) from None
        raise InputError(
            f"{unusable}: {constants.ENDPOINT} does not answer, and the cache does not hold it; "
            f"name a folder, or try again with a network"
        ) from None
    except Exception as error:  # of whichever HTTP library the hub's one uses
        if isinstance(error, OSError) and error.errno:  # the disk's, such as one that is full
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{unusable} ({reason})") from None
    if not (folder / "model.safetensors").is_file():
        is_parted = (folder / "model.safetensors.index.json").is_file()
        more = "; its weights lie in several files" if is_parted else ""
        raise InputError(
            f"{name} has no model.safetensors, and nothing else is fetched from a hub{more}"
        )
    if launched().rank == 0 and revision != folder.name:
        pinned = f"--model {repository}@{folder.name} names this revision for good"
        print(f"hub: {name} is now {folder.name}; {pinned}", file=sys.stderr, flush=True)
    return folder
