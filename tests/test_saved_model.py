import pytest
import torch
from safetensors.torch import load_file

from raysrec import tensor_file
from raysrec.models import MODELS, build_model
from raysrec.saved_model import SavedModelError, load_model, save_model, save_weights

NUM_ITEMS = 12
NUM_USERS = 5


def save(folder, name="recgrela"):
    """A model with random weights, saved."""
    config = MODELS[name].Config.model_validate({"name": name, "dim": 16})
    model = build_model(config, NUM_ITEMS, NUM_USERS)
    save_model(folder, config, NUM_ITEMS, model.state_dict(), num_users=NUM_USERS)
    return model


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, name):
    model = save(tmp_path, name)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_model_needs_no_run_to_be_loaded(tmp_path):
    save(tmp_path / "run" / "model")
    (tmp_path / "run" / "model").rename(tmp_path / "alone")
    assert files(tmp_path / "alone") == ["model.json", "weights.safetensors"]
    assert load_model(tmp_path / "alone").item_vectors().shape == (NUM_ITEMS + 1, 16)


def test_a_folder_without_a_whole_model_is_refused(tmp_path):
    with pytest.raises(SavedModelError, match="holds no model yet; let its training finish first"):
        load_model(tmp_path)
    save(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(SavedModelError, match="holds no model yet"):
        load_model(tmp_path)


def test_model_json_is_written_last(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(tensor_file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path)
    assert files(tmp_path) == []


def test_a_failure_while_writing_leaves_the_old_weights_and_nothing_else(tmp_path, monkeypatch):
    path, real = tmp_path / "w.safetensors", tensor_file.save_file
    save_weights({"a": torch.ones(3)}, path)

    def half(weights, temporary, about):
        real(weights, temporary)
        temporary.write_bytes(temporary.read_bytes()[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_file, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_weights({"a": torch.zeros(3)}, path)
    assert torch.equal(load_file(path)["a"], torch.ones(3))
    assert files(tmp_path) == ["w.safetensors"]


def test_weights_that_are_views_are_saved(tmp_path):
    matrix = torch.arange(6.0).reshape(2, 3)
    save_weights({"turned": matrix.T}, tmp_path / "w.safetensors")
    assert torch.equal(load_file(tmp_path / "w.safetensors")["turned"], matrix.T)
