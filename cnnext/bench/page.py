"""The report: one page of HTML that needs nothing else, from a benchmark's results (the dicts that also go to JSON)."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import charts, tables
from .tables import DIRECTIONS, LAYOUT, MODES, ms, number, pooled

Document = dict[str, Any]


def render(document: Document, name: str | None = None) -> str:
    """The page of one model.

    Args:
        document: as ``cnnext bench --json`` writes it and ``Profile.to_dict`` returns it.
        name: the model, where the document holds several.

    Raises:
        ValueError: the document holds no result of this model.

    Example::

        page.render(json.loads(Path("bench.json").read_text()), "resnet50")
    """
    networks = [result for result in document["networks"] if name in (None, result["model"])]
    layers = [result for result in document["layers"] if name in (None, result["model"])]
    if not networks and not layers:
        raise ValueError(f"nothing was measured of {name or 'any model'}")
    chosen = {**document, "networks": networks, "layers": layers}
    layers = sorted(layers, key=lambda result: (DIRECTIONS.index(result["direction"]), not result["flops"]))
    layers = _told_apart(layers)
    compared = tables.compared(layers)
    title = (networks + layers)[0]["model"] or layers[0]["label"]
    facts = next(iter(document["environment"].values()))
    environment = Environment(
        loader=PackageLoader("cnnext.bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        "ms": ms,
        "number": number,
        "times": charts.factor,
        "mib": _mib,
        "scientific": "{:.1e}".format,
    }
    template = environment.get_template("report.html")
    return template.render(
        title=title,
        facts=facts,
        headlines=[_headline(result) for result in tables.compared(networks)] or _layer_headlines(compared),
        networks=networks,
        modes=MODES,
        layouts=LAYOUT,
        layers=compared,
        rows=[_row(result) for result in layers],
        fallbacks=_fallbacks(networks),
        pictures=_pictures(compared, document["machine"]) if compared else {},
        exact=charts.exact(compared),
        warnings=tables.warnings(networks + layers),
        peaks=tables.peaks(document["machine"]),
        environments=_environment(document),
        notes=[*(tables.network_notes(result) for result in networks), *([tables.LAYER_NOTES] if layers else [])],
        document=chosen,
    )


def _told_apart(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, where labels of different layers are alike with the first module's name or a number in them.

    A label tells neither padding nor bias, nor element type. Batches may differ by direction only.
    """
    seen: Counter[Any] = Counter()
    labels: dict[str, dict[Any, str]] = {}
    keys = []
    for result in layers:
        about = {**result["layer"], "input": result["layer"]["input"][1:], "also": [result["dtype"], result["names"]]}
        key = json.dumps(about)
        seen[result["direction"], key] += 1
        keys.append((key, seen[result["direction"], key]))
        labels.setdefault(result["label"], {})[keys[-1]] = f"{result['label']} {result['names'][0]}".strip()
    for label, of_key in labels.items():
        taken: Counter[str] = Counter()
        for key, name in of_key.items():
            taken[name] += 1
            of_key[key] = label if len(of_key) == 1 else f"{name} ({taken[name]})" if taken[name] > 1 else name
    return [{**result, "label": labels[result["label"]][key]} for result, key in zip(layers, keys, strict=True)]


def file_of(folder: Path, name: str) -> Path:
    """Where the page of a model goes, or that of a single layer, which has no model's name."""
    return folder / f"{name or 'layer'}.html"


