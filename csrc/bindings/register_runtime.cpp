#include <algorithm>
#include <chrono>
#include <optional>

#include "bindings/bindings.h"
#include "bindings/objects.h"
#include "core/buffer.h"
#include "runtime/cpu.h"
#include "runtime/pace.h"
#include "runtime/thread_pool.h"

#include <pybind11/stl.h>

namespace fastattn {
namespace {

#define FA_STRING_OF(x) #x
#define FA_STRING(x) FA_STRING_OF(x)

const char* compiler() {
#if defined(__clang__)
    return "clang " FA_STRING(__clang_major__) "." FA_STRING(__clang_minor__);
#else
    return "gcc " FA_STRING(__GNUC__) "." FA_STRING(__GNUC_MINOR__);
#endif
}

double seconds_of(ThreadPool& pool, const std::function<void(Team&)>& body, const std::function<bool()>& poll) {
    const auto start = std::chrono::steady_clock::now();
    if (!pool.run(body, poll)) throw Error(ErrorKind::kCancelled, "the measurement was interrupted");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The mean rate of `work` units per region, over at least 3 regions and `seconds`, after one that is not counted. Not
// the median: what interrupts a thread now and then (a timer, the host) also slows the work that is measured.
double mean_rate(ThreadPool& pool, double work, double seconds, const std::function<void(Team&)>& body,
                 const std::function<bool()>& poll) {
    double spent = 0.0;
    int regions = 0;
    seconds_of(pool, body, poll);
    for (; spent < seconds || regions < 3; ++regions) spent += seconds_of(pool, body, poll);
    return regions * work / spent;
}

// Operations per second of the multiply-adds of a format.
double dot_rate(const KernelTable& kernels, Format format, ThreadPool& pool, double seconds,
                const std::function<bool()>& poll) {
    constexpr int64_t kChunksPerThread = 64, kIterations = 4'000;  // a few milliseconds, as long as a step
    const auto i = static_cast<size_t>(format);
    const int64_t chunks = kChunksPerThread * pool.size();
    return mean_rate(
        pool, static_cast<double>(chunks * kIterations * kernels.measure_dot_ops[i]), seconds,
        [&](Team& team) { team.for_chunks(chunks, [&](int64_t) { kernels.measure_dot[i](kIterations); }); }, poll);
}

// Bytes per second of reading a buffer. A small buffer is read many times per region, because starting the threads
// takes about ten microseconds. Every thread reads its own part again and again, so that it comes from that thread's
// cache.
double read_rate(const KernelTable& kernels, const Buffer& memory, ThreadPool& pool, double seconds,
                 const std::function<bool()>& poll) {
    constexpr int64_t kChunksPerThread = 8, kLeastBytes = int64_t{1} << 28;
    const int64_t chunks = kChunksPerThread * pool.size();
    const auto bytes = static_cast<int64_t>(memory.bytes());
    const int64_t part = bytes / static_cast<int64_t>(sizeof(float)) / chunks;  // floats per chunk
    const int64_t passes = part > 0 ? std::max<int64_t>(1, kLeastBytes / bytes) : 1;
    const auto fill = [&](int64_t i) { std::fill_n(memory.floats() + i * part, part, 1.0f); };
    const auto read = [&](int64_t i) { kernels.measure_read(memory.floats() + i * part, part); };
    seconds_of(pool, [&](Team& team) { team.for_chunks(chunks, fill); }, poll);
    const auto once = [&](Team& team) { team.for_chunks(chunks, read); };
    const auto again = [&](Team& team) {
        const float* own = memory.floats() + team.index() * kChunksPerThread * part;
        for (int64_t pass = 0; pass < passes; ++pass) kernels.measure_read(own, kChunksPerThread * part);
    };
    const auto work = static_cast<double>(passes * chunks * part * 4);
    return passes == 1 ? mean_rate(pool, work, seconds, once, poll) : mean_rate(pool, work, seconds, again, poll);
}

// The current limits of the machine: rates of independent multiply-adds, and of reading `read_bytes` of memory.
py::dict measure_limits(int threads, double seconds, int64_t read_bytes) {
    const KernelTable& kernels = active_kernels();
    if (read_bytes < 0) throw Error(ErrorKind::kInput, "read_bytes: expected at least 0");
    double fma_flops = 0.0, bf16_flops = 0.0, int8_ops = 0.0, read_bytes_rate = 0.0;
    without_gil([&](const std::function<bool()>& poll) {
        ThreadPool pool(threads);
        fma_flops = dot_rate(kernels, Format::kFloat32, pool, seconds / 4, poll);
        bf16_flops = dot_rate(kernels, Format::kBfloat16, pool, seconds / 4, poll);
        int8_ops = dot_rate(kernels, Format::kInt8, pool, seconds / 4, poll);
        const Buffer memory(static_cast<size_t>(read_bytes));
        read_bytes_rate = read_rate(kernels, memory, pool, seconds / 4, poll);
    });
    py::dict result;
    result["fma_gflops"] = fma_flops / 1e9;
    result["bf16_gflops"] = bf16_flops / 1e9;
    result["int8_gops"] = int8_ops / 1e9;
    result["read_gbps"] = read_bytes_rate / 1e9;
    return result;
}

// Seconds that each of `rounds` regions took, with `barriers` barriers and nothing else in it. Before each region the
// caller was busy elsewhere for `rest` seconds.
std::vector<double> measure_regions(int threads, int barriers, double rest, int rounds) {
    std::vector<double> seconds;
    without_gil([&](const std::function<bool()>& poll) {
        ThreadPool pool(threads);
        using Clock = std::chrono::steady_clock;
        const std::function<void(Team&)> body = [barriers](Team& team) {
            for (int i = 0; i < barriers; ++i) team.barrier();
        };
        for (int round = 0; round < rounds; ++round) {
            for (const auto begin = Clock::now(); std::chrono::duration<double>(Clock::now() - begin).count() < rest;) {
            }
            seconds.push_back(seconds_of(pool, body, poll));
        }
    });
    return seconds;
}

}  // namespace

void register_runtime(py::module_& m) {
    m.attr("version") = FASTATTN_VERSION;
    m.attr("compiler") = compiler();
    m.def(
        "built_targets", [](std::optional<bool> intel) { return built_targets(intel.value_or(on_intel())); },
        py::kw_only(), py::arg("intel") = py::none(),
        "The built targets, best last. intel: in the order for Intel CPUs or for others; None: for this CPU.");
    m.def("available_targets", available_targets);
    m.def("refused_targets", refused_targets, "Targets that the operating system refuses, and its reasons.");
    m.def("tiles_refused", tiles_refused, py::arg("error"), "Why Linux refused AMX's tile registers, by errno.");
    m.def("bfloat16_sums", bfloat16_sums, py::arg("target"),
          "The order of a target's bfloat16 sums: \"portable\" or its own name.");
    m.def("active_target", [] { return active_kernels().target; });
    m.def("default_threads", default_threads, "CPUs this process may use, by affinity and the cgroup's quota.");
    m.def("cpu_quota", cpu_quota, py::arg("root") = "", "CPUs that the cgroup allows; infinity without a quota.");
    py::classh<Pace> pace(m, "Pace", careful_new(),
                          "Decides whether a step runs on all threads or only on the caller's.");
    def_init(pace, +[] { return std::make_shared<Pace>(); });
    pace.def("alone", &Pace::alone, py::arg("rows"))
        .def("took", &Pace::took, py::arg("rows"), py::arg("work"), py::arg("seconds"), py::arg("alone"));
    m.def("measure_limits", measure_limits, py::arg("threads"), py::arg("seconds") = 0.2,
          py::arg("read_bytes") = int64_t{1} << 29,
          "The machine's current limits with `threads` threads: {fma_gflops, bf16_gflops, int8_gops, "
          "read_gbps}, means.");
    m.def("measure_regions", measure_regions, py::arg("threads"), py::arg("barriers") = 0, py::arg("rest") = 0.0,
          py::arg("rounds") = 1, "Seconds of `rounds` empty parallel regions, each after `rest` seconds without one.");
}

}  // namespace fastattn
