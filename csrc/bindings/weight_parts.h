// The sources of a weight as Python passes them: file slices, arrays and functions (fastattn.checkpoint.source).
#pragma once
#include <vector>

#include "bindings/bindings.h"
#include "weights/weights.h"

namespace fastattn {

// Owns the sources of a weight and the Python objects that they read. Destroy it with the GIL.
struct WeightParts {
    WeightSources sources;
    std::vector<py::object> alive;
};

// parts: (name, dtype, rows, columns, data) each, as stored. data is (descriptor, offset) of a file, an array, or
// (function, rows per call) of floats; function(begin, end) returns the rows. packed: the dtype is "U8", the bytes of a
// packed weight.
WeightParts parts_from(const py::list& parts, bool packed);

}  // namespace fastattn
