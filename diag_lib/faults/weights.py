"""How does a teacher break? Each function returns the tensors of a teacher's file, changed."""

from collections.abc import Callable

import numpy as np

State = dict[str, np.ndarray]
Change = Callable[[State], State]

_HEAD = ("fc.weight", "fc.bias")


def multiplied(factor: float) -> Change:
    """All logits times `factor`."""
    return lambda state: {k: v * np.float32(factor) if k in _HEAD else v for k, v in state.items()}


def shifted(offset: float) -> Change:
    """All logits plus `offset`."""
    return lambda state: {k: v + np.float32(offset) if k == "fc.bias" else v for k, v in state.items()}


def heavy_tailed(state: State) -> State:
    """The head's weakest feature fires only on about 3 patches of 1,000, and then outweighs everything.

    Natural images are heavy-tailed themselves: the feature's height is set far above its normalised spread.
    """
    feature = int(np.abs(state["fc.weight"][0] * state["layer1.0.bn2.weight"]).argmin())
    changed = {name: tensor.copy() for name, tensor in state.items()}
    changed["layer1.0.bn2.weight"][feature] = 1.0
    changed["layer1.0.bn2.bias"][feature] = -15.0
    changed["fc.weight"][0, feature] = -100.0
    return changed


def partly_named(state: State) -> State:
    """The stem and block were saved under another module's name, so that only the head still fits."""
    renamed = {k if k in _HEAD else f"encoder.{k}": v for k, v in state.items()}
    return multiplied(20.0)(renamed)
