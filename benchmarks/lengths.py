"""How long the sequences of a benchmark are: drawn from distributions of real texts, or made up.

"mixed": lognormal and cut, 60 % of the maximum in the mean. "full": no padding to save. "paired":
as pair building gives them, 90 % full at 128 tokens and 61 % at 512, for many documents end before
512 are reached. "imdb": reviews, of which 42 % are cut at 256; they are 80 % full in the mean.
"""

from __future__ import annotations

import numpy as np

# Every twentieth of 20,000 examples of `ExampleStream`, the ends included, by maximum length; from
# 35 MB of English Wikipedia, articles over 600 characters, with a vocabulary of 30,522.
_PAIRED = {
    128: [6, 47, 65, 86, 106, 125, *[128] * 15],
    512: [5, 51, 76, 106, 137, 162, 187, 214, 244, 274, 308, 347, 394, 445, 501, *[512] * 6],
}
# The same of 6,250 labelled reviews of aclImdb, with that vocabulary, [CLS] and [SEP] included.
_IMDB = [10, 82, 116, 138, 152, 162, 171, 181, 193, 207, 223, 242, 262, 287, 317, 355, 405, 476]
_IMDB += [572, 757, 2160]


def draw_lengths(kind: str, longest: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many lengths, none above the longest and none below 8.

    Args:
        kind: "mixed", "full", "paired" (with 128 or 512 as the longest) or "imdb".
    """
    if kind == "full":
        return np.full(count, longest)
    if kind == "mixed":
        drawn = np.exp(rng.normal(np.log(0.56 * longest), 0.5, count))
    else:
        steps = _IMDB if kind == "imdb" else _PAIRED[longest]
        drawn = np.interp(rng.random(count), np.linspace(0, 1, len(steps)), steps)
    return drawn.clip(8, longest).astype(int)
