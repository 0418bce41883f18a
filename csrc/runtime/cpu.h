// What this CPU can do, which targets were built, and the kernel table in use.
#pragma once
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace fastattn {

std::vector<std::string> built_targets();      // best last
std::vector<std::string> available_targets();  // built ones that this CPU can run, best last

// The table of one target. Throws Error(kConfig) if it was not built or cannot run here.
const KernelTable& kernels_of(const std::string& target);

// The table in use: FASTATTN_FORCE_TARGET if set (an error if it cannot run), else the best available.
const KernelTable& active_kernels();

// CPUs that the quotas of this process's cgroup and those above it allow, infinity without one. Versions 1 and 2.
// `root` is what stands before /proc and /sys, for tests.
double cpu_quota(const std::string& root = "");

// Threads by default: CPUs in the affinity mask, at most the cgroup's CPU quota, at least 1.
int default_threads();

}  // namespace fastattn
