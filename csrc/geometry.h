// Sliding-window arithmetic, written once for convolution and pooling, forward and backward, on every device.
//
// One axis of a window operator is a Window. Operators have up to three spatial axes (depth, height, width);
// fewer are lifted by axes of extent one. No torch here: kernels and the emulator use this header too.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define CNNEXT_HOST_DEVICE __host__ __device__
#else
#define CNNEXT_HOST_DEVICE
#endif

namespace cnnext {

constexpr int kAxes = 3;  // depth, height, width

CNNEXT_HOST_DEVICE constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
CNNEXT_HOST_DEVICE constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
// a >= 0, b > 0
CNNEXT_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CNNEXT_HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
CNNEXT_HOST_DEVICE constexpr int64_t gcd_of(int64_t a, int64_t b) { return b == 0 ? a : gcd_of(b, a % b); }

// The greatest common divisor of a number and a modulus, and a factor in [0, modulus / divisor) by which the
// number becomes that divisor, up to multiples of the modulus.
struct Inverse {
  int64_t divisor, factor;
};
CNNEXT_HOST_DEVICE constexpr Inverse inverse_of(int64_t number, int64_t modulus) {
  int64_t a = modulus, b = number % modulus, of_a = 0, of_b = 1;  // a = number * of_a, up to such multiples
  while (b != 0) {
    const int64_t times = a / b, rest = a - times * b, of_rest = of_a - times * of_b;
    a = b, b = rest, of_a = of_b, of_b = of_rest;
  }
  const int64_t order = modulus / a, factor = of_a % order;
  return {a, factor < 0 ? factor + order : factor};
}

// Extent of the output of a window; Int is int64_t or a symbolic integer. The caller has checked that the
// window fits.
template <class Int>
Int window_output(const Int& input, const Int& kernel, const Int& stride, const Int& padding,
                  const Int& dilation) {
  return (input + padding * 2 - dilation * (kernel - 1) - 1) / stride + 1;
}

// One axis: output position o reads the inputs o * stride - padding + tap * dilation, tap in [0, kernel).
struct Window {
  int64_t input = 1, output = 1, kernel = 1, stride = 1, padding = 0, dilation = 1;

  constexpr bool operator==(const Window& w) const {
    return input == w.input && output == w.output && kernel == w.kernel && stride == w.stride &&
           padding == w.padding && dilation == w.dilation;
  }
  CNNEXT_HOST_DEVICE constexpr int64_t input_index(int64_t o, int64_t tap) const {
    return o * stride - padding + tap * dilation;
  }
  CNNEXT_HOST_DEVICE constexpr bool contains(int64_t i) const { return i >= 0 && i < input; }

  // Taps that fall inside the input are [first_tap(o), end_tap(o)); the range is empty where none does.
  CNNEXT_HOST_DEVICE constexpr int64_t first_tap(int64_t o) const {
    return min_of(kernel, ceil_div(max_of(0, padding - o * stride), dilation));
  }
  CNNEXT_HOST_DEVICE constexpr int64_t end_tap(int64_t o) const {
    return max_of(first_tap(o), min_of(kernel, ceil_div(max_of(0, input + padding - o * stride), dilation)));
  }

