"""Traces by `torch.fx` in which our layers are leaves, and writes into tensors are the writes that they are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node, Proxy, Tracer
from torch.fx.proxy import TraceError
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import nn


def iadd(x: Any, y: Any) -> Any:
    x += y
    return x


def isub(x: Any, y: Any) -> Any:
    x -= y
    return x


def imul(x: Any, y: Any) -> Any:
    x *= y
    return x


def itruediv(x: Any, y: Any) -> Any:
    x /= y
    return x


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[Proxy, Any], Proxy]:
    return lambda x, y: x.tracer.create_proxy("call_function", function, (x, y), {})


class _Proxy(Proxy):
    """In torch.fx, `x += y` is `x = x + y`, which other names of x do not see, and `x[i] = y` is an error. Functions of
    our own for the former: of operator.iadd, torch.fx makes code that changes numbers under their other names too."""

    __iadd__, __isub__, __imul__, __itruediv__ = (_in_place(each) for each in (iadd, isub, imul, itruediv))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def expect_default(value: Any, default: Any, name: str) -> Any:
    """The check of an argument for which the trace took its default."""
    if has_torch_function_unary(value):  # where torch.load traces the code of a graph again
        return handle_torch_function(expect_default, (value,), value, default, name)
    if value is not default:
        got = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
        raise ValueError(f"expected {name}={default}, with which the model was traced, but got {got}")


def _autocast() -> list[Any]:
    return [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")]


def is_layer(module: torch.nn.Module) -> bool:
    """Whether a module is a leaf of every trace."""
    return type(module).__module__ == nn.__name__ or Tracer().is_leaf_module(module, "")


class _Tracer(Tracer):
    """Of the model's arguments, those that are None or a bool by default stay so: its forward branches on them. A part
    whose forward can not be traced is a leaf, and computes as it does without a trace."""

    def __init__(self, leaves: Mapping[torch.nn.Module, str] | None = None) -> None:
        super().__init__()
        self.autocast = _autocast()
        self.leaves = leaves or {}
        self.parts: dict[str, str] = {}  # that are leaves, and why

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return m in self.leaves or is_layer(m)

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _autocast() != self.autocast:
            raise TraceError("it changes autocast, which would be lost")
        return super().create_node(*args, **kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for i, arg in enumerate(args):
            if isinstance(arg, Proxy) and arg.node.args and isinstance(arg.node.args[0], (bool, type(None))):
                default = arg.node.args[0]
                self.create_proxy("call_function", expect_default, (arg, default, str(arg.node.target)), {})
                args[i] = default
        return function, args

    def call_module(self, m: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        name, nodes, parts = self.path_of_module(m), len(self.graph.nodes), dict(self.parts)
        if m in self.leaves:
            self.parts[name] = self.leaves[m]
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.is_leaf_module(m, name):
                raise
            for node in reversed(list(self.graph.nodes)[nodes:]):
                if node.op != "get_attr":  # which the tracer gives again to who asks for the same
                    self.graph.erase_node(node)
            self.parts = parts | {name: str(error).partition("\n")[0]}
            return self.create_proxy("call_module", name, args, kwargs)


def _versions(model: torch.nn.Module) -> dict[str, Any]:
    return {name: (id(b), None if b.is_inference() else b._version) for name, b in model.named_buffers()}


class Trace:
    """The graph of a model's forward, and the parts that are calls in it, with the reason: `leaves`, and those whose
    forward can not be traced. TraceError where that of the model itself can not be."""

    def __init__(self, model: torch.nn.Module, leaves: Mapping[torch.nn.Module, str] | None = None) -> None:
        tracer, versions = _Tracer(leaves), _versions(model)
        try:
            self.graph = tracer.trace(model)
        except Exception as error:
            raise TraceError(f"the forward of {type(model).__name__} can not be traced: {error}") from error
        for name, version in _versions(model).items():
            if versions.get(name) != version:
                raise TraceError(f"forward changes the buffer {name}, which a trace would do once and for all")
        self.parts = tracer.parts
        attributes = [str(node.target) for node in self.graph.nodes if node.op == "get_attr"]
        self.read = {
            name.rpartition(".")[0] for name in attributes
        }  # modules, also by parts as far as they were traced
        for node in reversed(self.graph.nodes):
            if isinstance(node.type, str):  # of `from __future__ import annotations`: torch.save would fail
                node.type = None
            if node.op == "get_attr" and not node.users:
                self.graph.erase_node(node)

    @property
    def code(self) -> str:
        return self.graph.python_code("self").src


def writes(node: Node, module: torch.nn.Module | None) -> bool:
    """Whether a node may change a tensor that it was given. `module`: what a node calls, if that is a module."""
    target: Any = node.target
    if node.kwargs.get("inplace") or "out" in node.kwargs or getattr(module, "inplace", False):
        return True
    if node.op == "call_module":
        return type(module).__module__.partition(".")[0] not in ("torch", "cnnext")
    if node.op == "call_method":
        return (target.endswith("_") and not target.endswith("__")) or target == "__setitem__" or target[:3] == "__i"
    if node.op != "call_function":
        return False
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    if isinstance(target, torch._ops.OpOverloadPacket):
        return any(getattr(target, name)._schema.is_mutable for name in target.overloads())
    package = (getattr(target, "__module__", None) or "torch").partition(".")[0]
    known = package in ("torch", "_operator", "builtins", "math", "cnnext")  # a wrapped function may do anything
    return not known or target.__name__.endswith("_") or target in (iadd, isub, imul, itruediv, operator.setitem)
