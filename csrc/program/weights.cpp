#include "program/weights.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>

#include "core/error.h"
#include "kernels/kernels.h"
#include "runtime/cpu.h"

namespace fastattn {
namespace {

// The first failure of a parallel load; the message is written under the lock and read after the region.
class Failure {
public:
    void set(ErrorKind kind, std::string message) {
        const std::lock_guard lock(mutex_);
        if (message_.empty()) kind_ = kind, message_ = std::move(message);
    }
    void rethrow() const {
        if (!message_.empty()) throw Error(kind_, message_);
    }

private:
    std::mutex mutex_;
    ErrorKind kind_{};
    std::string message_;
};

bool read_fully(const TensorSource& source, int64_t offset, int64_t bytes, std::byte* out, Failure& failure) {
    while (bytes > 0) {
        const ssize_t got = pread(source.fd, out, static_cast<size_t>(bytes), source.offset + offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            if (got < 0)
                failure.set(ErrorKind::kOs, "reading tensor " + source.name + ": " + std::strerror(errno));
            else
                failure.set(ErrorKind::kModelFormat,
                            "tensor " + source.name + ": the file ends " + std::to_string(bytes) + " bytes early");
            return false;
        }
        bytes -= got, offset += got, out += got;
    }
    return true;
}

// A thread's staging memory: raw file bytes, and the same as floats when the file holds halves.
struct Staging {
    std::unique_ptr<std::byte[]> raw;
    std::unique_ptr<float[]> floats;

