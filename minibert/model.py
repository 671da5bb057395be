"""The BERT encoder, written by hand (Devlin et al. 2019; Vaswani et al. 2017, section 3).

Token ids go in, one vector per token and one per sequence come out. The backbone knows no task;
the heads stand in `heads.py`. Between the two all tokens of the batch stand in one row, padding
left out (`unpadding.py`); only attention sees sequences side by side.

Shapes: B batch, T tokens, R tokens of the batch in one row, D hidden_size, H heads,
K = D/H head size, F intermediate_size, V vocabulary, N layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.convert import PretrainedMixin
from minibert.kernels import Dropout, attention
from minibert.packing import (
    PackedLayout,
    copied,
    packed_attention,
    packed_layout,
    takes_packed,
)
from minibert.unpadding import Group, Layout, full_layout, unpadded_layout

_STACKED = 6  # layers that a compiler takes whole, at most: it takes as long as they are many
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, with erf: the published BERT
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class BertOutput(NamedTuple):
    """What `BertModel` returns.

    last_hidden_state: (B, T, D), on a CPU 0 at the padding; (B, 1, D) of first tokens only.
    pooler_output: (B, D). hidden_states: N+1 tensors (B, T, D), the embeddings first and
    last_hidden_state last, when asked for; else empty.
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
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, positions: Tensor) -> Tensor:
        summed = self.word(input_ids) + self.segment(token_type_ids)  # (R,) each -> (R, D)
        return self.dropout(self.norm(summed + self.position(positions)))


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(width, 3 * width)  # query, key, value side by side: one product
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        layout: Layout | PackedLayout,
        rows: Tensor | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """(R, D) -> (R, D), or (N, D) where N rows alone are asked for; as in `Layer`."""
        if isinstance(layout, PackedLayout):
            context = self._attend_packed(self.qkv(x), layout, first_only)
        else:
            split = zip(layout.split(self.qkv(x)), layout.groups, strict=True)
            parts = [self._attend(part, group, first_only) for part, group in split]
            context = torch.cat(parts) if first_only else layout.join(parts)
        if rows is not None and not first_only:
            context = context.index_select(0, rows)
        return self.output(context)

    def _attend(self, rows: Tensor, group: Group, first_only: bool) -> Tensor:
        qkv = group.pad(rows).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, H, K)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        query = query[:, :, :1] if first_only else query
        dropout_prob = self.dropout_prob * self.training
        context = attention(query, key, value, group.mask, dropout_prob)  # (B, H, T, K)
        merged = context.transpose(1, 2).flatten(2)  # (B, T or 1, D)
        return merged.squeeze(1) if first_only else group.unpad(merged)  # (B, D) or (r, D)

    def _attend_packed(self, qkv: Tensor, layout: PackedLayout, first_only: bool) -> Tensor:
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # each (R, H, K)
        starts = layout.starts
        if first_only:
            query, starts = query.index_select(0, layout.first_rows(query.device)), layout.counts
        dropout_prob = self.dropout_prob * self.training
        context = packed_attention(
            query, key, value, starts, layout.starts, layout.longest, dropout_prob
        )
        return context.flatten(1)  # (R, D) or (B, D)


class FeedForward(nn.Module):
    """Two linear maps with an activation between (Vaswani et al. 2017, section 3.3).

    With gates one half of the units, activated, multiplies the other (GEGLU, Shazeer 2020).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.is_gated = config.feed_forward == "gated"
        self.up = nn.Linear(config.hidden_size, config.up_size)  # gates first: one product
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        units = self.up(x)  # (R, D) -> (R, F), with gates (R, 2F)
        if self.is_gated:
            gates, values = units.chunk(2, -1)
            return self.down(self.activation(gates) * values)  # (R, F) -> (R, D)
        return self.down(self.activation(units))  # (R, F) -> (R, D)


class SublayerNorm(nn.LayerNorm):
    """The LayerNorm of a sublayer, which acts in one of two places.

    post: x = norm(x + sublayer(x)), as in BERT; pre: x = x + sublayer(norm(x)) (Xiong et al. 2020).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config.hidden_size, eps=config.layer_norm_eps)
        self.is_pre = config.norm == "pre"

    def before(self, x: Tensor) -> Tensor:
        """What the sublayer reads."""
        return self(x) if self.is_pre else x

    def after(self, x: Tensor) -> Tensor:
        """What becomes of the sum."""
        return x if self.is_pre else self(x)


