// Parameters in the form that the kernels read: matrices in panels, tables and vectors unchanged. Each tensor is read
// from its file, converted and packed in one pass on the thread pool, so loading needs little more than the packed
// model.
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

// A tensor in a file. As part of a matrix it adds `rows` output columns. A transposed tensor is [k, rows] in the file.
struct TensorSource {
    int fd;
    int64_t offset;  // of the first byte
    DType dtype;
    int64_t rows, columns;  // [out_features, in_features] for any order in the file; columns = 1 for a vector
    bool transposed;
    std::string name;  // for messages
};

// Bytes in a file that are copied unchanged into a Weight.
struct RawSource {
    int fd;
    int64_t offset, bytes;
    std::string name;  // for messages
};

struct Weight {
    enum class Use { kMatrix, kTable, kVector } use = Use::kMatrix;
    Format format = Format::kFloat32;  // a table has no int4; a vector is float32
    int64_t rows = 0, columns = 0;
    Buffer data;    // matrix: panels (kernels.h); table: [rows, columns] in its format; vector: [rows]
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
    // Throws Error(kInput) if the name exists.
    const Weight& add(const std::string& name, Weight::Use use, Format format, const std::vector<TensorSource>& parts,
                      ThreadPool& pool, const std::function<bool()>& poll);
    // Reads a weight that was packed before: data, scales and sums (as its format has them), straight into place.
    // Throws Error(kModelFormat) if their sizes do not fit.
    const Weight& add_packed(const std::string& name, Weight::Use use, Format format, int64_t rows, int64_t columns,
                             const std::vector<RawSource>& parts, ThreadPool& pool, const std::function<bool()>& poll);
    int64_t bytes() const;

    // Seconds to read every weight once, in order, on all threads: a lower bound for a decode step.
    double seconds_to_read(ThreadPool& pool) const;

private:
    std::map<std::string, std::unique_ptr<Weight>> weights_;
};

}  // namespace fastattn
