// Convolution of many narrow groups with a lane for each group: what its kernels share.
//
// A block is as many groups as a vector has lanes, and a vector holds the same channel of every group of a
// block: lanes are full however narrow a group is. Depthwise in channels last finds such vectors in memory.
// All else is brought into this form, lanes[channel][pixel][lane], a box of pixels at a time, small enough to
// stay in the cache.
#pragma once

#include "conv_lanes_boxes.h"
#include "copy.h"
#include "fetch_ahead.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Whether the activations are so large that kernels fetch ahead: in the caches that only costs.
inline bool beyond_caches(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  return s.N * (s.C * s.input_pixels() + s.K * s.output_pixels()) * element_bytes(p.dtype) > kCachedBytes;
}

// Depthwise in channels first: planes are read in the order of memory, and large ones the hardware fetches
// ahead by itself.
inline bool reads_planes(const ConvProblem& p) {
  return p.shape.C_per_group() == 1 && p.layout == Layout::kChannelsFirst;
}

// Calls body(at, pixel, count) for runs of pixels that are neighbours in memory: `at` in the box, `pixel` in
// the whole.
template <class Body>
CNNEXT_INLINE void each_run(const Box& box, const int64_t* extent, Body&& body) {
  const bool rows = box.size(2) == extent[2], planes = rows && box.size(1) == extent[1];
  const int64_t height = rows ? 1 : box.size(1), depth = planes ? 1 : box.size(0);
  const int64_t count = depth * height > 0 ? box.pixels() / (depth * height) : 0;
  for (int64_t z = 0; z < depth; ++z) {
    for (int64_t y = 0; y < height; ++y) {
      const int64_t row = (box.begin[0] + z) * extent[1] + box.begin[1] + y;
      body((z * height + y) * count, row * extent[2] + box.begin[2], count);
    }
  }
}

template <class A, int First, int Step, int... Lane>
CNNEXT_INLINE Vec<A> every_other(Vec<A> x, Vec<A> y, std::integer_sequence<int, Lane...>) {
  return shuffle<(First + Lane * Step)...>(x, y);
}
template <class A, int First, int... Lane>
CNNEXT_INLINE Vec<A> alternate(Vec<A> x, Vec<A> y, std::integer_sequence<int, Lane...>) {
  return shuffle<(First + Lane / 2 + Lane % 2 * int(kLanes<A>))...>(x, y);
}

// Vectors of neighbours, where lane l of channel c is element l * Channels + c, to one vector a channel.
template <class A, int Channels>
CNNEXT_INLINE void split_channels(Vec<A>* x) {
  using Lanes = std::make_integer_sequence<int, kLanes<A>>;
  if constexpr (Channels > 1) {
    Vec<A> odd[Channels / 2];
    for (int i = 0; i < Channels / 2; ++i) {
      const Vec<A> even = every_other<A, 0, 2>(x[2 * i], x[2 * i + 1], Lanes());
      odd[i] = every_other<A, 1, 2>(x[2 * i], x[2 * i + 1], Lanes());
      x[i] = even;
    }
    split_channels<A, Channels / 2>(x);
    split_channels<A, Channels / 2>(odd);
    for (int i = Channels / 2 - 1; i >= 0; --i) x[2 * i] = x[i], x[2 * i + 1] = odd[i];
  }
}
template <class A, int Channels>
CNNEXT_INLINE void join_channels(Vec<A>* x) {  // the inverse
  using Lanes = std::make_integer_sequence<int, kLanes<A>>;
  if constexpr (Channels > 1) {
    Vec<A> odd[Channels / 2];
    for (int i = 0; i < Channels / 2; ++i) odd[i] = x[2 * i + 1];
    for (int i = 0; i < Channels / 2; ++i) x[i] = x[2 * i];
    join_channels<A, Channels / 2>(x);
    join_channels<A, Channels / 2>(odd);
    for (int i = Channels / 2 - 1; i >= 0; --i) {
      const Vec<A> even = x[i];
      x[2 * i] = alternate<A, 0>(even, odd[i], Lanes());
      x[2 * i + 1] = alternate<A, int(kLanes<A>) / 2>(even, odd[i], Lanes());
    }
  }
}

