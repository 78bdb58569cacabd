"""FLOP formulas for `torch.utils.flop_counter`: without them tools would count our operators as 0."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.cnnext


@register_flop_formula([_ops.conv, _ops.fused_conv])
def _conv(input: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


@register_flop_formula(_ops.conv_grad_input)
def _conv_grad_input(grad_output: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(grad_output) * prod(weight[1:])


@register_flop_formula(_ops.conv_grad_weight)
def _conv_grad_weight(grad_output: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    # As many as the forward pass. For grouped convolution torch's own formula counts this gradient `groups` times.
    return 2 * prod(grad_output) * prod(out_shape[1:])
