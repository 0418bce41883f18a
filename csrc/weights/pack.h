// Converts rows of floats to the layout of a Weight.
#pragma once
#include <array>
#include <string>

#include "weights/weights.h"

namespace fastattn {

// Bytes of data, scales and sums. Throws Error(kConfig) if the format does not fit the use.
std::array<int64_t, 3> bytes_of(const Weight& weight, const std::string& name);

// Allocates the weight's rows and columns in its format, for these kernels. Throws like bytes_of, and
// Error(kOutOfMemory).
void allocate(Weight& weight, const std::string& name, const KernelTable& kernels);

// Sets the strips of a matrix to those of these kernels.
void set_strips(Weight& weight, const KernelTable& kernels);

// Copies one panel of a matrix and changes its strips from `from` to `to` columns.
void change_strips(const Weight& weight, const std::byte* panel, std::byte* out, int64_t from, int64_t to);

// Floats that pack_rows and pack_table need from the caller for rows of length k: they run where nothing may throw.
inline int64_t pack_room(int64_t k) {
    return 16 * (k + 1);
}

// src: [n, k] rows, packed as columns [first, first + n) of a matrix with k rows.
void pack_rows(const float* src, int64_t k, int64_t n, const KernelTable& kernels, Weight& weight, int64_t first,
               float* room);
// panels: [ceil of all columns / 64, k, 64] floats.
void pack_float32(const float* src, int64_t k, int64_t n, float* panels, int64_t first);

// src: [k, n], row stride `stride`, packed as the same columns.
void pack_columns(const float* src, int64_t stride, int64_t n, const KernelTable& kernels, Weight& weight,
                  int64_t first);

// src: [n, columns], which are rows [first_k, first_k + n) of k for columns [first, first + columns); float32 only.
void pack_k_major(const float* src, int64_t first_k, int64_t n, int64_t columns, Weight& weight, int64_t first);

// src: [n, columns], stored as rows [first, first + n) of a table or vector.
void pack_table(const float* src, int64_t n, const KernelTable& kernels, Weight& weight, int64_t first, float* room);

}  // namespace fastattn
