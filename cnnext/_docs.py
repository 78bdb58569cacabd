"""Docstrings of the functional interface: one text per family of functions, filled in for each number of dimensions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

_Callable = TypeVar("_Callable", bound=Callable[..., Any])

_AXES = {1: ("W", "S", "Q"), 2: ("H, W", "R, S", "P, Q"), 3: ("D, H, W", "T, R, S", "O, P, Q")}

_TEXTS = {
    "conv": (
        """
    Args:
        input: [N, C, {input}] or [C, {input}]
        weight: [K, C / groups, {kernel}]
        bias: [K]
        stride, dilation: a number or one per axis
        padding: likewise, or 'valid' (none) or 'same' (the output is as large as the input; stride 1 only)
        groups: divides C and K

    Returns:
        [N, K, {output}], channels last if input or weight is""",
        "conv{dims}d(torch.ones(1, 3, {eights}), torch.ones(4, 3, {threes}), padding=1)",
        "[1, 4, {eights}]",
    ),
    "fused_conv": (
        """
    Without a gradient the addition and the activation are computed as the convolution stores its results; in float32
    and float64 results are bitwise those of one step after the other. On GPUs, and where a gradient is wanted, these
    are taken.

    Args:
        input, weight, bias, stride, padding, dilation, groups: those of `conv{dims}d`
        residual: [N, K, {output}], or what can be added to that
        activation: "none", "relu", "relu6" or "leaky_relu"
        negative_slope: of "leaky_relu"

    Returns:
        [N, K, {output}], channels last if input or weight is""",
        "fused_conv{dims}d(torch.ones(1, 3, {eights}), torch.ones(4, 3, {threes}), padding=1, activation='relu')",
        "[1, 4, {eights}]",
    ),
    "conv_transpose": (
        """
    Args:
        input: [N, C, {output}] or [C, {output}]
        weight: [C, K / groups, {kernel}]
        bias: [K]
        stride, padding, dilation: those of the convolution whose gradient this is; a number or one per axis
        output_padding: how much larger the output is than the smallest that fits; less than stride or dilation
        groups: divides C and K

    Returns:
        [N, K, {input}]""",
        "conv_transpose{dims}d(torch.ones(1, 3, {eights}), torch.ones(3, 4, {twos}), stride=2)",
        "[1, 4, {sixteens}]",
    ),
    "linear": (
        """
    A convolution of one tap whose pixels are the rows of the input. On GPUs torch's function is called.

    Args:
        input: [..., C]
        weight: [K, C]
        bias: [K]

    Returns:
        [..., K]. A row's result does not depend on how many there are.""",
        "linear(torch.ones(2, 3), torch.ones(4, 3))",
        "[2, 4]",
    ),
    "batch_norm": (
        """
    Args:
        input: [N, C, ...] of 2 to 5 dimensions
        running_mean, running_var: [C], moved towards the moments of the batch where `training`; else these normalise
        weight, bias: [C], or None for one and zero
        training: normalise by the moments of the batch, over all but C
        momentum: how far the running moments move, from 0 to 1
        eps: added to the variance

    Returns:
        (input - mean) / sqrt(variance + eps) * weight + bias, laid out as the input. Moments are those of parts of the
        batch, merged in order: the same bits for any number of threads. On GPUs torch's function is called.""",
        "batch_norm(torch.ones(2, 3, 4, 4), None, None, training=True)",
        "[2, 3, 4, 4]",
    ),
    "fused_batch_norm": (
        """
    One pass for the moments and one that stores the result; in the backward pass one for the sums and one for the
    gradient of the input. On GPUs it is torch's batch_norm, addition and activation one after the other.

    Args:
        input, running_mean, running_var, weight, bias, training, momentum, eps: those of `batch_norm`
        residual: of the input's size, or what can be added to that
        activation: "none", "relu", "relu6" or "leaky_relu"
        negative_slope: of "leaky_relu", positive

    Returns:
        activation(batch_norm(...) + residual), laid out as the input""",
        "fused_batch_norm(torch.ones(2, 3, 4, 4), None, None, training=True, activation='relu')",
        "[2, 3, 4, 4]",
    ),
    "max_pool": (
        """
    Args:
        input: [N, C, {input}] or [C, {input}]
        kernel_size, padding, dilation: a number or one per axis; padding at most half of the kernel
        stride: likewise; the kernel's size if None
        ceil_mode: keep windows that reach past the end
        return_indices: return the pair with the position of each maximum in its plane, as int64

    Returns:
        [N, C, {output}], or two of them. Without indices and gradient none are computed.""",
        "max_pool{dims}d(torch.ones(1, 3, {eights}), 2)",
        "[1, 3, {fours}]",
    ),
    "avg_pool": (
        """
    Args:
        input: [N, C, {input}] or [C, {input}]
        kernel_size, padding: a number or one per axis; padding at most half of the kernel
        stride: likewise; the kernel's size if None
        ceil_mode: keep windows that reach past the end
        count_include_pad: divide by the window's size, with its padding
        divisor_override: divide by this instead (two and three dimensions only)

    Returns:
        [N, C, {output}]""",
        "avg_pool{dims}d(torch.ones(1, 3, {eights}), 2)",
        "[1, 3, {fours}]",
    ),
    "adaptive_max_pool": (
        """
    Args:
        input: [N, C, {input}] or [C, {input}]
        output_size: a number or one per axis; None keeps the input's (two and three dimensions only)
        return_indices: return the pair with the position of each maximum in its plane, as int64

    Returns:
        [N, C, {output}], or two of them""",
        "adaptive_max_pool{dims}d(torch.ones(1, 3, {eights}), 4)",
        "[1, 3, {fours}]",
    ),
    "adaptive_avg_pool": (
        """
    Args:
        input: [N, C, {input}] or [C, {input}]
        output_size: a number or one per axis; None keeps the input's (two and three dimensions only)

    Returns:
        [N, C, {output}]""",
        "adaptive_avg_pool{dims}d(torch.ones(1, 3, {eights}), 4)",
        "[1, 3, {fours}]",
    ),
    "max_unpool": (
        """
    Args:
        input: [N, C, {output}] or [C, {output}]
        indices: from the max pooling that is undone, of input's shape
        kernel_size, stride, padding: of that max pooling
        output_size: of the result, where several fit; with or without N and C

    Returns:
        [N, C, {input}], zero everywhere but at the indices""",
        "max_unpool{dims}d(*F.max_pool{dims}d(torch.ones(1, 3, {eights}), 2, return_indices=True), 2)",
        "[1, 3, {eights}]",
    ),
    "lp_pool": (
        """
    Args:
        input: [N, C, {input}] or [C, {input}]
        norm_type: the power p; infinity gives the maximum of absolute values
        kernel_size: a number or one per axis
        stride: likewise; the kernel's size if None
        ceil_mode: keep windows that reach past the end

    Returns:
        [N, C, {output}], the p-norm of each window""",
        "lp_pool{dims}d(torch.ones(1, 3, {eights}), 2, 2)",
        "[1, 3, {fours}]",
    ),
}

