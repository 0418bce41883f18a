// Treats denormal inputs and results of float operations as zero while it exists, as AMX tiles always do.
//
// x86 decides after rounding whether a result is denormal, and Arm decides before it. So a result from 2^-126 (1 -
// 2^-25) to 2^-126 is 2^-126 on x86 and 0 on Arm.
#pragma once
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

class FlushDenormals {
public:
    __attribute__((always_inline)) FlushDenormals() : before_(get()) { set(before_ | kFlush); }
    __attribute__((always_inline)) ~FlushDenormals() { set(before_); }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

private:
    // The compiler does not know that float operations depend on the mode. It does not move any across these
    // statements, because the kernels take their inputs from memory and write their results to memory.
#if defined(__x86_64__)
    using Word = uint32_t;
    static constexpr Word kFlush = 0x8040;  // MXCSR: flush to zero, denormals are zeros
    FA_INLINE Word get() { return __builtin_ia32_stmxcsr(); }
    FA_INLINE void set(Word word) {
        asm volatile("" : : : "memory");
        __builtin_ia32_ldmxcsr(word);
        asm volatile("" : : : "memory");
    }
#elif defined(__aarch64__)
    using Word = uint64_t;
    static constexpr Word kFlush = 1u << 24;  // FPCR.FZ
    FA_INLINE Word get() {
        Word word;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    FA_INLINE void set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
    using Word = int;
    static constexpr Word kFlush = 0;
    FA_INLINE Word get() { return 0; }
    FA_INLINE void set(Word) {}
#endif
    Word before_;
};

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
