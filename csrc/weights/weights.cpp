#include "weights/weights.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "core/platform.h"
#include "kernels/kernels.h"
#include "runtime/cpu.h"
#include "weights/pack.h"

namespace fastattn {
namespace {

// Runs the regions of a load.
struct Load {
    ThreadPool& pool;
    const std::function<bool()>& poll;
    Failure failure{};

    // Throws the failure of a region, or Error(kCancelled) if it was stopped.
    void run(const std::function<void(Team&)>& body) {
        const bool finished = pool.run(body, poll);
        failure.rethrow();
        if (!finished) throw Error(ErrorKind::kCancelled, "loading was interrupted");
    }
};

// Whether packed bytes (whole groups of int4) contain what our packing never writes: -128, for which targets give
// different results, or a scale beyond kMostInt4Scale, for which one row and many rows give different results.
bool out_of_range(const std::byte* data, int64_t bytes, Format format) {
    if (format == Format::kInt8) return std::memchr(data, 0x80, static_cast<size_t>(bytes)) != nullptr;
    if (format != Format::kInt4) return false;
    for (const std::byte* group = data; group < data + bytes; group += kInt4GroupBytes) {
        const auto* scales = reinterpret_cast<const int8_t*>(group);
        int highest = 0;
        for (int j = 0; j < kPanelWidth; ++j) highest = std::max(highest, std::abs(int{scales[j]}));
        if (highest > kMostInt4Scale) return true;
    }
    return false;
}

// A thread's staging memory: raw rows of a source, and the same as floats if the source has another type.
struct Staging {
    std::unique_ptr<std::byte[]> raw;
    std::unique_ptr<float[]> floats;
    std::unique_ptr<float[]> room;  // for the packing functions

