"""``cnnext.profile`` and the report: what is measured of any model, and that the page shows those figures."""

from __future__ import annotations

import argparse
import doctest
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnext
import cnnext.functional

pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from cnnext import bench
from cnnext.bench import layer_bench, page, profiling, tables, timing

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Model(nn.Module):
    """Torch's layers, ours, a subclass that is left alone, functions, dropout, several outputs."""

    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.ours = cnnext.nn.Conv2d(8, 8, 3, padding=1)
        self.scaled = self.Scaled(8, 8, 1)
        self.drop = nn.Dropout()
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x):
        x = self.drop(F.max_pool2d(F.relu(self.first(x)), 2))
        x = self.up(self.scaled(self.ours(x)))
        return {"maps": x, "mean": cnnext.functional.adaptive_avg_pool2d(x, 1), "classes": x.argmax(1)}


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return cnnext.profile(Model(), torch.randn(2, 3, 16, 16), backward=True, min_time=1e-4)


def test_every_call_of_the_model_is_measured(found):
    layers = {}
    for result in found.layers:
        layers.setdefault((result["label"], *result["names"]), []).append(result["direction"])
    assert layers == {
        ("3→8 3x3 @16", "first"): ["forward", "grad_weight"],  # the image needs no gradient
        ("max 2x2/2 8 @16", ""): ["forward", "backward"],
        ("8→8 3x3 @8", "ours"): ["forward", "grad_input", "grad_weight"],
        ("8→8 1x1 @8", "scaled"): ["forward", "grad_input", "grad_weight"],
        ("8→4 transposed 2x2/2 @8", "up"): ["forward", "grad_input", "grad_weight"],
        ("avg to 1x1 4 @16", ""): ["forward", "backward"],
    }
    (whole,) = found.to_dict()["networks"]
    assert whole["replaced"] == {"convolution": 4, "pooling": 2}
    assert set(whole["backends"]) == {"torch nchw", "cnnext nchw"}
    assert set(whole["backends"]["cnnext nchw"]["error"]) == {"output", "gradient"}
    assert (whole["batch"], whole["input"], found.fallbacks) == (2, "3x16x16", {})
    backends = whole["backends"]
    assert found.speedup == backends["torch nchw"]["median"] / backends["cnnext nchw"]["median"]


def test_example_in_docstring():
    [test] = doctest.DocTestFinder(recurse=False).find(cnnext.profile, "profile", globs={"torch": torch})
    assert doctest.DocTestRunner().run(test) == (0, 4)


@pytest.mark.filterwarnings("ignore:cnnext.convert left alone")
def test_ours_runs_ours_and_torchs_runs_torchs(monkeypatch):
    calls = []
    for name in ("conv", "max_pool", "adaptive_avg_pool"):
        eager = getattr(cnnext._C, name)
        monkeypatch.setattr(cnnext._C, name, lambda *args, eager=eager: (calls.append(1), eager(*args))[1])
    x = torch.randn(1, 3, 16, 16)
    for library, expected in (("torch", 0), ("cnnext", 5)):
        calls.clear()
        model = cnnext.revert(Model())
        step = profiling._Step(cnnext.convert(model) if library == "cnnext" else model, (x,), False, library)
        calls.clear()
        step()
        assert len(calls) == expected, library


def test_layers_that_are_alike_are_counted():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    found = cnnext.profile(model, torch.randn(2, 3, 8, 8), min_time=1e-4)
    assert {tuple(layer["names"]): layer["count"] for layer in found.layers} == {("0",): 1, ("1", "2"): 2}
    (whole,) = found.to_dict()["networks"]
    assert whole["replaced"] == {"convolution": 3, "pooling": 0}
    assert whole["conv_flops"] == 3 * 2 * (2 * 3 * 8 * 8) * (3 * 3 * 3)


@pytest.mark.parametrize("backward", [False, True])
def test_a_run_has_its_own_gradients_or_none(backward):
    modes, conv = [], nn.Conv2d(3, 4, 3, bias=False)
    conv.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    step = profiling._Step(conv, (torch.randn(1, 3, 8, 8),), backward, "torch")
    found = step.results()
    assert conv.weight.grad is None
    step()
    step()
    assert modes == [backward] * 3
    if backward:
        assert torch.equal(conv.weight.grad.double().flatten(), found["gradient"])


