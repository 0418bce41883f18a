#pragma once

namespace fastattn {

// What the CPU has and the operating system lets programs use. Read with CPUID and not with __builtin_cpu_supports:
// that reads a variable of the compiler's runtime library, and in zig's library nothing ever fills it in.
struct X86Features {
    bool intel = false;
    bool avx2 = false;    // with FMA and F16C
    bool avx512 = false;  // F, BW, VL and DQ
    bool avx512_vnni = false;
    bool avx512_bf16 = false;
    bool tiles = false;  // AMX: TILE, INT8 and BF16; a process must still ask for the registers
};

X86Features x86_features();

}  // namespace fastattn
