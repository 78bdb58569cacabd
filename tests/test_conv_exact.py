"""Convolution on small integers: every kernel, type and layout must compute exactly what torch computes in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from convolutions import (
    KERNELS,
    Conv,
    by_kernel,
    by_torch,
    check_exact,
    convolutions,
    examples,
    integers,
    problem,
    takes_bfloat16_only,
)
from hypothesis import given
from hypothesis import strategies as st
from kernels import DTYPES

pytestmark = pytest.mark.usefixtures("no_fallback", "one_thread")

CASES = [
    # One, two and three axes; sizes of one.
    problem((1, 1, 1), (1, 1, 1)),
    problem((2, 3, 11), (4, 3, 3), padding=1),
    problem((1, 5, 40), (7, 5, 4), stride=3, padding=2, dilation=2),
    problem((2, 16, 33), (16, 16, 5), dilation=4, padding=8),
    problem((1, 1, 1, 1), (1, 1, 1, 1)),
    problem((2, 1, 7, 5), (1, 1, 3, 3)),
    problem((3, 3, 9, 8), (4, 3, 3, 2), stride=2, padding=1),
    problem((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    problem((2, 3, 5, 6, 7), (4, 3, 3, 2, 3), stride=(2, 1, 2), padding=(0, 1, 1)),
    problem((1, 16, 4, 5, 6), (17, 16, 3, 3, 3), padding=1),
    problem((2, 5, 6, 7, 5), (4, 5, 2, 2, 2), dilation=(2, 1, 2), stride=(1, 3, 2)),
    problem((2, 4, 3, 8, 8), (6, 2, 1, 3, 3), padding=(0, 1, 1), groups=2),
    # Odd channels, and sums long enough to make pairs of them.
    problem((2, 3, 17, 19), (20, 3, 7, 7), stride=2, padding=3),
    problem((1, 35, 9, 8), (67, 35, 3, 3), padding=1),
    problem((1, 515, 5, 5), (129, 515, 1, 1)),
    # Channels on, below and above the tiles' sizes and the vectors' widths.
    *(problem((1, channels, 5, 6), (outputs, channels, 1, 1)) for channels, outputs in ((14, 15), (15, 16), (16, 17))),
    *(problem((2, 3, 7, 7), (outputs, 3, 3, 3), padding=1) for outputs in (7, 8, 9, 13, 14, 31, 32, 33)),
    *(problem((2, channels, 7, 7), (4, channels, 3, 3), padding=1) for channels in (7, 8, 9, 13, 14, 31, 32, 33)),
    *(problem((1, 2, 3, 4), (outputs, 2, 1, 1)) for outputs in (111, 112, 113, 127, 128, 129, 257, 512, 513, 577)),
    *(problem((1, channels, 3, 4), (2, channels, 1, 1)) for channels in (111, 113, 127, 129, 512, 513, 577)),
    # The summed depth crosses blocks of 256, in the middle of a tap or at its end.
    *(problem((1, channels, 4, 4), (3, channels, 1, 1)) for channels in (255, 256, 257, 600)),
    problem((1, 29, 6, 5), (5, 29, 3, 3), padding=1),
    problem((2, 64, 4, 4), (3, 64, 2, 2)),
    problem((1, 300, 5, 5), (20, 300, 3, 3), padding=1),
    problem((1, 3, 40, 40), (2, 3, 11, 11), stride=4, padding=2),
    problem((1, 20, 20), (300, 20, 20)),
    # Many taps, of which a block has some; many parts that read the same ones.
    problem((2, 3, 32, 48), (40, 3, 16, 16), stride=16),
    problem((2, 64, 90), (16, 64, 5), padding=40, dilation=20),
    problem((1, 64, 9, 20), (24, 64, 3, 4), padding=(8, 15), dilation=(6, 7)),
    problem((1, 64, 300), (16, 64, 90), padding=30),
    # Residues of the stride that no tap reads, in rows of many pixels.
    problem((1, 64, 32, 64), (64, 64, 5, 1), stride=(1, 2), padding=(10, 0), dilation=(5, 31)),
    # Pixels cross blocks of 108, 112 and 256 and are split; several images in a block.
    *(problem((1, 3, 1, pixels), (5, 3, 1, 1)) for pixels in (107, 108, 109, 111, 112, 113, 255, 256, 257)),
    problem((5, 3, 9, 7), (4, 3, 3, 3), padding=1),
    problem((40, 2, 2, 3), (3, 2, 2, 2), padding=1),
    problem((1, 4, 61, 61), (6, 4, 3, 3), padding=1),
    problem((3, 2, 65, 33), (3, 2, 1, 1)),
    problem((2, 2, 2500), (3, 2, 5), padding=2),
    problem((2, 2, 13, 14, 15), (2, 2, 3, 1, 2), padding=(1, 0, 1)),
    # Few pixels, for which weights are not packed: several blocks of the depth, taps of many, a rest of channels;
    # more pixels, for whose gradient several panels of long rows are.
    *(problem((pixels, 300, 1, 1), (70, 300, 1, 1)) for pixels in (1, 2, 3, 5, 8, 9)),
    problem((1, 48, 4, 5), (67, 48, 3, 3)),
    problem((2, 33, 2, 3), (40, 33, 2, 2)),
    problem((3, 64, 1, 1), (96, 32, 1, 1), groups=2),
    problem((1, 40, 3, 4), (24, 40, 1, 1), stride=2),
    problem((1, 2100, 2, 5), (24, 2100, 1, 1)),
    problem((1, 2050, 3, 3), (40, 2050, 2, 2)),
    # Stride, also above the kernel: some inputs are read by no window.
    problem((2, 3, 11, 13), (4, 3, 1, 1), stride=2),
    problem((2, 3, 11, 13), (4, 3, 2, 2), stride=3),
    problem((2, 3, 12, 14), (4, 3, 2, 3), stride=(5, 4), padding=1),
    problem((1, 3, 2, 2), (4, 3, 1, 1), stride=7),
    # Pointwise: of 16 bits some of them turn the pixels that they read.
    problem((2, 5, 23), (4, 5, 1), stride=3),
    problem((2, 6, 9, 12), (8, 3, 1, 1), stride=(1, 2), groups=2),
    problem((1, 64, 12, 7), (72, 64, 1, 1), stride=(3, 1)),
    problem((3, 128, 10, 15), (128, 128, 1, 1), stride=2),
    problem((2, 3, 5, 8, 7), (4, 3, 1, 1, 1), stride=(2, 3, 2)),
    problem((1, 64, 9, 30), (64, 16, 3, 3), stride=(1, 10**6), padding=1, groups=4),
    problem((1, 8, 9, 9), (8, 8, 3, 3), stride=2, padding=1),
    problem((1, 8, 8, 8), (8, 8, 3, 3), stride=2, padding=1),
    problem((1, 3, 30, 30), (16, 3, 7, 7), stride=2, padding=3),
    # Dilation, also above the input, and with a stride that has a common divisor or none.
    problem((2, 3, 9, 9), (4, 3, 3, 3), dilation=2, padding=2),
    problem((1, 3, 3, 3), (4, 3, 2, 2), dilation=5, padding=3),
    problem((1, 3, 2, 2), (2, 3, 3, 3), dilation=4, padding=4),
    problem((2, 3, 15, 14), (4, 3, 3, 3), dilation=2, stride=2, padding=2),
    problem((2, 3, 15, 14), (4, 3, 3, 4), dilation=(4, 6), stride=(6, 4), padding=(4, 9)),
    problem((2, 3, 15, 14), (4, 3, 4, 3), dilation=(3, 2), stride=(2, 3), padding=(5, 2)),
    # Padding above the kernel: some windows lie in the padding alone.
    problem((2, 3, 4, 5), (4, 3, 1, 1), padding=3),
    problem((2, 3, 4, 5), (4, 3, 2, 2), padding=(5, 3), stride=2),
    problem((1, 2, 1, 1), (3, 2, 3, 3), padding=6),
    problem((1, 2, 3, 4), (3, 2, 2, 2), padding=(0, 6), dilation=(1, 2)),
    # Most taps lie in the padding: pixels are cut by the taps that they read; some read none.
    problem((2, 64, 9, 11), (48, 64, 3, 3), padding=6, dilation=6),
    problem((1, 300, 13, 13), (40, 300, 3, 3), padding=7, dilation=7),
    problem((2, 128, 12, 10), (128, 64, 3, 3), stride=2, padding=8, dilation=6, groups=2),
    problem((1, 128, 10, 7), (33, 128, 5, 5), stride=3, padding=6, dilation=4),
    problem((1, 128, 5, 5), (72, 128, 3, 3), padding=10, dilation=9),
    problem((3, 256, 17, 18), (40, 256, 3, 3), padding=(12, 9), dilation=(12, 9)),
    # Images of one to three channels: whole and overlapping tiles, padding up to more than the input.
    *(problem((2, n, 6, 15), (16, n, 3, 3), padding=1) for n in (1, 2, 3)),
    problem((1, 3, 9, 29), (32, 3, 3, 3), stride=2, padding=(1, 2)),
    problem((1, 3, 20, 33), (48, 3, 7, 7), stride=2, padding=3),
    problem((2, 1, 8, 31), (16, 1, 5, 4), stride=(3, 2), padding=(5, 6)),
    problem((1, 3, 12, 14), (16, 3, 3, 3), dilation=(3, 1), padding=(3, 1)),
    problem((1, 3, 4, 5), (16, 3, 3, 3), padding=(1, 8)),
    *(problem((2, 3, 9, n), (16, 3, 5, 5), stride=2, padding=2) for n in (15, 16, 21, 29, 47, 64)),
    problem((1, 3, 41, 60), (32, 3, 11, 11), stride=4, padding=2),
    problem((2, 12, 5, 18), (16, 12, 3, 3), padding=(1, 2)),
    problem((1, 3, 5, 17, 20), (16, 3, 3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3)),
    problem((2, 3, 40), (16, 3, 5), padding=2),
    problem((1, 2, 4, 5, 18), (32, 2, 3, 2, 3), padding=1),
    # The gradient for their weight: rows in one run and in several, blocks of several rows, one and two vectors of
    # channels, a window's row in several tiles; 1x1 to and from few channels.
    *(problem((2, 3, 4, width), (16, 3, 3, 3), padding=1) for width in (191, 192, 193, 577)),
    *(problem((3, 2, 70, 5), (outputs, 2, 2, 3), padding=(3, 1)) for outputs in (32, 48, 64)),
    *(problem((2, n, 6, 17), (32, n, 3, 3), padding=2) for n in (7, 15, 24, 25)),
    *(problem((2, n, 21, 20), (48, n, 1, 1)) for n in (1, 15, 47, 49)),
    *(problem((2, 48, 21, 20), (n, 48, 1, 1)) for n in (1, 15, 47, 49)),
    # By rows in channels first: whole vectors and a rest, blocks of rows and several of them, one to five channels of
    # a tile, terms in several tiles, strides, groups of up to three channels also in channels last.
    *(problem((2, 3, 9, width), (5, 3, 3, 3), padding=1) for width in (24, 31, 47, 300)),
    *(problem((2, 2, 90, 40), (n, 2, 4, 5), padding=(0, 2), stride=(2, 1)) for n in (1, 2, 3, 4, 16)),
    *(problem((2, 3 * n, 41, 33), (6, n, 3, 5), padding=(2, 1), groups=3) for n in (1, 2, 3)),
    *(problem((2, 2, 61, 100), (33, 2, 2, 4), stride=(1, n)) for n in (1, 2, 3)),
    problem((3, 80, 9, 8), (16, 80, 1, 1), stride=2),
    problem((3, 80, 9, 8), (16, 80, 1, 1), padding=1),
    # Few channels by whole rows: widths on and off the vectors, many vectors for one to three channels, several groups
    # and blocks of rows, strides that split a row into residues, padding beyond the row.
    *(problem((2, 3, 12, width), (5, 3, 3, 3), padding=1) for width in (4, 7, 8, 15, 16, 17, 32, 33, 63)),
    *(problem((1, n, 19, 150), (n, 1, 3, 5), padding=(1, 2), groups=n) for n in (1, 2, 3)),
    *(problem((1, 2, 9, 290), (n, 2, 2, 3), padding=(0, 1)) for n in (2, 3, 4)),
    *(problem((1, 3, 21, 79), (17, 3, 5, 4), stride=(2, n), padding=(1, 2)) for n in (2, 3, 4)),
    problem((1, 3, 20, 41), (15, 3, 3, 3), stride=(1, 2), dilation=(2, 3), padding=(1, 4)),
    problem((1, 6, 11, 40), (4, 3, 3, 3), dilation=(1, 2), padding=(7, 30), groups=2),
    problem((2, 16, 200), (40, 16, 24), padding=3),
    problem((2, 2, 5, 6, 33), (3, 2, 2, 3, 3), stride=(2, 1, 2), padding=1),
    # Depthwise by rows: one vector and several, the last on and off the others, tiles of all heights, blocks of rows,
    # more padding than taps, a stride of two, planes of a third axis.
    *(problem((2, 5, 14, width), (5, 1, 3, 3), padding=1, groups=5) for width in (11, 16, 28, 33, 45, 64)),
    *(problem((1, 3, height, 30), (3, 1, 5, 5), padding=2, groups=3) for height in (1, 2, 3, 4, 6, 8, 150)),
    *(problem((2, 3, size, 47), (3, 1, 3, 3), stride=2, padding=1, groups=3) for size in (5, 13, 30, 200)),
    problem((1, 4, 21, 60), (4, 1, 5, 5), stride=2, padding=(1, 4), groups=4),
    problem((2, 3, 17, 31), (3, 1, 3, 3), padding=(8, 30), groups=3),
    problem((1, 1, 90, 100), (1, 1, 3, 3), padding=(0, 1)),
    problem((2, 3, 5, 9, 12), (3, 1, 1, 3, 3), padding=(0, 1, 1), groups=3),
    # 1x1 in place: pixels and channels that come out as an odd number of vectors, and as none.
    *(problem((n, 288, 7, 7), (160, 288, 1, 1)) for n in (1, 3)),
    *(problem((1, 300, 13, 14), (outputs, 300, 1, 1)) for outputs in (33, 80, 112)),
    problem((2, 32, 9, 10), (1024, 32, 1, 1)),
    # Products with all taps at once: rows in one block and in several, blocks of rows, boxes of rows, planes and
    # columns, runs of one to three vectors, taps in parts, a long depth, dilation, much padding.
    *(problem((2, 20, 9, width), (3, 20, 3, 3), padding=1) for width in (2, 17, 113, 260)),
    *(problem((1, n, 37, 30), (32, n, 5, 5), stride=2, padding=2) for n in (1, 2, 3, 4)),
    problem((1, 3, 70, 69), (18, 3, 11, 11), stride=4, padding=2),
    problem((2, 3, 33, 35), (16, 3, 16, 16), stride=16, padding=1),
    problem((1, 2, 25, 900), (16, 2, 7, 7), stride=(3, 1), padding=(2, 9)),
    problem((1, 300, 8, 9), (1, 300, 3, 5), padding=(5, 8), dilation=(3, 1)),
    problem((1, 3, 9, 21, 20), (16, 3, 3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)),
    problem((1, 1, 30000), (24, 1, 10), stride=5, padding=3),
    problem((1, 20, 30000), (2, 20, 9)),
    # Rows for AMX in float32, which takes but large sums: strips of several heights that cross rows, rows in pieces,
    # slices of the depth, taps apart and with residues of the stride, channels on and off a chunk, several images and
    # planes in a block, groups.
    *(problem((1, 96, h, w), (96, 96, 3, 3), padding=1) for h, w in ((5, 31), (17, 16), (40, 11), (13, 57))),
    *(problem((2, n, 13, 19), (k, n, 3, 3), stride=2, padding=1) for n, k in ((96, 80), (72, 104), (65, 97))),
    problem((1, 99, 21, 26), (130, 99, 3, 4), stride=(1, 3), padding=(2, 1), dilation=(2, 1)),
    problem((3, 130, 9, 14), (67, 130, 1, 1)),
    problem((2, 1088, 16, 17), (40, 1088, 1, 1)),
    problem((2, 1088, 16, 17), (40, 1088, 1, 1), padding=1),
    problem((2, 96, 15, 1100), (96, 96, 1, 1), stride=(2, 1)),
    problem((1, 128, 1300), (96, 128, 5), padding=1, dilation=2),
    problem((1, 600, 17, 20), (100, 600, 3, 3), padding=3, dilation=3),
    problem((2, 64, 4, 9, 10), (96, 64, 3, 3, 3), padding=1, stride=(1, 2, 1)),
    problem((2, 192, 9, 11), (160, 96, 3, 3), padding=(1, 4), groups=2),
    # Kernels as large as the input, larger than it without the padding, and uneven.
    problem((2, 16, 7, 7), (20, 16, 7, 7)),
    problem((1, 3, 2, 3), (4, 3, 4, 5), padding=1),
    problem((2, 3, 9, 9), (4, 3, 1, 7), padding=(0, 3)),
    problem((2, 3, 9, 9), (4, 3, 7, 1), padding=(3, 0)),
    # What Winograd's algorithm takes: partial tiles, many tiles, dilation, padding from none to more than the kernel.
    problem((2, 16, 12, 12), (16, 16, 3, 3), padding=1),
    problem((1, 40, 14, 15), (36, 40, 3, 3)),
    problem((1, 65, 9, 13), (33, 65, 3, 3), padding=2),
    problem((3, 17, 29, 30), (32, 17, 3, 3), padding=1),
    problem((1, 16, 70, 71), (16, 16, 3, 3), padding=1),
    problem((2, 24, 12, 9), (48, 24, 3, 3), padding=4),
    problem((1, 32, 17, 18), (32, 32, 3, 3), padding=2, dilation=2),
    problem((1, 16, 23, 22), (16, 16, 3, 3), padding=(2, 3), dilation=(2, 3)),
    problem((1, 48, 16, 16), (96, 16, 3, 3), padding=1, groups=3),
    # The same along one axis, by blocks of taps, and with a stride: each of its tiles, ragged blocks, few channels
    # whose blocks are summed together.
    problem((2, 64, 9, 17), (64, 64, 1, 7), padding=(0, 3)),
    problem((1, 80, 17, 10), (48, 80, 7, 1), padding=(5, 0)),
    problem((2, 96, 8, 9), (96, 96, 1, 3), padding=(0, 1)),
    problem((1, 100, 9, 8), (64, 100, 3, 1), padding=(2, 0)),
    problem((1, 64, 6, 40), (64, 64, 1, 5), padding=(1, 4), dilation=(1, 3)),
    problem((2, 96, 200), (96, 96, 3), padding=1),
    # By its tiles at a stride of two: even and odd sizes, short tiles, paddings that begin inside a gradient's pairs,
    # more padding than taps, groups, a third axis.
    *(
        problem((2, 64, *size), (80, 64, 3, 3), stride=2, padding=padding)
        for size, padding in (((28, 29), 1), ((49, 32), 0), ((28, 29), 2), ((48, 31), (1, 0)), ((33, 29), (0, 3)))
    ),
    problem((1, 130, 61, 15), (70, 130, 3, 3), stride=2, padding=(5, 1)),
    *(problem((2, 2 * n, 57, 56), (2 * n, n, 3, 3), stride=2, padding=1, groups=2) for n in (32, 40)),
    problem((1, 64, 5, 29, 28), (64, 64, 2, 3, 3), stride=(2, 2, 2), padding=(0, 1, 1)),
    problem((1, 64, 5, 21, 20), (64, 64, 2, 3, 3), stride=(1, 2, 2), padding=1),
    # Fewer taps than its tiles have.
    problem((1, 128, 13, 14), (128, 128, 2, 3), padding=1),
    problem((1, 128, 14, 13), (128, 128, 3, 2), padding=1),
    problem((1, 35, 19, 20), (50, 35, 5, 5), padding=2),
    problem((1, 16, 20, 21), (64, 16, 5, 5), padding=4),
    problem((1, 16, 20, 19), (48, 16, 7, 7), padding=3),
    problem((1, 64, 16, 17), (64, 64, 4, 4)),
    problem((1, 64, 21, 20), (64, 64, 2, 2), padding=(0, 1)),
    problem((1, 32, 31, 30), (48, 32, 4, 4), stride=2, padding=1),
    problem((1, 32, 31, 30), (48, 32, 5, 5), stride=2, padding=2),
    problem((1, 32, 41, 40), (48, 32, 7, 7), stride=(3, 2), padding=(3, 2)),
    problem((1, 64, 25, 30), (64, 64, 2, 7), stride=(2, 1), padding=(0, 3)),
    problem((1, 32, 5, 13, 12), (32, 32, 3, 3, 3), padding=1),
    problem((2, 35, 6, 9, 14), (36, 35, 2, 3, 3), stride=(2, 1, 1), padding=(3, 0, 2)),
    problem((1, 32, 7, 16, 17), (32, 32, 3, 3, 3), padding=(3, 2, 2), dilation=(3, 2, 2)),
    problem((1, 64, 4, 5, 17), (64, 64, 3, 1, 7), padding=(0, 1, 3)),
    # Groups that end in part of a vector, planes in several blocks of a GPU's packing.
    problem((2, 72, 12, 16), (40, 72, 2, 2)),
    problem((9, 24, 3, 7), (40, 12, 2, 2), padding=1, groups=2),
    # Groups, depthwise, depthwise with a multiplier, one output channel per group.
    problem((2, 4, 7, 7), (6, 2, 3, 3), padding=1, groups=2),
    problem((1, 96, 5, 5), (66, 32, 3, 3), padding=1, groups=3),
    problem((1, 51, 6, 6), (51, 17, 1, 1), groups=3),
    problem((2, 19, 8, 8), (19, 1, 3, 3), padding=1, groups=19),
    problem((2, 32, 9, 8), (32, 1, 3, 3), stride=2, padding=1, groups=32),
    problem((1, 33, 7, 7), (99, 1, 3, 3), dilation=2, padding=2, groups=33),
    problem((1, 12, 7, 7), (4, 3, 3, 3), padding=1, groups=4),
    problem((1, 160, 3, 3), (160, 1, 3, 3), padding=1, groups=160),
    problem((2, 6, 20), (12, 1, 5), padding=2, groups=6),
    problem((1, 6, 4, 5, 6), (6, 1, 3, 3, 3), padding=1, stride=(1, 2, 1), groups=6),
    problem((1, 320, 4, 4), (10, 64, 3, 3), padding=1, groups=5),
    # Groups of 32 channels, the last columns of which no window reads.
    problem((1, 128, 9, 9), (128, 32, 2, 2), stride=2, groups=4),
    problem((2, 128, 7, 18), (128, 32, 2, 3), padding=(0, 3), groups=4),
    # A lane for each of many narrow groups: blocks of lanes that overlap or are not full, several outputs a channel,
    # runs of 1 to 15 pixels, boxes of a plane, dilation and stride above the kernel, large kernels.
    *(problem((1, channels, 6, 5), (channels, 1, 3, 3), padding=1, groups=channels) for channels in (4, 7, 8, 15, 17)),
    problem((2, 35, 14, 9), (35, 1, 3, 3), padding=1, groups=35),
    problem((2, 35, 9, 14), (70, 1, 3, 3), padding=1, groups=35),
    problem((2, 16, 9, 9), (48, 1, 3, 3), stride=2, padding=1, groups=16),
    *(problem((1, 16, 3, size), (16, 1, 3, 3), padding=1, groups=16) for size in range(1, 16)),
    problem((1, 16, 70, 71), (16, 1, 3, 3), padding=1, groups=16),
    problem((1, 16, 70, 71), (16, 1, 3, 3), padding=3, dilation=3, groups=16),
    problem((2, 40, 33, 34), (40, 1, 5, 5), padding=(4, 12), dilation=(2, 6), groups=40),
    problem((3, 40, 33, 34), (40, 1, 5, 5), stride=2, padding=2, groups=40),
    problem((2, 32, 11, 13), (32, 1, 2, 2), stride=5, groups=32),
    problem((1, 24, 5, 4), (24, 1, 3, 3), dilation=7, padding=7, groups=24),
    problem((2, 48, 15, 14), (48, 1, 3, 4), dilation=(4, 6), stride=(6, 4), padding=(4, 9), groups=48),
    problem((2, 19, 7, 7), (19, 1, 7, 7), padding=3, groups=19),
    problem((1, 17, 20, 33), (17, 1, 31, 31), padding=15, groups=17),
    problem((2, 16, 2500), (16, 1, 5), padding=8, dilation=4, groups=16),
    problem((2, 33, 5, 6, 7), (66, 1, 3, 2, 3), padding=(1, 0, 1), groups=33),
    # Boxes of planes and of rows; rows in the order of their residues, fewer than a tile's rows are apart.
    problem((1, 32, 9, 13, 14), (32, 1, 3, 3, 3), padding=1, groups=32),
    problem((1, 32, 3, 40, 24), (32, 1, 3, 3, 3), padding=(2, 1, 1), dilation=(2, 1, 1), groups=32),
    problem((1, 48, 19, 33), (48, 1, 3, 3), padding=6, dilation=6, groups=48),
    problem((1, 32, 37, 21), (32, 1, 3, 3), padding=(16, 2), dilation=(16, 2), groups=32),
    problem((1, 20, 9, 8, 7), (20, 1, 3, 3, 3), stride=2, dilation=(1, 2, 3), padding=3, groups=20),
    *(problem((1, n * 16, 7, 9), (n * 16, n, 3, 3), padding=1, groups=16) for n in (2, 3, 4, 5, 8, 16)),
    problem((2, 64, 9, 8), (128, 4, 3, 3), stride=2, padding=1, groups=16),
    problem((2, 72, 9, 8), (36, 4, 3, 3), stride=3, padding=1, groups=18),
    problem((1, 40, 12, 12), (80, 2, 3, 3), dilation=2, padding=2, groups=20),
    problem((2, 32, 50), (64, 2, 3), padding=1, groups=16),
    problem((1, 64, 4, 5, 6), (32, 4, 3, 3, 3), padding=1, groups=16),
    # Tiles of two rows of a depthwise kernel and of seven or eight pixels; 3x3, 5x5 and 7x7 with a stride of two.
    *(problem((2, 17, 9, n), (17, 1, k, k), stride=2, padding=k // 2, groups=17) for k in (3, 5) for n in (8, 15)),
    *(problem((1, 16, size, 31), (16, 1, 3, 3), stride=2, padding=p, groups=16) for size in (6, 7) for p in (0, 1, 2)),
    problem((1, 18, 10, 16), (18, 1, 3, 5), stride=(1, 2), padding=(1, 3), groups=18),
    problem((1, 18, 10, 16), (18, 1, 5, 7), stride=(2, 1), padding=(0, 9), groups=18),
    problem((2, 16, 5, 6, 30), (16, 1, 2, 3, 3), stride=(1, 2, 2), padding=1, groups=16),
    problem((2, 53, 9, 34), (53, 1, 3, 3), padding=2, dilation=2, groups=53),
    # Depthwise by rows, with a dilation: taps wholly in the padding, as far apart as the plane is wide, and farther.
    problem((2, 5, 12, 31), (5, 1, 3, 3), padding=(5, 1), dilation=(2, 9), groups=5),
    problem((1, 6, 7, 15), (6, 1, 3, 3), padding=(7, 15), dilation=(7, 15), groups=6),
    problem((1, 6, 7, 15), (6, 1, 3, 3), padding=(9, 16), dilation=(8, 16), groups=6),
    # A tile for each group of one or two vectors: stride and dilation, more rows than scratch memory holds.
    problem((2, 128, 9, 8), (128, 32, 3, 3), stride=2, padding=1, groups=4),
    problem((3, 256, 7, 17), (256, 16, 3, 3), padding=1, groups=16),
    problem((1, 384, 15, 14), (512, 24, 3, 2), stride=(2, 3), padding=(1, 4), dilation=(3, 2), groups=16),
    problem((1, 256, 90, 41), (256, 16, 3, 3), stride=(1, 2), padding=(2, 0), groups=16),
    problem((1, 512, 3, 20), (1024, 32, 1, 5), padding=(1, 2), groups=16),
    problem((1, 64, 90, 41), (64, 8, 3, 3), stride=(2, 1), padding=(2, 0), groups=8),
    problem((2, 64, 9, 28), (64, 8, 3, 2), stride=(1, 2), padding=1, dilation=(2, 1), groups=8),
    # Narrow groups that are joined: taps along a row by three and the rest, more rows than scratch memory holds, stride
    # and dilation, a number of groups that four do not divide.
    *(problem((2, 16 * n, 19, 17), (16 * n, n, 3, 5), stride=(2, 1), padding=(1, 2), groups=16) for n in (2, 4, 8)),
    *(problem((1, 20 * n, 90, 41), (20 * n, n, 3, 3), stride=n // 4, padding=(2, 0), groups=20) for n in (4, 8)),
    problem((2, 72, 9, 28), (72, 4, 2, 7), stride=(1, 3), padding=(1, 4), dilation=(2, 1), groups=18),
    problem((1, 64, 33, 40), (64, 4, 3, 3), padding=3, dilation=3, groups=16),
    problem((3, 128, 7, 7), (128, 8, 1, 2), groups=16),
    # Winograd's tiles, of which the last ones are short by an output where they do not come out even: along one axis or
    # both, all of them, with dilation, where tiles cut the kernel, along one axis alone.
    *(
        problem((2, 33, h, w), (40, 33, 3, 3), padding=1)
        for h, w in ((5, 8), (7, 7), (8, 9), (9, 14), (10, 3), (14, 13), (15, 14), (16, 17))
    ),
    problem((2, 32, 17, 19), (33, 32, 3, 3), padding=2, dilation=2),
    problem((1, 32, 26, 27), (32, 32, 5, 7), padding=(2, 3)),
    problem((2, 48, 3, 17), (48, 48, 1, 7), padding=(0, 3)),
    problem((1, 32, 3, 22, 5), (48, 32, 3, 3, 1), padding=(1, 1, 0)),
    # Winograd's algorithm for narrow groups, of half a vector too: several images at a time, an image in bands, more
    # padding than the kernel reads or none, dilation, planes, a kernel that its tiles cut.
    *(problem((9, 8 * n, 12, 8), (8 * n, n, 3, 3), padding=1, groups=8) for n in (8, 16, 32)),
    *(problem((2, 4 * n, 47, 46), (4 * n, n, 3, 3), padding=(4, 0), groups=4) for n in (8, 16)),
    problem((1, 64, 5, 20), (64, 8, 3, 3), padding=(9, 1), groups=8),
    problem((2, 64, 24, 30), (64, 8, 3, 3), padding=(0, 5), dilation=(2, 3), groups=8),
    problem((1, 64, 3, 15, 16), (64, 16, 1, 3, 3), padding=1, groups=4),
    problem((1, 64, 21, 20), (64, 8, 5, 5), padding=2, groups=8),
    # Groups of more input channels than two vectors have.
    *(problem((2, 16 * n, 4, 5), (256, n, 3, 3), padding=1, groups=16) for n in (48, 64)),
    # Columns that no window reads, in pairs of pixels.
    problem((1, 512, 9, 38), (512, 32, 3, 5), stride=2, groups=16),
    problem((2, 512, 12, 36), (512, 32, 7, 7), stride=2, groups=16),
    # Phases of a stride that differ in what their taps sum, of which some are cut along their channels.
    problem((1, 128, 7, 7), (320, 128, 3, 3), stride=2, padding=1),
    problem((5, 32, 8, 8), (512, 32, 3, 3), stride=2, padding=1),
]


@pytest.mark.parametrize("conv", CASES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_table(conv: Conv, bias: bool) -> None:
    operands = integers(conv, bias)
    expected = by_torch(conv, operands)
    for dtype, last, weight_last in itertools.product(DTYPES, (False, True), (False, True)):
        check_exact(conv, operands, expected, dtype, last, weight_last)


@examples(800)
@given(
    conv=convolutions(),
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
    weight_last=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any(conv: Conv, dtype: torch.dtype, last: bool, weight_last: bool, bias: bool, seed: int) -> None:
    operands = integers(conv, bias, seed)
    check_exact(conv, operands, by_torch(conv, operands), dtype, last, weight_last)


@pytest.mark.parametrize(("op", "kernel"), KERNELS)
@pytest.mark.parametrize("last", [False, True])
def test_the_table_reaches_every_kernel(op: str, kernel: str, last: bool) -> None:
    if not last and kernel.startswith("thin"):
        pytest.skip("takes channels last")
    if last and kernel == "depthwise_rows":
        pytest.skip("takes channels first")
    dtype = torch.bfloat16 if takes_bfloat16_only(kernel) else torch.float32
    taken = (by_kernel(op, kernel, conv, integers(conv).to(dtype, last, last)) is not None for conv in CASES[1:])
    assert any(taken)


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("channels", [16, 24])  # vectors that are whole lines of the cache, and not
def test_depthwise_results_beyond_the_caches(channels: int, dilation: int) -> None:
    """Lines are fetched ahead, and whole ones are stored past the caches."""
    conv = problem((2, channels, 16400 // channels, 520), (channels, 1, 3, 3), 1, dilation, dilation, groups=channels)
    t = integers(conv)
    expected = by_torch(conv, t)
    for op in ("conv", "conv_grad_input", "conv_grad_weight"):
        result = by_kernel(op, "depthwise", conv, t.to(torch.float32, True, True), True)
        assert result is not None
        assert torch.equal(result, expected[op].float())


@pytest.mark.parametrize(("outputs", "groups"), [(32, 2), (64, 64), (64, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_dilation_beyond_any_image(outputs: int, groups: int, last: bool) -> None:
    """Only the middle tap lies inside; counts of tiles and offsets would overflow."""
    far = problem((1, 64, 16, 16), (outputs, 64 // groups, 3, 3), padding=2**31 - 1, dilation=2**31 - 1, groups=groups)
    near = problem((1, 64, 16, 16), (outputs, 64 // groups, 1, 1), groups=groups)
    t = integers(far)
    middle = replace(t, weight=t.weight[..., 1:2, 1:2])
    expected = by_torch(near, middle)
    expected["conv_grad_weight"] = torch.nn.functional.pad(expected["conv_grad_weight"], (1, 1, 1, 1))
    check_exact(far, t, expected, torch.float32, last, last)
