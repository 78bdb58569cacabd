"""The command line of ``cnnext bench``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnext._options import extents, output_file, positive, threads, whole

if TYPE_CHECKING:  # `cnnext --help` must not wait for torch
    from .layers import Layer
    from .sections import Section

EPILOG = """\
examples:
  cnnext bench                                        ResNet-50 and GoogLeNet on a photograph, then layer by layer
  cnnext bench --model resnet18 --batch 16 --mode train
  cnnext bench --model googlenet --mode infer --report pages
  cnnext bench --only layers --layout channels_last --batch 16 --json layers.json
  cnnext bench conv2d 16x256x56x56 --weight 64x256x1x1
  cnnext bench conv2d 1x512x28x28 --weight 512x512x3x3 --padding 2 --dilation 2 --direction grad_weight
  cnnext bench conv_transpose2d 1x64x14x14 --weight 64x32x3x3 --stride 2 --padding 1 --output-padding 1
  cnnext bench max_pool2d 1x64x112x112 --kernel 3 --stride 2 --padding 1
"""
DTYPES = ("float32", "float64", "bfloat16", "float16")
DEFAULT_MODELS = ("resnet50", "googlenet")
DEFAULT_BATCH = {"infer": 1, "train": 4}
_OF_MODELS = ("model", "batch", "mode", "only", "image_size", "torch_memory", "packed_weights", "fuse")
_OF_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups")
_OF_POOL = ("kernel", "stride", "padding", "ceil_mode")
_OF_LAYERS = (*_OF_CONV, "output_padding", *_OF_POOL, "no_count_include_pad", "output_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``cnnext bench`` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Compare cnnext with torch: whole networks on a photograph, their layers, or a single layer."
    parser.epilog = EPILOG
    parser.add_argument("op", nargs="?", help="a single layer: conv2d, max_pool2d, adaptive_avg_pool2d, ... (1d to 3d)")
    parser.add_argument("input", nargs="?", type=extents(1), help="its input, such as 16x256x56x56 (N, C, H, W)")

    layer = parser.add_argument_group("single layer")
    # none has a default here, so that one which a layer does not take is noticed
    sizes = extents(1)
    layer.add_argument("--weight", type=sizes, metavar="KxCxRxS", help="of a convolution; CxKxRxS of a transposed one")
    layer.add_argument("--bias", action="store_true", help="convolution with bias")
    layer.add_argument("--kernel", type=sizes, metavar="RxS", help="pooling window, one number for all dimensions")
    layer.add_argument("--output-size", type=sizes, metavar="PxQ", help="output of adaptive pooling")
    layer.add_argument("--stride", type=sizes, metavar="SxS", help="default: 1, for pooling the window")
    layer.add_argument("--padding", type=extents(0), metavar="PxP", help="default: 0")
    layer.add_argument("--output-padding", type=extents(0), metavar="PxP", help="of transposed convolution; default: 0")
    layer.add_argument("--dilation", type=sizes, metavar="DxD", help="default: 1")
    layer.add_argument("--groups", type=whole(1), metavar="G", help="default: 1")
    layer.add_argument("--ceil-mode", action="store_true", help="of pooling")
    layer.add_argument("--no-count-include-pad", action="store_true", help="of average pooling")

    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", nargs="+", metavar="NAME", help=f"default: {' '.join(DEFAULT_MODELS)}")
    what.add_argument("--batch", type=whole(1), metavar="N", help="default: 1 for inference, 4 for training")
    what.add_argument("--mode", choices=("infer", "train", "both"), help="default: both")
    what.add_argument("--only", choices=("networks", "layers"), help="whole networks only, or their layers only")
    what.add_argument(
        "--direction",
        metavar="D,D",
        help="of layers: forward, grad_input and grad_weight (convolution), backward (pooling); default: all",
    )
    what.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    what.add_argument(
        "--layout",
        choices=("best", "nchw", "channels_last"),
        default="best",
        help="best measures both and compares each side's better one",
    )
    what.add_argument("--image-size", type=whole(1), metavar="PIXELS", help="default: the model's")

    how = parser.add_argument_group("how")
    how.add_argument("--threads", type=threads, metavar="T", help="default: torch's")
    how.add_argument(
        "--min-time", type=positive, metavar="S", help="seconds per backend (default: 3 networks, 0.1 layers)"
    )
    how.add_argument("--repeats", type=whole(1), metavar="R", help="exactly R rounds instead")
    how.add_argument(
        "--allocator",
        choices=("default", "fixed"),
        help="fixed keeps memory and asks for huge pages on both sides, so that kernels are compared and not page "
        "faults; default leaves glibc as it is (default: default for networks, fixed for layers)",
    )
    how.add_argument(
        "--cold",
        action="store_true",
        help="layers find all but their input out of the caches, as in a network; otherwise they find what calls of "
        "themselves left there",
    )
    how.add_argument(
        "--torch-memory",
        action="store_true",
        help="networks with our layers run with cnnext.backends.torch_memory, those with torch's as before",
    )
    how.add_argument(
        "--packed-weights",
        action="store_true",
        help="networks with our layers keep packed weights from step to step (cnnext.backends.packed_weights)",
    )
    how.add_argument(
        "--fuse",
        action="store_true",
        help="models fused by cnnext.fuse, for inference beside torch.fx.experimental.optimization.fuse",
    )
    how.add_argument("--quick", action="store_true", help="a few seconds: small images, few rounds, rough figures")
    how.add_argument("--json", type=output_file, metavar="FILE", help="write everything measured to FILE")
    how.add_argument("--report", metavar="DIR", help="write a page of HTML with pictures for each model to DIR")


def _refuse(args: argparse.Namespace, options: Iterable[str], what: str) -> None:
    """Raises ValueError where one of the options was given, which would be ignored."""
    for option in options:
        if getattr(args, option):
            raise ValueError(f"{what} takes no --{option.replace('_', '-')}")


def layer_from(args: argparse.Namespace) -> Layer:
    """The layer that the positional arguments and shape options describe.

    Raises:
        ValueError: something is missing or of no use to this layer, or torch does not accept the shapes.
    """
    import torch

    from . import layers

    op = args.op
    kinds: dict[tuple[str, ...], Sequence[str]] = {
        layers.CONV: _OF_CONV,
        layers.CONV_TRANSPOSE: (*_OF_CONV, "output_padding"),
        layers.MAX_POOL: (*_OF_POOL, "dilation"),
        layers.AVG_POOL: (*_OF_POOL, "no_count_include_pad"),
        layers.ADAPTIVE_POOL: ("output_size",),
    }
    takes = next((options for ops, options in kinds.items() if op in ops), None)
    if takes is None:
        raise ValueError(f"no layer is named {op!r}; there are {', '.join(layers.OPS)}")
    dims = int(op[-2])
    if args.input is None or len(args.input) != dims + 2:
        raise ValueError(
            f"{op} needs an input of {dims + 2} extents (N, C and {dims} spatial), such as 1x64{'x56' * dims}"
        )
    _refuse(args, [option for option in _OF_LAYERS if option not in takes], op)
    if "weight" in takes and len(args.weight or ()) != dims + 2:
        raise ValueError(f"{op} needs --weight with {dims + 2} extents, such as 64x64{'x3' * dims}")

    fields: dict[str, Any] = {}
    defaults = {"kernel": None, "output_size": None, "stride": args.kernel or (1,), "dilation": (1,)}
    defaults |= {"padding": (0,), "output_padding": (0,)}
    for option, default in defaults.items():
        if option in takes:
            name, value = option.replace("_", "-"), getattr(args, option) or default
            if value is None:
                raise ValueError(f"{op} needs --{name}")
            if len(value) not in (1, dims):
                raise ValueError(f"--{name} of {op} takes 1 or {dims} numbers, got {len(value)}")
            fields[option] = value * dims if len(value) == 1 else value
    if "weight" in takes:
        fields |= {"weight": args.weight, "bias": args.bias, "groups": args.groups or 1}
    if "ceil_mode" in takes:
        fields |= {"ceil_mode": args.ceil_mode, "count_include_pad": not args.no_count_include_pad}
    layer = layers.Layer(op, args.input, **fields)
    # Shape functions let some things pass that torch's kernels refuse, so one image of zeros is tried.
    zero = torch.zeros(1, dtype=getattr(torch, args.dtype))
    try:
        operands = [zero.expand(size) for size in ((1, *layer.input[1:]), layer.weight) if size]
        layer.call(torch.nn.functional, *operands)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{op}: {error}") from None
    return layer


def plan(args: argparse.Namespace) -> list[tuple[str, list[Section]]]:
    """What to run: sections, grouped by the allocator they run with.

    Raises:
        ValueError: a model, direction or layer is wrong.
    """
    import cnnext.models

    from . import layers, suites
    from .sections import Section

    layouts = layers.LAYOUTS if args.layout == "best" else (args.layout,)
    directions = args.direction.split(",") if args.direction else []

    def size_of(name: str) -> int | None:
        size = cnnext.models.SPECS[name].size if name in cnnext.models.SPECS else None
        return args.image_size or (64 if args.quick and size == 224 else size)

    def section(kind: str, title: str, batch: int, min_time: float, **fields: Any) -> Section:
        min_time = args.min_time or (0.01 if args.quick else min_time)
        repeats = args.repeats or (3 if args.quick and not args.min_time else None)
        return Section(kind, title, args.dtype, layouts, batch, min_time, repeats, args.threads, **fields)

    if args.op is not None:
        _refuse(args, _OF_MODELS, "a single layer")
        layer = layer_from(args)
        single = section("layers", layer.label(), layer.input[0], 1.0, directions=layer.directions, cold=args.cold)
        single.add(layers.LayerUse(layer, [layer.op], True))
        return [(args.allocator or "fixed", _chosen([single], directions))]

    _refuse(args, _OF_LAYERS, "a run of models")
    if args.only:
        others = ["direction", "cold"] if args.only == "networks" else ["torch_memory", "packed_weights", "fuse"]
        _refuse(args, others, f"--only {args.only}")
    names = list(dict.fromkeys(args.model or DEFAULT_MODELS))
    # as a whole, those that take the photograph and are trained by cross-entropy
    whole_models = [n for n, spec in cnnext.models.SPECS.items() if spec.channels == 3 and spec.task != "detection"]
    with_layers = [*cnnext.models.names(), *suites.SUITES]
    known_names = with_layers if args.only == "layers" else whole_models
    for name in names:
        if name not in known_names:
            if name in with_layers:
                raise ValueError(f"{name} is not run as a whole network: choose its layers by --only layers")
            raise ValueError(f"no model is named {name!r}; there are {', '.join(known_names)}")
        if name in suites.SUITES:
            _refuse(args, ["image_size"], f"the suite {name}")
    modes = ("infer", "train") if args.mode in (None, "both") else (args.mode,)
    batch_of = {mode: args.batch or (2 if args.quick and mode == "train" else DEFAULT_BATCH[mode]) for mode in modes}
    networks, layer_sections = [], []
    for name in names:
        for mode in modes:
            title = f"{name} · {'inference' if mode == 'infer' else 'training step'}"
            networks.append(
                section(
                    "network",
                    title,
                    batch_of[mode],
                    3.0,
                    model=name,
                    mode=mode,
                    image_size=size_of(name),
                    torch_memory=args.torch_memory,
                    packed_weights=args.packed_weights,
                    fuse=args.fuse,
                )
            )
    every_direction = tuple(dict.fromkeys(layers.CONV_DIRECTIONS + layers.POOL_DIRECTIONS))
    for name in names:
        # each direction at the batch size of the run that it is part of
        for mode in modes:
            part = section("layers", f"{name} · layers", batch_of[mode], 0.1, model=name, mode=mode, cold=args.cold)
            part.directions = every_direction
            if mode == "infer" or len(modes) > 1:
                part.directions = tuple(d for d in every_direction if (d == "forward") == (mode == "infer"))
            try:
                how = {"training": mode == "train", "whole": args.only != "layers"}
                uses = suites.suite(name, part.batch, size_of(name), **how)
            except (RuntimeError, ValueError) as error:
                size = size_of(name)
                what = f"pictures of {size}x{size}" + (f" in batches of {part.batch}" if mode == "train" else "")
                raise ValueError(f"{name} does not take {what}: {error}") from None
            for use in uses:
                part.add(use)
            layer_sections.append(part)
    groups = []
    if args.only != "layers":
        groups.append((args.allocator or "default", networks))
    if args.only != "networks":
        groups.append((args.allocator or "fixed", _chosen(layer_sections, directions)))
    return groups


def _chosen(sections: list[Section], directions: list[str]) -> list[Section]:
    """Sections of layers in the directions that were asked for; all where none was.

    Raises:
        ValueError: no layer has one of them.
    """
    offered = [d for section in sections for use in section.layer_uses() for d in use.directions(section.directions)]
    for direction in directions:
        if direction not in offered:
            there = ", ".join(dict.fromkeys(offered))
            raise ValueError(f"no direction is named {direction!r} here; there are {there}")
    chosen = [
        replace(section, directions=tuple(d for d in directions or section.directions if d in section.directions))
        for section in sections
    ]
    return [section for section in chosen if section.directions]


def main(args: argparse.Namespace) -> int:
    """Runs the benchmark that parsed arguments describe and prints tables.

    Returns:
        0; 1 where a result of ours was wrong, which stops the run before that thing is timed, or where a measurement
        raised an error or its process ended early; 2 where the arguments were wrong; 130 after Ctrl-C. What was
        measured so far is printed and written.
    """
    import sys

    from rich.markup import escape

    from . import sections
    from .layer_bench import Mismatch
    from .report import Report

    try:
        groups = plan(args)
        if args.report:  # not after minutes of measuring
            from . import page  # needs packages of its own

            Path(args.report).mkdir(parents=True, exist_ok=True)
            for name in {section.model for _, group in groups for section in group}:
                output_file(str(page.file_of(Path(args.report), name)))
    except (ValueError, OSError, argparse.ArgumentTypeError) as error:
        print(f"cnnext bench: {error}", file=sys.stderr)
        return 2
    report = Report(args.dtype, single=args.op is not None)
    report.announce(groups, quick=args.quick)
    status = 0
    try:
        for allocator, group in groups:
            report.start(allocator, group)
            for event in sections.run(group, allocator):
                report.take(event)
    except KeyboardInterrupt:
        report.interrupted()
        status = 130
    except (Mismatch, ModuleNotFoundError, sections.Failed) as error:
        report.failed(error)
        status = 1
    finally:
        report.close()
    document = report.as_json()
    if args.json:
        arguments = {key: value for key, value in vars(args).items() if not callable(value)}
        text = json.dumps({"arguments": arguments, "status": status, **document}, indent=1, allow_nan=False)
        Path(args.json).write_text(text)
        report.console.print(f"Written to {escape(args.json)}", style="dim")
    if args.report and (document["networks"] or document["layers"]):
        for path in page.write(document, Path(args.report)):
            report.console.print(f"Report: {escape(str(path))}", style="dim", soft_wrap=True)
    return status
