"""An encoder-decoder: BERT reads a source text, a Transformer decoder writes a target text.

    source ids -> BertModel -> one vector per source token -┐ (cross-attention)
    target ids shifted right -> decoder layers -------------┴-> scores of the next target token

The decoder is that of Vaswani et al. 2017, section 3, with BERT's habits: learned positions, GELU,
norms and feed-forward as in its encoder. It has a target vocabulary of its own, whose embeddings
are also its output layer. `generation.py` writes with it, one token at a time.

Shapes: B batch, S source tokens, U target tokens, R target tokens of the batch in one row,
D hidden_size, H heads, K = D/H head size, V target vocabulary, N decoder layers,
W hypotheses of a source.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.convert import PretrainedMixin
from minibert.decoder_config import DecoderConfig
from minibert.kernels import Dropout, dropout, linear_cross_entropy
from minibert.losses import IGNORE_INDEX
from minibert.model import (
    BertModel,
    Embeddings,
    FeedForward,
    Layer,
    SublayerNorm,
    final_norm,
    init_weights,
)
from minibert.unpadding import Group, Layout, full_layout, unpadded_layout

_FIRST_SLOTS = 16  # target tokens that a cache has room for at first; it then doubles


class TargetScore(NamedTuple):
    """How well target tokens were foretold: summed loss in nats, labelled slots, and hits.

    All scalars. The loss is smoothed where that was asked for.
    """

    loss_sum: Tensor
    num_labels: Tensor
    num_hits: Tensor


class GenerationOutput(NamedTuple):
    """What `BertForConditionalGeneration` returns.

    logits: (B, U, V), None with labels. score: with labels. encoder_last_hidden_state: (B, S, D).
    """

    logits: Tensor | None
    score: TargetScore | None
    encoder_last_hidden_state: Tensor


def label_smoothed_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a linear map's scores against smoothed labels, the scores never whole.

    Equals `F.cross_entropy(F.linear(x, weight, bias), labels, reduction="sum", label_smoothing=e)`
    (Szegedy et al. 2016, section 7): the label has 1 - e of the probability, and e is spread over
    all V words. With scores s, label y and Z = log sum_v exp(s_v), a row's loss is

        Z - (1 - e) s_y - e mean_v s_v  =  (Z - s_y) + e (s_y - mean_v s_v)

    and the mean of a linear map's scores is the score by its mean row. So to the plain loss comes
    a product of each row with one difference of vectors.

    Args:
        x: (R, D). weight: (V, D). bias: (V,). labels: (R,), IGNORE_INDEX where there is none.
        smoothing: e, in [0, 1).

    Returns:
        The summed loss in nats, float32 scalar, and the rows whose highest score is the label's.
    """
    loss, hits = linear_cross_entropy(x, weight, bias, labels)
    if not smoothing:
        return loss, hits
    is_labelled = labels != IGNORE_INDEX
    own = labels.clamp(min=0)
    with torch.autocast(x.device.type, enabled=False):
        # index_select: its backward adds in a fixed order on a CPU.
        apart = weight.index_select(0, own) - weight.mean(0)  # (R, D)
        gap = (x.float() * apart).sum(1) + bias.index_select(0, own) - bias.mean()  # (R,)
        return loss + smoothing * (gap * is_labelled).sum(), hits


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_prob: float = 0.0
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) -> (B, H, Q, K).

    On a CPU as two batched products: with one or a few queries a sequence, and with dropout,
    PyTorch's own takes longer.

    Args:
        query: (B, H, Q, K). key, value: (B, H, T, K). mask: bool, True = attend, (1 or B, 1,
            1 or Q, T); None attends to all.
    """
    if not query.is_cpu or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_prob)
    batch, heads, queries, size = query.shape
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    bias = query.new_zeros(())
    if mask is not None:
        # The lowest number and not -inf: rows without any key stay finite.
        bias = torch.zeros(mask.shape, dtype=query.dtype)
        bias = bias.masked_fill_(~mask, torch.finfo(query.dtype).min)
        bias = bias[0] if len(mask) == 1 else bias.expand(-1, heads, -1, -1).flatten(0, 1)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=size**-0.5)
    weights = dropout(scores.softmax(-1), dropout_prob)
    return torch.bmm(weights, value).view(batch, heads, queries, size)


def _causal_mask(length: int, device: torch.device) -> Tensor:
    """(1, 1, T, T): a token attends to itself and to those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


