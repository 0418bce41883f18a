#include "runtime/cpu.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <system_error>

#include "core/error.h"
#include "core/platform.h"
#include "runtime/arm_features.h"
#include "runtime/x86_features.h"

namespace fastattn {
namespace {

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

constexpr const char* kCannotRun = "this CPU cannot run it";

struct Target {
    const char* name;
    const KernelTable& (*table)();
    std::string (*obstacle)();  // why it cannot run here; empty if it can
    bool own_bfloat16_sums = false;
};

[[maybe_unused]] std::string unless(bool runs) {
    return runs ? "" : kCannotRun;
}
std::string no_obstacle() {
    return {};
}
#if FASTATTN_HAS_AMX
std::string obstacle_to_amx() {
    if (!x86_features().tiles) return kCannotRun;
    const int error = request_tile_registers();
    return error == 0 ? "" : tiles_refused(error);
}
#endif

const Target kTargets[] = {
    {"scalar", scalar::kernel_table, no_obstacle},
#if FASTATTN_HAS_AVX2
    {"avx2", avx2::kernel_table, [] { return unless(x86_features().avx2); }},
#endif
#if FASTATTN_HAS_AVX512
    {"avx512", avx512::kernel_table, [] { return unless(x86_features().avx512); }},
    {"avx512_vnni", avx512_vnni::kernel_table, [] { return unless(x86_features().avx512_vnni); }},
    {"avx512_bf16", avx512_bf16::kernel_table, [] { return unless(x86_features().avx512_bf16); },
     /*own_bfloat16_sums=*/true},
#endif
#if FASTATTN_HAS_AMX
    {"amx", amx::kernel_table, obstacle_to_amx},
#endif
#if FASTATTN_HAS_NEON
    {"neon", neon::kernel_table, no_obstacle},
#endif
#if FASTATTN_HAS_NEON_DOTPROD
    {"neon_dotprod", neon_dotprod::kernel_table, [] { return unless(arm_features().dotprod); }},
#endif
#if FASTATTN_HAS_NEON_I8MM
    {"neon_i8mm", neon_i8mm::kernel_table, [] { return unless(arm_features().i8mm_and_bf16); }},
#endif
};

// The targets, best last. vdpbf16ps has twice the rate of float32 multiply-adds on AMD's Zen 5, but half of it on
// Intel's CPUs. There, two chains of multiply-adds are faster.
std::vector<Target> in_order(bool intel) {
    std::vector<Target> targets(std::begin(kTargets), std::end(kTargets));
    const auto own = std::find_if(targets.begin(), targets.end(), [](const Target& t) { return t.own_bfloat16_sums; });
    if (intel && own != targets.end()) std::iter_swap(own, own - 1);
    return targets;
}

const Target& target_of(const std::string& name) {
    for (const auto& target : kTargets)
        if (name == target.name) return target;
    throw Error(ErrorKind::kConfig, "SIMD target " + name + ": not built; built: " + joined(built_targets()));
}

bool has_word(const std::string& list, const std::string& word) {  // `list` is comma-separated
    return ("," + list + ",").find("," + word + ",") != std::string::npos;
}

// The lowest limit(path) over a cgroup and its ancestors. The path in /proc may be the host's. A container sees only
// the end of it, as its root. Names that do not exist have no limit.
template <class F>
double least_quota(std::string path, const F& limit) {
    for (double cpus = INFINITY;; path.erase(path.rfind('/'))) {
        if (path == "/") path.clear();
        cpus = std::min(cpus, limit(path));
        if (path.find('/') == std::string::npos) return cpus;
    }
}

}  // namespace

bool on_intel() {
#if defined(__x86_64__)
    return x86_features().intel;
#else
    return false;
#endif
}

std::vector<std::string> built_targets(bool intel) {
    std::vector<std::string> names;
    for (const auto& target : in_order(intel)) names.emplace_back(target.name);
    return names;
}

std::vector<std::string> available_targets() {
    std::vector<std::string> names;
    for (const auto& target : in_order(on_intel()))
        if (target.obstacle().empty()) names.emplace_back(target.name);
    return names;
}

std::map<std::string, std::string> refused_targets() {
    std::map<std::string, std::string> reasons;
    for (const auto& target : kTargets)
        if (const std::string why = target.obstacle(); !why.empty() && why != kCannotRun) reasons[target.name] = why;
    return reasons;
}

std::string tiles_refused(int error) {
    const std::string why = "Linux refused the tile registers (" + std::generic_category().message(error) + ")";
    if (error == EINVAL) return why + "; they need Linux 5.16 or later";
    if (error == ENOSPC) return why + "; an alternate signal stack of this process is too small for them";
    return why;
}

std::string bfloat16_sums(const std::string& target) {
    return target_of(target).own_bfloat16_sums ? target : "portable";
}

const KernelTable& kernels_of(const std::string& name) {
    const Target& target = target_of(name);
    const std::string obstacle = target.obstacle();
    if (!obstacle.empty())
        throw Error(ErrorKind::kConfig,
                    "SIMD target " + name + ": " + obstacle + "; available: " + joined(available_targets()));
    return target.table();
}

const KernelTable& active_kernels() {
    // No static with a run-time initializer: a child forked during the initialization would wait for it forever.
    static std::atomic<const KernelTable*> active{nullptr};
    const KernelTable* table = active.load(std::memory_order_acquire);
    if (table == nullptr) {
        const char* forced = std::getenv("FASTATTN_FORCE_TARGET");
        table = &kernels_of(forced != nullptr && *forced != 0 ? forced : available_targets().back());
        active.store(table, std::memory_order_release);  // two threads at once store the same pointer
    }
    return *table;
}

double cpu_quota(const std::string& root) {
    const std::string mount = root + "/sys/fs/cgroup";
    const auto limit_v2 = [&](const std::string& path) {
        std::ifstream file(mount + path + "/cpu.max");
        double quota = 0, period = 0;  // "max 100000" if there is no limit
        return file >> quota >> period && quota > 0 && period > 0 ? quota / period : INFINITY;
    };
    const auto limit_v1 = [&](const std::string& path) {
        double quota = -1, period = 0;
        std::ifstream(mount + "/cpu" + path + "/cpu.cfs_quota_us") >> quota;
        std::ifstream(mount + "/cpu" + path + "/cpu.cfs_period_us") >> period;
        return quota > 0 && period > 0 ? quota / period : INFINITY;
    };
    double cpus = std::min(limit_v2(""), limit_v1(""));
    std::ifstream self(root + "/proc/self/cgroup");
    for (std::string line; std::getline(self, line);) {  // hierarchy:controllers:path
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos || line[second + 1] != '/') continue;
        const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
        if (controllers.empty()) cpus = std::min(cpus, least_quota(path, limit_v2));
        if (has_word(controllers, "cpu")) cpus = std::min(cpus, least_quota(path, limit_v1));
    }
    return cpus;
}

int default_threads() {
    const int cpus = allowed_cpus();
    const double quota = std::floor(cpu_quota());
    return std::max(quota < cpus ? static_cast<int>(quota) : cpus, 1);
}

}  // namespace fastattn
