"""RecGRELA: gated linear attention with a rotary numerator, a short convolution as local shortcut, and an MLP.

    X = LN(Drop(E[ids]))
    per block, with N = LN1(X):
        G = SiLU(W_g N + b_g)        U = W_i N + b_i        q = W_q U + b_q        k = W_k U + b_k        v = U
        O = LinearAttention(q, k, v) + SiLU(ShortConv(v))
        X = X + DropPath(W_o (O * G) + b_o)
        X = X + MLP(LN2(X))

and the score of item j is X · E_j. There is no final normalisation. The papers' configs have several blocks; with a
single one neither residual is there.

The attention has three forms. `causal` looks back only: it learns at every position at once and serves with
constant memory, 1,281 numbers per block of 64 channels. `bidirectional` lets every real position see every other,
the paper's formula with padding left out. `unmasked` is what the authors' code computes, padding included, and is
there to explain differences from published numbers. With one block the first two agree at the last position; with
more they are different models, for what a bidirectional block tells the next about position i knows what follows i.

The paper's ablations are settings: `values`, `input_gate`, `gate`, `mlp_activation`, `positions`, `local_shortcut`,
`drop_path`, `num_blocks`, `num_heads`.

The memory of the causal form is a sum over the *whole* history: nothing decays and nothing is cut off at
`max_length`. Train with the context that will be served, or begin again from `initial_state` when a user has
outgrown it.

Source:
    Hu, Zhou, Shen et al., "Gated Rotary-Enhanced Linear Attention for Long-term Sequential Recommendation",
    arXiv:2506.13315, 2025; the authors' code, TBI805/RecGRELA at 608a39b, for what the text leaves open.

Departures:
    * The default form is causal; the authors' attention sees every position, the target's neighbours included, and
      therefore must be trained on one prefix per sample.
    * `bidirectional` masks padding and divides by the number of real items; the authors let padding in, always up to
      `max_length`, and divide by that, so that a short history is mostly padding. `unmasked` does likewise.
    * Padding is not among the candidates of the softmax in training, as it is in the authors' (`loss.padding_class`).
    * The local shortcut is the authors' CUDA path on every device; their fallback drops the SiLU and does not
      transpose back.
    * Rotary tables have any length; the authors' has exactly `max_length` rows.
    * The text leaves open what stays where an ablation takes a gate away; here each setting changes one part and leaves
      the others. It compares activations "in the gated mechanism and the MLP", while the authors' code has GELU in the
      MLP whatever the gate's: `gate` and `mlp_activation` are two settings.
    * Learned positions end at `max_length`; a longer history is refused, in `step` as in `encode`.
    * phi(x) = ELU(x) + 1 is computed as exp(min(x, 0)) + max(x, 0), which is the same function without rounding
      small keys to zero.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.gated_attention import ACTIVATIONS, BlockState, GatedAttention
from raysrec.models.layers import LAYER_NORM_EPS, FeedForward, ItemEmbedding, init_weights_
from raysrec.models.positions import LearnedPositions, SinusoidalPositions
from raysrec.schema import Count, Probability


class RecGRELAConfig(ModelConfig):
    """Settings of RecGRELA."""

    name: Literal["recgrela"] = "recgrela"
    form: Literal["causal", "bidirectional", "unmasked"] = "causal"
    """Which positions attention sees: those up to its own, all real ones, or all with padding (the authors' code)."""
    num_blocks: Count = 4
    """Blocks, one on the other."""
    num_heads: Count = 4
    """Heads of the attention (H); divides `dim` into an even number of channels each."""
    mlp_dim: Count = 256
    """Inner channels of the MLP."""
    conv_kernel: Count = 4
    """Positions that the local shortcut mixes, the current one included."""
    drop_path: Probability = 0.1
    """Probability that a block's attention is left out for a whole history, in training."""
    residual: Literal["auto", "always"] = "auto"
    """Residual connections: `auto` is the papers' rule, none if there is only one block."""
    values: Literal["input", "projection"] = "input"
    """What attention mixes and the shortcut convolves: U itself, or a linear layer of it (v = W_v U + b_v)."""
    input_gate: bool = True
    """The linear layer in front of queries, keys and values (the paper's "input gate"); without it U is N."""
    gate: Literal["silu", "relu", "gelu", "none"] = "silu"
    """Activation of the output gate G; `none` leaves the gate out (G = 1)."""
    mlp_activation: Literal["gelu", "silu", "relu"] = "gelu"
    """Activation inside the MLP; GELU in the authors' code."""
    positions: Literal["rotary", "none", "learned", "sinusoidal"] = "rotary"
    """What tells positions apart: rotations in the attention, nothing, or vectors added to the items', learned or of
    sines and cosines."""
    local_shortcut: bool = True
    """The short convolution beside the attention."""

    @model_validator(mode="after")
    def _heads_hold_pairs(self) -> "RecGRELAConfig":
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"model.dim={self.dim} does not split into model.num_heads={self.num_heads} heads of an even number of "
                f"channels (rotations turn pairs); choose a multiple of {2 * self.num_heads}"
            )
        return self

    @model_validator(mode="after")
    def _a_kernel_is_of_the_shortcut(self) -> "RecGRELAConfig":
        self.refuse_unused("model", {"conv_kernel": not self.local_shortcut}, "model.local_shortcut=False")
        return self


