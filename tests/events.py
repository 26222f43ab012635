"""Events as workers send them."""

STEP = {
    "kind": "step", "epoch": 2, "step": 40, "progress": 1.5, "share_done": 0.25, "loss": 6.54321,
    "learning_rate": 0.001, "targets_per_s": 12345.6, "tokens_per_s": 23456.7, "padding_share": 0.125,
    "data_wait_share": 0.0123, "elapsed_s": 61.0, "left_s": 3725.0,
}  # fmt: skip
VALIDATION = {
    "kind": "validation", "epoch": 2, "step": 50, "elapsed_s": 75.4, "is_best": True, "validation/hr@5": 0.2,
    "validation/hr@10": 0.3, "validation/hr@100": 0.9, "validation/ndcg@10": 0.15555, "validation/mrr@10": 0.1,
}  # fmt: skip
NOTE = {"kind": "note", "text": "one worker was lost; going on from epoch 2"}
