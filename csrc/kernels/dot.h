// The arithmetic of each format, one struct per format: how a word of weights is multiplied and accumulated.
#pragma once
#include <cstddef>
#include <type_traits>

#include "kernels/kernels.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

#define FA_METHOD __attribute__((always_inline)) static inline

struct DotFloat32 {
    static constexpr bool kTwoChains = false;
    using Sum = Vec;
    FA_METHOD Sum zero_sum() { return zero(); }
    FA_METHOD Sum load_sum(const float* p) { return load(p); }
    FA_METHOD void store_sum(float* p, Sum a) { store(p, a); }
    FA_METHOD Sum add_sum(Sum a, Sum b) { return add(a, b); }
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return fma(as_floats(a), as_floats(b), sum); }
};

// Multiply one bfloat16 of each word: the first (DotEven) or the second (DotOdd).
struct DotEven : DotFloat32 {
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return fma_even_bf16(a, b, sum); }
};
struct DotOdd : DotFloat32 {
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return fma_odd_bf16(a, b, sum); }
};

// The order of Intel's AMX tiles (docs/design/0014-bfloat16-sums.md). Sixteen words have two chains of fused
// multiply-adds that start at 0, one over the first numbers of the words and one over the second. Their sum is added to
// the total. Denormals are zeros (FlushDenormals).
struct DotTwoChains : DotFloat32 {
    static constexpr bool kTwoChains = true;
    using Even = DotEven;
    using Odd = DotOdd;
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return Odd::step(Even::step(sum, a, b), a, b); }
};
inline constexpr int kChainWords = 16;

// The sum of two chains over `words` words. Tiles always process kChainWords words and pad the last
// ones with zeros, which turns a chain of -0 into +0.
FA_INLINE Vec end_chains(Vec even, Vec odd, int words) {
    if (words < kChainWords) {
        even = add(even, zero());
        odd = add(odd, zero());
    }
    return add(even, odd);
}

#if FASTATTN_HAS_DOT_BF16
// The order of AVX-512's dot product of bfloat16: one chain over words.
struct DotBfloat16 : DotFloat32 {
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return dot_bf16(sum, a, b); }
};
#else
using DotBfloat16 = DotTwoChains;
#endif

struct DotInt8 {
    static constexpr bool kTwoChains = false;
    using Sum = Words;
    FA_METHOD Sum zero_sum() { return zero_words(); }
    FA_METHOD Sum load_sum(const float* p) { return load_words(p); }
    FA_METHOD void store_sum(float* p, Sum a) { store_words(p, a); }
    FA_METHOD Sum add_sum(Sum a, Sum b) { return add_int(a, b); }
    FA_METHOD Sum step(Sum sum, Words a, Words b) { return dot_int8(sum, a, b); }
};

#undef FA_METHOD

// sum[r] += sum over w of a[r, w] * b[w] for pairs of words, with strides as in PairSums. Calls before_word() as often
// as it adds words. Returns the number of words added: 0 for one row, or without instructions for pairs.
template <class Dot, int kRows, int kVecs, class BeforeWord>
FA_INLINE int add_pairs([[maybe_unused]] const int32_t* a, [[maybe_unused]] int64_t a_stride,
                        [[maybe_unused]] const std::byte* b, [[maybe_unused]] int64_t b_stride,
                        [[maybe_unused]] int words, [[maybe_unused]] const BeforeWord& before_word,
                        [[maybe_unused]] typename Dot::Sum (&sum)[kRows][kVecs]) {
#if FASTATTN_HAS_INT8_PAIRS
    if constexpr (std::is_base_of_v<DotInt8, Dot> && kRows > 1 && kVecs == 1) {
        static_assert(kInt8Offset == 0);
        PairSums<kRows> pairs = PairSums<kRows>::zero();
        int w = 0;
        for (; w + 2 <= words; w += 2) {
            before_word();
            before_word();
            pairs.add_products(a + w, a_stride, b + w * b_stride, b_stride);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r][0] = add_int(sum[r][0], pairs.row(r));
        return w;
    }
#endif
    return 0;
}

}  // namespace fastattn::FASTATTN_TARGET