class RecGRELA(SequenceModel):
    """Item embedding and gated blocks; recurrent in the causal form."""

    Config: ClassVar[type[ModelConfig]] = RecGRELAConfig

    def __init__(self, config: RecGRELAConfig, num_items: int) -> None:
        super().__init__()
        self.form = config.form
        self.max_length = config.max_length
        self.embedding = ItemEmbedding(num_items=num_items, dim=config.dim, dropout=config.dropout)
        self.positions: LearnedPositions | SinusoidalPositions | None = None
        if config.positions == "learned":
            self.positions = LearnedPositions(max_length=config.max_length, dim=config.dim)
        if config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(dim=config.dim)
        self.blocks: list[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(
                GatedAttention(
                    dim=config.dim,
                    num_heads=config.num_heads,
                    conv_kernel=config.conv_kernel if config.local_shortcut else 0,
                    own_values=config.values == "projection",
                    input_gate=config.input_gate,
                    gate=config.gate,
                    rotary=config.positions == "rotary",
                ),
                dim=config.dim,
                mlp_dim=config.mlp_dim,
                mlp_activation=config.mlp_activation,
                dropout=config.dropout,
                drop_path=config.drop_path,
                residual=config.residual == "always" or config.num_blocks > 1,
            )
            for _ in range(config.num_blocks)
        )
        init_weights_(self)

    @property
    def causal(self) -> bool:
        """Only the causal form looks back alone."""
        return self.form == "causal"

    @property
    def padding_leaks(self) -> bool:
        """Do padded positions change real states? They do in the authors' code, and in the form that repeats it."""
        return self.form == "unmasked"

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        x, seen = self._embed(history)
        for block in self.blocks:
            x = block(x, seen)
        return x[:, : history.items.shape[1]]

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item; the last block computes no other past its attention."""
        x, seen = self._embed(history)
        for block in self.blocks[:-1]:
            x = block(x, seen)
        return self.blocks[-1].read(x, seen, history)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.embedding.table.weight

    @property
    def recurrent(self) -> bool:
        """Only the causal form is: in the others a new item changes every earlier row."""
        return self.causal

    def initial_state(self, batch_size: int) -> list[BlockState]:
        """The memory of users who have no history yet, one per block.

        Raises:
            NotImplementedError: The form is not causal.
        """
        self._require_causal()
        return [block.attention.initial_state(batch_size) for block in self.blocks]

    def step(self, items: Int[Tensor, " B"], state: list[BlockState]) -> tuple[Float[Tensor, "B D"], list[BlockState]]:
        """Take one more item per user in constant time; the same state as `encode` gives there, in evaluation mode.

        Raises:
            NotImplementedError: The form is not causal.
            ValueError: Positions are learned, and one of the users has had `max_length` items already.
        """
        self._require_causal()
        positions = self.positions.at(state[0].attention.position) if self.positions else None
        x: Tensor = self.embedding(items, positions)
        new_state = []
        for block, memory in zip(self.blocks, state, strict=True):
            x, new_memory = block.step(x, memory)
            new_state.append(new_memory)
        return x, new_state

    def _embed(self, history: History) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"] | None]:
        """What enters the blocks, and the positions that attention sees; None for those up to its own."""
        if self.form == "unmasked":  # as the authors' batches, which are all of one width
            history = history.padded(self.max_length)
        positions = self.positions.first(history.items.shape[1]) if self.positions else None
        x: Tensor = self.embedding(history.items, positions)
        if self.form == "causal":
            return x, None
        mask = history.mask()
        return x, mask if self.form == "bidirectional" else torch.ones_like(mask)

    def _require_causal(self) -> None:
        if not self.causal:
            raise NotImplementedError(f"RecGRELA has no recurrent form with model.form={self.form}; use form=causal")


class Block(nn.Module):
    """Gated attention, then an MLP, each on normalised input and each with a residual (or neither)."""

    def __init__(
        self,
        attention: GatedAttention,
        *,
        dim: int,
        mlp_dim: int,
        mlp_activation: str,
        dropout: float,
        drop_path: float,
        residual: bool,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = attention
        self.drop_path = DropPath(drop_path)
        self.mlp_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = FeedForward(dim=dim, inner_dim=mlp_dim, dropout=dropout, activation=ACTIVATIONS[mlp_activation])
        self.residual = residual

    def forward(self, x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B L D"]:
        """The block's output; each position sees those of `seen`, or those up to its own if that is None."""
        return self._join(x, self.drop_path(self.attention(self.attention_norm(x), seen)))

    def read(
        self, x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None, history: History
    ) -> Float[Tensor, "B D"]:
        """The output at each history's last item only; other positions are computed only as far as it needs them."""
        attended = self.attention.read(self.attention_norm(x), seen, history)
        return self._join(last_states(x, history), self.drop_path(attended))

    def step(self, x: Float[Tensor, "B D"], state: BlockState) -> tuple[Float[Tensor, "B D"], BlockState]:
        """One position of the causal form."""
        attended, state = self.attention.step(self.attention_norm(x), state)
        return self._join(x, self.drop_path(attended)), state

    def _join(self, x: Float[Tensor, "*shape D"], attended: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        x = x + attended if self.residual else attended
        y: Tensor = self.mlp(self.mlp_norm(x))
        return x + y if self.residual else y


class DropPath(nn.Module):
    """Zeros for a whole row of the batch at random and the rest scaled up, in training.

    Source:
        Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Float[Tensor, " B *shape"]) -> Float[Tensor, " B *shape"]:
        """`x`, some rows of it zero."""
        if not self.training or self.probability == 0.0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.probability
        return x * (kept / (1 - self.probability)).to(x.dtype)
