// Where the numbers of a weight come from: a slice of a file, an array in memory, or a function that computes rows on
// demand. Loading reads all three through one interface, chunk by chunk, on the threads that pack.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "core/dtype.h"
#include "core/error.h"

namespace fastattn {

// The first failure of a parallel load; the message is written under the lock and read after the region.
class Failure {
public:
    // message() -> std::string. Nothing may throw inside a region, so running out of memory for the message is a
    // failure, too.
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

// A matrix [rows, columns] of `dtype` as it is stored, row-major. A vector, and the bytes of a packed weight, have one
// column.
class WeightSource {
public:
    struct Matrix {
        std::string name;  // for messages
        DType dtype;
        int64_t rows, columns;
    };

    explicit WeightSource(Matrix matrix) : matrix_(std::move(matrix)) {}
    virtual ~WeightSource() = default;
    WeightSource(const WeightSource&) = delete;
    WeightSource& operator=(const WeightSource&) = delete;

    const std::string& name() const { return matrix_.name; }
    DType dtype() const { return matrix_.dtype; }
    int64_t rows() const { return matrix_.rows; }
    int64_t columns() const { return matrix_.columns; }
    int64_t row_bytes() const { return matrix_.columns * dtype_bytes(matrix_.dtype); }

    // The most rows that one prepare makes readable: all of them, unless a function computes them.
    virtual int64_t slice_rows() const { return rows(); }

    // Makes rows [begin, end) readable, and no others. Called by one thread, between regions; may throw.
    virtual void prepare([[maybe_unused]] int64_t begin, [[maybe_unused]] int64_t end) {}

    // Returns rows [first, first + n): in `room`, or in memory of the source. Null after a failure. Called by all
    // threads at once.
    virtual const std::byte* read(int64_t first, int64_t n, std::byte* room, Failure& failure) const noexcept = 0;

private:
    Matrix matrix_;
};

// Bytes in a file from `offset` on.
class FileSource final : public WeightSource {
public:
    FileSource(Matrix matrix, int fd, int64_t offset) : WeightSource(std::move(matrix)), fd_(fd), offset_(offset) {}
    const std::byte* read(int64_t first, int64_t n, std::byte* room, Failure& failure) const noexcept override;

private:
    int fd_;
    int64_t offset_;
};

// An array, aligned for its dtype, that outlives the source.
class ArraySource final : public WeightSource {
public:
    ArraySource(Matrix matrix, const void* data)
        : WeightSource(std::move(matrix)), data_(static_cast<const std::byte*>(data)) {}
    const std::byte* read(int64_t first, int64_t, std::byte*, Failure&) const noexcept override {
        return data_ + first * row_bytes();
    }

private:
    const std::byte* data_;
};

// Rows of floats that a function computes. Only one slice of them is in memory.
class ComputedSource final : public WeightSource {
public:
    // compute(begin, end) returns rows [begin, end), which stay in memory until the next call. It may throw.
    using Compute = std::function<const float*(int64_t begin, int64_t end)>;
    ComputedSource(std::string name, int64_t rows, int64_t columns, int64_t slice_rows, Compute compute)
        : WeightSource({std::move(name), DType::kF32, rows, columns}),
          slice_rows_(std::max<int64_t>(slice_rows, 1)),
          compute_(std::move(compute)) {}
    int64_t slice_rows() const override { return slice_rows_; }
    void prepare(int64_t begin, int64_t end) override { begin_ = begin, slice_ = compute_(begin, end); }
    const std::byte* read(int64_t first, int64_t, std::byte*, Failure&) const noexcept override {
        return reinterpret_cast<const std::byte*>(slice_ + (first - begin_) * columns());
    }

private:
    int64_t slice_rows_;
    Compute compute_;
    int64_t begin_ = 0;
    const float* slice_ = nullptr;
};

}  // namespace fastattn
