// The kernel tables that this build has and this machine can run, slowest first.
#pragma once
#include <vector>

#include "kernels/kernels.h"

namespace fastattn {

inline std::vector<const KernelTable*> runnable_kernel_tables() {
    std::vector<const KernelTable*> tables = {&scalar::kernel_table()};
#ifdef FASTATTN_HAS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        tables.push_back(&avx2::kernel_table());
#endif
#ifdef FASTATTN_HAS_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        tables.push_back(&avx512::kernel_table());
#endif
#ifdef FASTATTN_HAS_NEON
    tables.push_back(&neon::kernel_table());
#endif
    return tables;
}

}  // namespace fastattn
