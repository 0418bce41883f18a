// How ops read a weight.
#pragma once
#include <cstdint>

namespace fastattn {

// A matrix is for products; it may also be read as a table (tied embeddings). A table has rows that ops look up. A
// vector is float32.
enum class WeightUse { kMatrix, kTable, kVector };

// What a weight is, for any executor.
struct WeightShape {
    WeightUse use;
    bool is_float32;
    int64_t rows, columns;
};

}  // namespace fastattn
