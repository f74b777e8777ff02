"""Do the running statistics of batch normalisation describe the data that the network sees now?"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """All batch normalisation layers with running statistics, by name, in the order of definition."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_var is not None
    }


def taken_in(model: nn.Module, steps: float) -> float | None:
    """The smallest share of any layer's running statistics that comes from `steps` training batches, 0 to 1.

    1 - (1 - momentum)^steps; the rest is what the statistics were before. None without running statistics.
    """
    momenta = [1.0 if norm.momentum is None else norm.momentum for norm in batch_norms(model).values()]
    return min((1.0 - (1.0 - momentum) ** steps for momentum in momenta), default=None)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics by the cumulative average over `batches` of inputs (B, 3, H, W).

    Only normalisation layers are in train mode meanwhile; modes and momentum are restored. Returns the number
    of batches seen; without any, nothing changes.
    """
    norms = list(batch_norms(model).values())
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    count = 0
    model.eval()
    try:
        for batch in batches:
            if count == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None
                    norm.train()
            model(batch)
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    return count
