// A Program as Python hands it over.
#pragma once
#include <pybind11/pybind11.h>

#include "program/spec.h"

namespace fastattn {

// Throws Error(kConfig) for what is missing, unknown or of another type than expected.
ProgramSpec spec_from(const pybind11::dict& dict);

}  // namespace fastattn