    Staging(int64_t elements, DType dtype, int64_t columns) : room(new float[static_cast<size_t>(pack_room(columns))]) {
        raw.reset(new std::byte[static_cast<size_t>(elements * dtype_bytes(dtype))]);
        if (dtype != DType::kF32) floats.reset(new float[static_cast<size_t>(elements)]);
    }
    // Rows [first, first + n) as floats. Null after a failure, for example if a float64 number is beyond float32.
    const float* read(const WeightSource& source, int64_t first, int64_t n, Failure& failure) {
        const std::byte* rows = source.read(first, n, raw.get(), failure);
        if (rows == nullptr) return nullptr;
        if (source.dtype() == DType::kF32) return reinterpret_cast<const float*>(rows);
        const int64_t elements = n * source.columns();
        to_float(rows, source.dtype(), elements, floats.get());
        double found;
        if (source.dtype() != DType::kF64 || !beyond_float32(rows, floats.get(), elements, &found)) return floats.get();
        failure.set(ErrorKind::kConfig, [&] {
            char number[32];
            std::snprintf(number, sizeof number, "%g", found);
            return "tensor " + source.name() + ": expected float64 numbers within the range of float32, got " + number;
        });
        return nullptr;
    }
};

constexpr int64_t kStagingFloats = int64_t{1} << 18;  // 1 MiB: small enough to stay in cache until it is packed

// Calls use(rows, first, n, room) on all threads, for all rows of a source in chunks of at most `most` rows: the n rows
// from `first` on as floats, and room for packing rows of k.
template <class F>
void read_chunks(WeightSource& source, int64_t most, int64_t k, Load& load, const F& use) {
    if (source.rows() == 0 || source.columns() == 0) return;
    const int64_t rows = std::clamp<int64_t>(kStagingFloats / source.columns(), 1, most);
    std::vector<Staging> stagings;
    for (int i = 0; i < load.pool.size(); ++i) stagings.emplace_back(rows * source.columns(), source.dtype(), k);
    for (int64_t begin = 0, end = 0; begin < source.rows(); begin = end) {
        end = std::min(begin + source.slice_rows(), source.rows());
        source.prepare(begin, end);
        load.run([&](Team& team) {
            Staging& staging = stagings[team.index()];
            team.for_chunks((end - begin + rows - 1) / rows, [&](int64_t chunk) {
                const int64_t first = begin + chunk * rows;
                const int64_t n = std::min(rows, end - first);
                const float* floats = staging.read(source, first, n, load.failure);
                if (floats != nullptr) use(floats, first, n, staging.room.get());
            });
        });
    }
}

// Reads rows of a table or vector, from row `first_row` of the weight on.
void load_rows(WeightSource& source, Weight& weight, int64_t first_row, Load& load) {
    const KernelTable& kernels = active_kernels();
    read_chunks(source, source.rows(), weight.columns, load,
                [&](const float* src, int64_t first, int64_t n, float* room) {
                    pack_table(src, n, kernels, weight, first_row + first, room);
                });
}

// Reads rows that become columns of the packed matrix, from `first_column` on.
void load_matrix(WeightSource& source, Weight& weight, int64_t first_column, Load& load) {
    const KernelTable& kernels = active_kernels();
    read_chunks(source, /*most=*/64, weight.columns, load,
                [&](const float* src, int64_t first, int64_t n, float* room) {
                    pack_rows(src, weight.columns, n, kernels, weight, first_column + first, room);
                });
}

// The same for a source [in_features, out_features].
void load_transposed(WeightSource& source, Weight& weight, int64_t first_column, Load& load) {
    const KernelTable& kernels = active_kernels();
    const int64_t length = source.columns();
    // The scale of a column is known only after all of it was read, so the other formats wait until then.
    const bool wait = weight.format != Format::kFloat32;
    std::unique_ptr<float[]> whole(wait ? new float[static_cast<size_t>(source.rows() * length)] : nullptr);
    read_chunks(source, /*most=*/64, weight.columns, load, [&](const float* src, int64_t first, int64_t n, float*) {
        if (wait)
            std::memcpy(whole.get() + first * length, src, static_cast<size_t>(n * length) * sizeof(float));
        else
            pack_k_major(src, first, n, length, weight, first_column);
    });
    if (!wait || source.rows() == 0) return;
    load.run([&](Team& team) {
        team.for_chunks((length + kPanelWidth - 1) / kPanelWidth, [&](int64_t chunk) {
            const int64_t first = chunk * kPanelWidth, n = std::min<int64_t>(kPanelWidth, length - first);
            pack_columns(whole.get() + first, length, n, kernels, weight, first_column + first);
        });
    });
}

// Executors store the addresses of weights, so none may be replaced.
void check_new(const Weights& weights, const std::string& name) {
    if (weights.find(name) != nullptr)
        throw Error(ErrorKind::kInput, "weight " + name + ": expected a new name, got that of a loaded weight");
}

// An empty weight with the size of its sources.
std::unique_ptr<Weight> weight_for(const NewWeight& spec, const WeightSources& sources) {
    if (spec.transposed && spec.use != WeightUse::kMatrix)
        throw Error(ErrorKind::kConfig, "weight " + spec.name + ": only a matrix can be transposed");
    auto weight = std::make_unique<Weight>();
    weight->use = spec.use;
    weight->format = spec.format;
    for (const auto& source : sources) {
        const int64_t columns = spec.transposed ? source->rows() : source->columns();
        if (source != sources.front() && columns != weight->columns)
            throw Error(ErrorKind::kConfig, "weight " + spec.name + ": expected parts of one width, got " +
                                                std::to_string(weight->columns) + " and " + std::to_string(columns));
        weight->columns = columns;
        weight->rows += spec.transposed ? source->columns() : source->rows();
    }
    return weight;
}

// Throws unless the sources are exactly the arrays of a packed weight, as rows of one byte.
void check_pieces(const Weight& weight, const std::string& name, const WeightSources& sources) {
    std::vector<int64_t> expected;
    for (const int64_t bytes : bytes_of(weight, name))
        if (expected.empty() || bytes > 0) expected.push_back(bytes);
    if (sources.size() != expected.size())
        throw Error(ErrorKind::kModelFormat, "weight " + name + ": expected " + std::to_string(expected.size()) +
                                                 " tensors, got " + std::to_string(sources.size()));
    for (size_t i = 0; i < sources.size(); ++i) {
        const WeightSource& source = *sources[i];
        if (source.row_bytes() != 1)
            throw Error(ErrorKind::kInput, "tensor " + source.name() + ": expected rows of 1 byte, got " +
                                               std::to_string(source.row_bytes()));
        if (source.rows() != expected[i])
            throw Error(ErrorKind::kModelFormat, "tensor " + source.name() + ": expected " +
                                                     std::to_string(expected[i]) + " bytes, got " +
                                                     std::to_string(source.rows()));
    }
}

// Reads the bytes of a packed weight into `buffer`. format: of the data, to check it; float32 has nothing to check.
void load_bytes(const WeightSource& source, const Buffer& buffer, Format format, Load& load) {
    constexpr int64_t kChunk = (int64_t{4} << 20) / kInt4GroupBytes * kInt4GroupBytes;
    load.run([&](Team& team) {
        team.for_chunks((source.rows() + kChunk - 1) / kChunk, [&](int64_t chunk) {
            const int64_t first = chunk * kChunk, n = std::min(kChunk, source.rows() - first);
            std::byte* to = buffer.data() + first;
            const std::byte* from = source.read(first, n, to, load.failure);
            if (from == nullptr) return;
            if (from != to) std::memcpy(to, from, static_cast<size_t>(n));
            if (out_of_range(to, n, format))
                load.failure.set(ErrorKind::kModelFormat, [&] {
                    return "tensor " + source.name() + ": expected packed " + traits_of(format).name +
                           ", got other bytes; quantize the model again";
                });
        });
    });
}

// Changes panels with one strip, as they are stored in files, to the strips of the active kernels.
void arrange_strips(Weight& weight, Load& load) {
    if (weight.strip_columns == kPanelWidth) return;
    const ops::Matrix matrix = weight.matrix();
    std::vector<Buffer> rooms;
    for (int i = 0; i < load.pool.size(); ++i) rooms.emplace_back(static_cast<size_t>(matrix.panel_bytes));
    load.run([&](Team& team) {
        std::byte* room = rooms[static_cast<size_t>(team.index())].data();
        team.for_chunks(matrix.count, [&](int64_t i) {
            std::byte* panel = weight.data.data() + i * matrix.panel_bytes;
            std::memcpy(room, panel, static_cast<size_t>(matrix.panel_bytes));
            change_strips(weight, room, panel, kPanelWidth, weight.strip_columns);
        });
    });
}

}  // namespace

const Weight* Weights::find(const std::string& name) const {
    const auto it = weights_.find(name);
    return it == weights_.end() ? nullptr : it->second.get();
}

const Weight& Weights::add(const NewWeight& spec, const WeightSources& sources, ThreadPool& pool,
                           const std::function<bool()>& poll) {
    check_new(*this, spec.name);
    std::unique_ptr<Weight> weight = weight_for(spec, sources);
    allocate(*weight, spec.name, active_kernels());
    Load load{pool, poll};
    int64_t first = 0;
    for (const auto& source : sources) {
        if (spec.use != WeightUse::kMatrix)
            load_rows(*source, *weight, first, load);
        else if (spec.transposed)
            load_transposed(*source, *weight, first, load);
        else
            load_matrix(*source, *weight, first, load);
        first += spec.transposed ? source->columns() : source->rows();
    }
    return insert(spec.name, std::move(weight));
}

const Weight& Weights::add_packed(const NewWeight& spec, const WeightSources& sources, ThreadPool& pool,
                                  const std::function<bool()>& poll) {
    check_new(*this, spec.name);
    auto weight = std::make_unique<Weight>();
    weight->use = spec.use, weight->format = spec.format, weight->rows = spec.rows, weight->columns = spec.columns;
    check_pieces(*weight, spec.name, sources);
    allocate(*weight, spec.name, active_kernels());
    const Buffer* buffers[] = {&weight->data, &weight->scales, &weight->sums};
    Load load{pool, poll};
    for (size_t i = 0; i < sources.size(); ++i)
        load_bytes(*sources[i], *buffers[i], i == 0 ? spec.format : Format::kFloat32, load);
    arrange_strips(*weight, load);
    return insert(spec.name, std::move(weight));
}

MappedFile::MappedFile(int file, int64_t bytes)
    : data_(bytes > 0 ? map_file(file, static_cast<size_t>(bytes)) : nullptr), bytes_(bytes) {
    if (data_ == nullptr)
        throw Error(ErrorKind::kConfig, "shared weights: could not map " + std::to_string(bytes) + " bytes, errno " +
                                            std::to_string(errno));
}

MappedFile::~MappedFile() {
    unmap_pages(data_, static_cast<size_t>(bytes_));
}

const Weight& Weights::add_mapped(const NewWeight& spec, const std::shared_ptr<const MappedFile>& file,
                                  const std::array<int64_t, 3>& offsets) {
    constexpr int64_t kLine = 64;
    check_new(*this, spec.name);
    auto weight = std::make_unique<Weight>();
    weight->use = spec.use, weight->format = spec.format, weight->rows = spec.rows, weight->columns = spec.columns;
    set_strips(*weight, active_kernels());
    const std::array<int64_t, 3> sizes = bytes_of(*weight, spec.name);
    Buffer* buffers[] = {&weight->data, &weight->scales, &weight->sums};
    for (size_t i = 0; i < sizes.size(); ++i) {
        const int64_t begin = offsets[i], size = sizes[i];
        if (begin < 0 || begin % kLine != 0 || size > file->bytes() || begin > file->bytes() - size)
            throw Error(ErrorKind::kInput, "weight " + spec.name + ": expected bytes inside the shared weights, got " +
                                               std::to_string(size) + " from byte " + std::to_string(begin) + " on");
        if (size > 0) *buffers[i] = Buffer(file->data() + begin, static_cast<size_t>(size), file);
    }
    return insert(spec.name, std::move(weight));
}

const Weight& Weights::insert(const std::string& name, std::unique_ptr<Weight> weight) {
    const std::lock_guard no_fork(start_mutex());  // a child must not find a half-made map
    return *(weights_[name] = std::move(weight));
}

int64_t Weights::bytes() const {
    int64_t total = 0;
    for (const auto& [name, weight] : weights_) total += weight->bytes();
    return total;
}

double Weights::seconds_to_read(ThreadPool& pool) const {
    constexpr int64_t kChunk = int64_t{1} << 20;  // floats
    struct Piece {
        const float* data;
        int64_t n;
    };
    std::vector<Piece> pieces;
    for (const auto& [name, weight] : weights_) {
        const auto n = static_cast<int64_t>(weight->data.bytes() / sizeof(float));
        for (int64_t at = 0; at < n; at += kChunk)
            pieces.push_back({weight->data.floats() + at, std::min(kChunk, n - at)});
    }
    const KernelTable& kernels = active_kernels();
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](Team& team) {
        team.for_chunks(static_cast<int64_t>(pieces.size()),
                        [&](int64_t i) { kernels.measure_read(pieces[i].data, pieces[i].n); });
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace fastattn
