// Pooling in one, two and three dimensions, both layouts. A thread computes one pixel of several channels: 16
// bytes in channels last, eight planes in channels first, so that they share the arithmetic of its windows
// and their loads are on the way at once. Everything is a gather: each element of a result is written once,
// by one thread, so that nothing is cleared before, nothing is atomic, and every result is the same bit by
// bit.
//
// output[n, c, o] = maximum, or sum over its divisor, of input[n, c, o * stride - padding + tap * dilation]
#pragma once

#include "device.cuh"

namespace cnnext::cuda {

constexpr int kPoolThreads = 256;

// The channels of a thread: neighbours in memory, or each in a plane of its own.
template <int kCount_, bool kPlanes_>
struct ChannelPack {
  static constexpr int kCount = kCount_;
  static constexpr bool kPlanes = kPlanes_;
};

template <class Channels, class T>
CNNEXT_DEVICE Pack<T, Channels::kCount> load_channels(const T* from, int64_t plane) {
  if constexpr (Channels::kPlanes) {
    Pack<T, Channels::kCount> values;
#pragma unroll
    for (int i = 0; i < Channels::kCount; ++i) values.at[i] = load_pack<T, 1>(from + i * plane).at[0];
    return values;
  } else {
    return load_pack<T, Channels::kCount>(from);
  }
}
template <class Channels, class T>
CNNEXT_DEVICE void store_channels(T* to, int64_t plane, const Pack<T, Channels::kCount>& values) {
  if constexpr (Channels::kPlanes) {
#pragma unroll
    for (int i = 0; i < Channels::kCount; ++i) store_pack(to + i * plane, Pack<T, 1>{values.at[i]});
  } else {
    store_pack(to, values);
  }
}

struct Taps {  // of one window that are inside the input: tap + j reads index + j * dilation
  int index, tap, count;
};

struct PoolAxis {
  int input, output, kernel, stride, padding, dilation;
  bool adaptive;
  bool wide;  // an index times an extent may exceed 31 bits
  Divisor by_input, by_output, by_kernel, by_stride, by_dilation;

  // Divisions of 64 bits take a hundred instructions.
  CNNEXT_DEVICE int divide(int64_t product, const Divisor& divisor) const {
    return wide ? int(product / divisor.by) : int(divisor.quotient(uint32_t(product)));
  }
  CNNEXT_DEVICE int origin(int o) const { return origin(o, adaptive); }
  CNNEXT_DEVICE int origin(int o, bool adaptive) const {
    return adaptive ? divide(int64_t(o) * input, by_output) : o * stride - padding;
  }
  CNNEXT_DEVICE Taps taps(int o) const {
    if (!adaptive) return fixed_taps(o);
    const int start = origin(o);
    return {start, 0, divide((o + 1) * int64_t(input) + output - 1, by_output) - start};
  }
  CNNEXT_DEVICE Taps fixed_taps(int o) const {  // of windows that are not adaptive
    const int start = o * stride - padding;
    const int first = start < 0 ? int(by_dilation.quotient(dilation - 1 - start)) : 0;
    const int end = start < input ? int(by_dilation.quotient(input - start + dilation - 1)) : 0;
    const int tap = first < kernel ? first : kernel, most = end < kernel ? end : kernel;
    return {start + tap * dilation, tap, most > tap ? most - tap : 0};
  }
  // Taps that an average counts.
  CNNEXT_DEVICE int counted(int o, bool count_padding) const {
    return adaptive ? taps(o).count : fixed_counted(o, count_padding);
  }
  CNNEXT_DEVICE int fixed_counted(int o, bool count_padding) const {
    if (!count_padding) return fixed_taps(o).count;
    const int most = input + padding - (o * stride - padding);
    return kernel < most ? kernel : most;
  }
  // Windows that may have a tap on input i are [first, end).
  CNNEXT_DEVICE void windows(int i, bool adaptive, int* first, int* end) const {
    if (adaptive) {
      *first = divide(int64_t(i) * output, by_input);
      *end = divide((i + 1) * int64_t(output) - 1, by_input) + 1;
      return;
    }
    const int behind = i + padding - dilation * (kernel - 1), last = int(by_stride.quotient(i + padding)) + 1;
    *first = behind > 0 ? int(by_stride.quotient(behind + stride - 1)) : 0;
    *end = last < output ? last : output;
  }
  // The tap by which window o reads input i, or -1.
  CNNEXT_DEVICE int tap(int o, int i, bool adaptive) const {
    const int distance = i - origin(o, adaptive);
    if (dilation == 1) return distance;
    const int tap = int(by_dilation.quotient(distance));
    return tap * dilation == distance ? tap : -1;
  }
};

struct PoolArguments {
  PoolAxis axis[kAxes];
  bool channels_last, count_padding, adaptive;
  int64_t divisor_override;
  int packs;  // of channels
  Divisor by_packs;
  int64_t first_image;
  Strides input, output;
  int64_t inputs, outputs;  // elements of an image over kPack
  bool large;               // more of them than 32 bits number

