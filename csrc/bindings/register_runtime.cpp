#include <algorithm>
#include <chrono>

#include "bindings/bindings.h"
#include "core/buffer.h"
#include "runtime/cpu.h"
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

double seconds_of(ThreadPool& pool, const std::function<void(Team&)>& body) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(body);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<long>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

// Operations a second of the multiply-adds of a format, in units of 1e9.
double dot_rate(const KernelTable& kernels, Format format, ThreadPool& pool, double seconds) {
    constexpr int64_t kIterations = 25'000;
    const auto i = static_cast<size_t>(format);
    std::vector<double> rates;
    for (double spent = 0.0; spent < seconds || rates.size() < 3;) {
        const double time = seconds_of(pool, [&](Team&) { kernels.measure_dot[i](kIterations); });
        rates.push_back(static_cast<double>(pool.size()) * kernels.measure_dot_ops[i] * kIterations / time / 1e9);
        spent += time;
    }
    return median(rates);
}

// The machine's limits at this moment: rates of independent multiply-adds, and of reading fresh memory.
py::dict measure_limits(int threads, double seconds, int64_t read_bytes) {
    const KernelTable& kernels = active_kernels();
    double fma_gflops = 0.0, bf16_gflops = 0.0, int8_gops = 0.0, read_gbps = 0.0;
    without_gil([&](const std::function<bool()>&) {
        ThreadPool pool(threads);
        fma_gflops = dot_rate(kernels, Format::kFloat32, pool, seconds / 4);
        bf16_gflops = dot_rate(kernels, Format::kBfloat16, pool, seconds / 4);
        int8_gops = dot_rate(kernels, Format::kInt8, pool, seconds / 4);
        static Buffer memory;  // kept: faulting it in again would cost more than the measurement
        if (memory.bytes() < static_cast<size_t>(read_bytes)) {
            memory = Buffer(static_cast<size_t>(read_bytes));
            std::fill_n(memory.floats(), memory.bytes() / sizeof(float), 1.0f);
        }
        const int64_t part = read_bytes / 4 / threads;
        std::vector<double> rates;
        for (double spent = 0.0; spent < seconds / 4 || rates.size() < 3;) {
            const double time = seconds_of(
                pool, [&](Team& team) { kernels.measure_read(memory.floats() + team.index() * part, part); });
            rates.push_back(static_cast<double>(part) * threads * 4 / time / 1e9);
            spent += time;
        }
        read_gbps = median(rates);
    });
    py::dict result;
    result["fma_gflops"] = fma_gflops;
    result["bf16_gflops"] = bf16_gflops;
    result["int8_gops"] = int8_gops;
    result["read_gbps"] = read_gbps;
    return result;
}

}  // namespace

void register_runtime(py::module_& m) {
    m.attr("version") = FASTATTN_VERSION;
    m.attr("compiler") = compiler();
    m.def("built_targets", built_targets);
    m.def("available_targets", available_targets);
    m.def("active_target", [] { return active_kernels().target; });
    m.def("default_threads", default_threads);
    m.def("measure_limits", measure_limits, py::arg("threads"), py::arg("seconds") = 0.2,
          py::arg("read_bytes") = int64_t{1} << 29,
          "The machine's limits with `threads` threads at this moment: {fma_gflops, bf16_gflops, int8_gops, "
          "read_gbps}, medians.");
}

}  // namespace fastattn
