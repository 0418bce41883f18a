#include <pybind11/pybind11.h>

#include "bindings/register_kernels.h"

PYBIND11_MODULE(_core, m) { fastattn::register_kernels(m); }
