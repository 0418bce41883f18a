// Memory for weights, pages and workspaces: 64-byte aligned, huge pages if large, zeroed, freed at the end of scope.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace fastattn {

class Buffer {
public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept : data_(std::move(other.data_)), bytes_(std::exchange(other.bytes_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        data_ = std::move(other.data_);
        bytes_ = std::exchange(other.bytes_, 0);
        return *this;
    }
    explicit Buffer(size_t bytes);  // throws Error(kOutOfMemory) with the requested size

    // `bytes` bytes at `data`, which `owner` keeps in memory. Nothing may write to them.
    Buffer(std::byte* data, size_t bytes, std::shared_ptr<const void> owner);

    // Makes room for `bytes`. If the buffer is too small, frees it first; the contents are then lost.
    void grow(size_t bytes);

    std::byte* data() const { return data_.get(); }
    float* floats() const { return reinterpret_cast<float*>(data_.get()); }
    size_t bytes() const { return bytes_; }

private:
    struct Free {
        size_t mapped;                      // bytes mapped; 0 for a small buffer from the heap
        std::shared_ptr<const void> owner;  // keeps the memory, which this buffer then does not free
        void operator()(std::byte* data) const;
    };
    std::unique_ptr<std::byte, Free> data_;
    size_t bytes_ = 0;
};

}  // namespace fastattn
