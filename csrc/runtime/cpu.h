// What this CPU can do, which targets were built, and the kernel table in use.
#pragma once
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace fastattn {

std::vector<std::string> built_targets();      // best last
std::vector<std::string> available_targets();  // built targets that this CPU can run, best last

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
