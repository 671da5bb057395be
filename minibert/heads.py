"""Task heads on the backbone: masked words, next sentence, sequence classification.

Shapes: B batch, T tokens, M predictions per sequence, D hidden_size, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.convert import PretrainedMixin
from minibert.kernels import Dropout
from minibert.model import ACTIVATIONS, BertModel, init_weights


class PretrainingOutput(NamedTuple):
    """What `BertForPreTraining` returns.

    mlm_logits: (B, M, V) at `mlm_positions`, or (B, T, V) when none are given.
    nsp_logits: (B, 2), 0 = follows, 1 = random. last_hidden_state: (B, T, D).
    pooler_output: (B, D).
    """

    mlm_logits: Tensor
    nsp_logits: Tensor
    last_hidden_state: Tensor
    pooler_output: Tensor


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

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        hidden = self.norm(self.activation(self.dense(hidden)))
        return F.linear(hidden, word_embeddings, self.bias)  # (..., D) -> (..., V)


def gather_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of (B, T, D) at (B, M) -> (B, M, D).

    Through index_select on flattened rows: its backward adds in a fixed order on a CPU, which
    that of torch.gather does not, and exact resume needs.
    """
    batch, length, width = hidden.shape
    offsets = torch.arange(batch, device=hidden.device)[:, None] * length
    flat = (positions + offsets).reshape(-1)  # (B*M,)
    return hidden.reshape(-1, width).index_select(0, flat).view(batch, -1, width)


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
    ) -> PretrainingOutput:
        """Scores masked words and sentence pairs.

        Args:
            input_ids, token_type_ids, attention_mask: (B, T), as in `BertModel`.
            mlm_positions: (B, M) indices into T; the vocabulary is scored there only. Without
                them every position is scored, which costs a (B, T, V) tensor.
        """
        out = self.bert(input_ids, token_type_ids, attention_mask)
        hidden = out.last_hidden_state
        if mlm_positions is not None:
            hidden = gather_positions(hidden, mlm_positions)  # (B, M, D)
        mlm_logits = self.mlm(hidden, self.bert.embeddings.word.weight)
        return PretrainingOutput(mlm_logits, self.nsp(out.pooler_output), *out[:2])


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
