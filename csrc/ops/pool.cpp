// Pooling: schemas and registration.
#include "pool_windows.h"

namespace cnnext::ops {

bool pool_fits(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
               SymInts dilation, bool ceil_mode) {
  return Pool<c10::SymInt>(input.sym_sizes(), kernel_size, stride, padding, dilation, ceil_mode).valid();
}

PoolProblem pool_problem(const std::string& op, at::IntArrayRef input, at::IntArrayRef output,
                         at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation, at::ScalarType type, Layout layout) {
  TORCH_CHECK_VALUE(element_type(type), op, ": there are no kernels for ", type);
  const auto pool =
      Pool<int64_t>::of_result(op.c_str(), output, input.slice(2), kernel_size, stride, padding, dilation);
  return problem_of(pool, type, layout);
}

TORCH_LIBRARY_FRAGMENT(cnnext, m) {
  const auto def = [&](const std::string& schema) { m.def(schema.c_str(), {at::Tag::pt2_compliant_tag}); };
  const std::string windows =
      "(Tensor input, SymInt[1] kernel_size, SymInt[1] stride=[], SymInt[1] padding=0, SymInt[1] dilation=1, "
      "bool ceil_mode=False) -> ";
  const std::string adaptive = "(Tensor input, SymInt[1] output_size) -> ";
  const std::string made_by = "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation";
  const std::string average =
      "SymInt[1] kernel_size, SymInt[1] stride=[], SymInt[1] padding=0, bool ceil_mode=False, "
      "bool count_include_pad=True, SymInt? divisor_override=None";
  def("max_pool" + windows + "Tensor");
  def("max_pool_with_indices" + windows + "(Tensor output, Tensor indices)");
  def("max_pool_with_offsets" + windows + "(Tensor output, Tensor offsets)");
  def("adaptive_max_pool" + adaptive + "Tensor");
  def("adaptive_max_pool_with_indices" + adaptive + "(Tensor output, Tensor indices)");
  def("adaptive_max_pool_with_offsets" + adaptive + "(Tensor output, Tensor offsets)");
  def("max_pool_indices(Tensor offsets, SymInt[] input_size, " + made_by + ") -> Tensor");
  def("max_pool_grad_input(Tensor grad_output, Tensor offsets, SymInt[] input_size, " + made_by +
      ", bool channels_last=False) -> Tensor");
  def("max_pool_select(Tensor input, Tensor offsets, " + made_by + ") -> Tensor");
  def("avg_pool(Tensor input, " + average + ") -> Tensor");
  def("avg_pool_grad_input(Tensor grad_output, SymInt[] input_size, " + average +
      ", bool channels_last=False) -> Tensor");
  def("adaptive_avg_pool" + adaptive + "Tensor");
  def("adaptive_avg_pool_grad_input(Tensor grad_output, SymInt[] input_size, bool channels_last=False) -> "
      "Tensor");
  def("max_unpool(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor");
  def("max_unpool_grad_input(Tensor grad_output, Tensor indices, bool channels_last=False) -> Tensor");
}

template <class Int>
void implement(torch::Library& m) {
  implement_max_pool<Int>(m);
  implement_avg_pool<Int>(m);
  implement_max_unpool<Int>(m);
}

TORCH_LIBRARY_IMPL(cnnext, CPU, m) { implement<int64_t>(m); }
#if defined(CNNEXT_WITH_CUDA)
TORCH_LIBRARY_IMPL(cnnext, CUDA, m) { implement<int64_t>(m); }
#endif
TORCH_LIBRARY_IMPL(cnnext, Meta, m) { implement<c10::SymInt>(m); }

}  // namespace cnnext::ops
