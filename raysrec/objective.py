"""A Batch in, a loss total out: the module that an engine wraps, and the choice of its loss.

The loss and the item table are used inside `forward`, where ZeRO-3 has gathered the parameters.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from raysrec.config import LossConfig
from raysrec.config.run import RunConfig
from raysrec.errors import LastingError
from raysrec.history import Batch
from raysrec.losses import bce_loss, bpr_loss, gbce_loss, sampled_softmax_loss, softmax_loss
from raysrec.models import SequenceModel, build_model
from raysrec.negatives import ItemDistribution, Negatives, in_batch, popularity, uniform

EXACT_COSTS_AT_MOST = {"cpu": 16, "cuda": 160}
"""`auto` takes the exact softmax while scoring one state against the catalogue costs at most so many times what is
encoded for it, in multiplications. The GPU's is an estimate: products of that shape should run it at its full speed,
which encoders do not."""

SMALLEST_ENCODER = 100_000
"""Parameters that an encoder counts for at least: below, a step is other work than its products."""

USUAL_NEGATIVES = {"softmax": 0, "sampled_softmax": 4096, "gbce": 256, "bce": 1, "bpr": 1}


@dataclass(frozen=True)
class DataFacts:
    """What an objective must know of the data before the first batch."""

    item_counts: Int[Tensor, " V"]
    """How often each item occurs in training, by its number; 0 is padding."""
    num_users: int
    """Users that may have vectors of their own."""
    learned_users: Bool[Tensor, " U"] | None = None
    """Is there a target of each user? By number, 0 is nobody's; None where no model asks or there is one of all."""
    positions_per_target: float = 1.0
    """How many positions are encoded for each target: 1 where every position has one, a whole prefix where only the
    last one has."""


class ChosenLoss(NamedTuple):
    """A loss with nothing left open, and why it is this one."""

    config: LossConfig
    reason: str


def choose_loss(config: LossConfig, model: SequenceModel, *, positions_per_target: float, device: str) -> ChosenLoss:
    """Settle what the configuration leaves open: `auto`, and the usual number of negatives.

    Args:
        config: As asked for.
        model: What is trained.
        positions_per_target: How many positions are encoded for each target.
        device: Type of the device it is trained on, `cpu` or `cuda`.

    Raises:
        LastingError: More negatives are asked for than there are items.
    """
    num_items, dim = model.item_vectors()[1:].shape
    name, reason = config.name, "as configured"
    if name == "auto":
        encoder = _encoder_size(model)
        encoded = positions_per_target if model.reads_items else 1.0
        ratio = num_items * dim / (encoded * max(encoder, SMALLEST_ENCODER))
        limit = EXACT_COSTS_AT_MOST.get(device, EXACT_COSTS_AT_MOST["cuda"])
        name = "softmax" if ratio <= limit else "sampled_softmax"
        reason = (
            f"scoring {num_items:,} items costs {ratio:.1f} times encoding a target's {encoded:,.1f} positions; "
            f"exact up to {limit} times on {device}"
        )
    if config.negatives > num_items:
        raise LastingError(f"loss.negatives={config.negatives} exceeds the {num_items} items there are; lower it")
    negatives = config.negatives or min(USUAL_NEGATIVES[name], num_items)
    return ChosenLoss(config.model_copy(update={"name": name, "negatives": negatives}), reason)


def _encoder_size(model: SequenceModel) -> int:
    """How many weights a position meets: neither those that are looked up nor those that scores begin with."""
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables and p is not model.item_bias())


