// Memory for weights, pages and workspaces: 64-byte aligned, huge pages if large, zeroed, freed at the end of scope.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace fastattn {

class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t bytes);  // throws Error(kOutOfMemory) with the requested size
    ~Buffer();
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    std::byte* data() const { return data_; }
    float* floats() const { return reinterpret_cast<float*>(data_); }
    size_t bytes() const { return bytes_; }

private:
    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        std::swap(mapped_, other.mapped_);
    }
    std::byte* data_ = nullptr;
    size_t bytes_ = 0;
    size_t mapped_ = 0;  // bytes mapped; 0 for a small buffer from the heap
};

}  // namespace fastattn
