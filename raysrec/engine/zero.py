"""Which values of which parameters this worker's ZeRO optimizer updates, and where they lie.

A ZeRO optimizer keeps flat tensors of full precision, in which pieces of parameters stand one after another, and lets
an ordinary optimizer update them. Here its layout is read off its attributes, so nothing of DeepSpeed is imported.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysrec.engine.exchange import this_worker
from raysrec.engine.optimizers import new_state
from raysrec.engine.restoring import StateMismatch, refuse_other_names, saved_keys, saved_tensor
from raysrec.engine.snapshot import Fragment


@dataclass(frozen=True)
class Piece:
    """Neighbouring values of one parameter that this worker updates."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """Where the piece begins in the flattened parameter."""
    size: int
    flat: Tensor
    """The flat tensor that holds it."""
    offset: int
    """Where it begins there."""

    def of(self, flat: Tensor) -> Tensor:
        """The piece's values in a tensor laid out like the flat one."""
        return flat[self.offset : self.offset + self.size]

    def of_whole(self, whole: Tensor) -> Tensor:
        """The piece's values in the whole parameter."""
        return whole.flatten()[self.start : self.start + self.size]

    def fragment(self, flat: Tensor) -> Fragment:
        """The piece's values, to be saved."""
        return Fragment(self.of(flat).detach(), self.start, self.shape)


class Partition:
    """What one worker keeps of weights and optimizer under ZeRO 1 to 3.

    Args:
        zero: DeepSpeed's optimizer, before its first step.
        model: Whose parameters it updates.

    Raises:
        RuntimeError: Its layout is none that is known here.
    """

    def __init__(self, zero: Any, model: nn.Module) -> None:
        self._zero = zero
        self._model = model
        self._divides_weights = hasattr(zero, "fp32_partitioned_groups_flat")
        self._parameters: dict[str, Any] = dict(model.named_parameters())  # DeepSpeed adds attributes to them
        pieces = self._pieces_of_stage_3 if self._divides_weights else self._pieces_of_stage_1_and_2
        self._pieces: dict[str, Piece] = {piece.name: piece for piece in pieces()}
        for piece in self._pieces.values():
            own = self._models_own(piece)
            kept = piece.of(piece.flat).detach().to(own.device, own.dtype)
            if not torch.allclose(kept, own, rtol=0, atol=0, equal_nan=True):
                raise RuntimeError(
                    f"{piece.name}: DeepSpeed keeps its values elsewhere than expected, so they could not be saved; "
                    "drop what engine.extra changes about partitions, or install the DeepSpeed of constraints.txt"
                )

    def fragments(self) -> dict[str, Fragment]:
        """This worker's pieces of weights and optimizer state; nothing is communicated."""
        found: dict[str, Fragment] = {}
        for name, piece in self._pieces.items():
            found[f"weights/{name}"] = piece.fragment(piece.flat)
            for key, value in self._zero.optimizer.state.get(piece.flat, {}).items():
                if value.shape == piece.flat.shape:
                    found[f"optimizer/{name}/{key}"] = piece.fragment(value)
                elif piece.start == 0:
                    found[f"optimizer/{name}/{key}"] = Fragment.whole(value)
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take this worker's pieces, and the model's own copy of the weights; `settle` must follow.

        Raises:
            StateMismatch: The state does not fit.
        """
        tensors = self._model.state_dict()
        refuse_other_names(state, tensors, self._parameters)
        if self._divides_weights:
            self._zero.checkpoint_event_prologue()  # lets go of parameters that are gathered
        for name, value in tensors.items():
            shape = self._shape(name) if name in self._parameters else value.shape
            whole = saved_tensor(state, f"weights/{name}", shape)
            piece = self._pieces.get(name)
            if piece:
                piece.of(piece.flat.data).copy_(piece.of_whole(whole))
            if not self._divides_weights or name not in self._parameters:
                value.copy_(whole)
            elif piece:
                self._models_own(piece).copy_(piece.of_whole(whole))
        self._restore_optimizer(state)

    def settle(self) -> None:
        """Of weights that are divided, gather the small ones anew, and let go of others; all workers call it together.

        It belongs after `restore`, and after passes that no update followed.
        """
        if self._divides_weights:
            self._zero.checkpoint_event_prologue()
            self._zero.checkpoint_event_epilogue()

    def _restore_optimizer(self, state: Mapping[str, Tensor]) -> None:
        base = self._zero.optimizer
        fresh = {flat: new_state(base, flat) for flat in self._flats()}
        keys = set(next(iter(fresh.values())))
        saved = {name for name in self._parameters if saved_keys(state, name, keys)}
        count = _updates(state, saved)
        for flat, kept in fresh.items():
            base.state.pop(flat, None)
            if saved:
                kept["step"].fill_(count)
                base.state[flat] = kept
        for name, piece in self._pieces.items():
            for key in keys - {"step"} if name in saved else ():
                whole = saved_tensor(state, f"optimizer/{name}/{key}", piece.shape)
                piece.of(fresh[piece.flat][key]).copy_(piece.of_whole(whole))

    def _flats(self) -> list[Tensor]:
        if self._divides_weights:
            return list(self._zero.fp32_partitioned_groups_flat)
        return [group["params"][0] for group in self._zero.optimizer.param_groups]

    def _shape(self, name: str) -> tuple[int, ...]:
        parameter = self._parameters[name]
        return tuple(parameter.ds_shape if self._divides_weights else parameter.shape)

    def _models_own(self, piece: Piece) -> Tensor:
        """The piece's values as the model computes with them, maybe in lower precision."""
        parameter = self._parameters[piece.name]
        if self._divides_weights:
            own: Tensor = parameter.ds_tensor.data
            return own[: piece.size]
        return piece.of_whole(parameter.detach())

    def _pieces_of_stage_1_and_2(self) -> Iterator[Piece]:
        for name, parameter in self._parameters.items():
            if (mapping := parameter._hp_mapping) is not None:
                yield Piece(
                    name=name,
                    shape=self._shape(name),
                    start=mapping.lp_fragment_address.start,
                    size=mapping.lp_fragment_address.numel,
                    flat=self._flats()[mapping.param_group_index],
                    offset=mapping.hp_fragment_address.start,
                )

    def _pieces_of_stage_3(self) -> Iterator[Piece]:
        for name, parameter in self._parameters.items():
            flat, offset, room = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = room * this_worker()
            if (size := min(parameter.ds_numel - start, room)) > 0:
                yield Piece(
                    name=name,
                    shape=self._shape(name),
                    start=start,
                    size=size,
                    flat=self._flats()[flat],
                    offset=offset,
                )


def _updates(state: Mapping[str, Tensor], names: Iterable[str]) -> float:
    counts = {float(saved_tensor(state, f"optimizer/{name}/step", ())) for name in names}
    if len(counts) > 1:
        raise StateMismatch(
            f"optimizer/*/step: some parameters were updated {min(counts):.0f} times and others {max(counts):.0f}, and "
            "DeepSpeed has one count for all; set engine.name=torch"
        )
    return max(counts, default=0.0)
