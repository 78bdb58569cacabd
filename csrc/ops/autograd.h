// What the derivatives of all operators share.
#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <initializer_list>
#include <vector>

#include "common.h"

namespace cnnext::ops {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

inline bool is_last(const at::Tensor& t) { return layout_of(t) == Layout::kChannelsLast; }
inline SymInts spatial(const at::Tensor& t) { return t.sym_sizes().slice(2); }

inline bool wants_grad(const at::Tensor& t) { return t.defined() && t.requires_grad(); }
inline bool wants_grad(const OptionalTensor& t) { return t && wants_grad(*t); }

// A C++ autograd Function only where it is needed: nothing is saved, and no offsets are made, where no
// gradient is.
template <class... Operands>
bool differentiates(const Operands&... operands) {
  return at::GradMode::is_enabled() && (wants_grad(operands) || ...);
}

// What is kept between forward and backward beside tensors: lists of sizes, each after its length. Numbers
// and flags are lists too.
inline void save_lists(AutogradContext* ctx, std::initializer_list<SymInts> lists) {
  c10::SmallVector<c10::SymInt, 24> all;
  for (const SymInts& list : lists) {
    all.emplace_back(int64_t(list.size()));
    all.append(list.begin(), list.end());
  }
  ctx->saved_data["lists"] = SymInts(all);
}

class Saved {  // the lists, in the same order
 public:
  explicit Saved(AutogradContext* ctx) : all_(ctx->saved_data["lists"].toSymIntVector()) {}

  SymInts next() {
    const int64_t length = all_[at_].expect_int();
    const SymInts list = SymInts(all_).slice(at_ + 1, length);
    at_ += length + 1;
    return list;
  }
  int64_t next_number() { return next()[0].expect_int(); }

 private:
  const std::vector<c10::SymInt> all_;
  size_t at_ = 0;
};

}  // namespace cnnext::ops
