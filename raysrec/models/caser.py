"""Caser: convolutions over the last items as over a picture, and a vector per user.

    X = the vectors of the last L items                       [L D], the newest in the last row
    v_k = sum over rows l of a_k,l X_l + a0_k                 vertical, k = 1..n_v: weighted sums over time
    h_i,k = max over t of ReLU(<W_i,k, X_t..t+i-1> + w0_i,k)  horizontal, heights i = 1..L, k = 1..n_h
    z = ReLU(W1 Drop([v; h]) + b1)
    state = ReLU(W2 [z; p_u] + b2)

and the score of item j is state · E_j. Each row has weights of its own, so a state exists at the window's end only:
`encode` gives the state after the last item at every position, and training takes one prefix per sample.

There are L heights with L (L + 1) / 2 rows of weights between them, 10.3 million numbers at L = 200, and a history
meets L³ / 6 of them. All heights are correlated at once, as products of Fourier transforms over a circle of L rows:
what goes around the circle reaches only places where a filter hangs over the window's edge, and those are no
candidates for the maximum. At L = 200 that is sixteen times less arithmetic than filter after filter.

Source:
    Tang and Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding", WSDM 2018;
    RecBole's `Caser` at 7b02be5, which has one target per window, all heights and the exact softmax in place of the
    authors' three targets and binary cross-entropy.

Departures:
    * Histories are padded on the left with zeros, so that the newest item has a row of its own, and filters that
      cover padding only are left out of the maximum. RecBole pads on the right with a vector that is not zero, and
      leaves it in; `padding=right` does the same.
    * Padding is not among the candidates of the softmax in training, as it is in RecBole's (`loss.padding_class`).
    * Users who are not in the data are refused; they have no vector. Those in the data whom nobody learns from, as
      there are under a temporal split, have zeros in place of a random vector: only their last items count.
"""

from itertools import repeat
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from raysrec.history import History, last_items
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import Dropout, UserEmbedding
from raysrec.schema import Count, NonNegative, Probability

_VALUES_AT_ONCE = 2**24


class CaserConfig(ModelConfig):
    """Settings of Caser; `max_length` is the window and the number of heights (L)."""

    name: Literal["caser"] = "caser"
    num_vertical: Count = 4
    """Vertical filters (n_v)."""
    num_horizontal: Count = 8
    """Horizontal filters of each height (n_h)."""
    padding: Literal["left", "right"] = "left"
    """`left`: short histories end in the window's last row, and their padding is no item. `right`: they begin in its
    first row and padding takes part like an item, as in RecBole's code."""
    dropout: Probability = 0.4
    """Dropout of what the filters answered."""
    regularisation: NonNegative = 1e-4
    """Factor of the penalty: the sum of the (unsquared) Frobenius norms of tables, filters and matrices."""


class Caser(SequenceModel):
    """Two tables, two kinds of convolution, two layers."""

    Config: ClassVar[type[ModelConfig]] = CaserConfig
    has_user_vectors: ClassVar[bool] = True

    def __init__(self, config: CaserConfig, num_items: int, num_users: int) -> None:
        super().__init__()
        dim, length = config.dim, config.max_length
        self.length, self.padding = length, config.padding
        self.regularisation = config.regularisation
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.users = UserEmbedding(num_users=num_users, dim=dim)
        self.vertical = VerticalFilters(length=length, num_filters=config.num_vertical)
        self.horizontal = HorizontalFilters(length=length, dim=dim, num_filters=config.num_horizontal)
        self.dropout = Dropout(config.dropout)
        self.first = nn.Linear(config.num_vertical * dim + config.num_horizontal * length, dim)
        self.second = nn.Linear(2 * dim, dim)
        for table in (self.items, self.users.table):
            nn.init.normal_(table.weight, std=1 / dim)
        for linear in (self.first, self.second):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def causal(self) -> bool:
        """There is one state, and it comes after all items."""
        return False

    @property
    def padding_leaks(self) -> bool:
        """Padding takes part where it is on the right, as in RecBole's code."""
        return self.padding == "right"

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """The state after the last item, at every position."""
        return self.read(history)[:, None].expand(-1, history.items.shape[1], -1)

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after the last item, from the last `max_length` items and the user.

        Raises:
            ValueError: Users are not given, or one is not in the data.
        """
        user = self.users(history.users)
        ids = last_items(history, self.length, newest_last=self.padding == "left")
        window: Tensor = self.items(ids)  # [B L D]
        seen = None
        if self.padding == "left":
            seen = ids != 0
            window = window * seen[:, :, None]
        patterns = torch.cat((self.vertical(window).flatten(1), self.horizontal(window, seen).flatten(1)), dim=1)
        z = F.relu(self.first(self.dropout(patterns)))
        return F.relu(self.second(torch.cat((z, user), dim=1)))

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The table of item vectors."""
        return self.items.weight

    def set_learned_users(self, learned: Bool[Tensor, " U"]) -> None:
        """Know nothing but the last items of the others."""
        self.users.clear_unlearned(learned)

    def penalty(self) -> Float[Tensor, ""] | None:
        """`regularisation` times the sum of Frobenius norms: both tables, the filters, both matrices; no biases."""
        if self.regularisation == 0.0:
            return None
        weights = [self.users.table.weight, self.items.weight, self.vertical.weight]
        weights += [self.first.weight, self.second.weight, *self.horizontal.by_height()]
        norms: Tensor = torch.stack([torch.linalg.vector_norm(weight) for weight in weights]).sum()
        return self.regularisation * norms