  // Outputs that may have a tap on input i are [first_output(i), end_output(i)); with dilation not all of
  // them do.
  CNNEXT_HOST_DEVICE constexpr int64_t first_output(int64_t i) const {
    return ceil_div(max_of(0, i + padding - dilation * (kernel - 1)), stride);
  }
  CNNEXT_HOST_DEVICE constexpr int64_t end_output(int64_t i) const {
    return min_of(output, (i + padding) / stride + 1);
  }
};

struct Range {
  int64_t begin, end;
  CNNEXT_HOST_DEVICE constexpr int64_t size() const { return end - begin; }
};

// What destination positions read of the source: outputs of the input, or, for the gradient, inputs of the
// gradient of the output. So many positions at most, and those in a range, inside of the source.
CNNEXT_HOST_DEVICE constexpr int64_t source_extent(const Window& w, bool gradient, int64_t size) {
  const int64_t reach = (w.kernel - 1) * w.dilation;
  return gradient ? min_of(w.output, (size - 1 + reach) / w.stride + 1)
                  : min_of(w.input, (size - 1) * w.stride + reach + 1);
}
CNNEXT_HOST_DEVICE constexpr Range source_range(const Window& w, bool gradient, int64_t begin, int64_t end) {
  const int64_t extent = gradient ? w.output : w.input;
  const int64_t first = gradient ? w.first_output(begin) : w.input_index(begin, 0);
  const int64_t last = gradient ? w.end_output(end - 1) : w.input_index(end - 1, w.kernel - 1) + 1;
  const int64_t low = max_of(0, min_of(first, extent));
  return {low, max_of(low, min_of(last, extent))};
}

// One axis of a gather: destination start + j * step, for j in [0, count), reads through tap m in [0, taps)
// the source position j * source_step + offset + m * offset_step, with the weight of tap (tap + m *
// tap_step).
//
// Forward convolution is one such phase. The gradient with respect to the input falls into `stride` phases,
// one for each residue of the input position: in each the taps that reach it form an arithmetic progression,
// and the source (grad_output) is read with unit step, whatever the stride and the dilation.
struct PhaseAxis {
  int64_t start, step, count;   // destination positions
  int64_t source, source_step;  // extent of the source; step in it for each destination position
  int64_t taps, tap, tap_step;  // which taps take part
  int64_t offset, offset_step;  // where they read; offset_step > 0

  CNNEXT_HOST_DEVICE constexpr int64_t source_index(int64_t j, int64_t m) const {
    return j * source_step + offset + m * offset_step;
  }
};

CNNEXT_HOST_DEVICE constexpr PhaseAxis forward_phase(const Window& w) {
  return {0, 1, w.output, w.input, w.stride, w.kernel, 0, 1, -w.padding, w.dilation};
}

// Phase `residue` in [0, stride) of the gradient with respect to the input: input position i = residue + j *
// stride. Output o reaches i by tap t when o * stride = i + padding - t * dilation.
CNNEXT_HOST_DEVICE constexpr PhaseAxis grad_input_phase(const Window& w, int64_t residue) {
  const int64_t count = residue < w.input ? (w.input - residue - 1) / w.stride + 1 : 0;
  const Inverse inverse = inverse_of(w.dilation, w.stride);
  const int64_t common = inverse.divisor, tap_step = w.stride / common, position = residue + w.padding;
  // The smallest tap of this residue; there is none if it is beyond the kernel.
  const int64_t first =  // strides and paddings have 31 bits
      position % common == 0 ? position / common * inverse.factor % tap_step : w.kernel;
  const int64_t taps = first < w.kernel ? (w.kernel - 1 - first) / tap_step + 1 : 0;
  const int64_t last = first + (taps - 1) * tap_step;  // the last tap has the smallest offset: start there
  const int64_t offset = taps > 0 ? (residue + w.padding - last * w.dilation) / w.stride : 0;
  return {residue, w.stride, count, w.output, 1, taps, last, -tap_step, offset, w.dilation / common};
}

// input [N, C, axes], weight [K, C / groups, kernel], output [N, K, axes].
struct ConvShape {
  int64_t N = 0, C = 0, K = 0, groups = 1;
  Window axis[kAxes];