  CNNEXT_DEVICE int64_t divisor(int o, int p, int q) const {
    if (divisor_override != 0) return divisor_override;
    return int64_t(axis[0].counted(o, count_padding)) * axis[1].counted(p, count_padding) *
           axis[2].counted(q, count_padding);
  }
};

// The pixel that a thread computes, in the output or the input, and where its channels start in each of them.
struct PoolItem {
  bool valid;
  int at[kAxes];
  int64_t input, output;

  template <bool kInput, int kPack>
  CNNEXT_DEVICE static PoolItem of(const PoolArguments& a) {
    return of<kInput, kPack>(a, int64_t(blockIdx.x) * kPoolThreads + threadIdx.x);
  }
  template <bool kInput, int kPack>
  CNNEXT_DEVICE static PoolItem of(const PoolArguments& a, int64_t number) {
    PoolItem item;
    item.valid = number < (kInput ? a.inputs : a.outputs);
    const auto take = [&](auto& rest) {  // coordinates off a number, the fastest first
      int pack = 0;
      if (a.channels_last) pack = split(rest, a.by_packs);
      for (int axis = kAxes - 1; axis >= 0; --axis) {
        item.at[axis] = split(rest, kInput ? a.axis[axis].by_input : a.axis[axis].by_output);
      }
      return a.channels_last ? pack : int(rest);
    };
    uint32_t small = uint32_t(number);
    int64_t large = number;
    const int pack = a.large ? take(large) : take(small);
    const int64_t image = a.first_image + blockIdx.y, channel = int64_t(pack) * kPack;
    item.input = image * a.input.image + channel * a.input.channel;
    item.output = image * a.output.image + channel * a.output.channel;
    return item;
  }
  CNNEXT_DEVICE int64_t input_at(const PoolArguments& a, int z, int y, int x) const {
    return input + ((int64_t(z) * a.axis[1].input + y) * a.axis[2].input + x) * a.input.pixel;
  }
  CNNEXT_DEVICE int64_t output_at(const PoolArguments& a, int o, int p, int q) const {
    return output + ((int64_t(o) * a.axis[1].output + p) * a.axis[2].output + q) * a.output.pixel;
  }
};

// Calls body(input's place, tap) for each tap of the item's window, in order.
template <class Body>
CNNEXT_DEVICE void each_tap(const PoolArguments& a, const PoolItem& item, const Body& body) {
  const Taps d = a.axis[0].taps(item.at[0]), h = a.axis[1].taps(item.at[1]), w = a.axis[2].taps(item.at[2]);
  for (int z = 0; z < d.count; ++z) {
    for (int y = 0; y < h.count; ++y) {
      const int row = ((d.tap + z) * a.axis[1].kernel + h.tap + y) * a.axis[2].kernel + w.tap;
      int64_t at =
          item.input_at(a, d.index + z * a.axis[0].dilation, h.index + y * a.axis[1].dilation, w.index);
      for (int x = 0; x < w.count; ++x, at += a.axis[2].dilation * a.input.pixel) body(at, row + x);
    }
  }
}

// Calls body(output's place, tap, taps that an average counts) for each window that has a tap on the item's
// input. The caller asks once whether windows are adaptive, so that the loops need not.
template <bool kAdaptive, bool kCounted, class Body>
CNNEXT_DEVICE void each_window(const PoolArguments& a, const PoolItem& item, const Body& body) {
  int first[kAxes], end[kAxes];
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    a.axis[axis].windows(item.at[axis], kAdaptive && a.axis[axis].adaptive, &first[axis], &end[axis]);
  }
  const auto tap = [&](int axis, int o) {
    return a.axis[axis].tap(o, item.at[axis], kAdaptive && a.axis[axis].adaptive);
  };
  const auto counted = [&](int axis, int o) {
    if (!kCounted) return 1;
    if (kAdaptive) return a.axis[axis].counted(o, a.count_padding);
    return a.axis[axis].fixed_counted(o, a.count_padding);
  };
  for (int o = first[0]; o < end[0]; ++o) {
    const int z = tap(0, o);
    if (z < 0) continue;
    const int planes = counted(0, o);
    for (int p = first[1]; p < end[1]; ++p) {
      const int y = tap(1, p);
      if (y < 0) continue;
      const int64_t rows = int64_t(planes) * counted(1, p);
      const int row = (z * a.axis[1].kernel + y) * a.axis[2].kernel;
      int64_t at = item.output_at(a, o, p, first[2]);
      for (int q = first[2]; q < end[2]; ++q, at += a.output.pixel) {
        const int x = tap(2, q);
        if (x >= 0) body(at, row + x, rows * counted(2, q));
      }
    }
  }
}
template <bool kCounted, class Body>
CNNEXT_DEVICE void each_window(const PoolArguments& a, const PoolItem& item, const Body& body) {
  if (a.adaptive) {
    each_window<true, kCounted>(a, item, body);
  } else {
    each_window<false, kCounted>(a, item, body);
  }
}