def final_norm(config: BertConfig) -> nn.Module:
    """What follows the last layer: with norms before sublayers a LayerNorm, else nothing."""
    if config.norm == "pre":
        return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    return nn.Identity()


class Layer(nn.Module):
    """One Transformer layer: attention, then feed-forward, each added to what it read."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = SublayerNorm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = SublayerNorm(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        x: Tensor,
        layout: Layout | PackedLayout,
        rows: Tensor | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """(R, D) -> (R, D), or (N, D).

        Args:
            rows: (N,) of the R, whose outputs alone are asked for. Of the others nothing but their
                keys and values is computed.
            first_only: those are `layout.first_rows`, so that no other token asks, either.
        """
        attended = self.attention(self.attention_norm.before(x), layout, rows, first_only)
        if rows is not None:
            x = x.index_select(0, rows)
        # bf16 + float32 takes a third of the time that float32 + bf16 takes.
        x = self.attention_norm.after(self.dropout(attended) + x)
        mapped = self.feed_forward(self.feed_forward_norm.before(x))
        return self.feed_forward_norm.after(self.dropout(mapped) + x)


class Pooler(nn.Module):
    """tanh of a linear map of the first token, [CLS] (Devlin et al. 2019, section 3)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))  # (B, T, D) -> (B, D)


