"""Our outputs against stored ones of the reference, so that parity needs no reference installed.

`python tests/test_activations.py` makes the file anew with transformers' BertForPreTraining.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from minibert.config import BertConfig
from minibert.convert import load_tensors, name_table
from minibert.heads import BertForPreTraining

STORED = Path(__file__).with_name("activations.json")
CONFIG = BertConfig(
    vocab_size=23,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=9,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
BATCH = {
    "input_ids": [[2, 7, 19, 4, 3, 11, 22, 3], [2, 5, 4, 3, 9, 3, 0, 0]],
    "token_type_ids": [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0]],
    "attention_mask": [[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]],
}


def batch() -> dict[str, torch.Tensor]:
    return {name: torch.tensor(rows) for name, rows in BATCH.items()}


def filled(name: str, shape: torch.Size) -> torch.Tensor:
    """Weights by a formula of their published name, so that no random generator has a say."""
    start = sum(map(ord, name)) % 97
    wave = torch.sin(torch.arange(start, start + shape.numel(), dtype=torch.float64) * 1.7)
    center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
    return (center + 0.3 * wave).float().reshape(shape)


def published_shapes(model: BertForPreTraining) -> dict[str, torch.Size]:
    shapes = {}
    for ours, parts in name_table(CONFIG.num_hidden_layers).items():
        if ours in (state := model.state_dict()):
            for part, piece in zip(parts, state[ours].chunk(len(parts)), strict=True):
                shapes[part] = piece.shape
    return shapes


def test_outputs_equal_the_stored_ones_of_the_reference() -> None:
    model = BertForPreTraining(CONFIG).eval()
    tensors = {name: filled(name, shape) for name, shape in published_shapes(model).items()}
    report = load_tensors(model, tensors, "formula")
    assert (report.newly_initialised, report.left_out) == ((), ())
    with torch.no_grad():
        out = model(**batch())
    stored = {name: torch.tensor(rows) for name, rows in json.loads(STORED.read_text()).items()}
    attended = batch()["attention_mask"].bool()
    assert torch.allclose(out.nsp_logits, stored["nsp_logits"], atol=1e-5)
    for name in ("mlm_logits", "last_hidden_state"):
        assert torch.allclose(getattr(out, name)[attended], stored[name][attended], atol=1e-5), name


def make() -> None:
    import transformers

    model = transformers.BertForPreTraining(transformers.BertConfig(**CONFIG.to_dict())).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(filled(name, parameter.shape))
        out = model(**batch(), output_hidden_states=True)
    found = {
        "mlm_logits": out.prediction_logits,
        "nsp_logits": out.seq_relationship_logits,
        "last_hidden_state": out.hidden_states[-1],
    }
    rounded = {
        k: [[[round(x, 6) for x in row] for row in rows] for rows in v.tolist()]
        if v.ndim == 3
        else [[round(x, 6) for x in row] for row in v.tolist()]
        for k, v in found.items()
    }
    STORED.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    make()
