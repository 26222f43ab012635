"""How large the tensors are that some code makes."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """How many values the largest floating-point tensor has that any operator makes."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = (each for each in tree_leaves(made) if isinstance(each, Tensor) and each.is_floating_point())
        self.values = max(self.values, *(each.numel() for each in tensors), 0)
        return made
