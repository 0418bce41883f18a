// Sets the IEEE 754 defaults for denormals and rounding, whatever the mode of the calling thread. Another library may
// have enabled flush-to-zero there. The bits of a row would then depend on the thread that computed it.
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
    static constexpr Word kDefault = 0x1f80;  // MXCSR: all exceptions masked, round to nearest, no flush to zero
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
