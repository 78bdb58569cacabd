// The short way from Python to the operators: torch.ops parses its arguments by schema, which takes longer
// than a small convolution. Takes plain tensors with a batch axis, and numbers or lists of them; for any
// other call (unbatched, traced, invalid, ...) a function returns None, and cnnext/functional.py goes the
// long way.
#include <ATen/TracerMode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <array>

#include "python.h"

namespace cnnext::ops {
namespace {

using Sizes = c10::SmallVector<c10::SymInt, 3>;
using Arguments = PyObject* const*;

bool parse(PyObject* value, int64_t& number) {
  if (!PyLong_CheckExact(value)) return false;  // no bool
  int overflow = 0;
  number = PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow == 0;
}

bool parse(PyObject* value, Sizes& sizes) {
  int64_t number;
  if (parse(value, number)) {
    sizes.emplace_back(number);
    return true;
  }
  const bool is_tuple = PyTuple_Check(value);  // also a torch.Size
  if (!is_tuple && !PyList_Check(value)) return false;
  const Py_ssize_t count = is_tuple ? PyTuple_GET_SIZE(value) : PyList_GET_SIZE(value);
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!parse(is_tuple ? PyTuple_GET_ITEM(value, i) : PyList_GET_ITEM(value, i), number)) return false;
    sizes.emplace_back(number);
  }
  return count > 0;
}

// A pooling stride of None is the kernel's size, which the operators know as an empty list.
bool parse_stride(PyObject* value, Sizes& sizes) { return value == Py_None || parse(value, sizes); }

bool parse(PyObject* value, bool& flag) {
  flag = value == Py_True;
  return PyBool_Check(value);
}

// Null for what is not a tensor that the operators take.
const at::Tensor* tensor(PyObject* value) {
  if (!THPVariable_Check(value)) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(value);
  const bool plain = t.layout() == at::kStrided && !t.is_quantized() && !t.is_nested() && !t.is_complex();
  return plain ? &t : nullptr;
}

// The same in `dims` spatial dimensions with a batch axis.
const at::Tensor* batched(PyObject* value, PyObject* dims) {
  const at::Tensor* t = tensor(value);
  return t && t->dim() == PyLong_AsLong(dims) + 2 && !at::tracer::impl::is_dispatch_enabled() ? t : nullptr;
}

template <class Operator, class... Args>
auto run(const Operator& op, const Args&... args) {
  pybind11::gil_scoped_release release;
  return op.call(args...);
}

PyObject* wrap(const at::Tensor& output) { return THPVariable_Wrap(output); }
// Of a batch normalisation: the moments are those that were given.
PyObject* wrap(const std::tuple<at::Tensor, at::Tensor, at::Tensor>& outputs) {
  return wrap(std::get<0>(outputs));
}
PyObject* wrap(const std::tuple<at::Tensor, at::Tensor>& outputs) {
  THPObjectPtr first(wrap(std::get<0>(outputs))), second(wrap(std::get<1>(outputs)));
  return first && second ? PyTuple_Pack(2, first.get(), second.get()) : nullptr;
}

template <class Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using Pair = std::tuple<at::Tensor, at::Tensor>;
using Ints = c10::SymIntArrayRef;
using Bias = std::optional<at::Tensor>;

Bias optional(const at::Tensor* t) { return t ? Bias(*t) : Bias(); }

// Of what is None or a tensor that the operators take.
bool parse(PyObject* value, const at::Tensor*& t) {
  t = value == Py_None ? nullptr : tensor(value);
  return t || value == Py_None;
}

// (residual, activation, negative_slope)
struct EpilogueArguments {
  explicit EpilogueArguments(Arguments args) {
    parsed = parse(args[0], residual) && PyUnicode_CheckExact(args[1]) && PyFloat_CheckExact(args[2]);
    if (!parsed) return;
    Py_ssize_t length = 0;
    const char* name = PyUnicode_AsUTF8AndSize(args[1], &length);
    if (!name) throw python_error();
    activation = c10::string_view(name, length);
    negative_slope = PyFloat_AS_DOUBLE(args[2]);
  }
  const at::Tensor* residual = nullptr;
  c10::string_view activation;
  double negative_slope = 0;
  bool parsed;
};