  constexpr bool operator==(const ConvShape& s) const {
    return N == s.N && C == s.C && K == s.K && groups == s.groups && axis[0] == s.axis[0] &&
           axis[1] == s.axis[1] && axis[2] == s.axis[2];
  }
  CNNEXT_HOST_DEVICE constexpr int64_t input_pixels() const {
    return axis[0].input * axis[1].input * axis[2].input;
  }
  CNNEXT_HOST_DEVICE constexpr int64_t output_pixels() const {
    return axis[0].output * axis[1].output * axis[2].output;
  }
  CNNEXT_HOST_DEVICE constexpr int64_t taps() const {
    return axis[0].kernel * axis[1].kernel * axis[2].kernel;
  }
  CNNEXT_HOST_DEVICE constexpr int64_t C_per_group() const { return C / groups; }
  CNNEXT_HOST_DEVICE constexpr int64_t K_per_group() const { return K / groups; }
  CNNEXT_HOST_DEVICE constexpr int64_t weights() const { return K * C_per_group() * taps(); }
};

// Without a branch for symbols, which would fix the compiled sizes to one side of it.
template <class Int>
Int smaller(const Int& a, const Int& b) {
  if constexpr (std::is_integral_v<Int>) {
    return a < b ? a : b;
  } else {
    return a.min(b);
  }
}

// Extent of the output of a pooling window, zero where no window fits. In ceil_mode the last window may reach
// beyond the padding, but starts inside the input or the padding before it.
template <class Int>
Int pool_output(const Int& input, const Int& kernel, const Int& stride, const Int& padding,
                const Int& dilation, bool ceil_mode) {
  const Int reach = input + padding * 2 - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : Int(0));
  if (reach < 0) return Int(0);
  const Int output = reach / stride + 1;
  if (!ceil_mode) return output;
  const Int starts = (input + padding + stride - 1) / stride;  // where a window may start
  return smaller<Int>(starts, output);
}

// Taps of the largest adaptive window, or one more.
template <class Int>
Int adaptive_kernel(const Int& input, const Int& output) {
  return input / output + smaller<Int>(input % output, Int(1)) * 2;
}

// The taps of one pooling window that fall inside the input: tap + j reads input index + j * dilation, j in
// [0, count).
struct Span {
  int64_t index, tap, count;
};

// input [N, C, axes], output [N, C, axes]. Taps are numbered through all axes.
struct PoolShape {
  int64_t N = 0, C = 0;
  Window axis[kAxes];
  // Window o of an adaptive axis is [floor(o input / output), ceil((o + 1) input / output)); kernel bounds
  // its taps.
  bool adaptive[kAxes] = {};

  CNNEXT_HOST_DEVICE constexpr int64_t input_pixels() const {
    return axis[0].input * axis[1].input * axis[2].input;
  }
  CNNEXT_HOST_DEVICE constexpr int64_t output_pixels() const {
    return axis[0].output * axis[1].output * axis[2].output;
  }
  CNNEXT_HOST_DEVICE constexpr int64_t taps() const {
    return axis[0].kernel * axis[1].kernel * axis[2].kernel;
  }

  // Input that tap 0 of window o reads; in the padding it is negative.
  CNNEXT_HOST_DEVICE constexpr int64_t origin(int a, int64_t o) const {
    return adaptive[a] ? o * axis[a].input / axis[a].output : axis[a].input_index(o, 0);
  }
  CNNEXT_HOST_DEVICE constexpr Span span(int a, int64_t o) const {
    const Window& w = axis[a];
    if (adaptive[a]) return {origin(a, o), 0, ceil_div((o + 1) * w.input, w.output) - origin(a, o)};
    const int64_t tap = w.first_tap(o);
    return {w.input_index(o, tap), tap, w.end_tap(o) - tap};
  }
  // Taps of window o that an average counts: those inside the input, or also those in the padding.
  CNNEXT_HOST_DEVICE constexpr int64_t counted_taps(int a, int64_t o, bool count_padding) const {
    const Window& w = axis[a];
    if (adaptive[a] || !count_padding) return span(a, o).count;
    return min_of(w.kernel, w.input + w.padding - w.input_index(o, 0));
  }
  // Inputs that one window of the axis reaches over, and windows that reach over one input, at most.
  CNNEXT_HOST_DEVICE constexpr int64_t window_extent(int a) const {
    return min_of(axis[a].input, adaptive[a] ? axis[a].kernel : axis[a].dilation * (axis[a].kernel - 1) + 1);
  }
  CNNEXT_HOST_DEVICE constexpr int64_t windows_over_input(int a) const {
    const Window& w = axis[a];
    if (adaptive[a])
      return min_of(w.output, w.output % w.input == 0 ? w.output / w.input : w.output / w.input + 2);
    return min_of(w.output, w.dilation * (w.kernel - 1) / w.stride + 1);
  }
};

}  // namespace cnnext
