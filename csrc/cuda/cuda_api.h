// What the executor needs of the CUDA runtime, without its headers: device memory, pinned memory, a stream, graphs.
// Every call is checked and throws Error that names it. cuda_api.cpp is the real one; native_tests/emulated_api.cpp
// puts the host's memory in its place.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "cuda/kernels/kernels.h"

namespace fastattn::cuda {

struct Device {
    std::string name;
    int32_t major = 0, minor = 0;     // compute capability
    int64_t memory_bytes = 0;         // of all the GPU's
    int64_t free_bytes = 0;           // of it, now
    int32_t driver = 0, runtime = 0;  // 12040: CUDA 12.4
};

inline constexpr int32_t kLeastMajor = 8;  // tensor cores for bfloat16

// The first visible GPU. Throws Error(kConfig) that says what to do: no driver, one that is too old, no GPU, a GPU
// below compute capability 8.0.
Device open_device();

// Device memory, given back at the end of scope. In a forked child it is left alone: the GPU belongs to the parent.
class DeviceBuffer {
public:
    DeviceBuffer() = default;
    explicit DeviceBuffer(int64_t bytes);  // throws Error(kOutOfMemory) that says how much was asked for
    ~DeviceBuffer();
    DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
        swap(other);
        return *this;
    }
    DeviceBuffer(const DeviceBuffer&) = delete;
    DeviceBuffer& operator=(const DeviceBuffer&) = delete;
    std::byte* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

private:
    void swap(DeviceBuffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    std::byte* data_ = nullptr;
    int64_t bytes_ = 0;
};

// Memory of the host that the device copies from and to without a detour.
class PinnedBuffer {
public:
    PinnedBuffer() = default;
    explicit PinnedBuffer(int64_t bytes);
    ~PinnedBuffer();
    PinnedBuffer(PinnedBuffer&& other) noexcept { swap(other); }
    PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
        swap(other);
        return *this;
    }
    PinnedBuffer(const PinnedBuffer&) = delete;
    PinnedBuffer& operator=(const PinnedBuffer&) = delete;
    std::byte* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

private:
    void swap(PinnedBuffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    std::byte* data_ = nullptr;
    int64_t bytes_ = 0;
};

// Work of one model, in order.
class OwnStream {
public:
    OwnStream();
    ~OwnStream();
    OwnStream(const OwnStream&) = delete;
    OwnStream& operator=(const OwnStream&) = delete;
    Stream get() const { return stream_; }
    // Waits for all of it. `poll` is asked now and then; after a true it still waits, since kernels cannot be stopped,
    // and gives false.
    bool wait(const std::function<bool()>& poll) const;

private:
    Stream stream_ = nullptr;
};

// The launches of one step, captured once and replayed with what their inputs then hold.
class Graph {
public:
    Graph() = default;
    Graph(Stream stream, const std::function<void()>& launches);  // captures; runs nothing
    ~Graph();
    Graph(Graph&& other) noexcept { swap(other); }
    Graph& operator=(Graph&& other) noexcept {
        swap(other);
        return *this;
    }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    void launch(Stream stream) const;

private:
    void swap(Graph& other) noexcept { std::swap(graph_, other.graph_); }
    void* graph_ = nullptr;
};

// In the order of the stream. Host memory that is not pinned makes a copy wait for it.
void copy_to_device(void* to, const void* from, int64_t bytes, Stream stream);
void copy_to_host(void* to, const void* from, int64_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, int64_t bytes, Stream stream);
// `rows` rows of width_bytes each, `from_stride_bytes` apart on the device, dense on the host.
void copy_rows_to_host(void* to, const void* from, int64_t from_stride_bytes, int64_t width_bytes, int64_t rows,
                       Stream stream);
void clear(void* to, int64_t bytes, Stream stream);

// Throws if a launch before it was refused; `what` names the op.
void check_launch(const char* what);

}  // namespace fastattn::cuda
