"""One run of one side of the comparison with the reference, in a process of its own.

    python -m benchmarks.reference_run '{"task": "sst2", "side": "HF", "seed": 0, ...}'

It writes a JSON file: the figures, and seconds. "training" is the loop alone. "scoring" goes from
the test examples to their predictions: tokenising, the network, decoding. "whole" is all from the
files to the figures, reading and tokenising and writing included; importing libraries is not.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reference_tasks import WORKS, Inputs, Recipe

_NEVER = 10**9  # steps between evaluations: there is one alone, at the end, so nothing is chosen


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process does.

    data: the folder of the slice. padding: of transformers' side, "dynamic" or "max_length".
    """

    task: str
    side: str
    seed: int
    data: str
    checkpoint: str
    recipe: dict[str, Any]
    scratch: str
    padding: str = "dynamic"


# --- transformers ---------------------------------------------------------------------------------


def run_reference(job: Job) -> dict[str, Any]:
    """transformers' model of the task in the plain loop of its examples.

    AdamW without weight decay, linear decay, gradients clipped to 1: the defaults of its
    TrainingArguments. Warm-up is what both sides have, and not its default of none. Random batches,
    fp32, or bf16 by autocast.
    """
    import transformers

    work, recipe = WORKS[job.task], Recipe(**job.recipe)
    bf16 = job.side.endswith("bf16")
    folder = Path(job.data)
    begun = time.perf_counter()
    transformers.set_seed(job.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.checkpoint)
    padding = "max_length" if job.padding == "max_length" else False
    options = {"max_length": recipe.max_seq_length, "padding": padding}
    train = work.read(folder / work.files[0])
    build = getattr(transformers, work.auto).from_pretrained
    model = build(job.checkpoint, **work.model_arguments(train))
    inputs = work.inputs(tokenizer, train, options)
    collate = work.collator(tokenizer)
    training = time.perf_counter()
    steps = _train(model, inputs, collate, recipe, bf16)
    trained = time.perf_counter()
    examples = work.read(folder / work.files[2])
    scoring = time.perf_counter()
    tested = work.inputs(tokenizer, examples, options)
    outputs = _infer(model, tested, collate, recipe.batch_size, bf16)
    predictions = work.decode(examples, tested, outputs)
    scored = time.perf_counter()
    figures = work.figures(examples, predictions)
    return {
        "figures": figures,
        "training": trained - training,
        "scoring": scored - scoring,
        "whole": time.perf_counter() - begun,
        "steps": steps,
        "features": len(inputs.rows),
    }


def _train(model: Any, inputs: Inputs, collate: Any, recipe: Recipe, bf16: bool) -> int:
    import transformers

    size, rows = recipe.batch_size, inputs.rows
    steps = recipe.epochs * -(-len(rows) // size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=0.0, fused=True
    )
    warmup = round(recipe.warmup_ratio * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    model.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(rows)).tolist()
        for start in range(0, len(rows), size):
            batch = collate([rows[i] for i in order[start : start + size]])
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return steps


_LOGITS = ("logits", "start_logits", "end_logits")


@torch.no_grad()
def _infer(
    model: Any, inputs: Inputs, collate: Any, size: int, bf16: bool
) -> list[dict[str, np.ndarray]]:
    """Of each feature the logits by name."""
    model.eval()
    found = []
    for start in range(0, len(inputs.rows), size):
        batch = collate([dict(row) for row in inputs.rows[start : start + size]])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(**batch)
        named = {name: out[name].float().numpy() for name in _LOGITS if name in out}
        for parts in zip(*named.values(), strict=True):
            found.append(dict(zip(named, parts, strict=True)))
    return found


# --- ours -----------------------------------------------------------------------------------------


def run_ours(job: Job) -> dict[str, Any]:
    """`minibert.finetune` with its defaults but for what the recipe says.

    It looks at a dev split once, at the end, so that it has no choice among weights. Its own figure
    must be the one that the reference's scorer finds for its saved predictions.

    Raises:
        ValueError: the two differ.
    """
    import minibert

    work, recipe = WORKS[job.task], Recipe(**job.recipe)
    precision = "fp32" if job.side.endswith("fp32") else "auto"
    begun = time.perf_counter()
    result = minibert.finetune(
        task=job.task,
        data=job.data,
        model=job.checkpoint,
        output=job.scratch,
        overwrite=True,
        seed=job.seed,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        max_seq_length=recipe.max_seq_length,
        learning_rate=recipe.learning_rate,
        warmup_ratio=recipe.warmup_ratio,
        eval_every=_NEVER,
        precision=precision,
        **recipe.ours,
    )
    whole = time.perf_counter() - begun
    examples = work.read(Path(job.data) / work.files[2])
    with (result.folder / "predictions.jsonl").open(encoding="utf-8") as lines:
        predictions = [work.told(json.loads(line)) for line in lines]
    figures = work.figures(examples, predictions)
    own = float(result.figures[work.figure])
    if abs(own - figures[work.figure]) * work.scale > 0.01:
        raise ValueError(f"{work.figure} is {figures[work.figure]}, our results.json says {own}")
    return {
        "figures": figures,
        "training": float(result.figures["seconds"]),
        "scoring": _scoring_seconds(result.folder, recipe.batch_size),
        "whole": whole,
        "steps": result.figures["steps"],
    }


def _scoring_seconds(folder: Path, batch_size: int) -> float:
    """From the test examples to their predictions, by the finished folder."""
    import minibert

    predictor = minibert.load(folder)
    examples = predictor.task.read(predictor.task.find_data()).test
    start = time.perf_counter()
    predictor.task.predict(predictor.model, examples, batch_size, predictor.runtime)
    return time.perf_counter() - start


def run(job: Job) -> dict[str, Any]:
    """What a run is remembered by."""
    found = (run_ours if job.side.startswith("minibert") else run_reference)(job)
    shutil.rmtree(job.scratch, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**found, "peak_mib": round(peak), "threads": torch.get_num_threads()}


def main(arguments: list[str]) -> int:
    job = json.loads(arguments[0])
    out = Path(job.pop("out"))
    found = run(Job(**job))
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
