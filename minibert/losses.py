"""The documented losses, one pure function each, all returning (sum, count).

No function here takes a mean. The training loop divides each sum by its own count over the whole
optimiser step (all micro-batches, all devices) before it adds the terms; see `train.fit`.
`IGNORE_INDEX` marks slots without a label; it is negative, so it can never be a class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over labelled rows of -log softmax(logits)[label], in float32, and their number."""
    rows = logits.reshape(-1, logits.shape[-1]).float()
    flat = labels.reshape(-1)
    total = F.cross_entropy(rows, flat, ignore_index=IGNORE_INDEX, reduction="sum")
    return total, (flat != IGNORE_INDEX).sum()


def masked_lm_loss(mlm_logits: Tensor, mlm_labels: Tensor) -> tuple[Tensor, Tensor]:
    """L_MLM = - sum over masked positions i of log P(w_i | w_-i; theta).

    Devlin et al. 2019, section 3.1, task 1. The mean over masked positions is taken by the loop:
    sum / count over the whole optimiser step.

    Args:
        mlm_logits: (B, M, V), scores at the masked positions.
        mlm_labels: (B, M), the original token ids; IGNORE_INDEX in unused slots.

    Returns:
        The summed loss in nats, float32 scalar, and the number of labelled slots.
    """
    return _cross_entropy(mlm_logits, mlm_labels)


def next_sentence_loss(nsp_logits: Tensor, next_sentence_label: Tensor) -> tuple[Tensor, Tensor]:
    """L_NSP = - sum over pairs i of log P(y_i | s_i, s_i+1; theta).

    Devlin et al. 2019, section 3.1, task 2. The mean over pairs is taken by the loop.

    Args:
        nsp_logits: (B, 2); index 0 = the second segment follows the first, 1 = it is random.
        next_sentence_label: (B,), 0 or 1. Both are classes; neither is ever ignored.

    Returns:
        The summed loss in nats, float32 scalar, and the number of pairs.
    """
    return _cross_entropy(nsp_logits, next_sentence_label)


def classification_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """L_task = - sum over examples i of v(y_i) log P(y_i | x_i; theta).

    Devlin et al. 2019, section 4.1, where v is 1. The mean over examples is taken by the loop: the
    sum of the weights does not enter it. With smoothing s the target is 1 - s + s/C on the class
    and s/C on the others (Szegedy et al. 2016, section 7); the whole term of an example has the
    weight of its class, so that weights do not move what is best for it.

    Args:
        logits: (B, C).
        labels: (B,), class indices; IGNORE_INDEX where there is none.
        weights: (C,), v of each class.
        smoothing: s in [0, 1).

    Returns:
        The summed loss in nats, float32 scalar, and the number of labelled examples.
    """
    count = (labels != IGNORE_INDEX).sum()
    if weights is not None and smoothing:
        # PyTorch weights each smoothed share by its own class: the rare class becomes the target.
        each = F.cross_entropy(
            logits.float(),
            labels,
            ignore_index=IGNORE_INDEX,
            reduction="none",
            label_smoothing=smoothing,
        )
        return (each * weights[labels.clamp_min(0)]).sum(), count  # 0 where there is no label
    total = F.cross_entropy(
        logits.float(),
        labels,
        weight=weights,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=smoothing,
    )
    return total, count


def multi_label_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    positives: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """L_task = - sum over examples i, classes c of v(c) log P(y_ic | x_i; theta), y yes or no.

    The mean over examples and classes is taken by the loop.

    Args:
        logits: (B, C), of a logistic function.
        labels: (B, C), 1.0 where the example is of the class.
        weights: (C,), v of each class.
        smoothing: s in [0, 1): targets are 1 - s/2 and s/2.
        positives: (C,), what a term of "yes" is multiplied by, smoothed or not.

    Returns:
        The summed loss in nats, float32 scalar, and B * C.
    """
    targets = labels.float() * (1 - smoothing) + smoothing / 2
    if positives is not None and smoothing:
        # pos_weight would weigh the share of "yes" that smoothing gives to a "no".
        of_yes = torch.where(labels > 0.5, positives, torch.ones_like(positives))
        weights, positives = of_yes if weights is None else weights * of_yes, None
    total = F.binary_cross_entropy_with_logits(
        logits.float(), targets, weight=weights, pos_weight=positives, reduction="sum"
    )
    return total, _number_of(labels)


def squared_error(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """L_task = sum over examples i of (s(x_i; theta) - y_i)^2, for graded similarity.

    Reimers and Gurevych 2019, section 3, where s is the cosine of two texts' vectors. The mean over
    examples is taken by the loop.

    Args:
        predictions, labels: (B,), labels between 0 and 1.

    Returns:
        The summed loss, float32 scalar, and B.

    Raises:
        ValueError: the shapes differ, which would compare each with all.
    """
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions have shape {tuple(predictions.shape)}, labels {tuple(labels.shape)}; "
            f"expected (B,) of both"
        )
    errors = predictions.float() - labels.float()
    return (errors**2).sum(), _number_of(labels)


def _number_of(labels: Tensor) -> Tensor:
    """How many labels there are, int64 scalar; their own type may not hold it."""
    return torch.tensor(labels.numel(), device=labels.device)
