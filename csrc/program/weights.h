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

struct Weight {
    enum class Use { kMatrix, kTable, kVector } use;
    int64_t rows = 0, columns = 0;
    Buffer data;  // matrix: panels [ceil(rows / 64), columns, 64]; table: [rows, columns]; vector: [rows]
};

// out [width] = row `row` of a table, or of a matrix used as one (tied embeddings).
void read_row(const Weight& weight, int64_t row, float* out);

class Weights {
public:
    const Weight* find(const std::string& name) const;
    const Weight& add(const std::string& name, Weight::Use use, const std::vector<TensorSource>& parts,
                      ThreadPool& pool, const std::function<bool()>& poll);
    int64_t bytes() const;

    // Seconds to read every weight once, in order, on all threads: the least that a decode step can take.
    double seconds_to_read(ThreadPool& pool) const;

private:
    std::map<std::string, std::unique_ptr<Weight>> weights_;
};

// Packs `rows` rows of a row-major [rows, k] matrix as columns [first_column, first_column + rows) of panels.
void pack_rows(const float* src, int64_t rows, int64_t k, float* panels, int64_t first_column);

}  // namespace fastattn
