"""Layers that add and activate as they store their results: convolutions with batch norms folded into them for
inference, batch norms for training."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from . import functional, nn
from ._convert import _OURS, _exchange, _warn, plain_type
from ._explain import check_sizes
from ._override import _REDIRECTIONS
from ._trace import Trace, iadd, is_layer, writes

_NORMS = {  # by the convolution that takes them in
    conv: getattr(nn, f"BatchNorm{dims}d")
    for dims in (1, 2, 3)
    for conv in (getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d"))
}
_FUSED = {getattr(nn, fused.__name__.removeprefix("Fused")): fused for fused in nn._FUSED}
_ADDITIONS: tuple[Any, ...] = (operator.add, iadd, torch.add, "add", "add_")
_RELUS: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether a module is what its class says: no hooks, no forward of its own."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _module(node: Node, modules: dict[str, torch.nn.Module]) -> torch.nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


class _Moments(NamedTuple):
    """What `_fold` reads of a batch norm, by names and types as there; moments that are None are 0 and 1."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float


class _Chain:
    """A convolution or batch norm and what follows it, as long as nothing else reads what is in between: batch norm
    (of a convolution; or a scale and a shift of its channels, as where one is frozen), addition, activation, each at
    most once. All of it moves to the place of the last node."""

    def __init__(self, head: Node, model: GraphModule, modules: dict[str, torch.nn.Module]) -> None:
        self.model, self.modules = model, modules
        self.nodes = [head]
        self.activation, self.negative_slope = "none", 0.01
        kind: Any = type(self.module(head))
        self.addition: Node | None = None
        self.norm = self._norm() if kind in _NORMS else None
        norm: Any = self.norm
        if isinstance(norm, nn._Fused):  # of a model that was fused to be trained
            self.addition = self.nodes[-1] if len(self.nodes[-1].args) == 2 else None
            self.activation, self.negative_slope = norm.activation, norm.negative_slope
        elif kind in _FUSED:
            self.addition = self._extend(self._is_addition)
            self._extend(self._is_activation)

    def module(self, node: Node) -> torch.nn.Module | None:
        return _module(node, self.modules)

    @property
    def epilogue(self) -> tuple[Any, ...]:
        """What all calls of one layer must have in common."""
        norm: Any = self.norm
        if isinstance(norm, _Moments):
            norm = (*map(id, norm[:-1]), norm.eps)
        return norm, self.activation, self.negative_slope

    def _norm(self) -> Any:
        """What the convolution's result is normalised by: a layer, or the like of one."""
        if norm := self._extend(self._is_norm):
            return self.module(norm) or self._of_call(norm)
        if scale := self._extend(self._is_scale):
            shift = self._extend(self._is_shift)
            return _Moments(None, None, self._by_channel(scale), self._by_channel(shift) if shift else None, 0.0)
        return None

    def _constant(self, node: Any) -> Any:
        return attrgetter(str(node.target))(self.model) if isinstance(node, Node) and node.op == "get_attr" else None

    def _of_call(self, call: Node) -> _Moments | None:
        """Of a call of the function in eval mode, as in layers that activate too."""
        given = signature(F.batch_norm).bind(*call.args, **call.kwargs)
        given.apply_defaults()
        nodes = [given.arguments[name] for name in ("running_mean", "running_var", "weight", "bias")]
        values = [self._constant(node) for node in nodes]
        computed = any(node is not None and value is None for node, value in zip(nodes, values, strict=True))
        whole = given.arguments["input"] is self.nodes[0] and given.arguments["training"] is False
        eps = given.arguments["eps"]
        known = whole and not computed and values[0] is not None and isinstance(eps, float)
        return _Moments(values[0], values[1], values[2], values[3], eps) if known else None

    def _by_channel(self, node: Node) -> Tensor | None:
        """The other operand of a node, if it is a constant for each channel of the convolution."""
        conv: Any = self.module(self.nodes[0])
        if node.op != "call_function" or node.kwargs or len(node.args) != 2 or node.args[0] is node.args[1]:
            return None
        first, second = node.args
        value = self._constant(second if first in self.nodes else first)
        if not isinstance(value, Tensor) or value.dtype != conv.weight.dtype:
            return None
        shape = (conv.out_channels, *(1 for _ in conv.kernel_size))
        return value if value.shape in (shape, (1, *shape)) else None

    def _is_scale(self, node: Node) -> bool:
        return node.target is operator.mul and self._by_channel(node) is not None

    def _is_shift(self, node: Node) -> bool:
        adds = node.target is operator.add or (node.target is iadd and node.args[0] is self.nodes[-1])
        return adds and self._by_channel(node) is not None

    @property
    def residual(self) -> tuple[Any, ...]:
        if self.addition is None:
            return ()
        return tuple(arg for arg in self.addition.args if arg not in self.nodes)

    def _extend(self, accepts: Callable[[Node], bool]) -> Node | None:
        users = list(self.nodes[-1].users)
        module = self.module(users[0]) if len(users) == 1 else None
        if len(users) != 1 or (module is not None and not _is_plain(module)) or not self._may_move_to(users[0]):
            return None
        if not accepts(users[0]):
            return None
        self.nodes.append(users[0])
        return users[0]

    def _may_move_to(self, end: Node) -> bool:
        """Nothing in between that may write to what the chain reads."""
        node = self.nodes[0].next
        while node is not end:
            if node not in self.nodes and writes(node, self.module(node)):
                return False
            node = node.next
        return True

    def _is_norm(self, node: Node) -> bool:
        if node.target is functional.batch_norm:
            return self._of_call(node) is not None
        norm: Any = self.module(node)
        conv: Any = type(self.module(self.nodes[0]))
        plain, fused = _NORMS[conv], _FUSED[_NORMS[conv]]
        if type(norm) is fused:  # with what it does, which a transposed convolution does not
            last = self.nodes[-1]
            may = conv in _FUSED and node.args[:1] == (last,) and last not in node.args[1:] and not node.kwargs
        else:
            may = plain_type(type(norm)) in (plain, torch.nn.SyncBatchNorm)
        return may and norm.running_mean is not None

    def _is_addition(self, node: Node) -> bool:
        last = self.nodes[-1]
        if node.op == "call_module" or node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
            return False
        first, second = node.args
        residual = second if first is last else first
        return isinstance(residual, Node) and residual is not last and (first is last or not writes(node, None))

    def _is_activation(self, node: Node) -> bool:
        module: Any = self.module(node)
        kind = type(module)
        if kind is torch.nn.ReLU or (module is None and node.target in _RELUS):
            self.activation = "relu"
        elif kind is torch.nn.ReLU6 or node.target is F.relu6:
            self.activation = "relu6"
        elif kind is torch.nn.LeakyReLU or node.target is F.leaky_relu:
            slope = module.negative_slope if module else node.kwargs.get("negative_slope", (*node.args, 0.01)[1])
            if not isinstance(slope, (int, float)):
                return False
            self.activation, self.negative_slope = "leaky_relu", float(slope)
        else:
            return False
        return True


