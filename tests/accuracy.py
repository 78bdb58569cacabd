"""What tests of accuracy allow beside torch's own error."""

from __future__ import annotations

import torch

from cnnext.bench.layer_bench import limit


def capped(torchs: float, scale: float, dtype: torch.dtype, depth: int, device: str = "cpu") -> float:
    """Torch's error, but at most that of a right sum of ``depth`` products: some of torch's are wrong or not finite.

    Args:
        torchs: absolute error.
        scale: what errors of results are relative to.
    """
    return min(scale * limit(dtype, depth, torch.device(device)), torchs)  # in this order NaN is left out
