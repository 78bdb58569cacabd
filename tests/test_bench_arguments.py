"""The benchmark's command line: what its options ask for, and what it says of wrong ones."""

from __future__ import annotations

import argparse

import pytest

pytest.importorskip("rich")
pytest.importorskip("skimage")

from cnnext import bench
from cnnext._options import cpus
from cnnext.bench import cli, layers
from cnnext.bench.report import Report

CONV = ("conv2d", "2x8x12x12", "--weight", "16x8x3x3", "--padding", 1)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_single_layer_arguments():
    args = parse("conv2d", "2x8x9x9", "--weight", "4x4x3x3", "--groups", 2, "--stride", "2x1", "--padding", 1, "--bias")
    assert cli.layer_from(args) == layers.Layer(
        "conv2d", (2, 8, 9, 9), (4, 4, 3, 3), True, stride=(2, 1), padding=(1, 1), dilation=(1, 1), groups=2
    )
    pool = cli.layer_from(parse("avg_pool2d", "1x2x8x8", "--kernel", 2, "--no-count-include-pad"))
    assert (pool.stride, pool.count_include_pad) == ((2, 2), False)
    assert cli.layer_from(parse("adaptive_avg_pool1d", "1x2x8", "--output-size", 3)).output() == (1, 2, 3)
    options = ("--weight", "8x2x3x3", "--groups", 2, "--stride", 2, "--padding", 1, "--output-padding", "1x0")
    assert cli.layer_from(parse("conv_transpose2d", "1x8x5x5", *options)).output() == (1, 4, 10, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conv4d", "1x2x3x4"], "no layer is named 'conv4d'"),
        (["conv2d"], "conv2d needs an input of 4 extents"),
        (["conv2d", "1x2x3"], "conv2d needs an input of 4 extents"),
        (["conv2d", "1x2x8x8"], "conv2d needs --weight with 4 extents"),
        (["conv2d", "1x2x8x8", "--weight", "4x3x3x3"], "expected input"),
        (["max_pool2d", "1x2x8x8"], "max_pool2d needs --kernel"),
        (["max_pool2d", "1x2x8x8", "--kernel", "2x2x2"], "--kernel of max_pool2d takes 1 or 2 numbers, got 3"),
        (["max_pool2d", "1x2x8x8", "--kernel", "3", "--padding", "2"], "pad should be at most half"),
        (["adaptive_max_pool2d", "1x2x8x8"], "adaptive_max_pool2d needs --output-size"),
        (["conv_transpose2d", "1x2x8x8"], "conv_transpose2d needs --weight with 4 extents"),
        (["conv_transpose2d", "1x2x8x8", "--weight", "2x4x3x3", "--kernel", 3], "conv_transpose2d takes no --kernel"),
        (
            ["conv_transpose2d", "1x2x8x8", "--weight", "2x4x3x3", "--output-padding", 1],
            "output padding must be smaller",
        ),
        (["conv2d", "1x2x8x8", "--weight", "4x2x3x3", "--output-padding", 1], "conv2d takes no --output-padding"),
        (["avg_pool2d", "1x2x8x8", "--kernel", 2, "--dilation", 2], "avg_pool2d takes no --dilation"),
        (["avg_pool2d", "1x2x8x8", "--kernel", 2, "--groups", 1], "avg_pool2d takes no --groups"),
        (["adaptive_avg_pool1d", "1x2x8", "--output-size", 2, "--bias"], "adaptive_avg_pool1d takes no --bias"),
        (["avg_pool3d", "1x2x4x4x4", "--kernel", 2, "--dtype", "bfloat16"], "not implemented for 'BFloat16'"),
        (["max_pool1d", "1x2x8", "--kernel", 2, "--batch", 4], "a single layer takes no --batch"),
        (["max_pool1d", "1x2x8", "--kernel", 2, "--mode", "both"], "a single layer takes no --mode"),
        (
            ["max_pool1d", "1x2x8", "--kernel", 2, "--direction", "grad_input"],
            "'grad_input' here; there are forward, back",
        ),
        (["conv2d", "1x2x8x8", "--weight", "4x2x3x3", "--direction", "forward,backward"], "is named 'backward' here"),
        (
            ["--only", "layers", "--mode", "infer", "--direction", "grad_input"],
            "'grad_input' here; there are forward\n",
        ),
        (["--only", "networks", "--direction", "forward"], "--only networks takes no --direction"),
        (["--only", "networks", "--cold"], "--only networks takes no --cold"),
        (["--only", "layers", "--torch-memory"], "--only layers takes no --torch-memory"),
        (["--only", "layers", "--packed-weights"], "--only layers takes no --packed-weights"),
        (["--only", "layers", "--fuse"], "--only layers takes no --fuse"),
        (["--model", "pooling", "--only", "layers", "--image-size", 64], "the suite pooling takes no --image-size"),
        (["--stride", 2], "a run of models takes no --stride"),
        (["--model", "inception_v3", "--image-size", 32], "inception_v3 does not take pictures of 32x32: "),
        (
            ["--model", "resnet18", "--mode", "train", "--only", "networks", "--batch", 1, "--image-size", 32],
            "resnet18 does not take pictures of 32x32 in batches of 1: Expected more than 1 value per channel",
        ),
        (["--model", "alexnet"], "no model is named 'alexnet'"),
        (["--model", "yolo_v1"], "yolo_v1 is not run as a whole network: choose its layers by --only layers"),
        (["--direction", "sideways"], "no direction is named 'sideways'"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments, message, capsys):
    assert bench.main(parse(*arguments)) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["conv2d", "1xtwo"],
            "argument input: expected whole numbers from 1 joined by x such as 16x64x56x56, got '1xtwo'",
        ),
        (["conv2d", "0x8x8x8"], "from 1 joined by x such as 16x64x56x56, got '0x8x8x8'"),
        (["--stride", "1x0"], "got '1x0'"),
        (["--padding", "-1"], "expected whole numbers from 0 joined by x such as 16x64x56x56, got '-1'"),
        (["--batch", "0"], "--batch: expected a whole number from 1 to 2147483647, got '0'"),
        (["--threads", "100000"], f"--threads: expected a whole number from 1 to {cpus()}, got '100000'"),
        (["--json", "/no/such/folder/file"], "--json: cannot write '/no/such/folder/file': No such file or directory"),
        (["--json", "/"], "--json: cannot write '/': Is a directory"),
        (["--min-time", "-1"], "--min-time: expected a positive number, got '-1'"),
        (["--min-time", "nan"], "got 'nan'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_numbers_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "cannot write '{}/layer.html': Is a directory"), (["--report", __file__], "File exists: ")],
    ids=["page", "folder"],
)
def test_pages_that_cannot_be_written_are_told_before_measuring(arguments, message, tmp_path, capsys):
    (tmp_path / "layer.html").mkdir()
    assert bench.main(parse(*CONV, "--report", tmp_path, *arguments)) == 2
    printed = capsys.readouterr()
    assert message.format(tmp_path) in printed.err
    assert printed.out == ""