    Staging(int64_t elements, DType dtype) {
        raw.reset(new std::byte[static_cast<size_t>(elements * dtype_bytes(dtype))]);
        if (dtype != DType::kF32) floats.reset(new float[static_cast<size_t>(elements)]);
    }
    const float* convert(int64_t n, DType dtype) {
        if (dtype == DType::kF32) return reinterpret_cast<const float*>(raw.get());
        to_float(raw.get(), dtype, n, floats.get());
        return floats.get();
    }
};

std::vector<Staging> staging_for(const ThreadPool& pool, int64_t elements, DType dtype) {
    std::vector<Staging> all;
    for (int i = 0; i < pool.size(); ++i) all.emplace_back(elements, dtype);
    return all;
}

constexpr int64_t kStagingFloats = int64_t{1} << 18;  // 1 MiB: small enough to stay in cache until it is packed

// Row-major rows of a table or vector, straight to their place. False if it was stopped, as load_matrix.
bool load_rows(const TensorSource& source, float* out, ThreadPool& pool, const std::function<bool()>& poll,
               Failure& failure) {
    const int64_t total = source.rows * source.columns;
    const int64_t chunks = (total + kStagingFloats - 1) / kStagingFloats;
    std::vector<Staging> stagings = staging_for(pool, std::min(total, kStagingFloats), source.dtype);
    return pool.run(
        [&](Team& team) {
            Staging& staging = stagings[team.index()];
            team.for_chunks(chunks, [&](int64_t chunk) {
                const int64_t first = chunk * kStagingFloats;
                const int64_t n = std::min(kStagingFloats, total - first);
                const int64_t size = dtype_bytes(source.dtype);
                if (!read_fully(source, first * size, n * size, staging.raw.get(), failure)) return;
                std::memcpy(out + first, staging.convert(n, source.dtype), static_cast<size_t>(n) * 4);
            });
        },
        poll);
}

// Rows [first, first + n) of k-major data [n, columns]: each is one k of every panel.
void pack_k_major(const float* src, int64_t first_k, int64_t n, int64_t columns, int64_t k, float* panels,
                  int64_t first_column) {
    for (int64_t column = 0; column < columns;) {
        const int64_t at = first_column + column;
        const int64_t lane = at % kPanelWidth;
        const int64_t width = std::min<int64_t>(kPanelWidth - lane, columns - column);
        float* panel = panels + at / kPanelWidth * k * kPanelWidth + lane;
        for (int64_t i = 0; i < n; ++i)
            std::memcpy(panel + (first_k + i) * kPanelWidth, src + i * columns + column,
                        static_cast<size_t>(width) * 4);
        column += width;
    }
}

bool load_matrix(const TensorSource& source, float* panels, int64_t first_column, ThreadPool& pool,
                 const std::function<bool()>& poll, Failure& failure) {
    // In the file: `lines` lines of `length` elements; a chunk is some whole lines.
    const int64_t lines = source.transposed ? source.columns : source.rows;
    const int64_t length = source.transposed ? source.rows : source.columns;
    if (lines == 0 || length == 0) return true;
    const int64_t lines_per_chunk = std::clamp<int64_t>(kStagingFloats / length, 1, 64);
    const int64_t size = dtype_bytes(source.dtype);
    std::vector<Staging> stagings = staging_for(pool, lines_per_chunk * length, source.dtype);
    return pool.run(
        [&](Team& team) {
            Staging& staging = stagings[team.index()];
            team.for_chunks((lines + lines_per_chunk - 1) / lines_per_chunk, [&](int64_t chunk) {
                const int64_t first = chunk * lines_per_chunk;
                const int64_t n = std::min(lines_per_chunk, lines - first);
                if (!read_fully(source, first * length * size, n * length * size, staging.raw.get(), failure)) return;
                const float* src = staging.convert(n * length, source.dtype);
                if (source.transposed)
                    pack_k_major(src, first, n, length, source.columns, panels, first_column);
                else
                    pack_rows(src, n, length, panels, first_column + first);
            });
        },
        poll);
}

}  // namespace

void pack_rows(const float* src, int64_t rows, int64_t k, float* panels, int64_t first_column) {
    // 16 x 16 blocks: both sides then stay within a few cache lines.
    constexpr int64_t kTile = 16;
    for (int64_t row = 0; row < rows;) {
        const int64_t at = first_column + row;
        const int64_t lane = at % kPanelWidth;
        const int64_t width = std::min({kTile, kPanelWidth - lane, rows - row});
        float* panel = panels + at / kPanelWidth * k * kPanelWidth + lane;
        for (int64_t p0 = 0; p0 < k; p0 += kTile) {
            const int64_t p1 = std::min(p0 + kTile, k);
            if (width == kTile) {
                for (int64_t p = p0; p < p1; ++p)
                    for (int64_t i = 0; i < kTile; ++i) panel[p * kPanelWidth + i] = src[(row + i) * k + p];
            } else {
                for (int64_t p = p0; p < p1; ++p)
                    for (int64_t i = 0; i < width; ++i) panel[p * kPanelWidth + i] = src[(row + i) * k + p];
            }
        }
        row += width;
    }
}

void read_row(const Weight& weight, int64_t row, float* out) {
    if (weight.use == Weight::Use::kTable) {
        std::memcpy(out, weight.data.floats() + row * weight.columns, static_cast<size_t>(weight.columns) * 4);
        return;
    }
    const float* lane = weight.data.floats() + row / kPanelWidth * weight.columns * kPanelWidth + row % kPanelWidth;
    for (int64_t p = 0; p < weight.columns; ++p) out[p] = lane[p * kPanelWidth];
}

const Weight* Weights::find(const std::string& name) const {
    const auto it = weights_.find(name);
    return it == weights_.end() ? nullptr : it->second.get();
}

const Weight& Weights::add(const std::string& name, Weight::Use use, const std::vector<TensorSource>& parts,
                           ThreadPool& pool, const std::function<bool()>& poll) {
    if (find(name) != nullptr)  // executors hold its address
        throw Error(ErrorKind::kInput, "weight " + name + ": expected a new name, this one is loaded already");
    auto weight = std::make_unique<Weight>();
    weight->use = use;
    weight->columns = parts.empty() ? 0 : parts.front().columns;
    for (const auto& part : parts) {
        if (part.columns != weight->columns)
            throw Error(ErrorKind::kConfig, "weight " + name + ": its parts differ in width");
        weight->rows += part.rows;
    }
    const bool panels = use == Weight::Use::kMatrix;
    const int64_t stored_rows = panels ? (weight->rows + kPanelWidth - 1) / kPanelWidth * kPanelWidth : weight->rows;
    weight->data = Buffer(static_cast<size_t>(stored_rows * weight->columns) * sizeof(float));
    Failure failure;
    int64_t first = 0;
    for (const auto& part : parts) {
        const bool finished =
            panels ? load_matrix(part, weight->data.floats(), first, pool, poll, failure)
                   : load_rows(part, weight->data.floats() + first * weight->columns, pool, poll, failure);
        failure.rethrow();
        if (!finished) throw Error(ErrorKind::kCancelled, "loading was interrupted");
        first += part.rows;
    }
    return *(weights_[name] = std::move(weight));
}

int64_t Weights::bytes() const {
    int64_t total = 0;
    for (const auto& [name, weight] : weights_) total += static_cast<int64_t>(weight->data.bytes());
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