// Of equals the first is taken, and the last NaN.
template <class T, class Channels, class Offset, bool kWithOffsets>
CNNEXT_LAUNCH(kPoolThreads, 1)
max_pool(PoolArguments a, const T* input, T* output, Offset* offsets) {
  constexpr int kPack = Channels::kCount;
  const PoolItem item = PoolItem::of<false, kPack>(a);
  if (!item.valid) return;
  Acc<T> best[kPack];
  int best_tap[kPack];
  int first = 0;
  for (int axis = 0; axis < kAxes; ++axis)
    first = first * a.axis[axis].kernel + a.axis[axis].taps(item.at[axis]).tap;
#pragma unroll
  for (int i = 0; i < kPack; ++i) best[i] = -INFINITY, best_tap[i] = first;
  each_tap(a, item, [&](int64_t at, int tap) {
    const Pack<T, kPack> values = load_channels<Channels>(input + at, a.input.channel);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const Acc<T> value = to_float(values.at[i]);
      if (value > best[i] || value != value) best[i] = value, best_tap[i] = tap;
    }
  });
  const int64_t to = item.output_at(a, item.at[0], item.at[1], item.at[2]);
  Pack<T, kPack> result;
  Pack<Offset, kPack> taps;
#pragma unroll
  for (int i = 0; i < kPack; ++i)
    convert(best[i], &result.at[i]), taps.at[i] = static_cast<Offset>(best_tap[i]);
  store_channels<Channels>(output + to, a.output.channel, result);
  if (kWithOffsets) store_channels<Channels>(offsets + to, a.output.channel, taps);
}

template <class T, class Channels, class Offset>
CNNEXT_LAUNCH(kPoolThreads, 1)
max_pool_grad_input(PoolArguments a, T* grad_input, const T* grad_output, const Offset* offsets) {
  constexpr int kPack = Channels::kCount;
  const PoolItem item = PoolItem::of<true, kPack>(a);
  if (!item.valid) return;
  Acc<T> sum[kPack] = {};
  each_window<false>(a, item, [&](int64_t at, int tap, int64_t) {
    const Pack<Offset, kPack> taps = load_channels<Channels>(offsets + at, a.output.channel);
    const Pack<T, kPack> grads = load_channels<Channels>(grad_output + at, a.output.channel);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (int(taps.at[i]) == tap) sum[i] += to_float(grads.at[i]);
    }
  });
  Pack<T, kPack> result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) convert(sum[i], &result.at[i]);
  T* to = grad_input + item.input_at(a, item.at[0], item.at[1], item.at[2]);
  store_channels<Channels>(to, a.input.channel, result);
}

