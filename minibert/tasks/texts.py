"""Texts and pairs of texts as the model's ids, cut to the length that it takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from minibert.runs import log_line
from minibert.tokenizer import WordPiece

_AT_ONCE = 1000  # texts whose pieces are held together


def encode(
    texts: Sequence[tuple[str, str | None]],
    tokenizer: WordPiece,
    max_seq_length: int,
    truncation: str,
    both_orders: bool = False,
) -> list[list[dict[str, np.ndarray]]]:
    """[CLS] text [SEP], or [CLS] text [SEP] second text [SEP], of at most `max_seq_length` ids.

    Of a pair that is too long the longer text gives way, down to half of the room.

    Args:
        truncation: "head" keeps the beginning, "tail" the end; "head+tail" a quarter from the
            beginning and the rest from the end (Sun et al. 2019, section 5.3.1, keep 128 of 510 in
            front); "windows" all, in as few parts as hold it, alike in length, of a pair's longer
            text.
        both_orders: each pair is followed by itself with the second text first.

    Returns:
        Of each text its windows, one but for "windows", with both orders those of the pair and then
        the same turned: (T,) input_ids, and token_type_ids of pairs.
    """
    encoded = []
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        firsts = tokenizer.ids([text for text, _ in some])
        seconds = tokenizer.ids([second or "" for _, second in some])
        for (_, second_text), ids, pair_ids in zip(some, firsts, seconds, strict=True):
            if second_text is None:
                parts = cut(ids, max_seq_length - 2, truncation)
                encoded.append([_single(part, tokenizer) for part in parts])
            else:
                pairs = cut_pair(ids, pair_ids, max_seq_length - 3, truncation, both_orders)
                turned = [(second, first) for first, second in pairs] if both_orders else []
                encoded.append([_pair(*pair, tokenizer) for pair in (*pairs, *turned)])
    return encoded


def _single(ids: list[int], tokenizer: WordPiece) -> dict[str, np.ndarray]:
    return {"input_ids": np.array([tokenizer.cls_id, *ids, tokenizer.sep_id], np.int64)}


def _pair(ids: list[int], pair_ids: list[int], tokenizer: WordPiece) -> dict[str, np.ndarray]:
    sep = tokenizer.sep_id
    whole = np.array([tokenizer.cls_id, *ids, sep, *pair_ids, sep], np.int64)
    segments = np.repeat([0, 1], [len(ids) + 2, len(pair_ids) + 1])
    return {"input_ids": whole, "token_type_ids": segments}


def cut(ids: list[int], room: int, truncation: str) -> list[list[int]]:
    """What is kept of a text's ids, as `encode` says: one part, or several windows."""
    if len(ids) <= room:
        return [ids]
    if truncation == "windows":
        count = -(-len(ids) // room)
        ends = [len(ids) * part // count for part in range(count + 1)]
        return [ids[start:end] for start, end in itertools.pairwise(ends)]
    head = {"head": room, "tail": 0}.get(truncation, room // 4)
    return [ids[:head] + ids[len(ids) - (room - head) :]]


def say_lengths(
    texts: Sequence[tuple[str, str | None]],
    num_inputs: int,
    tokenizer: WordPiece,
    max_seq_length: int,
    truncation: str,
    has_windows: bool = True,
) -> None:
    """Prints what `encode` does with texts or pairs that are too long; nothing where none is.

    Args:
        num_inputs: how many inputs of the model they have become, windows counted.
        has_windows: whether `--truncation windows` is possible here.
    """
    are_pairs = any(second is not None for _, second in texts)
    what = f"{len(texts):,} {'pairs' if are_pairs else 'texts'} to learn from"
    if num_inputs > len(texts):
        log_line(
            "windows",
            f"{what} are read in {num_inputs:,} parts of at most {max_seq_length} tokens, an epoch "
            f"{num_inputs / len(texts):.1f} times as long; --truncation head, tail or head+tail "
            f"reads one part of each",
        )
    if truncation == "windows" and not are_pairs:
        return
    num_cut = _num_cut(texts, tokenizer, max_seq_length, truncation)
    if not num_cut:
        return
    if truncation == "windows":
        more = "where the shorter text has more than half of the room"
    elif has_windows:
        more = f"--truncation windows reads all of {'the longer text' if are_pairs else 'a text'}"
    else:
        more = "a larger --max-seq-length reads more"
    lose = f"lose some of their text to --max-seq-length {max_seq_length}"
    log_line("cut", f"{num_cut:,} of {what} {lose} by --truncation {truncation}; {more}")


def _num_cut(
    texts: Sequence[tuple[str, str | None]],
    tokenizer: WordPiece,
    max_seq_length: int,
    truncation: str,
) -> int:
    """How many texts or pairs `encode` leaves some pieces of out."""
    found = 0
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        _, firsts = tokenizer.flat_ids([text for text, _ in some])
        _, seconds = tokenizer.flat_ids([second or "" for _, second in some])
        room = max_seq_length - np.array([2 if second is None else 3 for _, second in some])
        is_cut = firsts + seconds > room
        if truncation == "windows":  # all of the longer text is read
            is_cut &= np.minimum(firsts, seconds) > room // 2
        found += int(is_cut.sum())
    return found


def cut_pair(
    ids: list[int], pair_ids: list[int], room: int, truncation: str, any_order: bool = False
) -> list[tuple[list[int], list[int]]]:
    """What is kept of a pair, as `encode` says.

    Args:
        any_order: the same is kept whichever is first, of two that are alike in length, too.
    """
    if len(ids) + len(pair_ids) <= room:
        return [(ids, pair_ids)]
    first_is_longer = len(ids) >= len(pair_ids)
    if any_order and len(ids) == len(pair_ids):
        first_is_longer = ids >= pair_ids
    longer, shorter = (ids, pair_ids) if first_is_longer else (pair_ids, ids)
    kept = cut(shorter, room // 2, "head" if truncation == "windows" else truncation)[0]
    pairs = [(part, kept) for part in cut(longer, room - len(kept), truncation)]
    return pairs if first_is_longer else [(one, other) for other, one in pairs]