@torch.no_grad()
def _fold(conv: Any, norm: Any) -> None:
    """Makes conv(x) what norm(conv(x)) was, in float64 and rounded once."""
    like = conv.weight.new_zeros(conv.out_channels, dtype=torch.float64)
    mean = like if norm.running_mean is None else norm.running_mean.double()
    variance = like + 1 if norm.running_var is None else norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale *= norm.weight.double().flatten()
    shift = -mean if conv.bias is None else conv.bias.double() - mean
    shift *= scale
    if norm.bias is not None:
        shift += norm.bias.double().flatten()
    if conv.transposed:  # [C, K / groups, ...]
        by_group = scale.view(conv.groups, 1, -1)
        scales = by_group.expand(-1, conv.in_channels // conv.groups, -1).flatten(0, 1)
    else:  # [K, C / groups, ...]
        scales = scale.view(-1, 1)
    weight = conv.weight.double() * scales.reshape(*scales.shape, *(1 for _ in conv.kernel_size))
    dtype, wants_grad = conv.weight.dtype, conv.weight.requires_grad
    conv.weight = torch.nn.Parameter(weight.to(dtype), wants_grad)
    conv.bias = torch.nn.Parameter(shift.to(dtype), wants_grad)


def _fuse_calls(graph: Graph, layer: Any, chains: list[_Chain]) -> None:
    """Puts a layer into the places of chains with the same epilogue."""
    if chains[0].norm is not None:
        _fold(layer, chains[0].norm)
    if chains[0].activation != "none" or any(chain.addition for chain in chains):
        layer.__class__ = _FUSED[type(layer)]
        layer.activation, layer.negative_slope = chains[0].activation, chains[0].negative_slope
    for chain in chains:
        call, last = chain.nodes[0], chain.nodes[-1]
        with graph.inserting_before(last):
            fused = graph.call_module(str(call.target), (*call.args, *chain.residual), call.kwargs)
        last.replace_all_uses_with(fused)
        for node in reversed(chain.nodes):
            graph.erase_node(node)


def _skip_identities(graph: Graph, modules: dict[str, torch.nn.Module]) -> None:
    """Identity, and dropout in eval mode, give back the tensor that they are given."""
    for node in list(graph.nodes):
        module = _module(node, modules)
        if module is None or not _is_plain(module) or len(node.args) != 1:
            continue
        is_dropout = type(module).__module__ == "torch.nn.modules.dropout"
        if type(module) is torch.nn.Identity or (is_dropout and not module.training):
            node.replace_all_uses_with(cast(Node, node.args[0]))
            graph.erase_node(node)


def _skip_checks_of_rank(graph: Graph, modules: dict[str, torch.nn.Module]) -> None:
    """`torch._assert(x.ndim == 4, ...)` of what a convolution gives."""

    def is_rank(node: Any) -> bool:
        read = isinstance(node, Node) and node.target is getattr and node.args[1] == "ndim"
        return read and plain_type(type(_module(node.args[0], modules))) in _NORMS

    for node in reversed(graph.nodes):
        equal: Any = node.args[0] if node.target is torch._assert else None
        if isinstance(equal, Node) and equal.target is operator.eq and is_rank(equal.args[0]) and len(equal.users) == 1:
            graph.erase_node(node)
            graph.erase_node(equal)
        elif node.target is getattr and not node.users:
            graph.erase_node(node)


def _settle_weights(model: torch.nn.Module) -> None:
    """Weight and spectral norm, and other parametrizations: the weights that they give in eval mode.

    Not by `remove_parametrizations`, which takes the property from the class: a copy has that of the module given."""
    for module in model.modules():
        if not isinstance(module, _ConvNd) or module.training or not parametrize.is_parametrized(module):
            continue
        names = cast(torch.nn.ModuleDict, module.parametrizations)
        values = {name: getattr(module, name).detach() for name in names}
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, torch.nn.Parameter(value))


