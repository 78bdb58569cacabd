// Pooling by square windows of the sizes that networks have, without dilation: a thread computes a strip of
// kStrip neighbours along the height, for kPack channels, so that it reads what their windows share once, and
// decides once which columns are inside. Neighbouring threads still read neighbours in memory. Sums and
// comparisons run in the order of pool.cuh. One channel at a time is for channels first: then the columns of
// a row are at constant distances. There are no branches around loads, so that many are on their way at once.
#pragma once

#include "pool.cuh"
#include "ptx.cuh"

namespace cnnext::cuda {

// kKernel = 0: any window, by pool.cuh.
template <int kKernel_, int kStride_>
struct Square {
  static constexpr int kKernel = kKernel_, kStride = kStride_;
};
template <int kPack>
constexpr int kStrip = kPack == 1 ? 8 : 2;  // a multiple of every stride

template <int kPack>
CNNEXT_DEVICE int64_t column_step(const Strides& strides) {
  return kPack == 1 ? 1 : strides.pixel;
}

// What an average over a window divides by, given the taps that it counts along the first axis.
CNNEXT_DEVICE float strip_divisor(const PoolArguments& a, int depth_taps, int p, int q) {
  if (a.divisor_override != 0) return float(a.divisor_override);
  return float(depth_taps) * float(a.axis[1].fixed_counted(p, a.count_padding)) *
         float(a.axis[2].fixed_counted(q, a.count_padding));
}

// Calls body(values, y, x) for the inputs of the item's strip of windows, in order: row y of the strip, tap x
// of the row; of the padding all are `outside`. `depth` is an index of the first axis.
template <class Window, int kPack, class T, class Body>
CNNEXT_DEVICE void each_strip_input(const PoolArguments& a, const PoolItem& item, const T* input, int depth,
                                    Acc<T> outside, const Body& body) {
  const PoolAxis &h = a.axis[1], &w = a.axis[2];
  const int top = item.at[1] * kStrip<kPack> * Window::kStride - h.padding;
  const int left = item.at[2] * Window::kStride - w.padding;
  const int64_t step = column_step<kPack>(a.input), row = w.input * step;
  const T* from = input + item.input_at(a, depth, top, left);
  Pack<T, kPack> padding;
#pragma unroll
  for (int i = 0; i < kPack; ++i) convert(outside, &padding.at[i]);
  unsigned rows[Window::kKernel];  // of the column that tap x reads
#pragma unroll
  for (int x = 0; x < Window::kKernel; ++x) rows[x] = unsigned(left + x) < unsigned(w.input) ? h.input : 0;
#pragma unroll
  for (int y = 0; y < (kStrip<kPack> - 1) * Window::kStride + Window::kKernel; ++y, from += row) {
#pragma unroll
    for (int x = 0; x < Window::kKernel; ++x) {
      body(load_if<T, kPack>(unsigned(top + y) < rows[x], from + x * step, padding), y, x);
    }
  }
}

// The maxima of a pack's channels so far and the taps that they were read by.
template <class T, int kPack>
struct Maxima {
  Acc<T> best[kPack];
  int best_tap[kPack];

  CNNEXT_DEVICE void start(int tap) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) best[i] = -INFINITY, best_tap[i] = tap;
  }
  CNNEXT_DEVICE void compare(const Pack<T, kPack>& values, int tap) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const Acc<T> value = to_float(values.at[i]);
      const bool wins = (value > best[i]) | (value != value);
      best[i] = wins ? value : best[i];
      best_tap[i] = wins ? tap : best_tap[i];
    }
  }
  CNNEXT_DEVICE void finish(Pack<T, kPack>* result, Pack<uint8_t, kPack>* taps) const {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      convert(best[i], &result->at[i]);
      taps->at[i] = static_cast<uint8_t>(best_tap[i]);
    }
  }
};

// The same for pairs of 16 bits, without a conversion and in half as many instructions.
template <class T, int kPack>
struct PairedMaxima {
  static constexpr int kPairs = kPack / 2;
  uint32_t best[kPairs], best_tap[kPairs];

  CNNEXT_DEVICE void start(int tap) {
    T lowest;
    convert(ptx::opaque(-INFINITY), &lowest);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) best[i] = lowest.bits * 0x10001u, best_tap[i] = tap * 0x10001u;
  }
  CNNEXT_DEVICE void compare(const Pack<T, kPack>& values, int tap) {
    uint32_t pairs[kPairs];
    memcpy(pairs, &values, sizeof(pairs));
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const uint32_t wins = ptx::greater_or_nan(pairs[i], best[i], T());
      best[i] = (wins & pairs[i]) | (~wins & best[i]);
      best_tap[i] = (wins & (tap * 0x10001u)) | (~wins & best_tap[i]);
    }
  }
  CNNEXT_DEVICE void finish(Pack<T, kPack>* result, Pack<uint8_t, kPack>* taps) const {
    memcpy(result, best, sizeof(best));
#pragma unroll
    for (int i = 0; i < kPack; ++i) taps->at[i] = static_cast<uint8_t>(best_tap[i / 2] >> i % 2 * 16);
  }
};

