"""The state of a model and its optimizers that every worker has whole: worker 0 saves it, all restore it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raysrec.engine.exchange import this_worker
from raysrec.engine.interface import Weights
from raysrec.engine.optimizers import new_state
from raysrec.engine.restoring import refuse_other_names, saved_keys, saved_tensor
from raysrec.engine.snapshot import Fragment

Optimizers = Sequence[torch.optim.Optimizer]


def whole_model(model: nn.Module) -> Weights:
    """Parameters and buffers, copied to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def replicated_fragments(model: nn.Module, optimizers: Optimizers) -> dict[str, Fragment]:
    """Everything on worker 0, and nothing on the others."""
    fragments: dict[str, Fragment] = {}
    if this_worker() == 0:
        for name, value in model.state_dict().items():
            fragments[f"weights/{name}"] = Fragment.whole(value)
        for name, parameter in model.named_parameters():
            for optimizer in optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    fragments[f"optimizer/{name}/{key}"] = Fragment.whole(value)
    return fragments


@torch.no_grad()
def restore_replicated(model: nn.Module, optimizers: Optimizers, state: Mapping[str, Tensor]) -> None:
    """Take everything from a saved state.

    Raises:
        StateMismatch: It does not fit.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    refuse_other_names(state, model.state_dict(), names.values())
    for name, value in model.state_dict().items():
        value.copy_(saved_tensor(state, f"weights/{name}", value.shape))
    for optimizer in optimizers:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            kept, name = new_state(optimizer, parameter), names[parameter]
            optimizer.state.pop(parameter, None)
            if saved_keys(state, name, kept):
                for key, value in kept.items():
                    value.copy_(saved_tensor(state, f"optimizer/{name}/{key}", value.shape))
                optimizer.state[parameter] = kept
