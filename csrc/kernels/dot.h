// The arithmetic of each format, one struct per format: how a word of weights is multiplied and accumulated.
#pragma once
#include "kernels/kernels.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

#define FA_METHOD __attribute__((always_inline)) static inline

struct DotFloat32 {
    using Sum = Vec;
    FA_METHOD Sum zero_sum() { return zero(); }
    FA_METHOD Sum load_sum(const float* p) { return load(p); }
    FA_METHOD void store_sum(float* p, Sum a) { store(p, a); }
    FA_METHOD Sum add_sum(Sum a, Sum b) { return add(a, b); }
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return fma(as_floats(a), as_floats(b), sum); }
};

struct DotBfloat16 : DotFloat32 {
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return dot_bf16(sum, a, b); }
};

struct DotInt8 {
    using Sum = Words;
    FA_METHOD Sum zero_sum() { return zero_words(); }
    FA_METHOD Sum load_sum(const float* p) { return load_words(p); }
    FA_METHOD void store_sum(float* p, Sum a) { store_words(p, a); }
    FA_METHOD Sum add_sum(Sum a, Sum b) { return add_int(a, b); }
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return dot_int8(sum, a, b); }
};

#undef FA_METHOD

}  // namespace fastattn::FASTATTN_TARGET
