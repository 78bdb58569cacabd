// The extension module cnnext._C: loading it registers the operators; beside that it tells what kernels there
// are.
#include "python.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

#include "common.h"

namespace {

namespace py = pybind11;
using namespace cnnext::ops;
using Ints = std::vector<int64_t>;

c10::ScalarType scalar_type(py::handle dtype) {
  if (!THPDtype_Check(dtype.ptr())) throw py::type_error("expected a torch.dtype");
  return reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type;
}

py::dict to_dict(const Choice& choice) {
  py::list candidates;
  std::string reason;
  for (const auto& each : choice.candidates) {
    py::dict entry;
    entry["name"] = each.name;
    entry["supported"] = each.refusal.empty();
    entry["reason"] = each.refusal.empty() ? each.summary : each.refusal;
    candidates.append(entry);
    if (each.name == choice.kernel) reason = each.summary;
  }
  py::dict result;
  result["kernel"] = choice.kernel;
  result["reason"] = reason;
  result["candidates"] = candidates;
  result["workspace_bytes"] = choice.workspace_bytes;
  result["capability"] = choice.capability;
  return result;
}

// Which kernels there are, and which may be chosen.
void def_kernels(py::module_& m) {
  m.def("cpu_capability", [] { return cpu_kernels().capability; });
  m.def("candidates", candidates, py::arg("op"), py::arg("cuda") = false,
        "Names of the operator's kernels, in the order they are tried.");
  m.def(
      "force_kernel",
      [](const std::string& op, const std::optional<std::string>& name, bool cuda) {
        const auto names = candidates(op, cuda);
        if (name && std::find(names.begin(), names.end(), *name) == names.end()) {
          throw py::value_error(op + " has no kernel '" + *name + "'");
        }
        force_kernel(op, name.value_or(""), cuda);
      },
      py::arg("op"), py::arg("name"), py::arg("cuda") = false);
  m.def("winograd_enabled", winograd_enabled);
  m.def("set_winograd", set_winograd, py::arg("enabled"));
}

// What is told of a call without computing it.
void def_explain(py::module_& m) {
  m.def(
      "explain_conv",
      [](const std::string& op, const Ints& input, const Ints& weight, const Ints& stride,
         const Ints& padding, const Ints& dilation, int64_t groups, py::handle type, bool channels_last,
         int arch, std::optional<bool> weight_channels_last, bool keeps_weight) {
        return to_dict(explain_conv(op, input, weight, stride, padding, dilation, groups, scalar_type(type),
                                    channels_last, weight_channels_last.value_or(channels_last), keeps_weight,
                                    arch));
      },
      py::arg("op"), py::arg("input_size"), py::arg("weight_size"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::arg("dtype"), py::arg("channels_last"), py::arg("arch") = 0,
      py::arg("weight_channels_last") = py::none(), py::arg("keeps_weight") = false);
  m.def(
      "explain_pool",
      [](const std::string& op, const Ints& input, const Ints& output, const Ints& kernel, const Ints& stride,
         const Ints& padding, const Ints& dilation, py::handle type, bool channels_last, int arch) {
        return to_dict(explain_pool(op, input, output, kernel, stride, padding, dilation, scalar_type(type),
                                    channels_last, arch));
      },
      py::arg("op"), py::arg("input_size"), py::arg("output_size"), py::arg("kernel_size"), py::arg("stride"),
      py::arg("padding"), py::arg("dilation"), py::arg("dtype"), py::arg("channels_last"),
      py::arg("arch") = 0);
  m.def("is_channels_last", [](py::handle tensor) {
    if (!THPVariable_Check(tensor.ptr())) throw py::type_error("expected a tensor");
    return layout_of(THPVariable_Unpack(tensor.ptr())) == cnnext::Layout::kChannelsLast;
  });
}

// The pool of memory and the packed weights.
void def_memory(py::module_& m) {
  m.def("empty_cache", [] {
    drop_packed_weights();
    empty_cache();
  });
  m.def("memory_stats", [] {
    auto stats = memory_stats();
    stats["packed_weights_bytes"] = packed_weight_bytes();
    return stats;
  });
  m.def("memory_pool_enabled", memory_pool_enabled);
  m.def("set_memory_pool", set_memory_pool, py::arg("enabled"));
  m.def("torch_memory_pooled", torch_memory_pooled);
  m.def("set_torch_memory_pooled", set_torch_memory_pooled, py::arg("pooled"));
  m.def("packed_weights_enabled", packed_weights_enabled);
  m.def("set_packed_weights", set_packed_weights, py::arg("enabled"));
  m.def("drop_packed_weights", drop_packed_weights);
}

void def_fallbacks(py::module_& m) {
  m.def("fallbacks", fallbacks);
  m.def("reset_fallbacks", reset_fallbacks);
  m.def(
      "record_fallback",
      [](const std::string& op, const std::string& reason) { record_fallback(op.c_str(), reason.c_str()); },
      py::arg("op"), py::arg("reason"));
  m.def("begin_counting_apart", begin_counting_apart);
  m.def("end_counting_apart", end_counting_apart);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  if (PyModule_AddFunctions(m.ptr(), eager_functions()) != 0) throw py::error_already_set();
  def_kernels(m);
  def_explain(m);
  def_memory(m);
  def_fallbacks(m);
}