// A convolution's padding also as 'valid' or 'same', the latter only where it is even: else zeros must be
// added.
bool parse_padding(PyObject* value, const at::Tensor& weight, const Sizes& stride, const Sizes& dilation,
                   Sizes& padding) {
  if (!PyUnicode_CheckExact(value)) return parse(value, padding);
  if (PyUnicode_CompareWithASCIIString(value, "valid") == 0) {
    padding.emplace_back(0);
    return true;
  }
  const size_t dims = weight.dim() - 2;
  if (PyUnicode_CompareWithASCIIString(value, "same") != 0 ||
      (dilation.size() != 1 && dilation.size() != dims)) {
    return false;
  }
  for (const auto& s : stride) {
    if (s != 1) return false;
  }
  for (size_t i = 0; i < dims; ++i) {
    const c10::SymInt total = dilation[dilation.size() == 1 ? 0 : i] * (weight.sym_size(i + 2) - 1);
    if (total % 2 != 0) return false;
    padding.push_back(total / 2);
  }
  return true;
}

// (dims, input, weight, bias, stride, padding, dilation, groups), with which both calls begin.
struct ConvArguments {
  explicit ConvArguments(Arguments args)
      : input(batched(args[1], args[0])), weight(batched(args[2], args[0])) {
    parsed = input && weight && parse(args[3], bias) && parse(args[4], stride) && parse(args[6], dilation) &&
             parse_padding(args[5], *weight, stride, dilation, padding) && parse(args[7], groups);
  }
  const at::Tensor *input, *weight, *bias;
  Sizes stride, padding, dilation;
  int64_t groups = 1;
  bool parsed;
};

PyObject* conv(PyObject*, Arguments args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const Bias&, Ints, Ints, Ints, c10::SymInt)>(
          "cnnext::conv");
  const ConvArguments c(args);
  if (!c.parsed) Py_RETURN_NONE;
  return wrap(run(op, *c.input, *c.weight, optional(c.bias), c.stride, c.padding, c.dilation, c.groups));
  END_HANDLE_TH_ERRORS
}

// (those of conv, and of an epilogue)
PyObject* fused_conv(PyObject*, Arguments args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const Bias&, const Bias&, Ints, Ints, Ints,
                      c10::SymInt, c10::string_view, double)>("cnnext::fused_conv");
  const ConvArguments c(args);
  const EpilogueArguments e(args + 8);
  if (!c.parsed || !e.parsed) Py_RETURN_NONE;
  return wrap(run(op, *c.input, *c.weight, optional(c.bias), optional(e.residual), c.stride, c.padding,
                  c.dilation, c.groups, e.activation, e.negative_slope));
  END_HANDLE_TH_ERRORS
}

// (dims, input, weight, bias, stride, padding, output_padding, groups, dilation)
PyObject* conv_transpose(PyObject*, Arguments args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  static const auto op = find<at::Tensor(const at::Tensor&, const at::Tensor&, const Bias&, Ints, Ints, Ints,
                                         c10::SymInt, Ints)>("cnnext::conv_transpose");
  const at::Tensor *input = batched(args[1], args[0]), *weight = batched(args[2], args[0]);
  const at::Tensor* bias;
  Sizes stride, padding, output_padding, dilation;
  int64_t groups;
  if (!input || !weight || !parse(args[3], bias) || !parse(args[4], stride) || !parse(args[5], padding) ||
      !parse(args[6], output_padding) || !parse(args[7], groups) || !parse(args[8], dilation)) {
    Py_RETURN_NONE;
  }
  return wrap(run(op, *input, *weight, optional(bias), stride, padding, output_padding, groups, dilation));
  END_HANDLE_TH_ERRORS
}

// (input, weight, bias)
PyObject* linear(PyObject*, Arguments args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const Bias&)>("cnnext::linear");
  const at::Tensor *input = tensor(args[0]), *weight = tensor(args[1]);
  const at::Tensor* bias;
  if (!input || !weight || !parse(args[2], bias) || at::tracer::impl::is_dispatch_enabled() ||
      !input->is_cpu() || weight->dim() != 2) {
    Py_RETURN_NONE;
  }
  return wrap(run(op, *input, *weight, optional(bias)));
  END_HANDLE_TH_ERRORS
}

// (input, running_mean, running_var, weight, bias, eps, and those of an epilogue): by the running moments.
PyObject* batch_norm(PyObject*, Arguments args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  using Triple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  static const auto op = find<Triple(const at::Tensor&, const Bias&, const Bias&, const Bias&, const Bias&,
                                     double, const Bias&, c10::string_view, double)>("cnnext::batch_norm");
  const at::Tensor *input = tensor(args[0]), *mean = tensor(args[1]), *variance = tensor(args[2]);
  const at::Tensor *weight, *bias;
  const EpilogueArguments e(args + 6);
  if (!input || !mean || !variance || !parse(args[3], weight) || !parse(args[4], bias) ||
      !PyFloat_CheckExact(args[5]) || !e.parsed || at::tracer::impl::is_dispatch_enabled() ||
      !input->is_cpu() || input->dim() < 2 || input->dim() > 5 || input->sym_size(1) == 0) {
    Py_RETURN_NONE;
  }
  for (const at::Tensor* each : {mean, variance, weight, bias}) {
    if (each && (each->dim() != 1 || each->sym_size(0) != input->sym_size(1))) Py_RETURN_NONE;
  }
  if (e.residual &&
      (e.residual->dtype() != input->dtype() || !e.residual->sym_sizes().equals(input->sym_sizes()))) {
    Py_RETURN_NONE;
  }
  return wrap(run(op, *input, optional(weight), optional(bias), optional(mean), optional(variance),
                  PyFloat_AS_DOUBLE(args[5]), optional(e.residual), e.activation, e.negative_slope));
  END_HANDLE_TH_ERRORS
}