def test_files_are_tried_and_left_as_they_are(tmp_path):
    there = tmp_path / "there.json"
    there.write_text("kept")
    for file in (there, tmp_path / "new.json"):
        assert parse("--json", file).json == str(file)
    assert there.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [there]


def test_plan_of_the_default_run():
    (network_allocator, networks), (layer_allocator, layer_sections) = cli.plan(parse())
    assert (network_allocator, layer_allocator) == ("default", "fixed")
    assert [(s.model, s.mode, s.batch) for s in networks] == [
        ("resnet50", "infer", 1),
        ("resnet50", "train", 4),
        ("googlenet", "infer", 1),
        ("googlenet", "train", 4),
    ]
    assert [(s.model, s.batch, set(s.directions)) for s in layer_sections[:2]] == [
        ("resnet50", 1, {"forward"}),
        ("resnet50", 4, {"grad_input", "grad_weight", "backward"}),
    ]
    assert all(s.layouts == ("nchw", "channels_last") for s in networks + layer_sections)


def test_plan_follows_the_options():
    options = ["--model", "resnet18", "--mode", "train", "--batch", 3, "--only", "layers", "--layout", "nchw"]
    ((allocator, (section,)),) = cli.plan(parse(*options, "--direction", "forward,backward", "--allocator", "default"))
    assert (allocator, section.batch, section.layouts) == ("default", 3, ("nchw",))
    assert section.directions == ("forward", "backward")


def test_a_model_named_twice_is_measured_once():
    ((_, group),) = cli.plan(parse("--model", "lecture", "lecture", "--only", "layers", "--mode", "infer"))
    assert [section.model for section in group] == ["lecture"]


def test_layers_alone_are_trained_by_any_batch():
    options = ["--mode", "train", "--only", "layers", "--batch", 1, "--image-size", 32]
    ((_, (section,)),) = cli.plan(parse("--model", "resnet18", *options))
    assert sum(use.count for use in section.layer_uses()) == 22


@pytest.mark.parametrize(("options", "said"), [([], True), (["--only", "layers"], False)])
def test_what_is_announced_of_gradients(options, said, capsys):
    report = Report("float32")
    report.announce(cli.plan(parse("--model", "resnet20", *options)), quick=False)
    assert ("timed (gradients of whole networks to 5 %);" in " ".join(capsys.readouterr().out.split())) == said


def test_quick_keeps_the_time_that_was_asked_for():
    for options, expected in (([], (0.01, 3)), (["--min-time", 2], (2.0, None)), (["--repeats", 5], (0.01, 5))):
        ((_, (section,)),) = cli.plan(parse(*CONV, "--quick", *options))
        assert (section.min_time, section.repeats) == expected
