// How ops read a weight.
#pragma once

namespace fastattn {

// A matrix is for products; it may also be read as a table (tied embeddings). A table has rows that ops look up. A
// vector is float32.
enum class WeightUse { kMatrix, kTable, kVector };

}  // namespace fastattn
