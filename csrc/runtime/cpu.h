// What this CPU can do, which targets were built, and the kernel table in use.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace fastattn {

bool on_intel();

// The built targets, best last. `intel`: in the order for Intel CPUs.
std::vector<std::string> built_targets(bool intel = on_intel());

// The built targets that can run here, best last.
std::vector<std::string> available_targets();

// The targets that this CPU could run but the operating system refuses, and its reasons.
std::map<std::string, std::string> refused_targets();

// Why Linux refused AMX's tile registers, from the errno of the request.
std::string tiles_refused(int error);

// The order of a target's bfloat16 sums: "portable", or the target's own name (docs/design/0014-bfloat16-sums.md).
std::string bfloat16_sums(const std::string& target);

// The table of one target. Throws Error(kConfig) if it was not built or cannot run here.
const KernelTable& kernels_of(const std::string& target);

// The table in use: FASTATTN_FORCE_TARGET if set (an error if this CPU cannot run it), else the best available target.
const KernelTable& active_kernels();

// The number of CPUs that the quotas of this process's cgroup and its ancestors allow, for cgroup v1 and v2. Infinity
// without a quota. `root` is a prefix of /proc and /sys, for tests.
double cpu_quota(const std::string& root = "");

// Default number of threads: the CPUs in the affinity mask, at most the cgroup's CPU quota, at least 1.
int default_threads();

}  // namespace fastattn
