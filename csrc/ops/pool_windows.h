// What the pooling operators share.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/StringUtil.h>
#include <torch/library.h>

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "device.h"
#include "meta.h"
#include "pool.h"

namespace cnnext::ops {

// The kernels of one file each, for numbers (int64_t) or symbols (c10::SymInt).
template <class Int>
void implement_max_pool(torch::Library& m);
template <class Int>
void implement_avg_pool(torch::Library& m);
template <class Int>
void implement_max_unpool(torch::Library& m);

// Windows over an input [N, C, axes], for numbers and symbols.
template <class Int>
struct Pool {
  using Ints = c10::ArrayRef<Int>;

  // Leaves `output` empty where torch would not take the arguments.
  Pool(Ints input_, Ints kernel_, Ints stride_, Ints padding_, Ints dilation_, bool ceil_mode)
      : input(input_.begin(), input_.end()) {
    if (!has_size() || !set_windows(kernel_, stride_, padding_, dilation_)) return;
    Sizes<Int> size = {input[0], input[1]};
    for (size_t i = 0; i < kernel.size(); ++i) {
      size.push_back(
          pool_output<Int>(input[i + 2], kernel[i], stride[i], padding[i], dilation[i], ceil_mode));
      if (size.back() < 1) return;
    }
    output = std::move(size);
  }

  // Adaptive windows.
  Pool(Ints input_, Ints output_size) : input(input_.begin(), input_.end()) {
    const size_t dims = input.size() - 2;
    if (!has_size() || !expand(output_size, dims, 0, kernel)) return;
    output.append(input.begin(), input.begin() + 2);
    for (size_t i = 0; i < dims; ++i) {
      output.push_back(kernel[i]);
      kernel[i] = output.back() == 0 ? Int(1) : adaptive_kernel<Int>(input[i + 2], output.back());
    }
  }

  // The windows that have made a tensor of size `result`, given the spatial size of their input.
  static Pool of_result(const char* op, Ints result, Ints input_size, Ints kernel_, Ints stride_,
                        Ints padding_, Ints dilation_) {
    TORCH_CHECK(result.size() >= 3 && result.size() <= kAxes + 2 && input_size.size() == result.size() - 2,
                op, ": a tensor of size ", result, " and an input_size of ", input_size,
                " do not fit together");
    Sizes<Int> size = {result[0], result[1]};
    size.append(input_size.begin(), input_size.end());
    const auto makes_result = [&](const Pool& pool) { return Ints(pool.output).equals(result); };
    if (kernel_.empty()) {
      const Pool adaptive(size, result.slice(2));
      TORCH_CHECK(makes_result(adaptive), op, ": adaptive windows over an input of size ", Ints(size),
                  " do not make a tensor of size ", result);
      return adaptive;
    }
    if constexpr (!kRuns<Int>) {
      // What only a run knows is not compared: either mode would bind a compiled graph to odd or even sizes.
      Pool pool(size);
      if (!are_numbers({size, kernel_, stride_, padding_, dilation_, result}) && pool.has_size() &&
          pool.set_windows(kernel_, stride_, padding_, dilation_)) {
        pool.output.append(result.begin(), result.end());
        return pool;
      }
    }
    for (const bool ceil_mode : {false, true}) {
      const Pool pool(size, kernel_, stride_, padding_, dilation_, ceil_mode);
      if (makes_result(pool)) return pool;
    }
    TORCH_CHECK(false, op, ": ", windows(kernel_, stride_, padding_, dilation_), " over an input of size ",
                Ints(size), " do not make a tensor of size ", result);
  }

  // For messages.
  static std::string windows(Ints kernel_, Ints stride_, Ints padding_, Ints dilation_) {
    return c10::str("windows of kernel_size ", kernel_, ", stride ", stride_.empty() ? kernel_ : stride_,
                    ", padding ", padding_, ", dilation ", dilation_);
  }

  bool valid() const { return !output.empty(); }
  bool adaptive() const { return stride.empty(); }

  // Offsets count the pixels of a window. A size that only a run knows is not compared, which would bind a
  // compiled graph to one side: then either type is taken.
  at::ScalarType offset_type() const { return known_taps().value_or(257) > 256 ? at::kInt : at::kByte; }
  bool takes_offsets(at::ScalarType type) const {
    return type == offset_type() || (type == at::kByte && !known_taps());
  }