template <class T, class Channels>
CNNEXT_LAUNCH(kPoolThreads, 1)
avg_pool(PoolArguments a, const T* input, T* output) {
  constexpr int kPack = Channels::kCount;
  const PoolItem item = PoolItem::of<false, kPack>(a);
  if (!item.valid) return;
  Acc<T> sum[kPack] = {};
  each_tap(a, item, [&](int64_t at, int) {
    const Pack<T, kPack> values = load_channels<Channels>(input + at, a.input.channel);
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum[i] += to_float(values.at[i]);
  });
  const Acc<T> divisor = Acc<T>(a.divisor(item.at[0], item.at[1], item.at[2]));
  Pack<T, kPack> result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) convert(sum[i] / divisor, &result.at[i]);
  T* to = output + item.output_at(a, item.at[0], item.at[1], item.at[2]);
  store_channels<Channels>(to, a.output.channel, result);
}

// Windows of many taps that are too few to fill a GPU: threads share a window, each adds every kSharers-th of
// its inputs, and the first of them adds up their sums in order.
template <int kPack>
constexpr int kSharers = kPack == 1 ? 4 : 16;
template <int kPack>
constexpr int kSharedWindows = kPoolThreads / kSharers<kPack>;  // of a block
template <int kPack>
constexpr int kSumStep = kSharedWindows<kPack> + 32 / kSharers<kPack>;  // so that sharers use different banks

// Calls body(input's place) for the taps of a window that are a thread's.
template <class Body>
CNNEXT_DEVICE void each_shared_tap(const PoolArguments& a, const PoolItem& item, int share, int sharers,
                                   const Body& body) {
  const Taps d = a.axis[0].taps(item.at[0]), h = a.axis[1].taps(item.at[1]), w = a.axis[2].taps(item.at[2]);
  if (h.count == 0 || w.count == 0) return;
  for (int z = 0, y = 0, x = share;; x += sharers) {
    for (; x >= w.count; x -= w.count) ++y;
    for (; y >= h.count; y -= h.count) ++z;
    if (z >= d.count) return;
    body(item.input_at(a, d.index + z * a.axis[0].dilation, h.index + y * a.axis[1].dilation,
                       w.index + x * a.axis[2].dilation));
  }
}

template <class T, int kPack>
CNNEXT_LAUNCH(kPoolThreads, 1)
avg_pool_shared(PoolArguments a, const T* input, T* output) {
  // Neighbouring threads read neighbours in memory.
  const int thread = threadIdx.x;
  const int share = a.channels_last ? thread / kSharedWindows<kPack> : thread % kSharers<kPack>;
  const int window = a.channels_last ? thread % kSharedWindows<kPack> : thread / kSharers<kPack>;
  const PoolItem item = PoolItem::of<false, kPack>(a, int64_t(blockIdx.x) * kSharedWindows<kPack> + window);
  Acc<T> sum[kPack] = {};
  if (item.valid) {
    each_shared_tap(a, item, share, kSharers<kPack>, [&](int64_t at) {
      const Pack<T, kPack> values = load_pack<T, kPack>(input + at);
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum[i] += to_float(values.at[i]);
    });
  }
  Acc<T>* sums = shared_memory<Acc<T>>() + window;
#pragma unroll
  for (int i = 0; i < kPack; ++i) sums[(share * kPack + i) * kSumStep<kPack>] = sum[i];
  __syncthreads();
  if (share > 0 || !item.valid) return;
  for (int s = 1; s < kSharers<kPack>; ++s) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum[i] += sums[(s * kPack + i) * kSumStep<kPack>];
  }
  const Acc<T> divisor = Acc<T>(a.divisor(item.at[0], item.at[1], item.at[2]));
  Pack<T, kPack> result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) convert(sum[i] / divisor, &result.at[i]);
  store_pack(output + item.output_at(a, item.at[0], item.at[1], item.at[2]), result);
}

template <class T, class Channels>
CNNEXT_LAUNCH(kPoolThreads, 1)
avg_pool_grad_input(PoolArguments a, T* grad_input, const T* grad_output) {
  constexpr int kPack = Channels::kCount;
  const PoolItem item = PoolItem::of<true, kPack>(a);
  if (!item.valid) return;
  Acc<T> sum[kPack] = {};
  each_window<true>(a, item, [&](int64_t at, int, int64_t counted) {
    const Acc<T> share = Acc<T>(1) / Acc<T>(a.divisor_override != 0 ? a.divisor_override : counted);
    const Pack<T, kPack> grads = load_channels<Channels>(grad_output + at, a.output.channel);
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum[i] += to_float(grads.at[i]) * share;
  });
  Pack<T, kPack> result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) convert(sum[i], &result.at[i]);
  T* to = grad_input + item.input_at(a, item.at[0], item.at[1], item.at[2]);
  store_channels<Channels>(to, a.input.channel, result);
}

