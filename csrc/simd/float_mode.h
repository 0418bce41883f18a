// Modes of float arithmetic of a thread, for a scope. All targets share this header, so it is in an
// anonymous namespace: the linker must not choose one target's copy for all.
#pragma once
#include <cstdint>

namespace fastattn {
namespace {

// Saves and restores the word that controls the mode.
class FloatMode {
public:
    FloatMode(const FloatMode&) = delete;
    FloatMode& operator=(const FloatMode&) = delete;

protected:
    // The compiler does not know that float operations depend on the mode. It does not move any across these
    // statements, because the kernels take their inputs from memory and write their results to memory.
#if defined(__x86_64__)
    using Word = uint32_t;
    static constexpr Word kDefault = 0x1f80;  // MXCSR: all exceptions masked, round to nearest, no flush to zero
    static constexpr Word kFlush = 0x8040;    // flush to zero, denormals are zeros
    static Word get() { return __builtin_ia32_stmxcsr(); }
    static void set(Word word) {
        asm volatile("" : : : "memory");
        __builtin_ia32_ldmxcsr(word);
        asm volatile("" : : : "memory");
    }
#elif defined(__aarch64__)
    using Word = uint64_t;
    static constexpr Word kDefault = 0;       // FPCR
    static constexpr Word kFlush = 1u << 24;  // FPCR.FZ
    static Word get() {
        Word word;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
    using Word = int;
    static constexpr Word kDefault = 0, kFlush = 0;
    static Word get() { return 0; }
    static void set(Word) {}
#endif
    explicit FloatMode(Word word) : before_(get()) { set(word); }
    ~FloatMode() { set(before_); }

private:
    Word before_;
};

// The IEEE 754 defaults for denormals and rounding, whatever the mode of the calling thread. Another library may have
// enabled flush-to-zero there. The bits of a row would then depend on the thread that computed it.
class DefaultFloatMode : FloatMode {
public:
    DefaultFloatMode() : FloatMode(kDefault) {}
};

// Treats denormal inputs and results of float operations as zero, as AMX tiles always do.
//
// x86 decides after rounding whether a result is denormal, and Arm decides before it. So an exact result of at least
// 2^-126 (1 - 2^-25) and below 2^-126 becomes 2^-126 on x86 and 0 on Arm.
class FlushDenormals : FloatMode {
public:
    FlushDenormals() : FloatMode(get() | kFlush) {}
};

}  // namespace
}  // namespace fastattn
