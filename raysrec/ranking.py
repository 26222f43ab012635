"""Ranks of targets, and top-k: arithmetic on scores.

Nothing here knows models, files or workers. One number per user comes out of `rank_of_target`; every metric is a
function of that number, in `metrics.py`.

Scores are added up in float64. In float32 the last digits of a matrix product depend on the shape of the matrices,
so that two items with one vector would tie in one chunk and not in another, and a rank would depend on chunks and
workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

TIE = 2.0**-23
"""Two scores are a tie when they are closer than this share of |state| * |target's vector| + |target's bias|: the
resolution of float32, which is far above what float64 loses on the way, whatever the order of summation."""

_SCORES_AT_ONCE = 2**22


@torch.no_grad()
def rank_of_target(
    states: Float[Tensor, "B D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " B"],
    bias: Float[Tensor, " V"] | None = None,
    seen: Int[Tensor, "E 2"] | None = None,
    *,
    items_per_chunk: int = 65_536,
) -> Int[Tensor, " B"]:
    """Rank each user's target among all items; 1 is best.

    The rank is one plus the number of other candidates that score at least as high. A tie counts against the
    target, so a model that scores all items alike ranks last; so do a score that is not a number (another item's
    counts against the target, the target's own ranks last) and a target whose own score is infinite.

    Args:
        states: The state after each user's last item.
        vectors: Row i is item i; row 0 (padding) is skipped.
        targets: Item ids, 1..N.
        bias: A number added to each item's score.
        seen: Pairs (row of `states`, item id) that are no candidates, in any order; repetitions and item 0 do no
            harm. A user's own target stays a candidate when it is among them: it was consumed again.
        items_per_chunk: Items scored at once, against as many users as give 4 Mi scores: about 100 MiB however
            many users and items there are (230 MiB for `top_items`).

    Raises:
        ValueError: A target is not an item 1..N, or a seen pair names a row or an item that does not exist.

    Source:
        Krichene and Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020: why no candidate is sampled.
    """
    _check(targets, 1, len(vectors), "targets")
    lowest_tie = _lowest_tie(states.double(), vectors[targets].double(), None if bias is None else bias[targets])
    ranks = torch.ones_like(targets, dtype=torch.int64)
    own = torch.stack((torch.arange(len(targets), device=targets.device), targets.long()), dim=1)
    left_out = own if seen is None else torch.cat((own, seen.long()))
    for block in _blocks(states, vectors, bias, left_out, items_per_chunk):
        # "Not below" and not "at least": a comparison with NaN is false, and must count against the target.
        against = (block.scores < lowest_tie[block.users, None]).logical_not_()
        against[block.left_out] = False
        ranks[block.users] += against.count_nonzero(1)
    return ranks


@torch.no_grad()
def top_items(
    states: Float[Tensor, "B D"],
    vectors: Float[Tensor, "V D"],
    k: int,
    bias: Float[Tensor, " V"] | None = None,
    seen: Int[Tensor, "E 2"] | None = None,
    *,
    items_per_chunk: int = 65_536,
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """Each user's k items of highest score, best first, and their scores in float32.

    Among equal float32 scores the lower item id comes first, so the answer does not depend on chunks or partition.
    A user with fewer than k candidates gets item 0 with score -inf in the places left over. An item whose score is
    -inf or not a number is no candidate.

    Args:
        states: The state after each user's last item.
        vectors: Row i is item i; row 0 (padding) is skipped.
        k: Length of a recommendation list.
        bias: A number added to each item's score.
        seen: Pairs (row of `states`, item id) that are not recommended, in any order.
        items_per_chunk: Items scored at once, as in `rank_of_target`.

    Raises:
        ValueError: k is below 1, or a seen pair names a row or an item that does not exist.
    """
    if k < 1:
        raise ValueError(f"k={k}: a recommendation list has at least one item")
    best = torch.full((len(states), k), _NO_ITEM, dtype=torch.int64, device=states.device)
    for block in _blocks(states, vectors, bias, seen, items_per_chunk):
        keys = _to_keys(block.scores.float(), first_item=block.items.start)
        keys[block.left_out] = _NO_ITEM
        found = keys.topk(min(k, keys.shape[1]), dim=1).values
        best[block.users] = torch.cat((best[block.users], found), dim=1).topk(k, dim=1).values
    return _from_keys(best)


def _lowest_tie(
    states: Float[Tensor, "B D"], vectors: Float[Tensor, "B D"], bias: Float[Tensor, " B"] | None
) -> Float[Tensor, " B"]:
    """The lowest score that is a tie with the score of each state's own target. NaN where that is not finite."""
    score, size = (states * vectors).sum(1), states.norm(dim=1) * vectors.norm(dim=1)
    if bias is not None:
        score, size = score + bias, size + bias.abs()
    lowest: Tensor = score - TIE * size
    return lowest


@dataclass(frozen=True)
class _Block:
    """Some users' scores for some items, and which of them are no candidates."""

    users: slice
    items: slice
    scores: Float[Tensor, "b n"]
    left_out: tuple[Tensor, Tensor]
    """Rows and columns of `scores`."""


def _blocks(
    states: Tensor, vectors: Tensor, bias: Tensor | None, left_out: Tensor | None, items_per_chunk: int
) -> Iterator[_Block]:
    """All users' scores for items 1..N in float64, block by block; the scores of a block are gone with the next."""
    num_users, num_rows = len(states), len(vectors)
    if items_per_chunk < 1:
        raise ValueError(f"items_per_chunk={items_per_chunk}: a chunk has at least one item")
    pairs = _PairsByBlock(left_out, num_users, num_rows, items_per_chunk, states.device)
    exact_states = states.double()
    users_per_block = max(1, _SCORES_AT_ONCE // min(items_per_chunk, num_rows))
    for first_item in range(1, num_rows, items_per_chunk):
        items = slice(first_item, min(first_item + items_per_chunk, num_rows))
        columns = vectors[items].double().T
        for first_user in range(0, num_users, users_per_block):
            users = slice(first_user, min(first_user + users_per_block, num_users))
            scores = exact_states[users] @ columns
            if bias is not None:
                scores += bias[items]
            yield _Block(users, items, scores, pairs.within(users, items))


class _PairsByBlock:
    """Pairs (row, item), sorted so that those of one block lie together."""

    def __init__(
        self, pairs: Tensor | None, num_users: int, num_rows: int, items_per_chunk: int, device: torch.device
    ) -> None:
        pairs = torch.zeros(0, 2, dtype=torch.int64, device=device) if pairs is None else pairs.long()
        _check(pairs[:, 0], 0, num_users, "rows of seen")
        _check(pairs[:, 1], 0, num_rows, "items of seen")
        pairs = pairs[pairs[:, 1] != 0]
        self.num_users, self.items_per_chunk = num_users, items_per_chunk
        order = (pairs[:, 1] - 1) // items_per_chunk * num_users + pairs[:, 0]
        self.keys, positions = order.sort()
        self.pairs = pairs[positions]

    def within(self, users: slice, items: slice) -> tuple[Tensor, Tensor]:
        """Rows and columns of these users' pairs in these items' chunk, counted from the block's corner."""
        chunk_key = (items.start - 1) // self.items_per_chunk * self.num_users
        ends = torch.tensor([chunk_key + users.start, chunk_key + users.stop], device=self.keys.device)
        start, stop = torch.searchsorted(self.keys, ends).tolist()
        rows, columns = self.pairs[start:stop].unbind(1)
        return rows - users.start, columns - items.start


def _to_keys(scores: Float[Tensor, "b n"], *, first_item: int) -> Int[Tensor, "b n"]:
    """Whole numbers that are ordered like (score, then lower item id), no two alike: a top-k of them has no ties."""
    # Adding zero makes -0.0 equal to 0.0.
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).add_(0.0)
    items = torch.arange(first_item, first_item + scores.shape[1], device=scores.device)
    return (_flip(scores.view(torch.int32)).long() << 32) + (2**31 - items)


def _from_keys(keys: Int[Tensor, "B K"]) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """The items and scores that `_to_keys` put together."""
    return 2**31 - (keys & (2**32 - 1)), _flip((keys >> 32).int()).view(torch.float32)


def _flip(bits: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The bits of float32 numbers as whole numbers in the same order, and back."""
    return torch.where(bits >= 0, bits, bits ^ (2**31 - 1))


_NO_ITEM = int(_to_keys(torch.tensor([[-torch.inf]]), first_item=0))


def _check(numbers: Tensor, low: int, end: int, what: str) -> None:
    if len(numbers) and not (int(numbers.min()) >= low and int(numbers.max()) < end):
        raise ValueError(f"{what} are {int(numbers.min())}..{int(numbers.max())}, but must be {low}..{end - 1}")