// The input pixel of the item's window that a tap reads.
CNNEXT_DEVICE void pixel_of_tap(const PoolArguments& a, const PoolItem& item, uint32_t tap, int* pixel) {
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const int t = split(tap, a.axis[axis].by_kernel);
    pixel[axis] = a.axis[axis].origin(item.at[axis]) + t * a.axis[axis].dilation;
  }
}

// T: any type of the elements' size. A window of nothing but padding has no input to pick: zero.
template <class T, class Offset>
CNNEXT_LAUNCH(kPoolThreads, 1)
max_pool_select(PoolArguments a, const T* input, T* output, const Offset* offsets) {
  const PoolItem item = PoolItem::of<false, 1>(a);
  if (!item.valid) return;
  const int64_t to = item.output_at(a, item.at[0], item.at[1], item.at[2]);
  int pixel[kAxes];
  pixel_of_tap(a, item, offsets[to], pixel);
  bool inside = true;
  for (int axis = 0; axis < kAxes; ++axis)
    inside = inside && unsigned(pixel[axis]) < unsigned(a.axis[axis].input);
  output[to] = inside ? input[item.input_at(a, pixel[0], pixel[1], pixel[2])] : T();
}

template <class Offset>
CNNEXT_LAUNCH(kPoolThreads, 1)
max_pool_indices(PoolArguments a, const Offset* offsets, int64_t* indices) {
  const PoolItem item = PoolItem::of<false, 1>(a);
  if (!item.valid) return;
  const int64_t to = item.output_at(a, item.at[0], item.at[1], item.at[2]);
  int pixel[kAxes];
  pixel_of_tap(a, item, offsets[to], pixel);
  indices[to] = (int64_t(pixel[0]) * a.axis[1].input + pixel[1]) * a.axis[2].input + pixel[2];
}

// Unpooling: a block takes one plane after the other. Of equal indices the last one stays: owner[index]
// becomes the largest number of a pooled element with that index. Threads write theirs where a smaller one
// stands, in turns, until none is left that does; what a turn leaves of several writers is larger than what
// was there.
template <class T>
CNNEXT_LAUNCH(kPoolThreads, 1)
max_unpool(int64_t planes, int C, Strides in, Strides out, int pixels, int pooled_pixels, const T* pooled,
           const int64_t* indices, T* output, int* owners) {
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    const int64_t from = plane / C * in.image + plane % C * in.channel;
    const int64_t to = plane / C * out.image + plane % C * out.channel;
    volatile int* owner = owners + int64_t(blockIdx.x) * pixels;
    for (int i = threadIdx.x; i < pixels; i += kPoolThreads) owner[i] = -1;
    bool again = true;
    while (again) {
      __syncthreads();
      for (int i = threadIdx.x; i < pooled_pixels; i += kPoolThreads) {
        const int64_t index = indices[from + i * in.pixel];
        fail_unless(index >= 0 && index < pixels);
        if (owner[index] < i) owner[index] = i;
      }
      __syncthreads();
      bool mine = false;
      for (int i = threadIdx.x; i < pooled_pixels; i += kPoolThreads) {
        mine = mine || owner[indices[from + i * in.pixel]] < i;
      }
      again = __syncthreads_or(mine);
    }
    for (int i = threadIdx.x; i < pixels; i += kPoolThreads) {
      output[to + i * out.pixel] = owner[i] < 0 ? T() : pooled[from + owner[i] * in.pixel];
    }
  }
}

template <class T>
CNNEXT_LAUNCH(kPoolThreads, 1)
max_unpool_grad_input(int64_t elements, int C, bool channels_last, Strides in, Strides out, int pixels,
                      int pooled_pixels, const T* grad_output, const int64_t* indices, T* grad_input) {
  const int64_t number = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (number >= elements) return;
  const int64_t image = number / (int64_t(C) * pooled_pixels);
  const int64_t channel = channels_last ? number % C : number / pooled_pixels % C;
  const int64_t index = indices[number];
  fail_unless(index >= 0 && index < pixels);
  grad_input[number] = grad_output[image * out.image + channel * out.channel + index * out.pixel];
}

}  // namespace cnnext::cuda