// A run of pixels in channels last, to lanes and from them.
template <int Channels, class T, class A>
void split_run(const T* from, int64_t pixel, int64_t count, A* to, int64_t channel) {
  constexpr int64_t L = kLanes<A>;
  for (; count > 0; --count, from += pixel, to += L) {
    Vec<A> x[Channels];
    for (int c = 0; c < Channels; ++c) x[c] = load(from + c * L);
    for (int c = 0; c < Channels; ++c) __builtin_prefetch(from + 8 * pixel + c * L);
    split_channels<A, Channels>(x);
    for (int c = 0; c < Channels; ++c) store(to + c * channel, x[c]);
  }
}
template <int Channels, class T, class A>
void join_run(const A* from, int64_t channel, int64_t count, T* to, int64_t pixel) {
  constexpr int64_t L = kLanes<A>;
  for (; count > 0; --count, from += L, to += pixel) {
    Vec<A> x[Channels];
    for (int c = 0; c < Channels; ++c) x[c] = load(from + c * channel);
    join_channels<A, Channels>(x);
    for (int c = 0; c < Channels; ++c) store(to + c * L, x[c]);
  }
}

template <class T>
void lanes_of_run(const T* from, const GroupedLayout& g, int64_t lanes, int64_t count, Acc<T>* to,
                  int64_t channel) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (!g.channels_last) {
    for (int64_t c = 0; c < g.channels; ++c) {
      transpose_block(from + c * g.strides.channel, g.channels * g.strides.channel, lanes, count,
                      [&](int64_t i) { return to + c * channel + i * L; });
    }
    return;
  }
  if (lanes == L) {
    if (g.channels == 1) return split_run<1>(from, g.strides.pixel, count, to, channel);
    if (g.channels == 2) return split_run<2>(from, g.strides.pixel, count, to, channel);
    if (g.channels == 4) return split_run<4>(from, g.strides.pixel, count, to, channel);
    if (g.channels == 8) return split_run<8>(from, g.strides.pixel, count, to, channel);
    if (g.channels == 16) return split_run<16>(from, g.strides.pixel, count, to, channel);
  }
  for (int64_t i = 0; i < count; ++i, from += g.strides.pixel, to += L) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t c = 0; c < g.channels; ++c)
        to[c * channel + lane] = load_one(from + lane * g.channels + c);
    }
  }
}

template <class T>
void run_of_lanes(const Acc<T>* from, int64_t channel, const GroupedLayout& g, int64_t lanes, int64_t count,
                  T* to) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (!g.channels_last) {
    for (int64_t c = 0; c < g.channels; ++c) {
      transpose_block(from + c * channel, L, count, lanes,
                      [&](int64_t lane) { return to + (lane * g.channels + c) * g.strides.channel; });
    }
    return;
  }
  if (lanes == L) {
    if (g.channels == 1) return join_run<1>(from, channel, count, to, g.strides.pixel);
    if (g.channels == 2) return join_run<2>(from, channel, count, to, g.strides.pixel);
    if (g.channels == 4) return join_run<4>(from, channel, count, to, g.strides.pixel);
    if (g.channels == 8) return join_run<8>(from, channel, count, to, g.strides.pixel);
    if (g.channels == 16) return join_run<16>(from, channel, count, to, g.strides.pixel);
  }
  for (int64_t i = 0; i < count; ++i, from += L, to += g.strides.pixel) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t c = 0; c < g.channels; ++c)
        store_one(to + lane * g.channels + c, from[c * channel + lane]);
    }
  }
}

