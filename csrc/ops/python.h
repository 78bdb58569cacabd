// What the extension module shows to Python beside the operators.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace cnnext::ops {

std::map<std::string, int64_t> fallbacks();
void reset_fallbacks();

}  // namespace cnnext::ops