class Source(NamedTuple):
    """The encoded sources as cross-attention reads them.

    rows: (R', D), their real tokens and fillers. places: where these lie in B * S, sequences in
    the order in which the decoder has them; None where they lie as they stand. mask: (B, 1, 1, S)
    in the same order.
    """

    rows: Tensor
    places: Tensor | None
    mask: Tensor | None
    shape: tuple[int, int]

    def padded(self, rows: Tensor) -> Tensor:
        """Rows made of `self.rows`, side by side again: (R', D') -> (B, S, D')."""
        batch, length = self.shape
        if self.places is not None:
            empty = rows.new_zeros(batch * length, rows.shape[-1])
            rows = empty.index_copy(0, self.places, rows[: len(self.places)])
        return rows.view(batch, length, -1)


class _Slots:
    """Keys and values that grow by W target tokens a step: (B, H, t * W, K) each, step by step."""

    def __init__(self) -> None:
        self.held: tuple[Tensor, Tensor] | None = None
        self.used = 0

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, H, W, K) each; returns all up to now."""
        more = key.shape[2]
        if self.held is None:
            self.held = (_room(key, _FIRST_SLOTS * more), _room(value, _FIRST_SLOTS * more))
        if self.used + more > self.held[0].shape[2]:
            size = self.held[0].shape[2]
            self.held = (
                torch.cat([self.held[0], _room(key, size)], 2),
                torch.cat([self.held[1], _room(value, size)], 2),
            )
        end = self.used + more
        for held, new in zip(self.held, (key, value), strict=True):
            held[:, :, self.used : end] = new
        self.used = end
        return self.held[0][:, :, :end], self.held[1][:, :, :end]

    def keep(self, sources: Tensor) -> None:
        """Drops all sources but these."""
        if self.held is not None:
            self.held = (
                self.held[0].index_select(0, sources),
                self.held[1].index_select(0, sources),
            )


def _room(like: Tensor, slots: int) -> Tensor:
    batch, heads, _, size = like.shape
    return like.new_empty(batch, heads, slots, size)


class Cache:
    """What the decoder remembers of B sources with W hypotheses each while it writes.

    source_keys: of each layer the keys and values of the source, (B, H, S, K), computed once.
    source_mask: (B, 1, 1, S). slots: of each layer those of the target. A hypothesis is known by
    which slots it attends to, so nothing is moved when hypotheses change places.
    """

    def __init__(
        self, source_keys: list[tuple[Tensor, Tensor]], source_mask: Tensor | None
    ) -> None:
        self.source_keys, self.source_mask = source_keys, source_mask
        self.slots = [_Slots() for _ in source_keys]
        self.length = 0  # t, tokens written

    def keep(self, sources: Tensor) -> None:
        """Drops all sources but these, given as numbers (b,)."""
        self.source_keys = [
            (key.index_select(0, sources), value.index_select(0, sources))
            for key, value in self.source_keys
        ]
        if self.source_mask is not None:
            self.source_mask = self.source_mask.index_select(0, sources)
        for slots in self.slots:
            slots.keep(sources)


class CausalSelfAttention(nn.Module):
    """Self-attention in which a token sees itself and what stands before it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(width, 3 * width)  # as in the encoder
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        split = zip(layout.split(self.qkv(x)), layout.groups, strict=True)
        return self.output(layout.join([self._of_group(*part) for part in split]))  # (R, D)

    def _of_group(self, rows: Tensor, group: Group) -> Tensor:
        query, key, value = self._heads(group.pad(rows))
        # Padding stands behind the text, where no real token looks.
        mask = _causal_mask(group.length, rows.device)
        context = attend(query, key, value, mask, self.dropout_prob * self.training)
        return group.unpad(context.transpose(1, 2).flatten(2))

    def _heads(self, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 3D) -> query, key and value, (B, H, T, K) each."""
        qkv = padded.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def step(self, x: Tensor, slots: _Slots, mask: Tensor | None) -> Tensor:
        """One token of each hypothesis: (B, W, D) -> (B, W, D)."""
        query, key, value = self._heads(self.qkv(x))
        context = attend(query, *slots.add(key, value), mask)  # (B, H, W, K)
        out: Tensor = self.output(context.transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Attention of target tokens to the encoded source (Vaswani et al. 2017, section 3.2.3)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)  # side by side: one product
        self.output = nn.Linear(width, width)

    def keys_values(self, source: Source) -> tuple[Tensor, Tensor]:
        """Keys and values of the source, (B, H, S, K) each."""
        padded = source.padded(self.key_value(source.rows))  # (B, S, 2D)
        both = padded.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return both[0], both[1]

    def forward(self, x: Tensor, layout: Layout, source: Source) -> Tensor:
        key, value = self.keys_values(source)
        parts, first = [], 0
        for rows, group in zip(layout.split(self.query(x)), layout.groups, strict=True):
            own = slice(first, first + group.num_sequences)
            mask = None if source.mask is None else source.mask[own]
            query = self._heads(group.pad(rows))
            prob = self.dropout_prob * self.training
            context = attend(query, key[own], value[own], mask, prob)
            parts.append(group.unpad(context.transpose(1, 2).flatten(2)))
            first += group.num_sequences
        return self.output(layout.join(parts))  # (R, D)

    def _heads(self, padded: Tensor) -> Tensor:
        """(B, Q, D) -> (B, H, Q, K)."""
        return padded.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def step(self, x: Tensor, keys: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """One token of each hypothesis: (B, W, D) -> (B, W, D)."""
        context = attend(self._heads(self.query(x)), *keys, mask)
        out: Tensor = self.output(context.transpose(1, 2).flatten(2))
        return out


class DecoderLayer(nn.Module):
    """One decoder layer: self-attention, cross-attention, feed-forward, each added to its input."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = CausalSelfAttention(config)
        self.attention_norm = SublayerNorm(config)
        self.cross_attention = CrossAttention(config)
        self.cross_attention_norm = SublayerNorm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = SublayerNorm(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, layout: Layout, source: Source) -> Tensor:
        attended = self.attention(self.attention_norm.before(x), layout)
        x = self.attention_norm.after(self.dropout(attended) + x)
        read = self.cross_attention(self.cross_attention_norm.before(x), layout, source)
        return self._fed_forward(self.cross_attention_norm.after(self.dropout(read) + x))

    def step(self, x: Tensor, number: int, cache: Cache, mask: Tensor | None) -> Tensor:
        """One token of each hypothesis, as layer `number`: (B, W, D) -> (B, W, D)."""
        attended = self.attention.step(self.attention_norm.before(x), cache.slots[number], mask)
        x = self.attention_norm.after(self.dropout(attended) + x)
        query, keys = self.cross_attention_norm.before(x), cache.source_keys[number]
        read = self.cross_attention.step(query, keys, cache.source_mask)
        return self._fed_forward(self.cross_attention_norm.after(self.dropout(read) + x))

    def _fed_forward(self, x: Tensor) -> Tensor:
        mapped = self.feed_forward(self.feed_forward_norm.before(x))
        return self.feed_forward_norm.after(self.dropout(mapped) + x)

    @torch.no_grad()
    def take_from(self, layer: Layer) -> None:
        """Copies an encoder layer; cross-attention keeps its draw."""
        for name in ("attention", "attention_norm", "feed_forward", "feed_forward_norm"):
            getattr(self, name).load_state_dict(getattr(layer, name).state_dict())


