// Reads a Program from Python.
#pragma once
#include <pybind11/pybind11.h>

#include "program/spec.h"

namespace fastattn {

// Throws Error(kConfig) for what is missing, unknown or of the wrong type.
ProgramSpec spec_from(const pybind11::dict& dict);

}  // namespace fastattn