// from[lane][i] to to[i][lane] and back, i < count: the weights of a block's groups, which are often fewer
// than a vector's lanes. `after`: elements that follow in memory.
template <class T>
void rows_to_lanes(const T* from, int64_t count, int64_t lanes, int64_t after, Acc<T>* to) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (count >= L || lanes < L || after < L - count)
    return transpose_block(from, count, lanes, count, [&](int64_t i) { return to + i * L; });
  Vec<Acc<T>> x[L];  // of each group, and of the next
  for (int64_t lane = 0; lane < L; ++lane) x[lane] = load(from + lane * count);
  transpose<Acc<T>>(x);
  for (int64_t i = 0; i < count; ++i) store(to + i * L, x[i]);
}
template <class T>
void lanes_to_rows(const Acc<T>* from, int64_t count, int64_t lanes, T* to) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (count >= L || lanes < L)
    return transpose_block(from, L, count, lanes, [&](int64_t lane) { return to + lane * count; });
  Vec<Acc<T>> x[L] = {};
  for (int64_t i = 0; i < count; ++i) x[i] = load(from + i * L);
  transpose<Acc<T>>(x);
  // What a vector writes beyond its group is overwritten by the next ones; the last groups end with the
  // memory.
  const int64_t whole = (L * count - L) / count + 1;
  for (int64_t lane = 0; lane < L; ++lane) {
    if (lane < whole) {
      store(to + lane * count, x[lane]);
    } else {
      for (int64_t i = 0; i < count; ++i) store_one(to + lane * count + i, x[lane][i]);
    }
  }
}

// What a block multiplies with and adds: to[weight of a group, as in memory][lane] and add[channel][lane].
template <class T>
void pack_lanes(const T* weight, int64_t weights, const T* bias, int64_t channels,
                const LaneBlocks<Acc<T>>& blocks, int64_t block, Acc<T>* to, Acc<T>* add) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const int64_t first = blocks.first(block);
  if (blocks.lanes < L) fill_zero(to, weights * L);
  rows_to_lanes(weight + first * weights, weights, blocks.lanes, (blocks.groups - first - L) * weights, to);
  fill_zero(add, channels * L);
  if (!bias) return;
  for (int64_t lane = 0; lane < blocks.lanes; ++lane) {
    for (int64_t c = 0; c < channels; ++c) add[c * L + lane] = load_one(bias + (first + lane) * channels + c);
  }
}

// A box of lanes: staged in scratch memory, or found in place.
template <class A>
struct LanesView {
  A* base;                                               // of channel 0 at the pixel `origin`
  int64_t origin[kAxes], stride[kAxes], channel, block;  // distances in elements

  A* at(int64_t i0, int64_t i1, int64_t i2) const {
    return base + (i0 - origin[0]) * stride[0] + (i1 - origin[1]) * stride[1] + (i2 - origin[2]) * stride[2];
  }
};

template <class A>
CNNEXT_INLINE LanesView<A> staged_view(A* base, const Box& box, int64_t channels) {
  constexpr int64_t L = kLanes<A>;
  return {base,
          {box.begin[0], box.begin[1], box.begin[2]},
          {box.size(1) * box.size(2) * L, box.size(2) * L, L},
          box.pixels() * L,
          channels * box.pixels() * L};
}
template <class A>
CNNEXT_INLINE LanesView<A> view_in_place(A* base, const GroupedLayout& g) {
  const int64_t pixel = g.strides.pixel;
  return {base, {0, 0, 0}, {g.extent[1] * g.extent[2] * pixel, g.extent[2] * pixel, pixel}, 0, 0};
}

// `from` and `to` are the block's first channel of an image.
template <class T>
void load_lanes(const T* from, const GroupedLayout& g, int64_t lanes, const Box& box, Acc<T>* to) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (lanes < L) fill_zero(to, g.channels * box.pixels() * L);
  each_run(box, g.extent, [&](int64_t at, int64_t pixel, int64_t count) {
    lanes_of_run(from + pixel * g.strides.pixel, g, lanes, count, to + at * L, box.pixels() * L);
  });
}
template <class T>
void store_lanes(const Acc<T>* from, const GroupedLayout& g, int64_t lanes, const Box& box, T* to) {
  constexpr int64_t L = kLanes<Acc<T>>;
  each_run(box, g.extent, [&](int64_t at, int64_t pixel, int64_t count) {
    run_of_lanes(from + at * L, box.pixels() * L, g, lanes, count, to + pixel * g.strides.pixel);
  });
}