_DROP_IN = ("Drop-in for `torch.nn.functional.{name}`.", "What torch's function raises for the same call.")
_OTHERS = {
    "fused_conv": (
        "activation(convolution + residual), for inference; `cnnext.fuse` makes a model of it.",
        "What the convolution and the addition raise; a ValueError for another activation.",
    ),
    "fused_batch_norm": (
        "activation(batch normalisation + residual); `cnnext.fuse` makes a model of it for training.",
        "What batch_norm and the addition raise; a ValueError for another activation.",
    ),
}

_FORM = """{head}
{body}

    Raises:
        {raises}

    Example:
        >>> from cnnext import functional as F
        >>> F.{call}{pick}.shape
        torch.Size({shape})
    """


def document(function: _Callable, name: str) -> _Callable:
    """Gives a function its public name and the docstring of its family."""
    family, dims, pair = re.fullmatch(r"(\w+?)(?:(\d)d(_with_indices)?)?", name).groups()  # type: ignore[union-attr]
    body, call, shape = _TEXTS[family]
    dims = dims or 2
    words: dict[str, Any] = dict(zip(("input", "kernel", "output"), _AXES[int(dims)], strict=True))
    words |= {word: ", ".join([n] * int(dims)) for word, n in [("twos", "2"), ("threes", "3"), ("fours", "4")]}
    words |= {word: ", ".join([n] * int(dims)) for word, n in [("eights", "8"), ("sixteens", "16")]}
    call = call.replace("(", "_with_indices(", 1) if pair else call
    head, raises = _OTHERS.get(family, _DROP_IN)
    fill = {"head": head, "body": body, "raises": raises, "call": call, "shape": shape}
    fill = {key: text.format(name=name, dims=dims, **words) for key, text in fill.items()}
    function.__doc__ = _FORM.format(pick="[0]" if pair else "", **fill)
    function.__name__ = function.__qualname__ = name
    function.__module__ = "cnnext.functional"
    return function
