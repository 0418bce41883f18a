// Denormals and rounding as IEEE 754 has them by default, whatever the calling thread was set to: another library may
// have switched on flush-to-zero there, and the bits of a row would then depend on which thread computed it.
#pragma once
#include <cstdint>

namespace fastattn {

class DefaultFloatMode {
public:
    DefaultFloatMode() : callers_(get()) { set(kDefault); }
    ~DefaultFloatMode() { set(callers_); }
    DefaultFloatMode(const DefaultFloatMode&) = delete;
    DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

private:
#if defined(__x86_64__)
    using Word = uint32_t;
    static constexpr Word kDefault = 0x1f80;  // MXCSR: all exceptions masked, to nearest, denormals kept
    static Word get() { return __builtin_ia32_stmxcsr(); }
    static void set(Word word) { __builtin_ia32_ldmxcsr(word); }
#elif defined(__aarch64__)
    using Word = uint64_t;
    static constexpr Word kDefault = 0;  // FPCR
    static Word get() {
        Word word;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
    using Word = int;
    static constexpr Word kDefault = 0;
    static Word get() { return 0; }
    static void set(Word) {}
#endif
    Word callers_;
};

}  // namespace fastattn
