// Tells which kernels there are and which one a problem would take, by the same lists that the operators use.
#include "conv.h"
#include "device.h"
#include "pool.h"
#include "python.h"

namespace cnnext::ops {
namespace {

// Calls visit(name, list) for each operator.
template <class Table, class Visit>
void for_each_list(const Table& k, Visit&& visit) {
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

// Calls visit(table) with the kernels of the CPU or, for an architecture, of GPUs.
template <class Visit>
auto with_table(bool cuda, Visit&& visit) {
  return cuda ? visit(cuda::kernels()) : visit(cpu_kernels());
}

// What the operator would run; `problem` is given its architecture here.
template <class Problem>
Choice explain(const std::string& op, Problem problem, int arch) {
  if (arch > 0) set_gpu(problem, arch);
  std::optional<Choice> choice;
  with_table(arch > 0, [&](const auto& table) {
    for_each_list(table, [&](const char* name, const auto& list) {
      if constexpr (std::is_invocable_v<decltype(list.begin()->refuses), const Problem&>) {
        if (op != name) return;
        const auto& chosen = choose_kernel(name, list, problem);
        choice = {chosen.name, table.capability, {}, chosen.workspace(problem)};
        for (const auto& kernel : list) {
          const char* refusal = kernel.refuses(problem);
          choice->candidates.push_back({kernel.name, kernel.summary, refusal ? refusal : ""});
        }
      }
    });
  });
  TORCH_CHECK_VALUE(choice, "explain: there is no such operator with kernels: '", op, "'");
  return *choice;
}

}  // namespace

std::vector<std::string> candidates(const std::string& op, bool cuda) {
  std::vector<std::string> names;
  with_table(cuda, [&](const auto& table) {
    for_each_list(table, [&](const char* name, const auto& list) {
      if (op != name) return;
      for (const auto& kernel : list) names.push_back(kernel.name);
    });
  });
  TORCH_CHECK_VALUE(!names.empty(), "there is no operator '", op, "' with kernels");
  return names;
}

Choice explain_conv(const std::string& op, const std::vector<int64_t>& input,
                    const std::vector<int64_t>& weight, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                    c10::ScalarType type, bool channels_last, bool weight_channels_last, bool keeps_weight,
                    int arch) {
  const auto layout = [](bool last) { return last ? Layout::kChannelsLast : Layout::kChannelsFirst; };
  ConvProblem problem = conv_problem(input, weight, stride, padding, dilation, groups, type,
                                     layout(channels_last), layout(weight_channels_last));
  problem.keeps_weight = keeps_weight;
  return explain(op, problem, arch);
}

Choice explain_pool(const std::string& op, const std::vector<int64_t>& input,
                    const std::vector<int64_t>& output, const std::vector<int64_t>& kernel_size,
                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                    const std::vector<int64_t>& dilation, c10::ScalarType type, bool channels_last,
                    int arch) {
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
  return explain(name, problem, arch);
}

}  // namespace cnnext::ops
