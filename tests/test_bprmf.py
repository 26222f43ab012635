import torch

from raysrec.history import History
from raysrec.models.bprmf import BPRMF, BPRMFConfig


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def history() -> History:
    items = torch.tensor([[3, 1, 4], [5, 0, 0]])
    return History(items, torch.zeros_like(items), torch.tensor([3, 1]), users=torch.tensor([4, 2]))


def test_it_has_a_vector_for_each_user_and_item_of_ml_1m() -> None:
    assert size(BPRMF(BPRMFConfig(), num_items=3_416, num_users=6_040)) == 605_312


def test_a_score_is_the_product_of_two_vectors_at_every_position() -> None:
    model = BPRMF(BPRMFConfig(dim=5), num_items=7, num_users=4)
    scores = model.encode(history()) @ model.item_vectors().T
    for row, user in enumerate((4, 2)):
        expected = torch.stack([model.users.table.weight[user] @ model.items.weight[item] for item in range(8)])
        torch.testing.assert_close(scores[row], expected.expand(3, 8))


def test_it_starts_as_xavier_says() -> None:
    model = BPRMF(BPRMFConfig(dim=64), num_items=999, num_users=499)
    for table, rows in ((model.items, 1_000), (model.users.table, 500)):
        torch.testing.assert_close(table.weight.std(), torch.tensor((2 / (rows + 64)) ** 0.5), rtol=0.03, atol=0)


def test_without_history_it_knows_a_user_all_the_same() -> None:
    model, past = BPRMF(BPRMFConfig(), num_items=7, num_users=4), history()
    other = History(past.items.flip(0), past.times, past.lengths.flip(0), past.users)
    assert torch.equal(model.read(past), model.read(other))
