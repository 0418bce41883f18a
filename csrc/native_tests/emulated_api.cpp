// cuda_api.h over host memory, for tests. Device memory is host memory that starts as noise. The thread that launches a
// kernel also runs it.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/cuda_api.h"
#include "native_tests/emulated_stream.h"

namespace fastattn::cuda {
namespace {

constexpr int64_t kMemoryBytes = int64_t{1} << 30;  // of the emulated GPU
constexpr int kNoise = 0xff;                        // NaN as floats, -1 as ids: no code may rely on it
int64_t allocated = 0;
thread_local int uses = 0;  // UseDevice objects of this thread

void need_device(const char* call) {
    if (uses == 0)
        throw Error(ErrorKind::kOs, std::string("cuda: ") + call + " failed: the thread has not set its device");
}

std::byte* noise(int64_t bytes) {
    auto* data = static_cast<std::byte*>(std::aligned_alloc(256, static_cast<size_t>((bytes + 255) / 256 * 256)));
    if (data == nullptr) throw std::bad_alloc();
    std::memset(data, kNoise, static_cast<size_t>(bytes));
    return data;
}

}  // namespace

Device open_device() {
    return {.name = "emulated",
            .major = kLeastMajor,
            .minor = 0,
            .memory_bytes = kMemoryBytes,
            .free_bytes = kMemoryBytes - allocated,
            .driver = 0,
            .runtime = 0};
}

UseDevice::UseDevice() {
    ++uses;
}

UseDevice::~UseDevice() {
    --uses;
}

bool may_load(const std::string& path) {
    return path.find("libcublasLt.so") == std::string::npos;
}

std::byte* OnDevice::allocate(int64_t bytes) {
    if (allocated + bytes > kMemoryBytes)
        throw Error(ErrorKind::kOutOfMemory,
                    "cuda: cudaMalloc of " + std::to_string(bytes) + " bytes failed: the emulated memory is full");
    std::byte* data = noise(bytes);
    allocated += bytes;
    return data;
}

void OnDevice::free(std::byte* data, int64_t bytes) {
    std::free(data);
    allocated -= bytes;
}

std::byte* Pinned::allocate(int64_t bytes) {
    return noise(bytes);
}

void Pinned::free(std::byte* data, int64_t) {
    std::free(data);
}

OwnStream::OwnStream() : stream_(new CUstream_st) {}

OwnStream::~OwnStream() {
    delete stream_;
}

bool OwnStream::wait(const std::function<bool()>& poll) const {
    return !poll();
}

using Launches = std::vector<std::function<void()>>;

Graph::Graph(Stream stream, const std::function<void()>& launches) {
    if (std::getenv("FASTATTN_EMULATED_CAPTURE_FAILS") != nullptr)
        throw Error(ErrorKind::kOs, "cuda: cudaStreamEndCapture failed: FASTATTN_EMULATED_CAPTURE_FAILS is set");
    auto noted = std::make_unique<Launches>();
    stream->captured = noted.get();
    try {
        launches();
    } catch (...) {
        stream->captured = nullptr;
        throw;
    }
    stream->captured = nullptr;
    graph_.reset(noted.release());
}

void Graph::Destroy::operator()(void* graph) const {
    delete static_cast<Launches*>(graph);
}

void Graph::launch(Stream) const {
    need_device("cudaGraphLaunch");
    for (const auto& work : *static_cast<const Launches*>(graph_.get())) work();
}

void copy_to_device(void* to, const void* from, int64_t bytes, Stream stream) {
    need_device("cudaMemcpyAsync");
    submit(stream, [=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
}

void copy_to_host(void* to, const void* from, int64_t bytes, Stream stream) {
    need_device("cudaMemcpyAsync");
    submit(stream, [=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
}

void copy_on_device(void* to, const void* from, int64_t bytes, Stream stream) {
    need_device("cudaMemcpyAsync");
    submit(stream, [=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
}

void copy_rows_to_host(void* to, const void* from, int64_t from_stride_bytes, int64_t width_bytes, int64_t rows,
                       Stream stream) {
    need_device("cudaMemcpy2DAsync");
    submit(stream, [=] {
        for (int64_t row = 0; row < rows; ++row)
            std::memcpy(static_cast<std::byte*>(to) + row * width_bytes,
                        static_cast<const std::byte*>(from) + row * from_stride_bytes,
                        static_cast<size_t>(width_bytes));
    });
}

void check_launch(const char*) {}

}  // namespace fastattn::cuda
