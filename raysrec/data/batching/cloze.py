"""Cloze: which items of a row are hidden from the model and learned.

Source:
    Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer",
    CIKM 2019, section 3.6; the share of rows in which the last item alone is hidden is RecBole's `ft_ratio`.
"""

import numpy as np
from numpy.typing import NDArray

from raysrec.config import ClozeConfig
from raysrec.data.arrays import BoolArray, IntArray
from raysrec.data.batching.windows import Samples


def draw_hidden(lengths: IntArray, config: ClozeConfig, rng: np.random.Generator) -> BoolArray:
    """Where items are hidden [B L], at least one in every row and none in padding.

    Args:
        lengths: Real positions of each row; at least 1.
        config: How many.
        rng: Draws them.
    """
    across = np.arange(int(lengths.max()))
    is_last = across == lengths[:, None] - 1
    hidden = (rng.random(is_last.shape) < config.hidden_share) & (across < lengths[:, None])
    only_last = rng.random(len(lengths)) < config.only_last_share
    chosen: BoolArray = np.where((only_last | ~hidden.any(1))[:, None], is_last, hidden)
    return chosen


def expected_targets(lengths: IntArray, config: ClozeConfig) -> NDArray[np.float64]:
    """How many items of each row `draw_hidden` hides, on average."""
    kept = 1 - config.hidden_share
    scattered = config.hidden_share * lengths + kept**lengths
    return config.only_last_share + (1 - config.only_last_share) * scattered


def share_of_targets(samples: Samples, config: ClozeConfig) -> float:
    """Targets per position of these rows, on average; looks at the first few thousand."""
    lengths = samples.take(np.arange(min(4096, len(samples)))).lengths
    return float(expected_targets(lengths, config).sum() / max(1, lengths.sum()))
