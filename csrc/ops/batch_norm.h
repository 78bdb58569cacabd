// Batch normalisation and its gradients, as C++ calls that go through the dispatcher.
#pragma once

#include "common.h"

namespace cnnext::ops {

using TensorTriple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using TensorQuadruple = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline bool is_given(const OptionalTensor& t) { return t && t->defined(); }

// activation((input - mean) / sqrt(variance + eps) * weight + bias + residual), and the batch's mean and
// variance, by which it is normalised where none are given (else two empty tensors). Numbers of a channel are
// float where elements have 16 bits.
TensorTriple batch_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& mean, const OptionalTensor& variance, double eps,
                        const OptionalTensor& residual, c10::string_view activation, double negative_slope);

// The gradients of input, weight, bias and residual, without the first or the last where they are not wanted.
// `output` decides on the activation where there was a residual; without one it is computed again.
TensorQuadruple batch_norm_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                const OptionalTensor& output, const OptionalTensor& weight,
                                const OptionalTensor& bias, const at::Tensor& mean,
                                const at::Tensor& variance, bool of_batch, double eps,
                                c10::string_view activation, double negative_slope, bool grad_input,
                                bool grad_residual);

// The same as batch_norm by ATen, for what is not ours; differentiable in every mode. The reason is recorded,
// unless it is null.
namespace aten {
TensorTriple batch_norm(const char* reason, const at::Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& mean,
                        const OptionalTensor& variance, double eps, const OptionalTensor& residual,
                        c10::string_view activation, double negative_slope);
}  // namespace aten

// Why it is left to ATen, or null.
const char* batch_norm_left_to_aten(const at::Tensor& input, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& mean,
                                    const OptionalTensor& variance, const OptionalTensor& residual);

}  // namespace cnnext::ops
