#pragma once
#include <pybind11/pybind11.h>

namespace fastattn {

void register_kernels(pybind11::module_& module);

}  // namespace fastattn