// Every step-th of some rows in a plane, of some channels, in the order of memory; channels last.
template <class T>
FetchedRows fetched_rows(const T* image, const GroupedLayout& g, int64_t channels, int64_t plane, Range some,
                         int64_t step, int64_t calls) {
  const int64_t pixel = g.strides.pixel, row = g.extent[2] * pixel;
  const T* first = image + (plane * g.extent[1] + some.begin) * row;
  const FetchedRows::Loop rows = {ceil_div(max_of(some.size(), 0), step), step * row};
  if (channels >= pixel) return {first, row, rows, {1, 0}, calls};
  return {first, channels, {g.extent[2], pixel}, rows, calls};
}

// Rows of pixels of which each block's lines are fetched into L2, a share at a time: too many at a time would
// wait for each other. Unlike FetchedRows (fetch_ahead.h), shares are taken block by block in any order.
template <class T>
struct FetchedShares {
  FetchedShares() = default;
  // Every step-th row of some in a plane.
  FetchedShares(const T* image, const GroupedLayout& g, int64_t lanes, int64_t plane, Range some,
                int64_t step, int64_t shares)
      : group(g.channels * g.strides.channel),
        at(image + (plane * g.extent[1] + some.begin) * g.extent[2] * g.strides.pixel),
        row(step * g.extent[2] * g.strides.pixel),
        stride(g.channels_last ? g.strides.pixel : g.strides.channel),
        rows(ceil_div(some.size(), step)) {
    int64_t pixels = g.extent[2];
    if (step == 1) pixels *= rows, rows = min_of(rows, 1);
    count = g.channels_last ? pixels : lanes * g.channels;
    length = g.channels_last ? lanes * g.channels : pixels;
    share = ceil_div(count, shares);
    two_of_line = g.channels_last && 2 * length * int64_t(sizeof(T)) == kAlignment;
  }

  // A share of the block from a group on, counted from the first one's. Inlined by force: compilers drop
  // calls of functions that only prefetch.
  template <bool Write>
  __attribute__((always_inline)) void next(int64_t first, int64_t number) const {
    if (two_of_line && first * group / length % 2) return;
    const int64_t begin = number * share, end = min_of(count, begin + share);
    for (int64_t r = 0; r < rows; ++r) {
      const T* line = at + first * group + r * row + begin * stride;
      if (length * int64_t(sizeof(T)) <= kAlignment) {
        for (int64_t i = begin; i < end; ++i, line += stride) __builtin_prefetch(line, Write, 2);
        continue;
      }
      for (int64_t i = begin; i < end; ++i, line += stride) {
        for (int64_t n = 0; n < length; n += kAlignment / int64_t(sizeof(T)))
          __builtin_prefetch(line + n, Write, 2);
      }
    }
  }

  int64_t group = 0;
  const T* at = nullptr;
  int64_t row = 0, stride = 0, rows = 0;     // distances in elements
  int64_t count = 0, length = 0, share = 0;  // a row has count lines or rows of lines, of so many elements
  bool two_of_line = false;                  // two blocks share a line: the first asks for it
};

// What a kernel reads next, and what else it reads or writes.
template <class T, bool Write>
struct LanesAhead {
  FetchedShares<T> source, other;
  __attribute__((always_inline)) void next(int64_t first, int64_t number) const {
    source.template next<false>(first, number);
    other.template next<Write>(first, number);
  }
};

// Why a lane for each channel is not for a problem, or null; and a lane for each group.
inline const char* depthwise_refuses(const ConvProblem& p) {
  if (p.shape.C_per_group() > 1) return "takes one channel in a group";
  if (p.shape.groups < 4) return "takes four groups or more";
  return nullptr;
}
inline const char* grouped_excludes(const ConvProblem& p) {  // wider groups fill vectors by themselves
  const int64_t C = p.shape.C_per_group(), K = p.shape.K_per_group();
  if (C == 1) return "takes more than one channel in a group";
  if (max_of(C, K) > 16) return "takes up to 16 channels in a group";
  if (p.shape.groups < (max_of(C, K) > 4 ? kLanes<float> : 8)) return "takes as many groups as fill a vector";
  return nullptr;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
