"""From gradients to updates: Adam for everything, or Muon for the matrices and Adam for the rest.

Which parameters are matrices is read off the model's modules (the weights of its `nn.Linear` layers), so that no
model has to say it: a table of item vectors, taps of a convolution or the poles of a state space are none.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from raysrec.config import TrainConfig


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a model; together they update every parameter once.

    Each parameter group has a `scale` by which the scheduled learning rate is multiplied.
    """
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    known = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    if config.optimizer == "muon":
        scale = config.muon_learning_rate / config.learning_rate
        muon = Muon([{"params": matrices, "scale": scale}], weight_decay=config.weight_decay)
        return [muon, _adam([{"params": others, "weight_decay": 0.0}], config)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [_adam(groups, config)]


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], value: float) -> None:
    """Set the scheduled learning rate, times each group's scale."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value * group.get("scale", 1.0)


def new_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What an optimizer keeps for a parameter, as before its first update; torch makes it only then.

    Raises:
        TypeError: The optimizer is none of `build_optimizers`.
    """
    if isinstance(optimizer, Muon):
        return {"mean": torch.zeros_like(parameter)}
    if isinstance(optimizer, torch.optim.AdamW):
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
    raise TypeError(f"what {type(optimizer).__name__} keeps for a parameter is not known")


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are replaced by the nearest orthogonal ones: every direction learns at one rate.

    Matrices of one shape are orthogonalised together, which on a CPU costs a tenth of one at a time. A matrix with
    more rows than columns moves sqrt(rows / columns) times as far.

    Args:
        groups: Parameter groups of matrices, each with `scale`.
        momentum: Decay of the running mean of gradients.
        weight_decay: Decoupled weight decay.

    Source:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; its Newton-Schulz iteration
        with the coefficients (3.4445, -4.7750, 2.0315), five times.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in same_shape.values():
                self._update(parameters, **{key: group[key] for key in ("lr", "momentum", "weight_decay")})

    def _update(self, parameters: list[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        mixed = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state["mean"] = torch.zeros_like(parameter)
            mean = state["mean"].lerp_(gradient, 1 - momentum)
            mixed.append(gradient.lerp(mean, momentum))  # Nesterov's look ahead
        rows, columns = parameters[0].shape
        distance = lr * max(1.0, rows / columns) ** 0.5
        for parameter, direction in zip(parameters, orthogonalised(torch.stack(mixed)), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(direction, alpha=-distance)


def orthogonalised(matrices: Tensor, *, iterations: int = 5) -> Tensor:
    """Each matrix [.., R, C] with its directions kept and its singular values pushed to about 1 (0.7 to 1.2)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


def _adam(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
