// What calls of operators through torch's dispatcher share.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <type_traits>
#include <utility>

#include "common.h"

namespace cnnext::ops {

// The operator of a C++ function's name and signature, as `op`.
#define CNNEXT_OP(name)                                               \
  static const auto op = c10::Dispatcher::singleton()                 \
                             .findSchemaOrThrow("cnnext::" #name, "") \
                             .typed<std::remove_pointer_t<decltype(&name)>>()

// The result of a call that was left to ATen, which is counted if there is a reason.
template <class Result>
Result recorded(const char* op, const char* reason, Result result) {
  if (reason) record_fallback(op, reason);
  return result;
}

// ATen's function of a reason and an operator's arguments as that operator, under vmap.
template <auto Op>
struct Batched;
template <class Result, class... Args, Result (*Op)(const char*, Args...)>
struct Batched<Op> {
  static Result run(Args... args) { return Op("vmap", std::forward<Args>(args)...); }
};

}  // namespace cnnext::ops