def _trace(model: torch.nn.Module, leaves: Mapping[torch.nn.Module, str] | None = None) -> Trace:
    try:
        return Trace(model, leaves)
    except TraceError as error:
        raise TraceError(f"cnnext.fuse: {error}; parts of the model may be fused instead") from error.__cause__


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _trace_for_training(model: torch.nn.Module) -> Trace:
    """The trace of a model that trains, which must be that of its evaluation too: the model may be asked for both."""
    leaves: dict[torch.nn.Module, str] = {}

    def code(module: torch.nn.Module) -> str | None:
        try:
            return Trace(module, leaves).code
        except TraceError:
            return None

    def depends_on_mode(module: torch.nn.Module) -> bool:
        training = code(module)
        with _evaluating(module):
            return code(module) != training

    trace = _trace(model)
    if not depends_on_mode(model):
        return trace
    for module in reversed(list(model.modules())):  # parts before what they are parts of
        if module is not model and not is_layer(module) and depends_on_mode(module):
            leaves[module] = "another forward in training than in evaluation"
    if depends_on_mode(model):
        raise TraceError(
            "cnnext.fuse: the model's forward is another one in training than in evaluation (it asks for "
            "self.training); parts of the model may be fused instead"
        )
    return _trace(model, leaves)


def _fused(model: torch.nn.Module) -> tuple[GraphModule, dict[str, str]]:
    """The model fused, and the names of parts that are as they were, with the reason."""
    training = model.training
    trace = _trace_for_training(model) if training else _trace(model)
    graph = trace.graph
    fused = GraphModule(model, graph, type(model).__name__)
    modules = dict(fused.named_modules())
    if not training:
        _skip_identities(graph, modules)
        _skip_checks_of_rank(graph, modules)
    heads = set(_NORMS.values()) if training else set(_NORMS)
    calls: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _REDIRECTIONS and "out" not in node.kwargs:
            node.target = _REDIRECTIONS[node.target][1]
        if plain_type(type(_module(node, modules))) in heads:
            calls.setdefault(str(node.target), []).append(node)
    elsewhere = {module for name in trace.parts for module in modules[name].modules()}
    for name, nodes in calls.items():
        layer = modules[name]
        changes_others = layer in elsewhere or name in trace.read
        if not _is_plain(layer) or changes_others or any(len(node.args) != 1 for node in nodes):
            continue
        layer.__class__ = plain_type(type(layer))
        chains = [_Chain(node, fused, modules) for node in nodes]
        links = [node for chain in chains for node in chain.nodes]
        alike = all(chain.epilogue == chains[0].epilogue for chain in chains)
        if len(links) > len(nodes) and len(links) == len(set(links)) and alike:
            _fuse_calls(graph, layer, chains)
    if not training:  # a checkpoint holds what is not used too
        for node in reversed(graph.nodes):
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
                if str(node.target).startswith("_tensor_constant"):  # of the trace itself
                    delattr(fused, str(node.target))
        fused.delete_all_unused_submodules()
    graph.lint()
    fused.recompile()
    return fused, trace.parts