@pytest.mark.filterwarnings("error:cnnext")
def test_subclasses_of_our_layers_are_measured_without_a_warning():
    class Ours(cnnext.nn.Conv2d):
        pass

    result = cnnext.profile(Ours(3, 4, 3), torch.randn(1, 3, 8, 8), min_time=1e-4)
    assert [layer["label"] for layer in result.layers] == ["3→4 3x3 @8"]


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cnnext.profile(model, torch.randn(2, 3, 8, 8), backward=True, min_time=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [type(module) for module in model] == [nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d]
    assert model.training
    assert model[0].weight.grad is None


@pytest.mark.parametrize(
    ("layouts", "input_format", "expected"),
    [
        (None, torch.contiguous_format, ["nchw"]),
        (None, torch.channels_last, ["channels_last"]),
        ("channels_last", torch.contiguous_format, ["channels_last"]),
        (("nchw", "channels_last"), torch.contiguous_format, ["nchw", "channels_last"]),
    ],
)
def test_layouts(layouts, input_format, expected):
    x = torch.randn(1, 3, 8, 8).contiguous(memory_format=input_format)
    result = cnnext.profile(nn.Conv2d(3, 4, 3), x, layouts=layouts, min_time=1e-4)
    for part in (*result.to_dict()["networks"], *result.layers):
        assert set(part["backends"]) == {f"{library} {each}" for library in ("torch", "cnnext") for each in expected}


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Conv1d(3, 4, 3), torch.randn(2, 3, 9)),
        (nn.MaxPool3d(2), torch.randn(1, 2, 4, 4, 4)),
        (nn.ReLU(), torch.ones(2)),
    ],
    ids=["conv1d", "max_pool3d", "relu"],
)
def test_other_models(model, x):
    result = cnnext.profile(model, (x,), min_time=1e-4)
    assert len(result.layers) == (0 if isinstance(model, nn.ReLU) else 1)
    assert str(result)
    assert "</html>" in result.html()


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)), {"against": "jax"}, "against must be 'torch', not 'jax'"),
        ((nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)), {"layouts": ["nhwc"]}, "not 'nhwc'"),
        ((nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)), {"layouts": []}, "layouts are nchw and channels_last, not none"),
        ((nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)), {"min_time": -1}, "min_time must be a positive number, not -1"),
        ((nn.Conv2d(1, 1, 1), 3), {}, "holds no tensor"),
        ((nn.Flatten(), torch.ones(1, device="meta")), {}, "on the CPU or on a GPU, got an input on 'meta'"),
        ((F.relu, torch.ones(1, 1, 2, 2)), {}, "expected a model that is a torch.nn.Module, got function"),
        ((Random(), torch.ones(1, 1, 2, 2)), {}, "output is random"),
        ((nn.Identity(), torch.tensor([float("nan")])), {}, "not finite"),
        (
            (nn.Flatten(), torch.ones(1, 2, 2, dtype=torch.int64)),
            {},
            "neither the model nor its input holds a floating",
        ),
    ],
    ids=["against", "layouts", "no layouts", "min_time", "input", "meta", "function", "random", "nan", "integers"],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        cnnext.profile(*arguments, **options)


@pytest.mark.parametrize(
    ("layer", "tensor"), [(nn.LazyConv2d(2, 1), "weight"), (nn.LazyBatchNorm2d(affine=False), "running_mean")]
)
def test_lazy_layers_must_have_run(layer, tensor):
    message = f"the size of 0.{tensor} is not known yet: run the model once first"
    with pytest.raises(ValueError, match=message):
        cnnext.profile(nn.Sequential(layer), torch.ones(1, 1, 2, 2))


def test_traced_models_are_refused():
    x = torch.ones(1, 1, 2, 2)
    traced = torch.jit.trace(nn.Conv2d(1, 1, 1), x)
    for model, name in ((traced, "the model"), (nn.Sequential(traced), "0")):
        with pytest.raises(ValueError, match=f"^{name} is traced or scripted: give what it was made of"):
            cnnext.profile(model, x)


def test_wrong_results_are_not_timed(monkeypatch):
    monkeypatch.setattr(timing, "interleave", None)
    right = cnnext.functional.conv2d
    monkeypatch.setattr(cnnext.nn.Conv2d, "_function", staticmethod(lambda *args: right(*args) * 1.01))
    with pytest.raises(layer_bench.Mismatch, match="Conv2d output: cnnext nchw differs"):
        cnnext.profile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    "factor", [lambda: 1.4, lambda: 1.5 + torch.rand(()), lambda: float("nan")], ids=["wrong", "random", "nan"]
)
def test_a_wrong_model_of_torchs_has_no_speedup(factor, monkeypatch):
    """And is not taken for a model whose output is random or not finite."""
    right = nn.Conv2d._conv_forward

    def broken(self, x, *args):
        return right(self, x, *args) * (1 if x.dtype == torch.float64 else factor())

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", broken)
    torch.manual_seed(0)
    result = cnnext.profile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), min_time=1e-4)
    (whole,) = result.to_dict()["networks"]
    assert list(whole["wrong"]) == ["torch nchw"]
    assert list(whole["backends"]) == ["cnnext nchw"]
    assert result.speedup != result.speedup  # NaN
    for text in (str(result), visible(result.html()).text):
        assert "Wrong results of torch" in text


