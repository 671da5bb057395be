"""Task heads on the backbone: masked words, next sentence, sequence classification.

Shapes: B batch, T tokens, M predictions per sequence, R rows, D hidden_size, V vocabulary,
C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.convert import PretrainedMixin
from minibert.kernels import Dropout, linear_cross_entropy
from minibert.losses import IGNORE_INDEX
from minibert.model import ACTIVATIONS, BertModel, init_weights
from minibert.packing import copied

_SLOTS = 128  # on a GPU the decoder takes a multiple of so many rows, which products like


class MaskedLMScore(NamedTuple):
    """How well masked words were foretold: summed loss in nats, labelled slots, and hits.

    All scalars. The loss is that of `losses.masked_lm_loss`.
    """

    loss_sum: Tensor
    num_labels: Tensor
    num_hits: Tensor


class PretrainingOutput(NamedTuple):
    """What `BertForPreTraining` returns.

    mlm_logits: (B, M, V) at `mlm_positions`, or (B, T, V) when none are given; None with
    `mlm_labels`. nsp_logits: (B, 2), 0 = follows, 1 = random. last_hidden_state: (B, T, D).
    pooler_output: (B, D). mlm_score: with `mlm_labels`.
    """

    mlm_logits: Tensor | None
    nsp_logits: Tensor
    last_hidden_state: Tensor
    pooler_output: Tensor
    mlm_score: MaskedLMScore | None = None


class ClassificationOutput(NamedTuple):
    """What `BertForSequenceClassification` returns.

    logits: (B, C). last_hidden_state: (B, T, D) or (B, 1, D). pooler_output: (B, D).
    """

    logits: Tensor
    last_hidden_state: Tensor
    pooler_output: Tensor


class MaskedLMHead(nn.Module):
    """Transform, then a decoder whose weight is the word embedding (Devlin et al. 2019, A.2).

    The decoder weight is passed in at every call, so it is tied by construction.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def transform(self, hidden: Tensor) -> Tensor:
        """What the decoder is given: (..., D) -> (..., D)."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.transform(hidden), word_embeddings, self.bias)  # (..., D) -> (..., V)

    def score(self, hidden: Tensor, word_embeddings: Tensor, labels: Tensor) -> MaskedLMScore:
        """The loss of (R, D) against (R,) labels, the scores of the vocabulary never whole."""
        x = self.transform(hidden)
        loss, hits = linear_cross_entropy(x, word_embeddings, self.bias, labels)
        return MaskedLMScore(loss, (labels != IGNORE_INDEX).sum(), hits)


def gather_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of (B, T, D) at (B, M) -> (B, M, D)."""
    rows = _rows_at(hidden, _flat_positions(hidden, positions.to(hidden.device)))
    return rows.view(*positions.shape, -1)


def _flat_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """(B, M) in T -> (B*M,) in B*T."""
    batch, length, _ = hidden.shape
    return (positions + torch.arange(batch, device=positions.device)[:, None] * length).reshape(-1)


@torch.compiler.disable
def _used_slots(places: Tensor, labels: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Of (R,) places and labels those with a label, and unlabelled ones up to a multiple."""
    used = (labels != IGNORE_INDEX).nonzero()[:, 0]
    places, labels = places.index_select(0, used), labels.index_select(0, used)
    more = -len(used) % multiple
    return F.pad(places, (0, more)), F.pad(labels, (0, more), value=IGNORE_INDEX)


def _rows_at(hidden: Tensor, places: Tensor) -> Tensor:
    """Rows of (B, T, D) at (R,) in B*T -> (R, D).

    Through index_select on flattened rows: its backward adds in a fixed order on a CPU, which
    that of torch.gather does not, and exact resume needs.
    """
    return hidden.flatten(0, 1).index_select(0, places)


class BertForPreTraining(PretrainedMixin, nn.Module):
    """Backbone + masked-word head + next-sentence head, the model of stage one."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.mlm = MaskedLMHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)
        init_weights(self.mlm, config)
        init_weights(self.nsp, config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mlm_positions: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        first_positions: Tensor | None = None,
    ) -> PretrainingOutput:
        """Scores masked words and sentence pairs.

        Args:
            input_ids, token_type_ids, attention_mask: (B, T), as in `BertModel`.
            mlm_positions: (B, M) indices into T; the vocabulary is scored there only. Without
                them every position is scored, which costs a (B, T, V) tensor. Of a GPU's model
                they and the labels may be on the host, which spares unused slots.
            mlm_labels: (B, M) original ids, IGNORE_INDEX in unused slots, for their loss instead
                of scores; (B, T) without positions.
            first_positions: (B,), as in `BertModel`.
        """
        out = self.bert(input_ids, token_type_ids, attention_mask, first_positions=first_positions)
        hidden = out.last_hidden_state
        words = self.bert.embeddings.word.weight
        logits, score = None, None
        if mlm_labels is not None:
            score = self._score(hidden, words, mlm_positions, mlm_labels)
        elif mlm_positions is not None:
            logits = self.mlm(gather_positions(hidden, mlm_positions), words)  # (B, M, V)
        else:
            logits = self.mlm(hidden, words)  # (B, T, V)
        nsp_logits = self.nsp(out.pooler_output)
        return PretrainingOutput(
            logits, nsp_logits, out.last_hidden_state, out.pooler_output, score
        )

    def _score(
        self, hidden: Tensor, words: Tensor, positions: Tensor | None, labels: Tensor
    ) -> MaskedLMScore:
        flat = labels.reshape(-1)
        if positions is None:
            places = torch.arange(flat.numel(), device=flat.device)
        else:
            places = _flat_positions(hidden, positions)
        if flat.is_cpu and not hidden.is_cpu:
            slots = _used_slots(places, flat, _SLOTS)
            places, flat = (copied(part, hidden.device) for part in slots)
        elif flat.is_cpu and not torch.compiler.is_compiling():
            places, flat = _used_slots(places, flat, 1)  # elsewhere shapes had better stay
        return self.mlm.score(_rows_at(hidden, places), words, flat)


class BertForSequenceClassification(PretrainedMixin, nn.Module):
    """Backbone + dropout + linear classifier on the pooled [CLS] (Devlin et al. 2019, 4.1)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        dropout = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_weights(self.classifier, config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        first_only: bool = False,
    ) -> ClassificationOutput:
        """Scores each class; arguments as in `BertModel`."""
        out = self.bert(input_ids, token_type_ids, attention_mask, first_only=first_only)
        return ClassificationOutput(self.classifier(self.dropout(out.pooler_output)), *out[:2])
