"""Losses as pure functions of states, the item table and targets; nothing here knows a model or a batch.

Each is a sum over P targets, in nats. `softmax_loss` compares a target with every item; the others compare it with
negatives, which `raysrec.negatives` draws.
"""

from raysrec.losses.binary import bce_loss, gbce_loss
from raysrec.losses.candidates import bytes_at_once
from raysrec.losses.pairwise import bpr_loss
from raysrec.losses.sampled_softmax import sampled_softmax_loss
from raysrec.losses.softmax import ChunkSizes, chunk_sizes, softmax_loss, softmax_loss_reference

__all__ = [
    "ChunkSizes",
    "bce_loss",
    "bpr_loss",
    "bytes_at_once",
    "chunk_sizes",
    "gbce_loss",
    "sampled_softmax_loss",
    "softmax_loss",
    "softmax_loss_reference",
]
