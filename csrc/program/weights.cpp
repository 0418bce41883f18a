#include "program/weights.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "core/error.h"
#include "kernels/kernels.h"
#include "program/pack.h"
#include "runtime/cpu.h"

namespace fastattn {
namespace {

// The first failure of a parallel load; the message is written under the lock and read after the region.
class Failure {
public:
    // message() -> std::string. Nothing may throw inside a region, so a message without memory for it is a failure too.
    template <class F>
    void set(ErrorKind kind, const F& message) noexcept {
        const std::lock_guard lock(mutex_);
        if (failed_) return;
        failed_ = true, kind_ = kind;
        try {
            message_ = message();
        } catch (const std::bad_alloc&) {
            kind_ = ErrorKind::kOutOfMemory;
        }
    }
    void rethrow() const {
        if (failed_) throw Error(kind_, message_.empty() ? "loading: could not allocate memory" : message_);
    }

private:
    std::mutex mutex_;
    bool failed_ = false;
    ErrorKind kind_{};
    std::string message_;
};

// Source is TensorSource or RawSource.
template <class Source>
bool read_fully(const Source& source, int64_t offset, int64_t bytes, std::byte* out, Failure& failure) {
    while (bytes > 0) {
        const ssize_t got = pread(source.fd, out, static_cast<size_t>(bytes), source.offset + offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            const int error = errno;
            if (got < 0)
                failure.set(ErrorKind::kOs,
                            [&] { return "reading tensor " + source.name + ": " + std::strerror(error); });
            else
                failure.set(ErrorKind::kModelFormat, [&] {
                    return "tensor " + source.name + ": the file ends " + std::to_string(bytes) + " bytes early";
                });
            return false;
        }
        bytes -= got, offset += got, out += got;
    }
    return true;
}

// Whether packed bytes (whole groups of int4) contain what our packing never writes. Targets differ on -128, and one
// row and many rows differ on scales above the highest.
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

// A thread's staging memory: raw file bytes, and the same as floats if the file has another type.
struct Staging {
    std::unique_ptr<std::byte[]> raw;
    std::unique_ptr<float[]> floats;
    std::unique_ptr<float[]> room;  // for the packing functions

