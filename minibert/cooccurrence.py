"""Word vectors from which words share a stretch of text: the start of `--init cooccurrence`.

Latent semantic analysis (Deerwester et al. 1990) of the training text: stretches of documents are
rows, token ids columns, an entry says that the token occurs, weighted by its rarity; the vectors
are the leading singular directions, found by subspace iteration (Halko, Martinsson & Tropp 2011,
section 4.5). In: training documents. Out: one row a token. Seconds, where masked words take hours
to teach a small model what a text is about.

Shapes: V vocabulary, D width, S stretches.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from minibert.examples import Documents

_STRETCH_TOKENS = 2048  # of one document that count as together, at most
_MOST_TOKENS = 8 << 20  # of text that is looked at; a fair sample, documents are in random order
_ITERATIONS = 4
_SPARE = 16  # further directions that are carried along, for the last ones' accuracy


def cooccurrence_vectors(
    documents: Documents, vocab_size: int, width: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Unit vectors of the tokens, close for those that share stretches of text.

    Args:
        documents: to learn from, in the order of their positions until enough text is seen.
        width: D, at most V - 1.

    Returns:
        (V, D) float32, and (V,) which tokens occur; rows of the others are zero.
    """
    rows, columns = _occurrences(documents)
    num_stretches = int(rows[-1]) + 1 if len(rows) else 0
    seen = torch.bincount(columns, minlength=vocab_size)
    rarity = torch.log((1 + num_stretches) / (1 + seen.double())).float()
    where, weights = torch.stack([rows, columns]), rarity[columns]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        shape = (num_stretches, vocab_size)
        matrix = torch.sparse_coo_tensor(where, weights, shape, check_invariants=False).coalesce()
        forth = matrix.to_sparse_csr()  # (S, V)
        back = matrix.t().coalesce().to_sparse_csr()  # (V, S)
        wanted = min(width + 1 + _SPARE, vocab_size)
        basis = torch.randn(vocab_size, wanted, generator=torch.Generator().manual_seed(seed))
        for _ in range(_ITERATIONS):
            basis = torch.linalg.qr(back @ (forth @ basis)).Q  # (V, D + spare)
        image = forth @ basis  # (S, D + spare)
    turn = torch.linalg.eigh(image.T.double() @ image.double()).eigenvectors.float()
    # Largest last. The very first direction is how common a token is, which the output bias knows.
    leading = (basis @ turn).flip(1)[:, 1 : width + 1]
    vectors = torch.zeros(vocab_size, width)
    vectors[:, : leading.shape[1]] = torch.nn.functional.normalize(leading, dim=1)
    vectors[seen == 0] = 0.0
    return vectors, seen > 0


def _occurrences(documents: Documents) -> tuple[Tensor, Tensor]:
    """Which stretch holds which token, each pair once; stretches are numbered in order."""
    tokens = documents.store.tokens
    found: list[np.ndarray] = []
    looked_at = 0
    for position in range(len(documents)):
        whole = documents.offsets(position)
        start, end = int(whole[0]), int(whole[-1])
        end = min(end, start + _MOST_TOKENS - looked_at)
        for at in range(start, end, _STRETCH_TOKENS):
            found.append(np.unique(tokens[at : min(at + _STRETCH_TOKENS, end)]))
        looked_at += end - start
        if looked_at >= _MOST_TOKENS:
            break
    counts = torch.tensor([len(ids) for ids in found])
    rows = torch.repeat_interleave(torch.arange(len(found)), counts)
    return rows, torch.from_numpy(np.concatenate(found).astype(np.int64))
