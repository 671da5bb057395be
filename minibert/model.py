"""The BERT encoder, written by hand (Devlin et al. 2019; Vaswani et al. 2017, section 3).

Token ids go in, one vector per token and one per sequence come out. The backbone knows no task;
the heads stand in `heads.py`.

Shapes: B batch, T tokens, D hidden_size, H heads, K = D/H head size, F intermediate_size,
V vocabulary, N layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.convert import PretrainedMixin

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, with erf: the published BERT
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class BertOutput(NamedTuple):
    """What `BertModel` returns.

    last_hidden_state: (B, T, D). pooler_output: (B, D). hidden_states: N+1 tensors (B, T, D),
    the embeddings first, when asked for; else empty.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] = ()


class Embeddings(nn.Module):
    """Word + position + segment embeddings, normalised (Devlin et al. 2019, figure 2)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, width)
        self.segment = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        if length > self.position.num_embeddings:
            raise ValueError(
                f"sequence of {length} tokens, but max_position_embeddings is "
                f"{self.position.num_embeddings}"
            )
        summed = self.word(input_ids) + self.segment(token_type_ids)  # (B, T, D)
        summed = summed + self.position.weight[:length]  # the same T rows for every sequence
        return self.dropout(self.norm(summed))


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(width, 3 * width)  # query, key, value side by side: one product
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        attend = attend_on_cpu if _is_bf16_on_cpu(query) else F.scaled_dot_product_attention
        dropout_prob = self.dropout_prob * self.training
        context = attend(query, key, value, mask, dropout_prob)  # (B, H, T, K)
        return self.output(context.transpose(1, 2).reshape(batch, length, width))  # (B, T, D)


def _is_bf16_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def attend_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_prob: float
) -> Tensor:
    """scaled_dot_product_attention as two batched products, for bf16 on a CPU.

    PyTorch's fused kernel takes 2 to 4 times as long there (benchmarks/attention.py).

    Args:
        query, key, value: (B, H, T, K). mask: (B, 1, 1, T), True = attend.
    """
    batch, heads, length, size = query.shape
    query, key, value = (x.reshape(batch * heads, length, size) for x in (query, key, value))
    bias = torch.zeros((), dtype=query.dtype)
    if mask is not None:
        # The lowest number and not -inf: rows without any key stay finite.
        bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min)
        bias = bias.expand(batch, heads, 1, length).reshape(batch * heads, 1, length)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=size**-0.5)
    weights = F.dropout(scores.softmax(-1), dropout_prob)
    return torch.bmm(weights, value).view(batch, heads, length, size)


class FeedForward(nn.Module):
    """Two linear maps with an activation between (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # (B, T, D) -> (B, T, F) -> (B, T, D)


class Layer(nn.Module):
    """One post-norm Transformer layer: x = norm(x + dropout(sublayer(x))), twice."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Pooler(nn.Module):
    """tanh of a linear map of the first token, [CLS] (Devlin et al. 2019, section 3)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))  # (B, T, D) -> (B, D)


class BertModel(PretrainedMixin, nn.Module):
    """The backbone: embeddings, N post-norm layers, pooler.

    Example:
        model = BertModel(preset("mini"))
        out = model(torch.tensor([[101, 7592, 102]]))
        out.last_hidden_state.shape   # (1, 3, 256)
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = Pooler(config)
        init_weights(self, config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> BertOutput:
        """Encodes a batch.

        Args:
            input_ids: (B, T) int64.
            token_type_ids: (B, T), 0 or 1: which segment; all 0 when left out.
            attention_mask: (B, T), 1 or True = attend; all tokens are attended when left out.
            output_hidden_states: also return the embeddings and every layer's output.

        Raises:
            ValueError: T is beyond max_position_embeddings.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        # Broadcast over heads and query positions: (B, 1, 1, T).
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.embeddings(input_ids, token_type_ids)
        states = [x]
        for layer in self.layers:
            x = layer(x, mask)
            if output_hidden_states:
                states.append(x)
        return BertOutput(x, self.pooler(x), tuple(states) if output_hidden_states else ())


def init_weights(module: nn.Module, config: BertConfig) -> None:
    """Draws weights as the reference does: N(0, initializer_range), biases 0, LayerNorm 1 and 0.

    The reference truncates at two deviations (google-research/bert, modeling.py); this keeps the
    plain normal, as transformers does. The padding token's embedding is zero.
    """
    std = config.initializer_range
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if part.padding_idx is not None:
                with torch.no_grad():
                    part.weight[part.padding_idx].zero_()