template <class T, int kPack>
constexpr bool kPaired = sizeof(T) == 2 && kPack % 2 == 0 && (std::is_same_v<T, Float16> || CNNEXT_SM90);

template <class T, int kPack, class Window, bool kWithOffsets>
CNNEXT_LAUNCH(kPoolThreads, 2)
max_pool_strip(PoolArguments a, const T* input, T* output, uint8_t* offsets) {
  constexpr int kRows = kStrip<kPack>, kKernel = Window::kKernel, kStride = Window::kStride;
  const PoolItem item = PoolItem::of<false, kPack>(a);
  if (!item.valid) return;
  const Taps d = a.axis[0].taps(item.at[0]);
  const int p = item.at[1] * kRows;
  std::conditional_t<kPaired<T, kPack>, PairedMaxima<T, kPack>, Maxima<T, kPack>> maxima[kRows];
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const int y = a.axis[1].padding - (p + j) * kStride, x = a.axis[2].padding - item.at[2] * kStride;
    maxima[j].start((d.tap * kKernel + (y > 0 ? y : 0)) * kKernel + (x > 0 ? x : 0));
  }
  for (int z = 0; z < d.count; ++z) {
    const int plane_tap = (d.tap + z) * kKernel * kKernel;
    const auto compare = [&](const Pack<T, kPack>& values, int y, int x) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int r = y - j * kStride;
        if (r >= 0 && r < kKernel) maxima[j].compare(values, plane_tap + r * kKernel + x);
      }
    };
    // What compilers know of a constant they would make branches of.
    const float lowest = ptx::opaque(-INFINITY);
    each_strip_input<Window, kPack>(a, item, input, d.index + z * a.axis[0].dilation, lowest, compare);
  }
  int64_t to = item.output_at(a, item.at[0], p, item.at[2]);
#pragma unroll
  for (int j = 0; j < kRows; ++j, to += a.axis[2].output * column_step<kPack>(a.output)) {
    if (p + j >= a.axis[1].output) break;
    Pack<T, kPack> result;
    Pack<uint8_t, kPack> taps;
    maxima[j].finish(&result, &taps);
    store_pack(output + to, result);
    if (kWithOffsets) store_pack(offsets + to, taps);
  }
}

template <class T, int kPack, class Window>
CNNEXT_LAUNCH(kPoolThreads, 2)
avg_pool_strip(PoolArguments a, const T* input, T* output) {
  constexpr int kRows = kStrip<kPack>, kKernel = Window::kKernel, kStride = Window::kStride;
  const PoolItem item = PoolItem::of<false, kPack>(a);
  if (!item.valid) return;
  const Taps d = a.axis[0].taps(item.at[0]);
  const int p = item.at[1] * kRows;
  Acc<T> sum[kRows][kPack] = {};
  const auto add = [&](const Pack<T, kPack>& values, int y, int) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int r = y - j * kStride;
      if (r < 0 || r >= kKernel) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum[j][i] += to_float(values.at[i]);
    }
  };
  for (int z = 0; z < d.count; ++z) {
    each_strip_input<Window, kPack>(a, item, input, d.index + z * a.axis[0].dilation, 0, add);
  }
  const int depth_taps = a.axis[0].counted(item.at[0], a.count_padding);
  int64_t to = item.output_at(a, item.at[0], p, item.at[2]);
#pragma unroll
  for (int j = 0; j < kRows; ++j, to += a.axis[2].output * column_step<kPack>(a.output)) {
    if (p + j >= a.axis[1].output) break;
    const float divisor = strip_divisor(a, depth_taps, p + j, item.at[2]);
    Pack<T, kPack> result;
#pragma unroll
    for (int i = 0; i < kPack; ++i) convert(sum[j][i] / divisor, &result.at[i]);
    store_pack(output + to, result);
  }
}

// Strips of inputs begin at the first padding, so that the strip's place tells by which taps a window reads
// its rows: the windows of row first_p + m have tap r on row m * kStride + r of the strip. Calls
// body(output's place, whether there is that output, m, n, tap of row 0, of_row(o, p)) for each window over
// the strip, the n-th column before the last.
template <class Window, int kPack, class OfRow, class Body>
CNNEXT_DEVICE void each_strip_window(const PoolArguments& a, const PoolItem& item, const OfRow& of_row,
                                     const Body& body) {
  constexpr int kKernel = Window::kKernel, kStride = Window::kStride, kMore = (kKernel - 1) / kStride;
  int first_o, end_o;
  a.axis[0].windows(item.at[0], a.axis[0].adaptive, &first_o, &end_o);
  const int first_p = item.at[1] * (kStrip<kPack> / kStride);
  const int right = item.at[2] + a.axis[2].padding, last_q = right / kStride, last_s = right % kStride;
  unsigned rows[kMore + 1];  // of the column of outputs
#pragma unroll
  for (int n = 0; n <= kMore; ++n) {
    const bool is_column =
        last_s + n * kStride < kKernel && unsigned(last_q - n) < unsigned(a.axis[2].output);
    rows[n] = is_column ? a.axis[1].output : 0;
  }
  for (int o = first_o; o < end_o; ++o) {
    const int z = a.axis[0].tap(o, item.at[0], a.axis[0].adaptive);
    if (z < 0) continue;
    const int64_t step = column_step<kPack>(a.output), row = a.axis[2].output * step;
    int64_t at = item.output_at(a, o, first_p - kMore, last_q);
    constexpr int kEnd = (kStrip<kPack> - 1) / kStride + 1;
    decltype(of_row(0, 0)) values[kMore + kEnd];
#pragma unroll
    for (int m = -kMore; m < kEnd; ++m) values[kMore + m] = of_row(o, first_p + m);
#pragma unroll
    for (int m = -kMore; m < kEnd; ++m, at += row) {
#pragma unroll
      for (int n = kMore; n >= 0; --n) {
        const bool inside = unsigned(first_p + m) < rows[n];
        body(at - n * step, inside, m, n, z * kKernel * kKernel + last_s + n * kStride, values[kMore + m]);
      }
    }
  }
}