class BertModel(PretrainedMixin, nn.Module):
    """The backbone: embeddings, N layers, pooler.

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
        self.final_norm = final_norm(config)
        self.pooler = Pooler(config)
        # (embeddings (R, D), sequence of each row (R,), B) -> embeddings; see `adversarial.py`.
        self.perturbation: Callable[[Tensor, Tensor, int], Tensor] | None = None
        init_weights(self, config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        first_only: bool = False,
        first_positions: Tensor | None = None,
        places: Tensor | None = None,
    ) -> BertOutput:
        """Encodes a batch.

        Args:
            input_ids: (B, T) int64.
            token_type_ids: (B, T), 0 or 1: which segment; all 0 when left out.
            attention_mask: (B, T), 1 or True = attend; all tokens are attended when left out. On a
                GPU padding is computed unless the mask is on the host.
            output_hidden_states: also return the embeddings and every layer's output.
            first_only: the last layer computes the first token alone, which is all that the pooler
                reads; padding must not stand in front.
            first_positions: (B,) the position of each sequence's first token; 0 when left out.
            places: (N,) in B * T, real tokens: the last layer computes these and the first ones
                alone, and last_hidden_state is (N, D).

        Raises:
            ValueError: shapes that do not fit; T is beyond max_position_embeddings; first_only or
                places with hidden states, or on a CPU with padding in front or among the places.
        """
        _check_shapes(input_ids, token_type_ids, attention_mask)
        if output_hidden_states and (first_only or places is not None):
            raise ValueError(
                "first_only and places leave last hidden states out; ask for one of the two"
            )
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        layout: Layout | PackedLayout = self._layout(input_ids, attention_mask)
        positions = layout.positions(input_ids.device)
        if first_positions is not None:
            positions = positions + layout.take(first_positions[:, None].expand_as(input_ids))
            # Padding that is computed runs on behind a sequence that ends at the last position.
            positions = positions.clamp(max=self.config.max_position_embeddings - 1)
        x = self.embeddings(
            layout.take(input_ids), layout.take(token_type_ids), positions
        )  # (R, D)
        if self.perturbation is not None:
            numbers = torch.arange(len(input_ids), device=x.device)[:, None]
            x = self.perturbation(x, layout.take(numbers.expand_as(input_ids)), len(input_ids))
        rows = layout.first_rows(x.device) if first_only else None
        if places is not None:
            batch, length = input_ids.shape
            firsts = torch.arange(batch, device=places.device) * length
            rows = layout.rows_of(torch.cat([firsts, places]))
        states = [x]
        for number, layers in enumerate(self.stacks(1 if output_hidden_states else _STACKED), 1):
            is_last = number * len(layers) == len(self.layers)
            x = self.run_stack(layers, x, layout, rows if is_last else None, first_only and is_last)
            if output_hidden_states:
                states.append(x)
        if rows is not None and not self.layers:  # which the last of them would have done
            x = x.index_select(0, rows)
        x = states[-1] = self.final_norm(x)
        if places is not None:
            return BertOutput(x[len(firsts) :], self.pooler(x[: len(firsts), None]))
        last = layout.restore_firsts(x) if first_only else layout.restore(x)  # (B, T or 1, D)
        kept = tuple(map(layout.restore, states)) if output_hidden_states else ()
        return BertOutput(last, self.pooler(last), kept)

    def stacks(self, most: int) -> list[tuple[Layer, ...]]:
        """The layers in stacks of equally many, at most so many; a compiler takes a stack whole."""
        layers: tuple[Any, ...] = tuple(self.layers)
        count = len(layers)
        size = most
        while count % size:
            size -= 1
        return [layers[i : i + size] for i in range(0, count, size)]

    @staticmethod
    def run_stack(
        layers: tuple[Layer, ...],
        x: Tensor,
        layout: Layout | PackedLayout,
        rows: Tensor | None,
        first_only: bool,
    ) -> Tensor:
        """(R, D) through some layers -> (R, D), or (N, D); rows and first_only as in `Layer`."""
        for layer in layers[:-1]:
            x = layer(x, layout)
        out: Tensor = layers[-1](x, layout, rows, first_only)
        return out

    def _layout(self, input_ids: Tensor, attention_mask: Tensor | None) -> Layout | PackedLayout:
        batch, length = input_ids.shape
        positions = self.config.max_position_embeddings
        if length > positions:
            raise ValueError(
                f"sequence of {length} tokens, but max_position_embeddings is {positions}"
            )
        mask = None if attention_mask is None else attention_mask.bool()
        if mask is not None and mask.is_cpu and not input_ids.is_cpu:
            head_size = self.config.hidden_size // self.config.num_attention_heads
            if (
                input_ids.is_cuda
                and _computes_in_16_bits(self.embeddings.word.weight)
                and takes_packed(head_size, torch.cuda.get_device_capability(input_ids.device))
            ):
                return packed_layout(mask, input_ids.device)
            mask = copied(mask, input_ids.device)
        # Compiled code wants shapes that stay, and a GPU would have to tell its own first.
        if mask is None or torch.compiler.is_compiling() or not mask.is_cpu:
            return full_layout((batch, length), mask)
        return unpadded_layout(mask)


def _check_shapes(
    input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor | None
) -> None:
    """Refuses what tells of other tokens: rows are picked from it, whatever its shape is."""
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (B, T)")
    others = {"token_type_ids": token_type_ids, "attention_mask": attention_mask}
    for name, part in others.items():
        if part is not None and part.shape != input_ids.shape:
            raise ValueError(
                f"{name} has shape {tuple(part.shape)}; expected that of input_ids, "
                f"{tuple(input_ids.shape)}"
            )


def _computes_in_16_bits(weight: Tensor) -> bool:
    """Whether matrix products are of 16-bit numbers, by autocast or the weights' own dtype."""
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return dtype in (torch.bfloat16, torch.float16)


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