def fuse(model: torch.nn.Module) -> GraphModule:
    """A copy of a model in which layers do what follows them: passes over feature maps that are saved.

    In eval mode, for inference: batch norms (layers, calls of the function, and constants for each channel that results
    are multiplied by and added to) are folded into the weights of the convolutions (also transposed ones) before them,
    and an addition (of a shortcut) and an activation (ReLU, ReLU6, LeakyReLU) are computed as a convolution stores its
    results. Identities and dropout go, and parametrized weights (weight and spectral norm) are computed once. The
    rounding differs from the model's, as folded weights are others.

    In training mode, for training: batch norms do the addition and the activation behind them, forward and backward.
    Names of parameters and buffers are the model's, so that checkpoints fit both ways; their order is that of calls, so
    that an optimizer's state does not. `eval()` and `train()` work as before.

    Convolution, linear, pooling and batch norm layers become ours, as by `convert`, and so do calls of torch's
    functions for them, as by `override`.

    Args:
        model: such that `torch.fx.symbolic_trace` takes it: its forward does not branch on what tensors hold or how
            large they are, nor, to train, on its mode. Parts of which that is not true are called as they are, and one
            warning names them. Arguments of forward that are None or a bool by default stay so. Layers with hooks,
            those whose weights forward reads, those that such parts call too, and those that are called several times
            with different layers after them stay as they are.

    Returns:
        A `torch.fx.GraphModule`. That of a model in eval mode is to be run where no gradients are wanted
        (`torch.no_grad()`), else each step is computed on its own. The model that was given is left as it is.

    Raises:
        ValueError: the model is in eval mode and one of its batch norms is not, the model itself has hooks, or one of
            its layers is lazy and has not run yet.
        torch.fx.proxy.TraceError: the forward of the model itself can not be traced; parts of it may be fused
            instead.

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
    for name, module in model.named_modules():
        if module.training and not model.training and isinstance(module, _BatchNorm):
            raise ValueError(f"cnnext.fuse: the model is in eval mode, but its batch norm {name} in training mode")
    if not _is_plain(model):
        raise ValueError(
            "cnnext.fuse: expected a model without hooks, whose forward is neither replaced nor compiled, as a trace "
            "sees none of these; give the hooks to what fuse returns"
        )
    check_sizes(model)
    with torch.inference_mode(False):  # else its new weights were of use only there
        source = copy.deepcopy(model)
        _settle_weights(source)
        left_alone = _exchange(source, None, None, _OURS, "fuse")
        fused, parts = _fused(source)
    called = {str(node.target) for node in fused.graph.nodes if node.op == "call_module"}  # of others, calls are ours
    _warn({name: why for name, why in left_alone.items() if name in called}, "fuse")
    if parts:
        names: dict[str, list[str]] = {}  # by type and reason
        for name, reason in parts.items():
            names.setdefault(f"{type(model.get_submodule(name)).__name__}: {reason}", []).append(name)
        listed = "; ".join(f"{', '.join(each)} ({what})" for what, each in names.items())
        warnings.warn(f"cnnext.fuse did not look into parts that torch.fx can not trace: {listed}", stacklevel=2)
    return fused
