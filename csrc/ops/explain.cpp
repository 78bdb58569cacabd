// Tells which kernels there are and which one a problem would take, by the same lists that the operators use.
#include "conv.h"
#include "device.h"
#include "pool.h"
#include "python.h"

#include <c10/util/StringUtil.h>

namespace cnnext::ops {
namespace {

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
  std::vector<const char*> others;
  with_table(arch > 0, [&](const auto& table) {
    table.for_each_list([&](const char* name, auto member) {
      const auto& list = table.*member;
      if constexpr (std::is_invocable_v<decltype(list.begin()->refuses), const Problem&>) {
        if (op != name) return others.push_back(name);
        const auto& chosen = choose_kernel(name, list, problem);
        choice = {chosen.name, table.capability, {}, chosen.workspace(problem)};
        for (const auto& kernel : list) {
          const char* refusal = kernel.refuses(problem);
          choice->candidates.push_back({kernel.name, kernel.summary, refusal ? refusal : ""});
        }
      }
    });
  });
  TORCH_CHECK_VALUE(choice, "explain: expected one of ", c10::Join(", ", others), ", but got '", op, "'");
  return *choice;
}

}  // namespace

std::vector<std::string> candidates(const std::string& op, bool cuda) {
  std::vector<std::string> names;
  std::vector<const char*> others;
  with_table(cuda, [&](const auto& table) {
    table.for_each_list([&](const char* name, auto member) {
      if (op != name) return others.push_back(name);
      for (const auto& kernel : table.*member) names.push_back(kernel.name);
    });
  });
  TORCH_CHECK_VALUE(!names.empty(), "there is no operator '", op, "'; there are ", c10::Join(", ", others));
  return names;
}

Choice explain_conv(const std::string& op, const std::vector<int64_t>& input,
                    const std::vector<int64_t>& weight, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                    c10::ScalarType type, bool channels_last, bool weight_channels_last, bool keeps_weight,
                    int arch) {
  ConvProblem problem = conv_problem(op, input, weight, stride, padding, dilation, groups, type,
                                     last_if(channels_last), last_if(weight_channels_last));
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
      pool_problem(op, input, output, adaptive ? at::IntArrayRef() : at::IntArrayRef(kernel_size), stride,
                   padding, dilation, type, last_if(channels_last));
  return explain(name, problem, arch);
}

}  // namespace cnnext::ops