    Staging(int64_t elements, DType dtype, int64_t columns) : room(new float[static_cast<size_t>(pack_room(columns))]) {
        raw.reset(new std::byte[static_cast<size_t>(elements * dtype_bytes(dtype))]);
        if (dtype != DType::kF32) floats.reset(new float[static_cast<size_t>(elements)]);
    }
    // The first n elements of `raw` as floats, or null if a float64 number is beyond float32.
    const float* convert(int64_t n, const TensorSource& source, Failure& failure) {
        if (source.dtype == DType::kF32) return reinterpret_cast<const float*>(raw.get());
        to_float(raw.get(), source.dtype, n, floats.get());
        double found;
        if (source.dtype != DType::kF64 || !beyond_float32(raw.get(), floats.get(), n, &found)) return floats.get();
        failure.set(ErrorKind::kConfig, [&] {
            char number[32];
            std::snprintf(number, sizeof number, "%g", found);
            return "tensor " + source.name + ": expected float64 numbers within the range of float32, got " + number;
        });
        return nullptr;
    }
};

std::vector<Staging> staging_for(const ThreadPool& pool, int64_t elements, const TensorSource& source) {
    std::vector<Staging> all;
    for (int i = 0; i < pool.size(); ++i) all.emplace_back(elements, source.dtype, source.columns);
    return all;
}

constexpr int64_t kStagingFloats = int64_t{1} << 18;  // 1 MiB: small enough to stay in cache until it is packed

// Reads row-major rows of a table or vector. Returns false if it was stopped, like load_matrix.
bool load_rows(const TensorSource& source, Weight& weight, int64_t first_row, ThreadPool& pool,
               const std::function<bool()>& poll, Failure& failure) {
    if (source.rows == 0 || source.columns == 0) return true;
    const int64_t rows = std::clamp<int64_t>(kStagingFloats / source.columns, 1, source.rows);
    const int64_t size = source.columns * dtype_bytes(source.dtype);
    std::vector<Staging> stagings = staging_for(pool, rows * source.columns, source);
    const KernelTable& kernels = active_kernels();
    return pool.run(
        [&](Team& team) {
            Staging& staging = stagings[team.index()];
            team.for_chunks((source.rows + rows - 1) / rows, [&](int64_t chunk) {
                const int64_t first = chunk * rows;
                const int64_t n = std::min(rows, source.rows - first);
                if (!read_fully(source, first * size, n * size, staging.raw.get(), failure)) return;
                const float* src = staging.convert(n * source.columns, source, failure);
                if (src == nullptr) return;
                pack_table(src, n, kernels, weight, first_row + first, staging.room.get());
            });
        },
        poll);
}

bool load_matrix(const TensorSource& source, Weight& weight, int64_t first_column, ThreadPool& pool,
                 const std::function<bool()>& poll, Failure& failure) {
    // The file has `lines` lines of `length` elements. A chunk is some whole lines.
    const int64_t lines = source.transposed ? source.columns : source.rows;
    const int64_t length = source.transposed ? source.rows : source.columns;
    if (lines == 0 || length == 0) return true;
    const int64_t lines_per_chunk = std::clamp<int64_t>(kStagingFloats / length, 1, 64);
    const int64_t size = dtype_bytes(source.dtype);
    std::vector<Staging> stagings = staging_for(pool, lines_per_chunk * length, source);
    const KernelTable& kernels = active_kernels();
    // The scale of a column is known only after all of it was read, so lines along n wait until then.
    const bool wait = source.transposed && weight.format != Format::kFloat32;
    std::unique_ptr<float[]> whole(wait ? new float[static_cast<size_t>(lines * length)] : nullptr);
    return pool.run(
        [&](Team& team) {
            Staging& staging = stagings[team.index()];
            team.for_chunks((lines + lines_per_chunk - 1) / lines_per_chunk, [&](int64_t chunk) {
                const int64_t first = chunk * lines_per_chunk;
                const int64_t n = std::min(lines_per_chunk, lines - first);
                if (!read_fully(source, first * length * size, n * length * size, staging.raw.get(), failure)) return;
                const float* src = staging.convert(n * length, source, failure);
                if (src == nullptr) return;
                if (wait)
                    std::memcpy(whole.get() + first * length, src, static_cast<size_t>(n * length) * sizeof(float));
                else if (source.transposed)
                    pack_k_major(src, first, n, length, weight, first_column);
                else
                    pack_rows(src, length, n, kernels, weight, first_column + first, staging.room.get());
            });
            if (!wait) return;
            team.barrier();
            team.for_chunks((length + kPanelWidth - 1) / kPanelWidth, [&](int64_t chunk) {
                const int64_t first = chunk * kPanelWidth, n = std::min<int64_t>(kPanelWidth, length - first);
                pack_columns(whole.get() + first, length, n, kernels, weight, first_column + first);
            });
        },
        poll);
}

}  // namespace

const Weight* Weights::find(const std::string& name) const {
    const auto it = weights_.find(name);
    return it == weights_.end() ? nullptr : it->second.get();
}

const Weight& Weights::add(const std::string& name, Weight::Use use, Format format,
                           const std::vector<TensorSource>& parts, ThreadPool& pool,
                           const std::function<bool()>& poll) {
    if (find(name) != nullptr)  // executors store its address
        throw Error(ErrorKind::kInput, "weight " + name + ": expected a new name, this one is loaded already");
    auto weight = std::make_unique<Weight>();
    weight->use = use;
    weight->format = format;
    weight->columns = parts.empty() ? 0 : parts.front().columns;
    for (const auto& part : parts) {
        if (part.columns != weight->columns)
            throw Error(ErrorKind::kConfig, "weight " + name + ": its parts differ in width");
        weight->rows += part.rows;
    }
    allocate(*weight, name);
    Failure failure;
    int64_t first = 0;
    for (const auto& part : parts) {
        const bool finished = use == Weight::Use::kMatrix ? load_matrix(part, *weight, first, pool, poll, failure)
                                                          : load_rows(part, *weight, first, pool, poll, failure);
        failure.rethrow();
        if (!finished) throw Error(ErrorKind::kCancelled, "loading was interrupted");
        first += part.rows;
    }
    return *(weights_[name] = std::move(weight));
}

const Weight& Weights::add_packed(const std::string& name, Weight::Use use, Format format, int64_t rows,
                                  int64_t columns, const std::vector<RawSource>& parts, ThreadPool& pool,
                                  const std::function<bool()>& poll) {
    constexpr int64_t kChunk = (int64_t{4} << 20) / kInt4GroupBytes * kInt4GroupBytes;
    if (find(name) != nullptr) throw Error(ErrorKind::kConfig, "weight " + name + " is loaded already");
    auto weight = std::make_unique<Weight>();
    weight->use = use, weight->format = format, weight->rows = rows, weight->columns = columns;
    std::vector<int64_t> expected;
    for (const int64_t bytes : bytes_of(*weight, name))
        if (expected.empty() || bytes > 0) expected.push_back(bytes);
    if (parts.size() != expected.size())
        throw Error(ErrorKind::kModelFormat, "weight " + name + ": expected " + std::to_string(expected.size()) +
                                                 " tensors, got " + std::to_string(parts.size()));
    for (size_t i = 0; i < parts.size(); ++i)
        if (parts[i].bytes != expected[i])
            throw Error(ErrorKind::kModelFormat, "tensor " + parts[i].name + ": expected " +
                                                     std::to_string(expected[i]) + " bytes, got " +
                                                     std::to_string(parts[i].bytes));
    allocate(*weight, name);
    const Buffer* buffers[] = {&weight->data, &weight->scales, &weight->sums};
    Failure failure;
    for (size_t i = 0; i < parts.size(); ++i) {
        const int64_t bytes = parts[i].bytes;
        const bool finished = pool.run(
            [&](Team& team) {
                team.for_chunks((bytes + kChunk - 1) / kChunk, [&](int64_t chunk) {
                    const int64_t first = chunk * kChunk;
                    const int64_t n = std::min(kChunk, bytes - first);
                    std::byte* to = buffers[i]->data() + first;
                    if (!read_fully(parts[i], first, n, to, failure)) return;
                    if (i == 0 && out_of_range(to, n, format))
                        failure.set(ErrorKind::kModelFormat, [&] {
                            return "tensor " + parts[i].name + ": holds no packed " +
                                   (format == Format::kInt8 ? "int8" : "int4");
                        });
                });
            },
            poll);
        failure.rethrow();
        if (!finished) throw Error(ErrorKind::kCancelled, "loading was interrupted");
    }
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
