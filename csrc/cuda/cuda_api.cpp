#include "cuda/cuda_api.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "core/error.h"
#include "cuda/pause.h"

namespace fastattn::cuda {
namespace {

constexpr auto kPollEvery = std::chrono::milliseconds(50);
constexpr int kDevice = 0;

[[noreturn]] void fail(cudaError_t status, const std::string& call) {
    const ErrorKind kind = status == cudaErrorMemoryAllocation ? ErrorKind::kOutOfMemory : ErrorKind::kOs;
    throw Error(kind, "cuda: " + call + " failed: " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

void check(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // so that the next call does not see it
    fail(status, call);
}

// The process that first used the device. A forked child must not touch what it inherited.
pid_t& owner() {
    static pid_t pid = 0;
    return pid;
}

bool mine() {
    return owner() == getpid();
}

std::string version_of(int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

[[noreturn]] void no_device(const std::string& found, const std::string& remedy) {
    throw Error(ErrorKind::kConfig, "device: expected an NVIDIA GPU for \"cuda\", got " + found + "; " + remedy +
                                        ", or use device=\"cpu\"");
}

}  // namespace

Device open_device() {
    if (owner() != 0 && !mine())
        no_device("a process forked from one that uses the GPU",
                  "start it with multiprocessing's \"spawn\" and load the model there");
    Device device;
    (void)cudaRuntimeGetVersion(&device.runtime);
    if (cudaDriverGetVersion(&device.driver) != cudaSuccess || device.driver == 0) {
        (void)cudaGetLastError();
        no_device("no NVIDIA driver", "install one (nvidia-smi shows it), in a container with --gpus all");
    }
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    (void)cudaGetLastError();
    if (status == cudaErrorInsufficientDriver)
        no_device("a driver for CUDA " + version_of(device.driver),
                  "install one for CUDA " + version_of(device.runtime) + " or newer");
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
        no_device("none that is visible", "see nvidia-smi and CUDA_VISIBLE_DEVICES");
    check(status, "cudaGetDeviceCount");
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, kDevice), "cudaGetDeviceProperties");
    device.name = properties.name;
    device.major = properties.major, device.minor = properties.minor;
    if (device.major < kLeastMajor)
        no_device(
            device.name + " of compute capability " + std::to_string(device.major) + "." + std::to_string(device.minor),
            "use one of 8.0 or newer (Ampere)");
    const UseDevice current;
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    device.free_bytes = static_cast<int64_t>(free), device.memory_bytes = static_cast<int64_t>(total);
    owner() = getpid();
    return device;
}

UseDevice::UseDevice() {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ != kDevice) check(cudaSetDevice(kDevice), "cudaSetDevice");
}

UseDevice::~UseDevice() {
    if (previous_ != kDevice) (void)cudaSetDevice(previous_);
}

bool may_load(const std::string&) {
    return true;
}

std::byte* OnDevice::allocate(int64_t bytes) {
    const UseDevice current;
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(bytes));
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        fail(status, "cudaMalloc of " + std::to_string(bytes) + " bytes");
    }
    return static_cast<std::byte*>(data);
}

void OnDevice::free(std::byte* data, int64_t) {
    if (mine()) (void)cudaFree(data);
}

std::byte* Pinned::allocate(int64_t bytes) {
    const UseDevice current;
    void* data = nullptr;
    check(cudaMallocHost(&data, static_cast<size_t>(bytes)), "cudaMallocHost");
    return static_cast<std::byte*>(data);
}

void Pinned::free(std::byte* data, int64_t) {
    if (mine()) (void)cudaFreeHost(data);
}

OwnStream::OwnStream() {
    const UseDevice current;
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

OwnStream::~OwnStream() {
    if (stream_ != nullptr && mine()) (void)cudaStreamDestroy(stream_);
}

bool OwnStream::wait(const std::function<bool()>& poll) const {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    Clock::time_point polled = begin;
    bool stopped = false;
    for (;;) {
        const cudaError_t status = cudaStreamQuery(stream_);
        if (status == cudaSuccess) return !stopped;
        if (status != cudaErrorNotReady) check(status, "cudaStreamQuery");
        const Clock::time_point now = Clock::now();
        const Pause pause = pause_after(now - begin);
        if (pause == Pause::kYield) std::this_thread::yield();
        if (pause == Pause::kSleep) std::this_thread::sleep_for(kSleep);
        if (now - polled < kPollEvery) continue;
        polled = now;
        stopped = stopped || poll();
        if (!mine()) return false;  // poll forked; a child has no GPU
    }
}

Graph::Graph(Stream stream, const std::function<void()>& launches) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
        launches();
    } catch (...) {
        (void)cudaStreamEndCapture(stream, &graph);  // otherwise the stream would stay in capture mode
        if (graph != nullptr) (void)cudaGraphDestroy(graph);
        (void)cudaGetLastError();
        throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    (void)cudaGraphDestroy(graph);
    check(status, "cudaGraphInstantiate");
    graph_.reset(executable);
}

void Graph::Destroy::operator()(void* graph) const {
    if (mine()) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

void Graph::launch(Stream stream) const {
    check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_.get()), stream), "cudaGraphLaunch");
}

void copy_to_device(void* to, const void* from, int64_t bytes, Stream stream) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
}

void copy_to_host(void* to, const void* from, int64_t bytes, Stream stream) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
}

void copy_on_device(void* to, const void* from, int64_t bytes, Stream stream) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
}

void copy_rows_to_host(void* to, const void* from, int64_t from_stride_bytes, int64_t width_bytes, int64_t rows,
                       Stream stream) {
    if (rows == 0 || width_bytes == 0) return;
    check(
        cudaMemcpy2DAsync(to, static_cast<size_t>(width_bytes), from, static_cast<size_t>(from_stride_bytes),
                          static_cast<size_t>(width_bytes), static_cast<size_t>(rows), cudaMemcpyDeviceToHost, stream),
        "cudaMemcpy2DAsync");
}

void check_launch(const char* what) {
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) fail(status, std::string("a launch of ") + what);
}

}  // namespace fastattn::cuda