class Objective(nn.Module):
    """The loss of a model over the targets of a batch, as a sum.

    Args:
        model: What is trained.
        config: Which loss, settled by `choose_loss`.
        reads_last: Is each row's only target at its last position (`train.supervision=last_position`)?
        item_counts: How often each item occurs in training, by its number; None where no loss asks for it.
    """

    def __init__(
        self,
        model: SequenceModel,
        config: LossConfig,
        *,
        reads_last: bool = False,
        item_counts: Int[Tensor, " V"] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.reads_last = reads_last
        self._distribution = _distribution(config, len(model.item_vectors()) - 1, item_counts)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Sum over all positions that have a target; divide by `batch.num_targets()` for the mean."""
        learned = self._learned(batch)
        loss = self._loss(learned, batch)
        penalty = self.model.penalty()
        if penalty is None:
            return loss
        # The engine divides by the number of targets over all micro-batches: a mean of penalties remains.
        return loss + (penalty[learned.rows].sum() if penalty.ndim else len(learned.targets) * penalty)

    def _learned(self, batch: Batch) -> "_Learned":
        if not self.reads_last:
            rows, positions = batch.targets.nonzero(as_tuple=True)
            return _Learned(self.model.encode(batch.history)[rows, positions], batch.targets[rows, positions], rows)
        every_row = torch.arange(len(batch.targets), device=batch.targets.device)
        targets = batch.targets[every_row, batch.history.lengths - 1]
        rows = targets.nonzero().squeeze(1)
        return _Learned(self.model.read(batch.history)[rows], targets[rows], rows)

    def _loss(self, learned: "_Learned", batch: Batch) -> Float[Tensor, ""]:
        vectors, bias, config = self.model.item_vectors(), self.model.item_bias(), self.config
        states, targets, _ = learned
        if config.name == "softmax":
            return softmax_loss(states, vectors, targets, bias, padding_class=config.padding_class)
        generator = torch.Generator(states.device).manual_seed(batch.seed)
        if config.name == "sampled_softmax":
            negatives = self._shared_negatives(targets, generator)
            counts = negatives.log_expected_counts()
            return sampled_softmax_loss(states, vectors, targets, negatives.items, bias, log_expected_counts=counts)
        drawn = self._own_negatives(learned, batch, generator)
        if config.name == "gbce":
            return gbce_loss(states, vectors, targets, drawn, bias, calibration=config.calibration)
        return {"bce": bce_loss, "bpr": bpr_loss}[config.name](states, vectors, targets, drawn, bias)

    def _shared_negatives(self, targets: Int[Tensor, " P"], generator: torch.Generator) -> Negatives:
        distribution = self._distribution_on(targets.device)
        if self.config.sampling == "in_batch":
            return in_batch(targets, distribution)
        return distribution.draw((self.config.negatives,), generator=generator)

    def _own_negatives(self, learned: "_Learned", batch: Batch, generator: torch.Generator) -> Int[Tensor, "P C"]:
        distribution = self._distribution_on(learned.targets.device)
        shape = (len(learned.targets), self.config.negatives)
        if not self.config.exclude_history:
            return distribution.draw(shape, generator=generator).items
        if batch.seen is None or batch.history.users is None:
            raise ValueError("loss.exclude_history needs to know what a batch's users have in training (Batch.seen)")
        users = batch.history.users[learned.rows]
        return distribution.draw(shape, exclude=batch.seen, rows=users, generator=generator).items

    def _distribution_on(self, device: torch.device) -> ItemDistribution:
        if self._distribution.weights.device != device:
            self._distribution = self._distribution.to(device)
        return self._distribution


def build_objective(
    config: RunConfig, facts: DataFacts, device: torch.device, *, settled: str = ""
) -> tuple[Objective, ChosenLoss]:
    """The model of a run with fresh weights, under its loss, on its device; and which loss that is.

    Args:
        config: The run.
        facts: Of the data that it learns from.
        device: Where it is trained.
        settled: What `auto` was settled to when training began, perhaps on another device; empty if it begins now.
    """
    model = build_model(config.model, len(facts.item_counts) - 1, facts.num_users)
    model.set_item_counts(facts.item_counts)
    if facts.learned_users is not None:
        model.set_learned_users(facts.learned_users)
    asked = config.loss.model_copy(update={"name": settled}) if settled and config.loss.name == "auto" else config.loss
    loss = choose_loss(asked, model, positions_per_target=facts.positions_per_target, device=device.type)
    if asked is not config.loss:
        loss = loss._replace(reason="as when training began")
    reads_last = config.train.supervision == "last_position"
    return Objective(model, loss.config, reads_last=reads_last, item_counts=facts.item_counts).to(device), loss


class _Learned(NamedTuple):
    """What is learned from a batch."""

    states: Float[Tensor, "P D"]
    targets: Int[Tensor, " P"]
    rows: Int[Tensor, " P"]
    """The batch's row of each target."""


def _distribution(config: LossConfig, num_items: int, item_counts: Tensor | None) -> ItemDistribution:
    if config.sampling == "uniform":
        return uniform(num_items)
    if item_counts is None:
        raise ValueError(f"loss.sampling={config.sampling} needs to know how often each item occurs")
    # Items of a batch are targets about as often as they occur, whatever power is asked for draws: a history's first is
    # never one, and with prefixes_per_user=n a short history's items are targets more often than a long one's.
    return popularity(item_counts, 1.0 if config.sampling == "in_batch" else config.popularity_power)
