// Tells which kernels there are and which one a problem would take, by the same lists that the operators use.
#include "conv.h"
#include "pool.h"
#include "python.h"

namespace cnnext::ops {
namespace {

// Calls visit(name, list) for each operator.
template <class Visit>
void for_each_list(Visit&& visit) {
  const cpu::Kernels& k = cpu_kernels();
  visit("conv", k.conv);
  visit("conv_grad_input", k.conv_grad_input);
  visit("conv_grad_weight", k.conv_grad_weight);
  visit("conv_grad_bias", k.conv_grad_bias);
  visit("max_pool", k.max_pool);
  visit("max_pool_with_offsets", k.max_pool_with_offsets);
  visit("max_pool_indices", k.max_pool_indices);
  visit("max_pool_grad_input", k.max_pool_grad_input);
  visit("max_pool_select", k.max_pool_select);
  visit("avg_pool", k.avg_pool);
  visit("avg_pool_grad_input", k.avg_pool_grad_input);
  visit("max_unpool", k.max_unpool);
  visit("max_unpool_grad_input", k.max_unpool_grad_input);
}

template <class Kernel, class Problem>
Choice explain(const std::string& op, const KernelList<Kernel>& list, const Problem& problem) {
  const Kernel& chosen = choose_kernel(op.c_str(), list, problem);
  Choice choice = {chosen.name, cpu_kernels().capability, {}, chosen.workspace(problem)};
  for (const Kernel& kernel : list) {
    const char* refusal = kernel.refuses(problem);
    choice.candidates.push_back({kernel.name, kernel.summary, refusal ? refusal : ""});
  }
  return choice;
}

}  // namespace

std::vector<std::string> candidates(const std::string& op) {
  std::vector<std::string> names;
  for_each_list([&](const char* name, const auto& list) {
    if (op != name) return;
    for (const auto& kernel : list) names.push_back(kernel.name);
  });
  TORCH_CHECK_VALUE(!names.empty(), "there is no operator '", op, "' with kernels");
  return names;
}

Choice explain_conv(const std::string& op, const std::vector<int64_t>& input,
                    const std::vector<int64_t>& weight, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                    c10::ScalarType type, bool channels_last) {
  const ConvProblem problem = conv_problem(input, weight, stride, padding, dilation, groups, type,
                                           channels_last ? Layout::kChannelsLast : Layout::kChannelsFirst);
  const cpu::Kernels& k = cpu_kernels();
  if (op == "conv") return explain(op, k.conv, problem);
  if (op == "conv_grad_input") return explain(op, k.conv_grad_input, problem);
  if (op == "conv_grad_weight") return explain(op, k.conv_grad_weight, problem);
  TORCH_CHECK_VALUE(false, "explain_conv: expected conv, conv_grad_input or conv_grad_weight, but got '", op,
                    "'");
}

Choice explain_pool(const std::string& op, const std::vector<int64_t>& input,
                    const std::vector<int64_t>& output, const std::vector<int64_t>& kernel_size,
                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                    const std::vector<int64_t>& dilation, c10::ScalarType type, bool channels_last) {
  const std::string prefix = "adaptive_", suffix = "_with_indices";
  const bool adaptive = op.rfind(prefix, 0) == 0;
  std::string name = adaptive ? op.substr(prefix.size()) : op;
  // Indices are made of offsets.
  if (name.size() > suffix.size() && name.rfind(suffix) == name.size() - suffix.size()) {
    name.replace(name.size() - suffix.size(), suffix.size(), "_with_offsets");
  }
  const PoolProblem problem =
      pool_problem(input, output, adaptive ? at::IntArrayRef() : at::IntArrayRef(kernel_size), stride,
                   padding, dilation, type, channels_last ? Layout::kChannelsLast : Layout::kChannelsFirst);
  std::optional<Choice> choice;
  for_each_list([&](const char* each, const auto& list) {
    if constexpr (std::is_same_v<decltype(list), const KernelList<cpu::PoolKernel>&>) {
      if (name == each) choice = explain(name, list, problem);
    }
  });
  TORCH_CHECK_VALUE(choice, "explain_pool: there is no pooling operator '", op, "'");
  return *choice;
}

}  // namespace cnnext::ops
