"""One vector for a text: the mean of its tokens' vectors (Reimers and Gurevych 2019, section 3).

Shapes: B batch, T tokens, D hidden_size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from minibert.config import BertConfig
from minibert.convert import PretrainedMixin
from minibert.model import BertModel
from minibert.packing import copied


class EmbeddingOutput(NamedTuple):
    """What `BertForSentenceEmbedding` returns.

    embeddings: (B, D) float32, not normalised. last_hidden_state: (B, T, D).
    """

    embeddings: Tensor
    last_hidden_state: Tensor


class BertForSentenceEmbedding(PretrainedMixin, nn.Module):
    """Backbone + mean over the real tokens; it has no weights beside the backbone's.

    It is saved as the plain `BertModel` that it is. The pooler is kept as it came and not trained,
    since nothing here reads it.
    """

    published_name = "BertModel"

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.bert.pooler.requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> EmbeddingOutput:
        """Encodes a batch of texts; arguments as in `BertModel`."""
        hidden = self.bert(input_ids, token_type_ids, attention_mask).last_hidden_state
        return EmbeddingOutput(mean_of_real(hidden, attention_mask), hidden)


def mean_of_real(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, T, D) -> (B, D) float32, the mean over tokens whose mask is 1; over all without one."""
    if attention_mask is None:
        return hidden.float().mean(1)
    mask = attention_mask
    if mask.is_cpu and not hidden.is_cpu:  # it may be on the host, where the backbone reads it
        mask = copied(mask, hidden.device)
    weights = mask.to(torch.float32)  # (B, T)
    summed = (hidden.float() * weights[:, :, None]).sum(1)
    return summed / weights.sum(1).clamp(min=1)[:, None]
