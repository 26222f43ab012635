"""A trained model as two files, to use wherever there is raysrec: weights.safetensors, and model.json for what it is.

No code is run by loading one, and it needs no run beside it.
"""

import json
from collections.abc import Mapping
from json import JSONDecodeError
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from raysrec.errors import LastingError
from raysrec.models import MODELS, ModelConfig, SequenceModel, build_model
from raysrec.place import AnyPath, Place
from raysrec.tensor_file import save_tensors

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"

_TRAIN_AGAIN = "copy it again from where it was trained, or train again with --fresh"


class SavedModelError(LastingError):
    """A folder that holds no whole model of this raysrec."""


def save_model(
    directory: AnyPath, config: ModelConfig, num_items: int, weights: Mapping[str, Tensor], *, num_users: int = 0
) -> None:
    """Write both files; the description comes last and says that the weights are whole.

    Args:
        directory: Where to.
        config: What the model is.
        num_items: Of its catalogue.
        weights: Its `state_dict()`.
        num_users: For how many users it has vectors.
    """
    directory = Place.of(directory)
    description = {"model": config.model_dump(mode="json"), "num_items": num_items, "num_users": num_users}
    save_weights(weights, directory / WEIGHTS)
    (directory / DESCRIPTION).write(json.dumps(description, indent=2) + "\n")


def is_saved(directory: AnyPath) -> bool:
    """Is there a whole model in the folder?"""
    return (Place.of(directory) / DESCRIPTION).is_file()


def load_model(directory: AnyPath) -> SequenceModel:
    """The model that `save_model` wrote, on the CPU, ready to encode.

    Raises:
        SavedModelError: There is no whole model in the folder.
    """
    directory = Place.of(directory)
    try:
        description = json.loads((directory / DESCRIPTION).read_text())
        with (directory / WEIGHTS).at_hand() as file:
            weights = load_file(file)
    except FileNotFoundError:
        raise SavedModelError(f"{directory}: holds no model yet; let its training finish first") from None
    except (SafetensorError, UnicodeDecodeError, JSONDecodeError, RecursionError) as error:
        raise SavedModelError(
            f"{directory}: its model.json or weights.safetensors is damaged ({error}); {_TRAIN_AGAIN}"
        ) from None
    model = _described(description, directory / DESCRIPTION)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SavedModelError(f"{directory}: its weights are of another model ({reason}); {_TRAIN_AGAIN}") from None
    return model.eval()


def _described(description: Any, file: Place) -> SequenceModel:
    """The model, with random weights, that a `model.json` describes."""
    try:
        settings = description["model"]
        kind = MODELS[settings["name"]]
        if kind.has_user_vectors and "num_users" not in description:
            raise SavedModelError(f"{file}: does not say num_users, for how many users there are vectors")
        config = kind.Config.model_validate(settings)
        return build_model(config, int(description["num_items"]), int(description.get("num_users", 0)))
    except SavedModelError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        raise SavedModelError(f"{file}: describes no model of this raysrec ({error!r}); {_TRAIN_AGAIN}") from None


def save_weights(weights: Mapping[str, Tensor], path: AnyPath) -> None:
    """Write weights as safetensors; a kill leaves the old file or the new one, never half of one."""
    with Place.of(path).replacing() as temporary:
        save_tensors({name: value.contiguous() for name, value in weights.items()}, temporary)
