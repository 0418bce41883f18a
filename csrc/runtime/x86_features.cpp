#include "runtime/x86_features.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <initializer_list>

namespace fastattn {
namespace {

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
};
Leaf cpuid(unsigned leaf, unsigned subleaf) {  // zeros if the CPU does not have this leaf
    Leaf r;
    return __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d) != 0 ? r : Leaf{};
}
bool has(unsigned word, std::initializer_list<int> bits) {
    for (const int bit : bits)
        if ((word >> bit & 1) == 0) return false;
    return true;
}
unsigned registers_saved_by_the_system() {  // XCR0; the caller has checked OSXSAVE
    unsigned low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

}  // namespace

X86Features x86_features() {
    X86Features found;
    const Leaf vendor = cpuid(0, 0), basic = cpuid(1, 0), more = cpuid(7, 0);
    found.intel = vendor.b == 0x756e6547 && vendor.d == 0x49656e69 && vendor.c == 0x6c65746e;  // GenuineIntel
    if (!has(basic.c, {27, 28})) return found;                                                 // OSXSAVE, AVX
    const unsigned saved = registers_saved_by_the_system();
    const bool ymm = has(saved, {1, 2}), zmm = ymm && has(saved, {5, 6, 7});
    found.avx2 = ymm && has(basic.c, {12, 29}) && has(more.b, {5});
    found.avx512 = zmm && found.avx2 && has(more.b, {16, 17, 30, 31});
    found.avx512_vnni = found.avx512 && has(more.c, {11});
    // Leaf 7 says in `a` how many subleaves it has.
    found.avx512_bf16 = found.avx512_vnni && more.a >= 1 && has(cpuid(7, 1).a, {5});
    found.tiles = found.avx512_bf16 && has(more.d, {22, 24, 25});
    return found;
}

}  // namespace fastattn
#endif