class TargetEmbeddings(nn.Module):
    """Word + position embeddings of the target, normalised as in the encoder."""

    def __init__(self, config: BertConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word = nn.Embedding(decoder.target_vocab_size, width)
        self.position = nn.Embedding(decoder.max_target_positions, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.dropout(self.norm(self.word(ids) + self.position(positions)))


class Decoder(nn.Module):
    """Target embeddings, N layers, and scores by the embeddings themselves."""

    def __init__(self, config: BertConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.embeddings = TargetEmbeddings(config, decoder)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(decoder.num_decoder_layers))
        self.final_norm = final_norm(config)
        self.bias = nn.Parameter(torch.zeros(decoder.target_vocab_size))

    def forward(self, ids: Tensor, layout: Layout, source: Source) -> Tensor:
        """Hidden states (R, D) of target tokens, given as (B, U) ids in a layout."""
        x = self.embeddings(layout.take(ids), layout.positions(ids.device))
        for layer in self.layers:
            x = layer(x, layout, source)
        normed: Tensor = self.final_norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: (..., D) -> (..., V)."""
        return F.linear(hidden, self.embeddings.word.weight, self.bias)

    def begin(self, source: Source) -> Cache:
        """A cache that has read the source and holds no target token yet."""
        keys = []
        for layer in self.layers:
            key, value = layer.cross_attention.keys_values(source)  # type: ignore[operator, union-attr]
            keys.append((key.contiguous(), value.contiguous()))  # once, not at every step
        return Cache(keys, source.mask)

    def step(self, tokens: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
        """Scores after one more token of each hypothesis.

        Args:
            tokens: (B, W), the token at place t of each hypothesis; t grows by 1 with each call.
            mask: (B, 1, W, (t + 1) * W), True = attend: which of the slots filled up to now, step
                by step, belong to a hypothesis. With one hypothesis a source it is None.

        Returns:
            (B, W, V).
        """
        places = torch.full_like(tokens, cache.length)
        x = self.embeddings(tokens, places)  # (B, W, D)
        for number, layer in enumerate(self.layers):
            x = layer.step(x, number, cache, mask)  # type: ignore[operator]
        cache.length += 1
        return self.logits(self.final_norm(x))

    @torch.no_grad()
    def take_from(self, encoder: BertModel) -> None:
        """Begins as an encoder, where shapes fit (Rothe et al. 2020, section 3, "BERT2BERT").

        Self-attention, feed-forward and norms of N decoder layers come from as many encoder
        layers at equal distances, the last from the last; further decoder layers keep their draw,
        and so does cross-attention: begun as self-attention, that of an encoder which had hardly
        been trained saw nothing. Positions and the embeddings' norm come along; words are another
        vocabulary's, so they keep their draw. Words and positions are normalised together, so
        positions are brought to that spread: words score the next one as well, and spread as
        widely as a trained encoder's they learnt more slowly (docs/LOG.md).
        """
        own: Embeddings = encoder.embeddings
        share = self.embeddings.word.weight.std() / own.word.weight.std()
        common = min(own.position.num_embeddings, self.embeddings.position.num_embeddings)
        self.embeddings.position.weight[:common] = own.position.weight[:common] * share
        self.embeddings.norm.load_state_dict(own.norm.state_dict())
        self.final_norm.load_state_dict(encoder.final_norm.state_dict())
        count, wanted = len(encoder.layers), len(self.layers)
        for number, layer in enumerate(list(self.layers)[:count]):
            at = number if wanted >= count else (number + 1) * count // wanted - 1
            layer.take_from(encoder.layers[at])  # type: ignore[operator]


class BertForConditionalGeneration(PretrainedMixin, nn.Module):
    """BERT as encoder + a Transformer decoder: translation, summarization.

    Weights of a plain encoder are saved as `bert.…` in the published names, which other readers of
    the layout open, and `decoder.…` in our own, which they pass over.

    Example:
        config = DecoderConfig(target_vocab_size=8000).added_to(BertConfig.from_pretrained(folder))
        model = BertForConditionalGeneration.from_pretrained(folder, config)
        out = model(input_ids, attention_mask=mask, labels=labels)
        out.score.loss_sum / out.score.num_labels
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder_config = DecoderConfig.of(config)
        self.bert = BertModel(config)
        self.bert.pooler.requires_grad_(False)  # nothing reads it; other readers expect it
        self.decoder = Decoder(config, self.decoder_config)
        # At BERT's 0.02 cross-attention of a small model is blind for hundreds of steps.
        spread = max(config.initializer_range, config.hidden_size**-0.5)
        init_weights(self.decoder, replace(config, initializer_range=spread))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        config: BertConfig | None = None,
        left_out: tuple[str, ...] = (),
    ) -> Self:
        """Loads a folder; where it holds an encoder alone, the decoder begins as that encoder.

        See `PretrainedMixin.from_pretrained` for arguments and errors, `Decoder.take_from` for
        what is copied. `load_report` names the decoder's tensors as newly initialised all the same.
        """
        model = super().from_pretrained(folder, config, left_out)
        new = set(model.load_report.newly_initialised)
        if all(f"decoder.{name}" in new for name in model.decoder.state_dict()):
            model.decoder.take_from(model.bert)
        return model

    @torch.no_grad()
    def resize_target_positions(self, count: int) -> None:
        """Lets targets be of `count` tokens; positions that were there stay, others are drawn."""
        embeddings = self.decoder.embeddings
        old = embeddings.position.weight
        new = nn.Embedding(count, old.shape[1], device=old.device)
        new.weight.normal_(0.0, float(old.std()))
        common = min(count, len(old))
        new.weight[:common] = old[:common]
        embeddings.position = new
        self.decoder_config = replace(self.decoder_config, max_target_positions=count)
        self.config = self.decoder_config.added_to(self.config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> GenerationOutput:
        """Scores target texts given their sources.

        Args:
            input_ids, token_type_ids, attention_mask: (B, S), as in `BertModel`.
            labels: (B, U), the target's ids with the end mark, then IGNORE_INDEX to the end: their
                loss is computed, the scores of the vocabulary never whole. The decoder reads the
                begin mark and all labels but the last.
            decoder_input_ids: (B, U) instead of labels, from the begin mark on, for scores.
            label_smoothing: share of the probability spread over all words, in [0, 1).

        Raises:
            ValueError: neither or both of labels and decoder_input_ids, not as many targets as
                sources, or U beyond max_target_positions.
        """
        if (labels is None) == (decoder_input_ids is None):
            raise ValueError("give labels for a loss, or decoder_input_ids for scores")
        ids = self._shifted(labels) if labels is not None else decoder_input_ids
        assert ids is not None
        if len(ids) != len(input_ids):
            raise ValueError(f"{len(ids)} targets, but {len(input_ids)} sources")
        positions = self.decoder_config.max_target_positions
        if ids.shape[1] > positions:
            raise ValueError(
                f"target of {ids.shape[1]} tokens, but max_target_positions is {positions}"
            )
        memory = self.bert(input_ids, token_type_ids, attention_mask).last_hidden_state
        layout = _target_layout(ids, labels)
        hidden = self.decoder(ids, layout, _source_of(memory, attention_mask, layout))  # (R, D)
        if labels is None:
            logits = self.decoder.logits(hidden).view(*ids.shape, -1)
            return GenerationOutput(logits, None, memory)
        wanted = labels.reshape(-1)
        if layout.places is not None:  # without fillers
            wanted = wanted.index_select(0, layout.places)
            hidden = hidden[: len(wanted)]
        score = self._score(hidden, wanted, label_smoothing)
        return GenerationOutput(None, score, memory)

    def _shifted(self, labels: Tensor) -> Tensor:
        """(B, U) labels -> what the decoder reads: the begin mark, then all but the last."""
        marks = self.decoder_config
        ids = labels.new_full(labels.shape, marks.target_bos_token_id)
        ids[:, 1:] = labels[:, :-1]
        return ids.masked_fill_(ids == IGNORE_INDEX, marks.target_pad_token_id)

    def _score(self, hidden: Tensor, labels: Tensor, smoothing: float) -> TargetScore:
        decoder = self.decoder
        words = decoder.embeddings.word.weight
        loss, hits = label_smoothed_cross_entropy(hidden, words, decoder.bias, labels, smoothing)
        return TargetScore(loss, (labels != IGNORE_INDEX).sum(), hits)

    def begin(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Cache:
        """Reads sources, (B, S) each, so that `decoder.step` can write after them."""
        memory = self.bert(input_ids, None, attention_mask).last_hidden_state
        layout = full_layout((len(input_ids), 1))  # targets in the order of the batch
        return self.decoder.begin(_source_of(memory, attention_mask, layout))


def _target_layout(ids: Tensor, labels: Tensor | None) -> Layout:
    """The target's real tokens on a CPU; elsewhere, and for scores of all places, every token."""
    shape = (ids.shape[0], ids.shape[1])
    if labels is None or torch.compiler.is_compiling() or not ids.is_cpu:
        return full_layout(shape)
    is_real = labels != IGNORE_INDEX
    is_real[:, 0] = True  # the begin mark, even of a target without any label
    return unpadded_layout(is_real)


def _source_of(memory: Tensor, attention_mask: Tensor | None, target: Layout) -> Source:
    """The encoder's output, its sequences in the order in which the decoder has the targets.

    Args:
        memory: (B, S, D).
    """
    batch, length, _ = memory.shape
    # A loop leaves the mask on the host of a GPU.
    mask = None if attention_mask is None else attention_mask.bool().to(memory.device)
    may_ask = memory.is_cpu and not torch.compiler.is_compiling()
    if mask is not None and may_ask and bool(mask.all()):
        mask = None
    layout = unpadded_layout(mask) if mask is not None and may_ask else full_layout((batch, length))
    places = layout.places
    if target.places is not None:
        order = target.places[target.first_rows(memory.device)] // target.shape[1]  # (B,)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(batch)
        places = torch.arange(batch * length) if places is None else places
        places = ranks[places // length] * length + places % length
        mask = None if mask is None else mask.index_select(0, order)
    broadcast = None if mask is None else mask[:, None, None, :]
    return Source(layout.take(memory), places, broadcast, (batch, length))
