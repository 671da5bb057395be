"""Heads that read every token: a class for each (tagging), an answer's two ends (questions).

As published, neither model has a pooler: nothing would train it.

Shapes: B batch, T tokens, D hidden_size, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minibert.config import BertConfig
from minibert.convert import PretrainedMixin
from minibert.kernels import Dropout
from minibert.losses import IGNORE_INDEX, classification_loss
from minibert.model import BertModel, init_weights


class TokenClassificationOutput(NamedTuple):
    """What `BertForTokenClassification` returns.

    logits: (B, T, C). last_hidden_state: (B, T, D).
    """

    logits: Tensor
    last_hidden_state: Tensor


class QuestionAnsweringOutput(NamedTuple):
    """What `BertForQuestionAnswering` returns.

    start_logits, end_logits: (B, T) each. last_hidden_state: (B, T, D).
    """

    start_logits: Tensor
    end_logits: Tensor
    last_hidden_state: Tensor


class FirstToken(nn.Module):
    """In the place of the pooler: the first token's vector as it is, (B, T, D) -> (B, D)."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]


def _backbone(config: BertConfig) -> BertModel:
    bert = BertModel(config)
    bert.pooler = FirstToken()  # type: ignore[assignment]
    return bert


class BertForTokenClassification(PretrainedMixin, nn.Module):
    """Backbone + dropout + a linear classifier on every token (Devlin et al. 2019, 5.3)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = _backbone(config)
        dropout = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_weights(self.classifier, config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> TokenClassificationOutput:
        """Scores each class at each token; arguments as in `BertModel`."""
        hidden = self.bert(input_ids, token_type_ids, attention_mask).last_hidden_state
        return TokenClassificationOutput(self.classifier(self.dropout(hidden)), hidden)


class BertForQuestionAnswering(PretrainedMixin, nn.Module):
    """Backbone + a start and an end vector, multiplied with every token (Devlin et al. 2019, 4.2).

    Classes that the config may name are those of another task, and are dropped.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config = replace(config, id2label=None, problem_type=None)
        self.bert = _backbone(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        init_weights(self.qa_outputs, config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> QuestionAnsweringOutput:
        """Scores each token as the answer's first and as its last; arguments as in `BertModel`."""
        hidden = self.bert(input_ids, token_type_ids, attention_mask).last_hidden_state
        start, end = self.qa_outputs(hidden).unbind(-1)  # (B, T, 2) -> (B, T) twice
        return QuestionAnsweringOutput(start, end, hidden)


def tagging_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """L_task = - sum over labelled tokens i of log P(y_i | x; theta).

    Devlin et al. 2019, section 5.3. The mean over labelled tokens is taken by the loop.

    Args:
        logits: (B, T, C).
        labels: (B, T), class indices at first sub-words; IGNORE_INDEX at all others.
        weights: (C,), of the tags. smoothing: share of the target spread over all tags.

    Returns:
        The summed loss in nats, float32 scalar, and the number of labelled tokens.
    """
    weights = None if weights is None else weights.to(logits.device)
    return classification_loss(logits.flatten(0, 1), labels.flatten(), weights, smoothing)


def span_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    answer_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """L_task = - sum over windows of (log P(start) + log P(end)) / 2.

    Devlin et al. 2019, section 4.2; the softmax runs over the tokens that can be an answer, not
    over the question. The mean over windows is taken by the loop.

    Args:
        start_logits, end_logits: (B, T).
        start_positions, end_positions: (B,) tokens of the answer, 0 = [CLS] = none in this window.
            A window where either is negative or no possible answer counts for nothing.
        answer_mask: (B, T) bool, the context's tokens and [CLS].

    Returns:
        The summed loss in nats, float32 scalar, and the number of windows that count.
    """
    length = start_logits.shape[1]
    ends = torch.stack([start_positions, end_positions])  # (2, B)
    within = ((ends >= 0) & (ends < length)).all(0)
    safe = ends.clamp(0, length - 1)
    within &= answer_mask.gather(1, safe[0][:, None])[:, 0]
    within &= answer_mask.gather(1, safe[1][:, None])[:, 0]
    labels = torch.where(within, safe, IGNORE_INDEX)
    lowest = torch.finfo(torch.float32).min
    first, _ = classification_loss(
        start_logits.float().masked_fill(~answer_mask, lowest), labels[0]
    )
    last, _ = classification_loss(end_logits.float().masked_fill(~answer_mask, lowest), labels[1])
    return (first + last) / 2, within.sum()