  PoolShape shape() const {
    PoolShape s;
    s.N = input[0];
    s.C = input[1];
    const size_t dims = kernel.size();
    for (size_t i = 0; i < dims; ++i) {
      const size_t a = kAxes - dims + i;
      s.axis[a] = {input[i + 2], output[i + 2], kernel[i], 1, 0, 1};
      if (!adaptive()) {
        s.axis[a].stride = stride[i];
        s.axis[a].padding = padding[i];
        s.axis[a].dilation = dilation[i];
      } else if (output[i + 2] > 0 && input[i + 2] % output[i + 2] == 0) {
        s.axis[a].stride = kernel[i];
      } else {
        s.adaptive[a] = true;
      }
    }
    return s;
  }

  Sizes<Int> input, output;
  PerAxis<Int> kernel, stride, padding, dilation;  // adaptive: the kernel bounds the windows

 private:
  explicit Pool(Ints input_) : input(input_.begin(), input_.end()) {}

  static bool are_numbers(std::initializer_list<SymInts> lists) {
    return std::all_of(lists.begin(), lists.end(),
                       [](SymInts list) { return c10::asIntArrayRefSlowOpt(list).has_value(); });
  }
  std::optional<int64_t> known_taps() const {
    Int taps = 1;
    for (const Int& k : kernel) taps = taps * k;
    return c10::SymInt(taps).maybe_as_int();
  }
  static int64_t known(const Int& size) { return c10::SymInt(size).maybe_as_int().value_or(1); }
  bool has_size() const {
    for (size_t i = 1; i < input.size(); ++i) {
      if (input[i] < 1) return false;
    }
    return true;
  }
  // False where torch would not take them for any input.
  bool set_windows(Ints kernel_, Ints stride_, Ints padding_, Ints dilation_) {
    const size_t dims = input.size() - 2;
    if (!expand(kernel_, dims, 1, kernel) || !expand(padding_, dims, 0, padding) ||
        !expand(stride_.empty() ? kernel_ : stride_, dims, 1, stride) ||
        !expand(dilation_, dims, 1, dilation)) {
      return false;
    }
    // Offsets have 32 bits, and so have torch's windows of two and three dimensions.
    constexpr auto kMost = std::numeric_limits<int32_t>::max();
    double taps = 1;  // that are known
    for (const Int& k : kernel) taps *= double(known(k));
    if (taps > double(kMost)) return false;
    for (const auto* list : {&stride, &padding, &dilation}) {
      for (const Int& each : *list) {
        if (known(each) > kMost) return false;
      }
    }
    for (size_t i = 0; i < dims; ++i) {
      if (padding[i] > kernel[i] / 2) return false;
    }
    return true;
  }
  static bool expand(Ints values, size_t dims, int64_t smallest, PerAxis<Int>& all) {
    if (values.size() != dims && values.size() != 1) return false;
    for (size_t i = 0; i < dims; ++i) {
      all.push_back(values[values.size() == 1 ? 0 : i]);
      if (all.back() < smallest) return false;
    }
    return true;
  }
};

inline void check_input(const char* op, const at::Tensor& input) {
  TORCH_CHECK(input.dim() >= 3 && input.dim() <= kAxes + 2, op,
              ": expected a batched input of 3 to 5 dimensions, but got one of size ", input.sym_sizes());
}

inline PoolProblem problem_of(const Pool<int64_t>& pool, at::ScalarType type, Layout layout) {
  PoolProblem problem;
  problem.shape = pool.shape();
  problem.dtype = *element_type(type);
  // A plane of one pixel, or planes of one channel, are laid out both ways: vectors are filled by the others.
  const bool pixel = problem.shape.input_pixels() == 1 && problem.shape.output_pixels() == 1;
  problem.layout = pixel ? Layout::kChannelsLast : problem.shape.C == 1 ? Layout::kChannelsFirst : layout;
  problem.threads = at::get_num_threads();
  return problem;
}

template <class Select>
void launch(const char* op, const Select& list_of, const PoolProblem& problem, const PoolBuffers& buffers,
            const at::Tensor& result) {
  if (problem.shape.N == 0 || problem.shape.output_pixels() == 0) return;
  run_kernel(op, list_of, problem, buffers, result);
}

// The tensor in the layout that the kernel runs in; the caller keeps it alive.
inline at::Tensor laid_out(const at::Tensor& t, Layout layout) {
  return t.contiguous(memory_format(layout, t.dim()));
}

inline const char* refused(const at::Tensor& input, bool valid) {
  const char* reason = left_to_aten({&input});
  return reason || valid ? reason : "invalid or empty size";
}

}  // namespace cnnext::ops
