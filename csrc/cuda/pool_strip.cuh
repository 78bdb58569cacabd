// Pooling by square windows of the sizes that networks have, without dilation: a thread computes a strip of
// kStrip neighbours along the height, for kPack channels, so that it reads what their windows share once, and
// decides once which columns are inside. Neighbouring threads still read neighbours in memory.
//
// The same results as by pool.cuh, bit by bit: sums and comparisons run in the same order.
#pragma once

#include "pool.cuh"

namespace cnnext::cuda {

// kKernel = 0: any window, by pool.cuh.
template <int kKernel_, int kStride_>
struct Square {
  static constexpr int kKernel = kKernel_, kStride = kStride_;
};
template <int kPack>
constexpr int kStrip = kPack == 1 ? 4 : 2;  // a multiple of every stride

// What an average over a window divides by, given the taps that it counts along the first axis.
CNNEXT_DEVICE float strip_divisor(const PoolArguments& a, int depth_taps, int p, int q) {
  if (a.divisor_override != 0) return float(a.divisor_override);
  return float(int64_t(depth_taps) *
               (a.axis[1].fixed_counted(p, a.count_padding) * a.axis[2].fixed_counted(q, a.count_padding)));
}

// Calls body(input's place, y, x) for the inputs of the item's strip of windows, in order: row y of the
// strip, tap x of the row. `depth` is a tap of the first axis.
template <class Window, int kStrip, class Body>
CNNEXT_DEVICE void each_strip_input(const PoolArguments& a, const PoolItem& item, int depth,
                                    const Body& body) {
  const PoolAxis &h = a.axis[1], &w = a.axis[2];
  const int top = item.at[1] * kStrip * Window::kStride - h.padding;
  const int left = item.at[2] * Window::kStride - w.padding;
  const int64_t first = item.input_at(a, depth, top, left), row = w.input * a.input.pixel;
#pragma unroll
  for (int y = 0; y < (kStrip - 1) * Window::kStride + Window::kKernel; ++y) {
    if (unsigned(top + y) >= unsigned(h.input)) continue;
#pragma unroll
    for (int x = 0; x < Window::kKernel; ++x) {
      if (unsigned(left + x) < unsigned(w.input)) body(first + y * row + x * a.input.pixel, y, x);
    }
  }
}

template <class T, int kPack, class Window, bool kWithOffsets>
CNNEXT_LAUNCH(kPoolThreads, 4)
max_pool_strip(PoolArguments a, const T* input, T* output, uint8_t* offsets) {
  constexpr int kRows = kStrip<kPack>, kKernel = Window::kKernel, kStride = Window::kStride;
  const PoolItem item = PoolItem::of<false, kPack>(a);
  if (!item.valid) return;
  const Taps d = a.axis[0].taps(item.at[0]);
  const int p = item.at[1] * kRows;
  Acc<T> best[kRows][kPack];
  int best_tap[kRows][kPack];
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const int y = a.axis[1].padding - (p + j) * kStride, x = a.axis[2].padding - item.at[2] * kStride;
    const int first = (d.tap * kKernel + (y > 0 ? y : 0)) * kKernel + (x > 0 ? x : 0);
#pragma unroll
    for (int i = 0; i < kPack; ++i) best[j][i] = -INFINITY, best_tap[j][i] = first;
  }
  for (int z = 0; z < d.count; ++z) {
    const int plane_tap = (d.tap + z) * kKernel * kKernel;
    each_strip_input<Window, kRows>(a, item, d.index + z * a.axis[0].dilation, [&](int64_t at, int y, int x) {
      const Pack<T, kPack> values = load_pack<T, kPack>(input + at);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int r = y - j * kStride;
        if (r < 0 || r >= kKernel) continue;
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          const Acc<T> value = to_float(values.at[i]);
          if (value > best[j][i] || value != value) {
            best[j][i] = value, best_tap[j][i] = plane_tap + r * kKernel + x;
          }
        }
      }
    });
  }
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    if (p + j >= a.axis[1].output) break;
    const int64_t to = item.output_at(a, item.at[0], p + j, item.at[2]);
    Pack<T, kPack> result;
    Pack<uint8_t, kPack> taps;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      convert(best[j][i], &result.at[i]);
      taps.at[i] = static_cast<uint8_t>(best_tap[j][i]);
    }
    store_pack(output + to, result);
    if (kWithOffsets) store_pack(offsets + to, taps);
  }
}

