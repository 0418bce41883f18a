#include "runtime/arm_features.h"

#if defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#endif

namespace fastattn {

#if defined(__linux__)

ArmFeatures arm_features() {
    // Bits of Linux's asm/hwcap.h. Old headers do not have them.
    constexpr unsigned long kDotprod = 1ul << 20, kI8mm = 1ul << 13, kBf16 = 1ul << 14;
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    ArmFeatures found;
    found.dotprod = (first & kDotprod) != 0;
    found.i8mm_and_bf16 = found.dotprod && (second & kI8mm) != 0 && (second & kBf16) != 0;
    return found;
}

#elif defined(__APPLE__)

namespace {

bool has(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

ArmFeatures arm_features() {
    ArmFeatures found;
    found.dotprod = has("hw.optional.arm.FEAT_DotProd");
    found.i8mm_and_bf16 = found.dotprod && has("hw.optional.arm.FEAT_I8MM") && has("hw.optional.arm.FEAT_BF16");
    return found;
}

#else

ArmFeatures arm_features() {
    return {};
}

#endif

}  // namespace fastattn
#endif
