// The parts of the CUDA runtime that the executor needs, without its headers: device memory, pinned memory, a stream,
// graphs. Every call is checked and throws an Error that names it. cuda_api.cpp is the real one;
// native_tests/emulated_api.cpp uses host memory instead.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "cuda/kernels/kernels.h"

namespace fastattn::cuda {

struct Device {
    std::string name;
    int32_t major = 0, minor = 0;     // compute capability
    int64_t memory_bytes = 0;         // total of the GPU
    int64_t free_bytes = 0;           // currently free
    int32_t driver = 0, runtime = 0;  // 12040: CUDA 12.4
};

inline constexpr int32_t kLeastMajor = 8;  // tensor cores for bfloat16

// The first visible GPU. Throws Error(kConfig) with a remedy if there is no driver, the driver is too old, there is no
// GPU, or it is below compute capability 8.0.
Device open_device();

// Makes the first visible GPU the calling thread's device until the end of scope. Every thread has its own current
// device, which another library may have set.
class UseDevice {
public:
    UseDevice();
    ~UseDevice();
    UseDevice(const UseDevice&) = delete;
    UseDevice& operator=(const UseDevice&) = delete;

private:
    int previous_ = 0;
};

// Whether `path` may be loaded as cuBLASLt. The emulation has no memory that the real library could use.
bool may_load(const std::string& path);

// Memory on the device, or pinned on the host (Kind), freed at the end of scope. A forked child does not free it: the
// GPU belongs to the parent.
template <class Kind>
class MemoryOf {
public:
    MemoryOf() = default;
    explicit MemoryOf(int64_t bytes) : data_(bytes > 0 ? Kind::allocate(bytes) : nullptr, Free{bytes}) {}
    std::byte* data() const { return data_.get(); }
    int64_t bytes() const { return data_.get_deleter().bytes; }

private:
    struct Free {
        int64_t bytes;
        void operator()(std::byte* data) const { Kind::free(data, bytes); }
    };
    std::unique_ptr<std::byte, Free> data_;
};

struct OnDevice {
    static std::byte* allocate(int64_t bytes);  // throws Error(kOutOfMemory) with the requested size
    static void free(std::byte* data, int64_t bytes);
};
using DeviceBuffer = MemoryOf<OnDevice>;

// Pinned host memory, which the device copies from and to directly.
struct Pinned {
    static std::byte* allocate(int64_t bytes);
    static void free(std::byte* data, int64_t bytes);
};
using PinnedBuffer = MemoryOf<Pinned>;

// The work of one model, in order.
class OwnStream {
public:
    OwnStream();
    ~OwnStream();
    OwnStream(const OwnStream&) = delete;
    OwnStream& operator=(const OwnStream&) = delete;
    Stream get() const { return stream_; }
    // Waits for all of it. Calls `poll` about every 50 ms. After `poll` returned true, it still waits, because kernels
    // cannot be stopped, and returns false.
    bool wait(const std::function<bool()>& poll) const;

private:
    Stream stream_ = nullptr;
};

// The launches of one step, captured once and replayed with the current contents of their inputs.
class Graph {
public:
    Graph(Stream stream, const std::function<void()>& launches);  // captures; runs nothing
    void launch(Stream stream) const;

private:
    struct Destroy {
        void operator()(void* graph) const;
    };
    std::unique_ptr<void, Destroy> graph_;
};

// In stream order. A copy from or to host memory that is not pinned blocks until it is done.
void copy_to_device(void* to, const void* from, int64_t bytes, Stream stream);
void copy_to_host(void* to, const void* from, int64_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, int64_t bytes, Stream stream);
// `rows` rows of width_bytes each: from_stride_bytes apart on the device, dense on the host.
void copy_rows_to_host(void* to, const void* from, int64_t from_stride_bytes, int64_t width_bytes, int64_t rows,
                       Stream stream);

// Throws if an earlier launch was refused. `what` names the op.
void check_launch(const char* what);

}  // namespace fastattn::cuda