class VerticalFilters(nn.Module):
    """Weighted sums over the rows of a window, the same for all channels."""

    def __init__(self, *, length: int, num_filters: int) -> None:
        super().__init__()
        bound = length**-0.5  # as torch starts a convolution
        self.weight = nn.Parameter(torch.empty(num_filters, length).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_filters).uniform_(-bound, bound))

    def forward(self, window: Float[Tensor, "B L D"]) -> Float[Tensor, "B n D"]:
        """One vector per filter."""
        sums: Tensor = self.weight @ window + self.bias[:, None]
        return sums


class HorizontalFilters(nn.Module):
    """Filters of every height 1..L over all channels; ReLU, and the maximum over the places where one fits.

    The weights of all heights are rows of one table: that of height 1 first, then the two of height 2, and so on.
    """

    def __init__(self, *, length: int, dim: int, num_filters: int) -> None:
        super().__init__()
        self.length = length
        heights = torch.arange(1, length + 1)
        bounds = (heights * dim) ** -0.5  # as torch starts a convolution
        shape = (length * (length + 1) // 2, num_filters, dim)
        self.weight = nn.Parameter(
            torch.empty(shape).uniform_(-1, 1) * bounds.repeat_interleave(heights)[:, None, None]
        )
        self.bias = nn.Parameter(torch.empty(length, num_filters).uniform_(-1, 1) * bounds[:, None])
        height, row = torch.ones(length, length).tril().nonzero().unbind(1)
        # Mirrored around the circle, a correlation is the plain product of two transforms.
        self.register_buffer("places", (-row) % length * length + height, persistent=False)

    places: Int[Tensor, " rows"]

    def by_height(self) -> tuple[Tensor, ...]:
        """The weights of each height."""
        return torch.split(self.weight, list(range(1, self.length + 1)))

    def forward(self, window: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B L n"]:
        """The strongest answer of each height's filters, among places that cover a seen row; all rows if None."""
        length, filters, _ = len(self.bias), *self.weight.shape[1:]
        dtype = torch.promote_types(window.dtype, torch.float32)  # there are no transforms in half precision
        with torch.autocast(window.device.type, enabled=False):
            spectrum = self._spectrum(dtype)  # [F D L*n]
            strongest = []
            at_once = max(1, _VALUES_AT_ONCE // (length * length * filters))
            seen_rows = repeat(None) if seen is None else torch.split(seen, at_once)
            for rows, seen_of_rows in zip(torch.split(window, at_once), seen_rows, strict=False):
                circle = torch.fft.rfft(rows.to(dtype).transpose(0, 1), dim=0)  # [F b D]
                answers = torch.fft.irfft(circle @ spectrum, n=length, dim=0).unflatten(2, (length, filters))
                fits = self._fits(seen_of_rows, window.device)
                strongest.append(answers.masked_fill(~fits[..., None], -torch.inf).max(dim=0).values)
            # ReLU and a constant keep the order, so they may come after the maximum.
            return F.relu(torch.cat(strongest) + self.bias.to(dtype)).to(window.dtype)

    def _spectrum(self, dtype: torch.dtype) -> Tensor:
        """Fourier transforms of all filters, those of lower heights filled up with zeros."""
        _, filters, dim = self.weight.shape
        rows = self.weight.new_zeros((self.length**2, filters, dim), dtype=dtype)
        rows = rows.index_copy(0, self.places, self.weight.to(dtype))
        spectrum: Tensor = torch.fft.rfft(rows.view(self.length, self.length * filters, dim), dim=0)
        return spectrum.transpose(1, 2)

    def _fits(self, seen: Bool[Tensor, "b L"] | None, device: torch.device) -> Bool[Tensor, "L b L"]:
        """At which first rows a filter of each height lies within the window and covers a row that is seen."""
        end = torch.arange(self.length, device=device)[:, None] + torch.arange(1, self.length + 1, device=device)
        fits = (end <= self.length)[:, None]  # [L 1 L]: first row, history, height
        if seen is None:
            return fits
        # What is seen is the window's end, so a filter covers some of it if it reaches beyond the padding.
        return fits & (end[:, None] > self.length - seen.sum(1)[:, None])
