import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.history import History
from raysrec.models.sasrec import SASRec, SASRecConfig

ML_1M_ITEMS = 3416


def histories(lengths: list[int], num_items: int, width: int) -> History:
    items = torch.randint(1, num_items + 1, (len(lengths), width))
    items[torch.arange(width) >= torch.tensor(lengths)[:, None]] = 0
    return History(items, torch.zeros_like(items), torch.tensor(lengths))


def attended(q: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """One position's attention to others, head by head."""
    heads = zip(q.chunk(num_heads), keys.chunk(num_heads, -1), values.chunk(num_heads, -1), strict=True)
    return torch.cat([F.softmax(k @ q_h / len(q_h) ** 0.5, dim=0) @ v for q_h, k, v in heads])


def test_it_has_recboles_number_of_parameters() -> None:
    model = SASRec(SASRecConfig(), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == 331_584


def test_it_is_its_equations() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=8, max_length=6, mlp_dim=12), 20).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    items = torch.tensor([4, 9, 4, 17, 2])
    e = model.embedding
    x = e.norm(e.table.weight[items] + e.positions.weight[:5])
    for layer in model.layers:
        a = layer.attention
        q, k, v = a.query(x), a.key(x), a.value(x)
        mixed = torch.stack([attended(q[t], k[: t + 1], v[: t + 1], 2) for t in range(5)])
        z = layer.attention_norm(x + a.output(mixed))
        f = layer.feed_forward
        x = layer.feed_forward_norm(z + f.contract(F.gelu(f.expand(z))))
    history = History(items[None], torch.zeros(1, 5, dtype=torch.long), torch.tensor([5]))
    torch.testing.assert_close(model.encode(history)[0], x)


def test_the_feed_forward_network_drops_its_output_only() -> None:
    layer = SASRec(SASRecConfig(dropout=0.3), 20).layers[0]
    assert (layer.feed_forward.inner_dropout.probability, layer.feed_forward.dropout.probability) == (0.0, 0.3)


def test_attention_drops_as_the_rest_does_unless_told_otherwise() -> None:
    assert SASRec(SASRecConfig(dropout=0.3), 20).layers[0].attention.dropout == 0.3
    assert SASRec(SASRecConfig(dropout=0.3, attention_dropout=0.1), 20).layers[0].attention.dropout == 0.1


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.dim=64 does not split into model.num_heads=3 equal heads"):
        SASRecConfig(num_heads=3)