// Writes the strip's rows that are inside.
template <class T, int kPack>
CNNEXT_DEVICE void store_strip(const PoolArguments& a, const PoolItem& item,
                               const Acc<T> (&sum)[kStrip<kPack>][kPack], T* grad_input) {
  const int top = item.at[1] * kStrip<kPack> - a.axis[1].padding;
  T* to = grad_input + item.input_at(a, item.at[0], top, item.at[2]);
#pragma unroll
  for (int j = 0; j < kStrip<kPack>; ++j, to += a.axis[2].input * column_step<kPack>(a.input)) {
    if (unsigned(top + j) >= unsigned(a.axis[1].input)) continue;
    Pack<T, kPack> result;
#pragma unroll
    for (int i = 0; i < kPack; ++i) convert(sum[j][i], &result.at[i]);
    store_pack(to, result);
  }
}

template <class T, int kPack, class Window>
CNNEXT_LAUNCH(kPoolThreads, 2)
max_pool_grad_input_strip(PoolArguments a, T* grad_input, const T* grad_output, const uint8_t* offsets) {
  constexpr int kRows = kStrip<kPack>;
  const PoolItem item = PoolItem::of<true, kPack>(a);
  if (!item.valid) return;
  Acc<T> sum[kRows][kPack] = {};
  const auto of_row = [](int, int) { return 0; };
  each_strip_window<Window, kPack>(a, item, of_row, [&](int64_t at, bool inside, int m, int, int tap, int) {
    const Pack<uint8_t, kPack> taps = load_if<uint8_t, kPack>(inside, offsets + at, {});
    const Pack<T, kPack> grads = load_if<T, kPack>(inside, grad_output + at, {});
#pragma unroll
    for (int r = 0; r < Window::kKernel; ++r) {
      const int j = m * Window::kStride + r;
      if (j < 0 || j >= kRows) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (int(taps.at[i]) == tap + r * Window::kKernel) sum[j][i] += to_float(grads.at[i]);
      }
    }
  });
  store_strip<T, kPack>(a, item, sum, grad_input);
}

template <class T, int kPack, class Window>
CNNEXT_LAUNCH(kPoolThreads, 2)
avg_pool_grad_input_strip(PoolArguments a, T* grad_input, const T* grad_output) {
  constexpr int kRows = kStrip<kPack>;
  const PoolItem item = PoolItem::of<true, kPack>(a);
  if (!item.valid) return;
  Acc<T> sum[kRows][kPack] = {};
  // An average's share is one of its row's times one of its column's.
  const bool overridden = a.divisor_override != 0;
  constexpr int kColumns = (Window::kKernel - 1) / Window::kStride + 1;
  const int last_q = (item.at[2] + a.axis[2].padding) / Window::kStride;
  float of_column[kColumns];
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    of_column[n] = overridden ? 1.0f : 1.0f / float(a.axis[2].fixed_counted(last_q - n, a.count_padding));
  }
  const auto of_row = [&](int o, int p) {
    if (overridden) return 1.0f / float(a.divisor_override);
    return 1.0f / (float(a.axis[0].counted(o, a.count_padding)) *
                   float(a.axis[1].fixed_counted(p, a.count_padding)));
  };
  each_strip_window<Window, kPack>(
      a, item, of_row, [&](int64_t at, bool inside, int m, int n, int, float share) {
        share = inside ? share * of_column[n] : 0;
        const Pack<T, kPack> grads = load_if<T, kPack>(inside, grad_output + at, {});
#pragma unroll
        for (int r = 0; r < Window::kKernel; ++r) {
          const int j = m * Window::kStride + r;
          if (j < 0 || j >= kRows) continue;
#pragma unroll
          for (int i = 0; i < kPack; ++i) sum[j][i] += to_float(grads.at[i]) * share;
        }
      });
  store_strip<T, kPack>(a, item, sum, grad_input);
}

}  // namespace cnnext::cuda
