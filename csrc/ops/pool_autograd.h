// What the derivatives of pooling share.
#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "pool.h"

namespace cnnext::ops {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

inline bool is_last(const at::Tensor& t) { return layout_of(t) == Layout::kChannelsLast; }
inline SymInts spatial(const at::Tensor& t) { return t.sym_sizes().slice(2); }

// A C++ autograd Function only where it is needed: nothing is saved, and no offsets are made, where no
// gradient is.
inline bool differentiates(const at::Tensor& t) { return at::GradMode::is_enabled() && t.requires_grad(); }

// Windows as they are kept between forward and backward: all lists in one, each after its length. Flags are
// numbers.
struct Saved {
  Saved(AutogradContext* ctx, std::initializer_list<SymInts> lists) {
    for (const SymInts& list : lists) {
      all.emplace_back(int64_t(list.size()));
      all.append(list.begin(), list.end());
    }
    ctx->saved_data["windows"] = SymInts(all);
  }
  explicit Saved(AutogradContext* ctx) {
    const std::vector<c10::SymInt> kept = ctx->saved_data["windows"].toSymIntVector();
    all.append(kept.begin(), kept.end());
  }

  SymInts next() {
    const int64_t length = all[at].expect_int();
    const SymInts list = SymInts(all).slice(at + 1, length);
    at += length + 1;
    return list;
  }
  int64_t next_number() { return next()[0].expect_int(); }

  c10::SmallVector<c10::SymInt, 24> all;
  size_t at = 0;
};

}  // namespace cnnext::ops