def test_fallbacks_are_told():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            counts = F.conv2d(torch.ones(1, 1, 4, 4).long(), torch.ones(1, 1, 3, 3).long())
            return self.conv(x) * counts.sum()

    result = cnnext.profile(Counting(), torch.randn(1, 3, 8, 8), min_time=1e-4)
    assert result.fallbacks == {"conv: element type": 1}
    assert "conv: element type" in visible(result.html()).text
    assert "conv: element type (1)" in str(result)


@pytest.mark.parametrize(
    ("missing", "use", "message"),
    [
        ("rich", "cnnext.profile", "cnnext.profile needs rich: run `pip install 'cnnext[report]'`"),
        ("jinja2", "cnnext.Profile({}).html()", "the report needs jinja2: run `pip install 'cnnext[report]'`"),
        ("matplotlib", "cnnext.viz.window(5, 3)", "cnnext.viz needs matplotlib: run `pip install 'cnnext[report]'`"),
    ],
)
def test_what_to_install_is_told(missing, use, message):
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom cnnext import *\nimport cnnext\n{use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {message}"


# --- the page ----------------------------------------------------------------------------------------------------


class visible(HTMLParser):
    """Texts, tables and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.text, self.rows, self.values, self.links, self.data = "", {}, [], [], ""
        self._table = self._tag = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._tag = (tag, attributes.get("id"))
        self.links += [value for name, value in attributes.items() if name in ("src", "href")]
        if tag == "table":
            self._table = self.rows[attributes["id"]] = []
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append([attributes.get("data-value"), ""])
        elif "data-value" in attributes:
            self.values.append(float(attributes["data-value"]))

    def handle_endtag(self, tag):
        self._table = None if tag == "table" else self._table
        self._tag = None

    def handle_data(self, data):
        if self._tag == ("script", "data"):
            self.data = data
        elif self._tag is None or self._tag[0] not in ("script", "style"):
            self.text += data
            if self._table and self._table[-1]:
                self._table[-1][-1][1] += data.strip()


def test_figures_on_the_page_are_the_results(found):
    read = visible(found.html())
    assert json.loads(read.data) == json.loads(json.dumps(found.to_dict()))
    assert read.values == [found.speedup]
    head, *rows = read.rows["layers"]
    assert len(rows) == len(found.layers)
    column = {text: index for index, (_, text) in enumerate(head)}
    results = {(result["label"], result["direction"]): result for result in found.layers}
    for row in rows:
        result = results.pop((row[column["layer"]][1], row[column["direction"]][1]))
        ours, torchs = (result["backends"][result["best"][library]] for library in ("cnnext", "torch"))
        for name, value, text in (
            ("ms", ours["median"], tables.ms(ours["median"])),
            ("torch ms", torchs["median"], tables.ms(torchs["median"])),
            ("speedup", result["speedup"]["best"], tables.times(result["speedup"]["best"]).replace("x", "×")),
            ("error", ours["error"]["relative"], f"{ours['error']['relative']:.1e}"),
            ("of limit", result["limit"] / ours["median"], f"{100 * result['limit'] / ours['median']:.0f} %"),
        ):
            shown, written = row[column[name]]
            assert (float(shown), written) == (value, text), name
        assert row[column["kernel"]][1] == ours["kernel"]
        # the pictures, wide and narrow, have it too
        note = f"{result['label']}, {result['direction']}, 1 in the model\ncnnext {tables.ms(ours['median'])} ms"
        note += f" ({ours['kernel']}), torch {tables.ms(torchs['median'])} ms: {row[column['speedup']][1]}"
        assert read.text.count(note) == 4
    assert not results
    for text in (
        torch.__version__,
        found.to_dict()["environment"]["default"]["cpu"],
        "Left to torch",
        "convolutions 4, pooling layers\n2.",
    ):
        assert text in read.text


def test_the_page_needs_nothing_else(found):
    html = found.html()
    own = {f"#{name}" for name in re.findall(r' id="([^"]+)"', html)}
    assert [link for link in visible(html).links if link not in own and link != "data:,"] == []
    assert "url(http" not in html
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    assert not re.search(r"#0a0b0\d", html)  # every colour is one of the page's


def test_names_are_escaped():
    result = cnnext.profile(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2), name="<script>alert(1)</script>", min_time=1e-4)
    assert "<script>alert" not in result.html()
    assert "&lt;script&gt;alert" in result._repr_html_().replace("&amp;", "&")


def test_text_and_file(found, tmp_path):
    from rich.console import Console

    path = found.save_html(tmp_path / "report.html")
    assert path.read_text() == found.html()
    assert f"{found.speedup:.2f}x" in str(found)
    assert max(map(len, str(found).splitlines())) <= 100
    console = Console(width=100)
    with console.capture() as capture:
        console.print(found)
    assert "convolution grad_weight" in capture.get()


def chromium(file, *options):
    """The page's DOM after it ran, and what its console said."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, *options, file.as_uri()], capture_output=True, text=True, timeout=120)
    assert "</html>" in done.stdout, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_opens_in_a_browser_and_sorts(found, tmp_path):
    file = found.save_html(tmp_path / "report.html")
    assert chromium(file)[1] == []
    clicks = 'document.querySelectorAll("#layers th button")[5].click();'
    for repeat, reverse in ((1, True), (2, False)):
        file.write_text(found.html().replace("</body>", f"<script>{clicks * repeat}</script></body>"))
        dom, console = chromium(file)
        assert console == []
        shown = [float(row[5][0]) for row in visible(dom).rows["layers"][1:]]
        assert shown == sorted(shown, reverse=reverse)
        assert len(shown) == len(found.layers)
    file.write_text(found.html().replace("</body>", "<script>missing()</script></body>"))
    assert len(chromium(file)[1]) == 1  # an error would be seen


# --- the command -------------------------------------------------------------------------------------------------


def run(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.main(parser.parse_args([*map(str, arguments), "--quick", "--allocator", "default"]))


def test_command_writes_a_page_per_model(tmp_path, capsys):
    folder, file = tmp_path / "new" / "pages", tmp_path / "bench.json"
    options = ["--only", "layers", "--repeats", 1, "--layout", "nchw", "--mode", "infer"]
    assert run("--model", "resnet18", *options, "--report", folder, "--json", file) == 0
    assert [path.name for path in folder.iterdir()] == ["resnet18.html"]
    assert "resnet18.html" in capsys.readouterr().out
    read, document = visible((folder / "resnet18.html").read_text()), json.loads(file.read_text())
    assert json.loads(read.data)["layers"] == document["layers"]
    sums = [
        sum(r["backends"][f"{library} nchw"]["median"] * r["count"] for r in document["layers"])
        for library in ("torch", "cnnext")
    ]
    assert read.values == [pytest.approx(sums[0] / sums[1])]
    with pytest.raises(ValueError, match="nothing was measured of vgg16"):
        page.render(document, "vgg16")


def test_command_for_a_single_layer(tmp_path):
    assert run("avg_pool2d", "1x4x8x8", "--kernel", 2, "--direction", "forward", "--report", tmp_path) == 0
    (path,) = tmp_path.iterdir()
    assert "avg 2x2/2 4 @8" in visible(path.read_text()).text


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("conv2d", "1x4x8x8", "--weight", "4x4x3x3", "--report", tmp_path / "file") == 2
    assert "File exists" in capsys.readouterr().err


# --- a GPU's clock -----------------------------------------------------------------------------------------------


def test_a_gpu_is_timed_by_its_events(monkeypatch):
    """Without a GPU: that the events' time is what counts, per call."""
    recorded = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            recorded.append(self)

        def synchronize(self):
            assert recorded[-1] is self

        def elapsed_time(self, end):
            return 30.0  # ms

    class Device:
        def __init__(self, device):
            assert device.type == "cuda"

        __enter__ = __exit__ = lambda self, *_: None

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", Device)
    timings = timing.finish(timing.interleave({"a": lambda: None}, 0.0, 3, torch.device("cuda")))
    assert timings["a"].seconds == [0.03] * 3


@pytest.mark.parametrize("peak", [0, None])
def test_memory_that_could_not_be_measured(found, peak):
    document = json.loads(json.dumps(found.to_dict()))
    for backend in document["networks"][0]["backends"].values():
        backend["peak_memory"] = peak
    assert ("not measured" if peak is None else "0 MiB") in visible(page.render(document)).text
