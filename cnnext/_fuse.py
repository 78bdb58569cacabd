"""Inference: batch norms folded into convolutions, which add and activate as they store their results."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import nn
from ._convert import convert

_FUSED = {nn.Conv1d: nn.FusedConv1d, nn.Conv2d: nn.FusedConv2d, nn.Conv3d: nn.FusedConv3d}
_NORMS = {nn.Conv1d: torch.nn.BatchNorm1d, nn.Conv2d: torch.nn.BatchNorm2d, nn.Conv3d: torch.nn.BatchNorm3d}
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


class _Tracer(Tracer):
    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__ == nn.__name__ or super().is_leaf_module(m, module_qualified_name)


def _writes(node: Node, module: torch.nn.Module | None) -> bool:
    """Whether a node may change a tensor that it was given."""
    if node.kwargs.get("inplace") or "out" in node.kwargs or getattr(module, "inplace", False):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    in_operators = getattr(node.target, "__module__", "") == "_operator" and name.startswith("i")
    return node.op == "call_function" and (name.endswith("_") or in_operators or name == "setitem")


def _has_hooks(module: torch.nn.Module | None) -> bool:
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)


class _Chain:
    """A convolution and what follows it, as long as nothing else reads what is in between: batch norm, addition,
    activation, each at most once. All of it moves to the place of the last node."""

    def __init__(self, conv: Node, modules: dict[str, torch.nn.Module]) -> None:
        self.modules = modules
        self.nodes = [conv]
        self.residual: Node | None = None
        self.activation, self.negative_slope = "none", 0.01
        self.norm = self._extend(self._is_norm)
        self._extend(self._is_addition)
        self._extend(self._is_activation)

    def module(self, node: Node) -> torch.nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _extend(self, accepts: Callable[[Node], bool]) -> Node | None:
        users = list(self.nodes[-1].users)
        if len(users) != 1 or _has_hooks(self.module(users[0])) or not self._may_move_to(users[0]):
            return None
        if not accepts(users[0]):
            return None
        self.nodes.append(users[0])
        return users[0]

    def _may_move_to(self, end: Node) -> bool:
        """Nothing in between that may write to what the chain reads."""
        node = self.nodes[0].next
        while node is not end:
            if node not in self.nodes and _writes(node, self.module(node)):
                return False
            node = node.next
        return True

    def _is_norm(self, node: Node) -> bool:
        norm = self.module(node)
        return type(norm) is _NORMS[type(self.module(self.nodes[0]))] and norm.running_mean is not None  # type: ignore

    def _is_addition(self, node: Node) -> bool:
        last = self.nodes[-1]
        if node.op == "call_module" or node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
            return False
        first, second = node.args
        residual = second if first is last else first
        if not isinstance(residual, Node) or residual is last or (first is residual and _writes(node, None)):
            return False
        self.residual = residual
        return True

    def _is_activation(self, node: Node) -> bool:
        module = self.module(node)
        kind = type(module)
        if kind is torch.nn.ReLU or (module is None and node.target in _RELUS):
            self.activation = "relu"
        elif kind is torch.nn.ReLU6 or node.target is F.relu6:
            self.activation = "relu6"
        elif kind is torch.nn.LeakyReLU or node.target is F.leaky_relu:
            slope = getattr(module, "negative_slope", node.kwargs.get("negative_slope", (*node.args, 0.01)[1]))
            if not isinstance(slope, (int, float)):
                return False
            self.activation, self.negative_slope = "leaky_relu", float(slope)
        else:
            return False
        return True


def _replace(graph: Graph, chain: _Chain, model: GraphModule) -> None:
    conv_node, last = chain.nodes[0], chain.nodes[-1]
    name = str(conv_node.target)
    conv: Any = model.get_submodule(name)
    if chain.norm is not None:
        conv = fuse_conv_bn_eval(conv, model.get_submodule(str(chain.norm.target)))  # type: ignore
    if chain.residual is not None or chain.activation != "none":
        conv.__class__ = _FUSED[type(conv)]
        conv.activation, conv.negative_slope = chain.activation, chain.negative_slope
    model.set_submodule(name, conv)
    with graph.inserting_before(last):
        residual = () if chain.residual is None else (chain.residual,)
        fused = graph.call_module(name, (*conv_node.args, *residual))
    last.replace_all_uses_with(fused)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def fuse(model: torch.nn.Module) -> GraphModule:
    """A copy of a model for inference, in which convolutions do what follows them.

    Batch norms are folded into the weights of the convolutions before them, and an addition (of a shortcut) and an
    activation (ReLU, ReLU6, LeakyReLU) are computed as a convolution stores its results: passes over feature maps
    that are saved. Convolution and pooling layers become ours, as by `convert`. The rounding differs from the model's,
    as folded weights are others.

    Args:
        model: in eval mode, and such that `torch.fx.symbolic_trace` takes it: its forward does not branch on what
            tensors hold. Its layers with hooks, and those that are called several times, stay as they are.

    Returns:
        A `torch.fx.GraphModule`; run it where no gradients are wanted (`torch.no_grad()`), else each step is computed
        on its own. The model that was given is left as it is.

    Raises:
        ValueError: the model is in training mode.
        torch.fx.proxy.TraceError: its forward can not be traced; parts of it may be fused instead.

    Example:
        >>> import cnnext
        >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> cnnext.fuse(block.eval())
        Sequential(
          (0): FusedConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), activation='relu')
        )
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"cnnext.fuse: expected a torch.nn.Module, got {type(model).__name__}")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if model.training or any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        raise ValueError(f"cnnext.fuse: expected a model in eval mode, but {training[0]} is in training mode")
    source = convert(copy.deepcopy(model))
    graph = _Tracer().trace(source)
    fused = GraphModule(source, graph, type(model).__name__)
    modules = dict(fused.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        if isinstance(node.type, str):  # of `from __future__ import annotations`: torch.save would fail
            node.type = None
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(module) not in _FUSED or calls[str(node.target)] > 1 or _has_hooks(module):
            continue
        chain = _Chain(node, modules)
        if len(chain.nodes) > 1 and len(node.args) == 1:
            _replace(graph, chain, fused)
    fused.delete_all_unused_submodules()
    graph.lint()
    fused.recompile()
    return fused
