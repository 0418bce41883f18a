#include "runtime/cpu.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "core/error.h"

namespace fastattn {
namespace {

struct Target {
    const char* name;
    const KernelTable& (*table)();
    bool (*runs_here)();
};

bool always() {
    return true;
}
#if FASTATTN_HAS_AVX2
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#if FASTATTN_HAS_AVX512
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_vnni() {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512_bf16() {
    return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16");
}
#endif

const Target kTargets[] = {
    {"scalar", scalar::kernel_table, always},
#if FASTATTN_HAS_AVX2
    {"avx2", avx2::kernel_table, has_avx2},
#endif
#if FASTATTN_HAS_AVX512
    {"avx512", avx512::kernel_table, has_avx512},
    {"avx512_vnni", avx512_vnni::kernel_table, has_avx512_vnni},
    {"avx512_bf16", avx512_bf16::kernel_table, has_avx512_bf16},
#endif
#if FASTATTN_HAS_NEON
    {"neon", neon::kernel_table, always},
#endif
};

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

// The quota of the innermost cgroup that sets one, in CPUs; infinity without one. Version 2, then version 1.
double cgroup_cpus() {
    double cpus = INFINITY;
    std::ifstream self("/proc/self/cgroup");
    for (std::string line; std::getline(self, line);) {
        if (line.rfind("0::", 0) != 0) continue;
        for (std::string path = line.substr(3);; path = path.substr(0, path.rfind('/'))) {
            std::ifstream file("/sys/fs/cgroup" + path + "/cpu.max");
            std::string quota;
            double period = 0;
            if (file >> quota >> period && quota != "max" && period > 0)
                cpus = std::min(cpus, std::atof(quota.c_str()) / period);
            if (path.empty() || path == "/") break;
        }
    }
    double quota = -1, period = 0;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
    if (quota > 0 && period > 0) cpus = std::min(cpus, quota / period);
    return cpus;
}

}  // namespace

std::vector<std::string> built_targets() {
    std::vector<std::string> names;
    for (const auto& target : kTargets) names.emplace_back(target.name);
    return names;
}

std::vector<std::string> available_targets() {
    std::vector<std::string> names;
    for (const auto& target : kTargets)
        if (target.runs_here()) names.emplace_back(target.name);
    return names;
}

const KernelTable& kernels_of(const std::string& name) {
    for (const auto& target : kTargets) {
        if (name != target.name) continue;
        if (!target.runs_here())
            throw Error(ErrorKind::kConfig,
                        "SIMD target " + name + ": this CPU cannot run it; available: " + joined(available_targets()));
        return target.table();
    }
    throw Error(ErrorKind::kConfig, "SIMD target " + name + ": not built; built: " + joined(built_targets()));
}

const KernelTable& active_kernels() {
    // No static with an initialiser that runs: a fork in the middle of it would leave the child waiting for its end.
    static std::atomic<const KernelTable*> active{nullptr};
    const KernelTable* table = active.load(std::memory_order_acquire);
    if (table == nullptr) {
        const char* forced = std::getenv("FASTATTN_FORCE_TARGET");
        table = &kernels_of(forced != nullptr && *forced != 0 ? forced : available_targets().back());
        active.store(table, std::memory_order_release);  // two threads at once store the same
    }
    return *table;
}

int default_threads() {
    cpu_set_t set;
    int cpus = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
    const double quota = cgroup_cpus();
    if (quota < cpus) cpus = static_cast<int>(std::floor(quota));
    return std::max(cpus, 1);
}

}  // namespace fastattn
