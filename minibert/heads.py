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

# The decoder takes a multiple of so many rows: products of a GPU like them, and on a CPU a kernel
# is compiled for each new number.
_SLOTS, _SLOTS_ON_CPU = 128, 16


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
    `mlm_labels`. nsp_logits: (B, 2), 0 = follows, 1 = random. last_hidden_state: (B, T, D); None
    with `mlm_positions` and `mlm_labels`, of which no more is computed than they need.
    pooler_output: (B, D). mlm_score: with `mlm_labels`.
    """

    mlm_logits: Tensor | None
    nsp_logits: Tensor
    last_hidden_state: Tensor | None
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
    """Rows of (B, T, D) at (B, M) -> (B, M, D).

    Through index_select on flattened rows: its backward adds in a fixed order on a CPU, which
    that of torch.gather does not, and exact resume needs.
    """
    places = _flat_positions(positions.to(hidden.device), hidden.shape[1])
    return hidden.flatten(0, 1).index_select(0, places).view(*positions.shape, -1)


def _flat_positions(positions: Tensor, length: int) -> Tensor:
    """(B, M) in T -> (B*M,) in B*T."""
    starts = torch.arange(len(positions), device=positions.device) * length
    return (positions + starts[:, None]).reshape(-1)


def _check_slots(input_ids: Tensor, positions: Tensor | None, labels: Tensor | None) -> None:
    """Refuses positions or labels that would count for other tokens than they are of."""
    if positions is not None and (positions.ndim != 2 or len(positions) != len(input_ids)):
        raise ValueError(
            f"mlm_positions has shape {tuple(positions.shape)}; expected (B, M) with "
            f"B = {len(input_ids)}"
        )
    like = "input_ids" if positions is None else "mlm_positions"
    wanted = (input_ids if positions is None else positions).shape
    if labels is not None and labels.shape != wanted:
        raise ValueError(
            f"mlm_labels has shape {tuple(labels.shape)}; expected that of {like}, {tuple(wanted)}"
        )


@torch.compiler.disable
def _used_slots(places: Tensor, labels: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Of (R,) places and labels those with a label, and unlabelled ones up to a multiple."""
    used = (labels != IGNORE_INDEX).nonzero()[:, 0]
    places, labels = places.index_select(0, used), labels.index_select(0, used)
    more = -len(used) % multiple
    return F.pad(places, (0, more)), F.pad(labels, (0, more), value=IGNORE_INDEX)


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

        Raises:
            ValueError: as in `BertModel`; positions of other sequences, or labels that are not one
                for each position.
        """
        _check_slots(input_ids, mlm_positions, mlm_labels)
        inputs = (input_ids, token_type_ids, attention_mask)
        words = self.bert.embeddings.word.weight
        if mlm_labels is not None and mlm_positions is not None:
            places = _flat_positions(mlm_positions, input_ids.shape[1])
            places, labels = self._used(places, mlm_labels.reshape(-1), input_ids)
            hidden, pooled = self._states_at(places, *inputs, first_positions)
            score = self.mlm.score(hidden, words, labels)
            return PretrainingOutput(None, self.nsp(pooled), None, pooled, score)
        out = self.bert(*inputs, first_positions=first_positions)
        hidden, pooled = out.last_hidden_state, out.pooler_output
        if mlm_labels is not None:
            labels = mlm_labels.reshape(-1)
            places, labels = self._used(torch.arange(len(labels)), labels, input_ids)
            rows = hidden.flatten(0, 1).index_select(0, places.to(hidden.device))
            score = self.mlm.score(rows, words, labels)
            return PretrainingOutput(None, self.nsp(pooled), hidden, pooled, score)
        if mlm_positions is not None:
            logits = self.mlm(gather_positions(hidden, mlm_positions), words)  # (B, M, V)
        else:
            logits = self.mlm(hidden, words)  # (B, T, V)
        return PretrainingOutput(logits, self.nsp(pooled), hidden, pooled)

    def _states_at(
        self,
        places: Tensor,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        attention_mask: Tensor | None,
        first_positions: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states at (N,) in B*T -> (N, D), and the pooler's output (B, D)."""
        inputs = (input_ids, token_type_ids, attention_mask)
        out = self.bert(*inputs, first_positions=first_positions, places=places)
        return out.last_hidden_state, out.pooler_output

    @staticmethod
    def _used(places: Tensor, labels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The slots that have a label, where that can be told, on the device of the ids."""
        if labels.is_cpu and not ids.is_cpu:
            slots = _used_slots(places, labels, _SLOTS)
            return copied(slots[0], ids.device), copied(slots[1], ids.device)
        if labels.is_cpu and not torch.compiler.is_compiling():
            return _used_slots(places, labels, _SLOTS_ON_CPU)  # elsewhere shapes had better stay
        return places, labels


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
