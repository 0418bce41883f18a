// Parameters in the form the kernels read: matrices in panels, tables and vectors as they are. Each tensor is read from
// its file, converted and packed in one pass over the thread pool, so loading needs little more than the packed model.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/dtype.h"
#include "ops/ops.h"
#include "runtime/thread_pool.h"

namespace fastattn {

// A tensor in a file. As a matrix part it adds `rows` output columns; transposed ones lie in the file as [k, rows].
struct TensorSource {
    int fd;
    int64_t offset;  // of the first byte
    DType dtype;
    int64_t rows, columns;  // [out_features, in_features] whatever the order in the file; a vector has columns = 1
    bool transposed;
    std::string name;  // for messages
};

// Bytes in a file that are a part of a Weight as they are.
struct RawSource {
    int fd;
    int64_t offset, bytes;
    std::string name;  // for messages
};

struct Weight {
    enum class Use { kMatrix, kTable, kVector } use = Use::kMatrix;
    Format format = Format::kFloat32;  // a table has no int4, a vector is float32
    int64_t rows = 0, columns = 0;
    Buffer data;    // matrix: panels (kernels.h); table: [rows, columns] of its format; vector: [rows]
    Buffer scales;  // int8, int4: [rows] floats, padded to whole panels
    Buffer sums;    // int8, int4 matrix: [rows] int32 sums over k, padded

    int64_t bytes() const { return static_cast<int64_t>(data.bytes() + scales.bytes() + sums.bytes()); }
    ops::Matrix matrix() const;
};

// out [width] = row `row` of a table, or of a matrix used as one (tied embeddings).
void read_row(const Weight& weight, int64_t row, float* out);

class Weights {
public:
    const Weight* find(const std::string& name) const;
    // Throws Error(kInput) for a name that is there already.
    const Weight& add(const std::string& name, Weight::Use use, Format format, const std::vector<TensorSource>& parts,
                      ThreadPool& pool, const std::function<bool()>& poll);
    // data, scales and sums (those that the format has) of a weight that was packed before, read straight into place.
    // Throws Error(kModelFormat) where their sizes do not fit.
    const Weight& add_packed(const std::string& name, Weight::Use use, Format format, int64_t rows, int64_t columns,
                             const std::vector<RawSource>& parts, ThreadPool& pool, const std::function<bool()>& poll);
    int64_t bytes() const;

    // Seconds to read every weight once, in order, on all threads: the least that a decode step can take.
    double seconds_to_read(ThreadPool& pool) const;

private:
    std::map<std::string, std::unique_ptr<Weight>> weights_;
};

}  // namespace fastattn
