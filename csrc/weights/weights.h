// Parameters in the form that the kernels read: matrices in panels, tables and vectors in rows. Each tensor is read
// from its source, converted and packed in one pass on the thread pool, so loading needs little more than the packed
// model.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "ops/ops.h"
#include "runtime/thread_pool.h"
#include "weights/weight_source.h"
#include "weights/weight_use.h"

namespace fastattn {

struct Weight {
    WeightUse use = WeightUse::kMatrix;
    Format format = Format::kFloat32;  // a table has no int4; a vector is float32
    int64_t rows = 0, columns = 0;
    int64_t strip_columns = kPanelWidth;  // of a matrix (formats.h)
    Buffer data;    // matrix: panels (kernels.h); table: [rows, columns] in its format; vector: [rows]
    Buffer scales;  // int8, int4: [rows] floats, padded to whole panels
    Buffer sums;    // int8, int4 matrix: [rows] int32 sums over k, padded

    int64_t bytes() const { return static_cast<int64_t>(data.bytes() + scales.bytes() + sums.bytes()); }
    WeightShape shape() const { return {use, format == Format::kFloat32, rows, columns}; }
    ops::Matrix matrix() const;
};

// out [width] = row `row` of a table, or of a matrix used as one (tied embeddings).
void read_row(const Weight& weight, int64_t row, float* out);

using WeightSources = std::vector<std::unique_ptr<WeightSource>>;

// A weight to load. Its sources are stacked along the rows (out_features).
struct NewWeight {
    std::string name;
    WeightUse use = WeightUse::kMatrix;
    Format format = Format::kFloat32;
    bool transposed = false;        // a matrix whose sources are stored as [in_features, out_features]
    int64_t rows = 0, columns = 0;  // only for add_packed; else the sources have them
};

// The bytes of an open file, mapped for reading.
class MappedFile {
public:
    MappedFile(int file, int64_t bytes);  // throws Error(kConfig) if the system refuses
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    std::byte* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

private:
    std::byte* data_;
    int64_t bytes_;
};

class Weights {
public:
    const Weight* find(const std::string& name) const;
    // Throws Error(kInput) if the name exists, Error(kConfig) if format, use and shapes do not fit or a float64 number
    // is beyond float32, Error(kCancelled) if poll() returned true, Error(kOutOfMemory), and whatever a source throws.
    const Weight& add(const NewWeight& spec, const WeightSources& sources, ThreadPool& pool,
                      const std::function<bool()>& poll);
    // Reads a weight that was packed before: data, scales and sums (as its format has them) as bytes, straight into
    // place. Throws Error(kModelFormat) if their sizes do not fit.
    const Weight& add_packed(const NewWeight& spec, const WeightSources& sources, ThreadPool& pool,
                             const std::function<bool()>& poll);
    // Uses the arrays of a weight in a mapped file, as `find` has them in a process with the same kernels: data, scales
    // and sums at these offsets. Throws Error(kInput) if the name exists or the arrays are not inside the file.
    const Weight& add_mapped(const NewWeight& spec, const std::shared_ptr<const MappedFile>& file,
                             const std::array<int64_t, 3>& offsets);
    int64_t bytes() const;

    // Seconds to read every weight once, in order, on all threads: a lower bound for a decode step.
    double seconds_to_read(ThreadPool& pool) const;

private:
    const Weight& insert(const std::string& name, std::unique_ptr<Weight> weight);
    std::map<std::string, std::unique_ptr<Weight>> weights_;
};

}  // namespace fastattn