def write(document: Document, folder: Path) -> list[Path]:
    """Writes a page for each model of a document into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(result["model"] for result in document["networks"] + document["layers"])
    paths = []
    for name in names:
        path = file_of(folder, name)
        path.write_text(render(document, name), encoding="utf-8")
        paths.append(path)
    return paths


def _mib(size: int | None) -> str:
    return "not measured" if size is None else f"{number(size / 2**20)} MiB"


def _verdict(speedup: float) -> tuple[str, str]:
    """A class of the style sheet and a word; what nobody would notice is neither."""
    if abs(speedup - 1) < 0.02:
        return "even", "as fast as torch"
    return ("faster", "faster than torch") if speedup > 1 else ("slower", "slower than torch")


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    best = {library: result["backends"][result["best"][library]] for library in ("torch", "cnnext")}
    speedup = result["speedup"]["best"]
    verdict, words = _verdict(speedup)
    return {
        "what": f"{MODES[result['mode']]}, N={result['batch']}, {result['input']}, {result['dtype']}{pooled(result)}",
        "speedup": speedup,
        "verdict": verdict,
        "words": words,
        "ours": best["cnnext"]["median"],
        "torch": best["torch"]["median"],
        # where there was a choice
        "layouts": {name: LAYOUT[result["best"][name].split()[1]] for name in best if len(result["backends"]) > 2},
    }


def _layer_headlines(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where no whole model ran: the time of all its layers, by direction."""
    headlines = []
    for direction in DIRECTIONS:
        chosen = [result for result in layers if result["direction"] == direction]
        if not chosen:
            continue
        total = {
            library: sum(r["backends"][r["best"][library]]["median"] * r["count"] for r in chosen)
            for library in ("torch", "cnnext")
        }
        speedup = total["torch"] / total["cnnext"]
        verdict, words = _verdict(speedup)
        count = sum(result["count"] for result in chosen)
        what = f"{direction} of {count} layer{'s' * (count > 1)}, {tables.batches(chosen)}, {chosen[0]['dtype']}"
        headlines.append(
            {
                "what": what,
                "speedup": speedup,
                "verdict": verdict,
                "words": words,
                "ours": total["cnnext"],
                "torch": total["torch"],
                "layouts": {},
            }
        )
    return headlines


def _row(result: dict[str, Any]) -> dict[str, Any]:
    ours = result["backends"][result["best"]["cnnext"]]
    torchs = result["backends"].get(result["best"].get("torch"))
    speedup = result["speedup"].get("best")
    return {
        "label": result["label"],
        "names": ", ".join(name for name in result["names"] if name),
        "count": result["count"],
        "direction": result["direction"],
        "kernel": ours["kernel"],
        "layout": LAYOUT[result["best"]["cnnext"].split()[1]],
        "ours": ours["median"],
        "torch": torchs and torchs["median"],
        "speedup": speedup,
        "verdict": _verdict(speedup)[0] if speedup else "",
        "rate": (result["flops"] or result["bytes"]) / ours["median"] / 1e9,
        "unit": "GFLOP/s" if result["flops"] else "GB/s",
        "of_limit": result["limit"] / ours["median"],
        "error": ours["error"]["relative"],
        "torch_error": torchs and torchs["error"]["relative"],
    }


def _fallbacks(networks: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for result in networks:
        for what, count in result["fallbacks"].items():
            total[what] = total.get(what, 0) + count
    return total


def _pictures(layers: list[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    groups = []
    for what, found in itertools.groupby(layers, lambda r: "forward" if r["direction"] == "forward" else "gradients"):
        members = list(found)
        groups.append((f"{what}, {tables.batches(members)}", members))
    return {
        "ratios": charts.picture(charts.ratios(layers), "torch's time over ours by layer"),
        "roofline": charts.picture(charts.roofline(layers, machine), "roofline"),
        "kinds": charts.picture(charts.kinds(groups), "time by kind of layer"),
        "accuracy": charts.picture(charts.accuracy(layers), "relative errors"),
    }


def _environment(document: Document) -> list[tuple[str, str]]:
    facts = next(iter(document["environment"].values()))
    build = facts["cnnext_build"]
    rows = [
        ("processor", f"{facts['cpu']}, {facts['threads']} threads on {facts['cpus']} CPUs"),
        *([("GPU", facts["gpu"])] if facts["gpu"] else []),
        ("load when it began", f"{facts['load_average'][0]:.1f}" if facts["load_average"] else "unknown"),
        ("date", facts["date"].replace("T", " ").replace("+00:00", " UTC")),
        ("cnnext", f"{facts['cnnext']} ({facts['cnnext_capability']}; {build['compiler']})"),
        ("torch", f"{facts['torch']} ({facts['torch_capability']})"),
        ("Python", f"{facts['python']} on {facts['system']}, {facts['libc']}"),
    ]
    for kind, each in document["environment"].items():
        variables = " ".join(f"{name}={value}" for name, value in each["allocator"].items())
        rows.append((f"allocator, {kind}", variables or "as the system has it"))
    return rows