template <class T, int kPack, class Window>
CNNEXT_LAUNCH(kPoolThreads, 4)
avg_pool_strip(PoolArguments a, const T* input, T* output) {
  constexpr int kRows = kStrip<kPack>, kKernel = Window::kKernel, kStride = Window::kStride;
  const PoolItem item = PoolItem::of<false, kPack>(a);
  if (!item.valid) return;
  const Taps d = a.axis[0].taps(item.at[0]);
  const int p = item.at[1] * kRows;
  Acc<T> sum[kRows][kPack] = {};
  for (int z = 0; z < d.count; ++z) {
    each_strip_input<Window, kRows>(a, item, d.index + z * a.axis[0].dilation, [&](int64_t at, int y, int) {
      const Pack<T, kPack> values = load_pack<T, kPack>(input + at);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int r = y - j * kStride;
        if (r < 0 || r >= kKernel) continue;
#pragma unroll
        for (int i = 0; i < kPack; ++i) sum[j][i] += to_float(values.at[i]);
      }
    });
  }
  const int depth_taps = a.axis[0].counted(item.at[0], a.count_padding);
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    if (p + j >= a.axis[1].output) break;
    const float divisor = strip_divisor(a, depth_taps, p + j, item.at[2]);
    Pack<T, kPack> result;
#pragma unroll
    for (int i = 0; i < kPack; ++i) convert(sum[j][i] / divisor, &result.at[i]);
    store_pack(output + item.output_at(a, item.at[0], p + j, item.at[2]), result);
  }
}

// Strips of inputs begin at the first padding, so that the strip's place tells by which taps a window reads
// its rows: row p of windows has tap r on row i of the strip where i = (p - first_p) * kStride + r. Calls
// body(output's place, o, p, q, p - first_p, tap of row 0) for each window over the strip.
template <class Window, int kStrip, class Body>
CNNEXT_DEVICE void each_strip_window(const PoolArguments& a, const PoolItem& item, const Body& body) {
  constexpr int kKernel = Window::kKernel, kStride = Window::kStride, kMore = (kKernel - 1) / kStride;
  int first, end;
  a.axis[0].windows(item.at[0], &first, &end);
  const int first_p = item.at[1] * (kStrip / kStride);
  const int right = item.at[2] + a.axis[2].padding, last_q = right / kStride, last_s = right % kStride;
  for (int o = first; o < end; ++o) {
    const int z = a.axis[0].tap(o, item.at[0]);
    if (z < 0) continue;
#pragma unroll
    for (int m = -kMore; m <= (kStrip - 1) / kStride; ++m) {
      if (unsigned(first_p + m) >= unsigned(a.axis[1].output)) continue;
#pragma unroll
      for (int n = kMore; n >= 0; --n) {
        const int q = last_q - n, s = last_s + n * kStride;
        if (s >= kKernel || unsigned(q) >= unsigned(a.axis[2].output)) continue;
        body(item.output_at(a, o, first_p + m, q), o, first_p + m, q, m, z * kKernel * kKernel + s);
      }
    }
  }
}

// Writes the strip's rows that are inside.
template <class T, int kPack>
CNNEXT_DEVICE void store_strip(const PoolArguments& a, const PoolItem& item,
                               const Acc<T> (&sum)[kStrip<kPack>][kPack], T* grad_input) {
  const int top = item.at[1] * kStrip<kPack> - a.axis[1].padding;
#pragma unroll
  for (int j = 0; j < kStrip<kPack>; ++j) {
    if (unsigned(top + j) >= unsigned(a.axis[1].input)) continue;
    Pack<T, kPack> result;
#pragma unroll
    for (int i = 0; i < kPack; ++i) convert(sum[j][i], &result.at[i]);
    store_pack(grad_input + item.input_at(a, item.at[0], top + j, item.at[2]), result);
  }
}

template <class T, int kPack, class Window>
CNNEXT_LAUNCH(kPoolThreads, 4)
max_pool_grad_input_strip(PoolArguments a, T* grad_input, const T* grad_output, const uint8_t* offsets) {
  constexpr int kRows = kStrip<kPack>;
  const PoolItem item = PoolItem::of<true, kPack>(a);
  if (!item.valid) return;
  Acc<T> sum[kRows][kPack] = {};
  each_strip_window<Window, kRows>(a, item, [&](int64_t at, int, int, int, int m, int tap) {
    const Pack<uint8_t, kPack> taps = load_pack<uint8_t, kPack>(offsets + at);
    const Pack<T, kPack> grads = load_pack<T, kPack>(grad_output + at);
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
CNNEXT_LAUNCH(kPoolThreads, 4)
avg_pool_grad_input_strip(PoolArguments a, T* grad_input, const T* grad_output) {
  constexpr int kRows = kStrip<kPack>;
  const PoolItem item = PoolItem::of<true, kPack>(a);
  if (!item.valid) return;
  Acc<T> sum[kRows][kPack] = {};
  each_strip_window<Window, kRows>(a, item, [&](int64_t at, int o, int p, int q, int m, int) {
    const float share = 1 / strip_divisor(a, a.axis[0].counted(o, a.count_padding), p, q);
    const Pack<T, kPack> grads = load_pack<T, kPack>(grad_output + at);
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