// (dims, input, kernel_size, stride, padding, dilation, ceil_mode)
template <class Result>
PyObject* max_pool(PyObject*, Arguments args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  static const auto op = find<Result(const at::Tensor&, Ints, Ints, Ints, Ints, bool)>(
      std::is_same_v<Result, Pair> ? "cnnext::max_pool_with_indices" : "cnnext::max_pool");
  const at::Tensor* input = batched(args[1], args[0]);
  Sizes kernel_size, stride, padding, dilation;
  bool ceil_mode;
  if (!input || !parse(args[2], kernel_size) || !parse_stride(args[3], stride) || !parse(args[4], padding) ||
      !parse(args[5], dilation) || !parse(args[6], ceil_mode)) {
    Py_RETURN_NONE;
  }
  return wrap(run(op, *input, kernel_size, stride, padding, dilation, ceil_mode));
  END_HANDLE_TH_ERRORS
}

// (dims, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
PyObject* avg_pool(PyObject*, Arguments args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  using Divisor = std::optional<c10::SymInt>;
  static const auto op =
      find<at::Tensor(const at::Tensor&, Ints, Ints, Ints, bool, bool, Divisor)>("cnnext::avg_pool");
  const at::Tensor* input = batched(args[1], args[0]);
  Sizes kernel_size, stride, padding;
  bool ceil_mode, count_include_pad;
  int64_t divisor = 0;
  if (!input || !parse(args[2], kernel_size) || !parse_stride(args[3], stride) || !parse(args[4], padding) ||
      !parse(args[5], ceil_mode) || !parse(args[6], count_include_pad) ||
      (args[7] != Py_None && !parse(args[7], divisor))) {
    Py_RETURN_NONE;
  }
  const Divisor override = args[7] == Py_None ? Divisor() : Divisor(divisor);
  return wrap(run(op, *input, kernel_size, stride, padding, ceil_mode, count_include_pad, override));
  END_HANDLE_TH_ERRORS
}

enum class Adaptive { kAvg, kMax, kMaxWithIndices };

// (dims, input, output_size)
template <class Result, Adaptive kind>
PyObject* adaptive_pool(PyObject*, Arguments args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  static const auto op = find<Result(const at::Tensor&, Ints)>(
      kind == Adaptive::kAvg   ? "cnnext::adaptive_avg_pool"
      : kind == Adaptive::kMax ? "cnnext::adaptive_max_pool"
                               : "cnnext::adaptive_max_pool_with_indices");
  const at::Tensor* input = batched(args[1], args[0]);
  Sizes output_size;
  if (!input || !parse(args[2], output_size)) Py_RETURN_NONE;
  // A list of one size for several axes is an error of torch's.
  if (!PyLong_CheckExact(args[2]) && int64_t(output_size.size()) != input->dim() - 2) Py_RETURN_NONE;
  return wrap(run(op, *input, output_size));
  END_HANDLE_TH_ERRORS
}

template <PyObject* (*function)(PyObject*, Arguments, Py_ssize_t)>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL,
          nullptr};
}

}  // namespace

PyMethodDef* eager_functions() {
  static std::array<PyMethodDef, 12> all = {
      method<conv>("conv"),
      method<fused_conv>("fused_conv"),
      method<conv_transpose>("conv_transpose"),
      method<linear>("linear"),
      method<batch_norm>("batch_norm"),
      method<max_pool<at::Tensor>>("max_pool"),
      method<max_pool<Pair>>("max_pool_with_indices"),
      method<avg_pool>("avg_pool"),
      method<adaptive_pool<at::Tensor, Adaptive::kAvg>>("adaptive_avg_pool"),
      method<adaptive_pool<at::Tensor, Adaptive::kMax>>("adaptive_max_pool"),
      method<adaptive_pool<Pair, Adaptive::kMaxWithIndices>>("adaptive_max_pool_with_indices"),
      PyMethodDef{},
  };
  return all.data();
}

}  // namespace cnnext::ops
