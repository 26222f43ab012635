import pytest
import torch
import torch.nn.functional as F

from raysrec.history import HIDDEN, History
from raysrec.models.bert4rec import BERT4Rec, BERT4RecConfig

ML_1M_ITEMS = 3416


def history_of(*rows: list[int]) -> History:
    lengths = torch.tensor([len(row) for row in rows])
    items = torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in rows])
    return History(items, torch.zeros_like(items), lengths)


def test_it_has_recboles_number_of_parameters() -> None:
    model = BERT4Rec(BERT4RecConfig(), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == 339_353
    assert len(model.embedding.table.weight) == ML_1M_ITEMS + 2
    assert len(model.item_vectors()) == len(model.item_bias()) == ML_1M_ITEMS + 1


def test_it_is_its_equations() -> None:
    torch.manual_seed(0)
    model = BERT4Rec(BERT4RecConfig(dim=8, max_length=6, mlp_dim=12), 20).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    e = model.embedding
    x = e.norm(e.table.weight[[4, 21, 4, 17]] + e.positions.weight[:4])  # 21 is the mask's row
    for layer in model.layers:
        a = layer.attention
        q, k, v = (part(x).view(4, 2, 4).transpose(0, 1) for part in (a.query, a.key, a.value))  # [H L E]
        mixed = (F.softmax(q @ k.mT / 2, dim=-1) @ v).transpose(0, 1).reshape(4, 8)
        z = layer.attention_norm(x + a.output(mixed))
        x = layer.feed_forward_norm(z + layer.feed_forward.contract(F.gelu(layer.feed_forward.expand(z))))
    expected = model.head_norm(F.gelu(model.head(x)))
    # The other row makes this one padded.
    states = model.encode(history_of([4, HIDDEN, 4, 17], [1, 2, 3, 4, 5, 6]))
    torch.testing.assert_close(states[0, :4], expected)


@pytest.mark.parametrize(
    ("makes_room", "expected"),
    [
        ("if_full", [[7, HIDDEN, 0, 0], [1, 2, HIDDEN, 0], [3, 4, 5, HIDDEN], [7, 8, 9, HIDDEN]]),
        ("always", [[HIDDEN, 0, 0, 0], [2, HIDDEN, 0, 0], [4, 5, HIDDEN, 0], [7, 8, 9, HIDDEN]]),
    ],
)
def test_the_oldest_item_makes_room_for_the_hidden_one(makes_room: str, expected: list[list[int]]) -> None:
    config = BERT4RecConfig.model_validate({"max_length": 4, "oldest_makes_room": makes_room})
    asked = BERT4Rec(config, 20).with_next_hidden(history_of([7], [1, 2], [3, 4, 5], [6, 7, 8, 9]))
    assert asked.items.tolist() == expected
    assert asked.lengths.tolist() == [sum(item != 0 for item in row) for row in expected]


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("max_length", [3, 5])
def test_reading_is_encoding_with_a_hidden_item_after_the_last(num_layers: int, max_length: int) -> None:
    model = BERT4Rec(BERT4RecConfig(dim=16, max_length=max_length, num_layers=num_layers), 20).double().eval()
    read = model.read(history_of([7, 2, 5], [3]))
    last = [2, 5] if max_length == 3 else [7, 2, 5]
    torch.testing.assert_close(read[0], model.encode(history_of([*last, HIDDEN]))[0, -1])
    torch.testing.assert_close(read[1], model.encode(history_of([3, HIDDEN]))[0, -1])


def test_the_oldest_item_of_a_short_history_matters_unless_it_always_makes_room() -> None:
    for makes_room, matters in (("if_full", True), ("always", False)):
        config = BERT4RecConfig.model_validate({"max_length": 9, "oldest_makes_room": makes_room})
        model = BERT4Rec(config, 20).eval()
        assert torch.equal(model.read(history_of([1, 2, 3])), model.read(history_of([5, 2, 3]))) != matters
