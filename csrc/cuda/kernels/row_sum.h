// The sum over a row with sixteen threads, each of which has four of the row's 64 sums. Element i is added to sum i mod
// 64. Of the last n mod 64 elements, whole vectors are added to sums 0 to 15, and the rest to sums 16 to 31. The sums
// are added by the tree of csrc/kernels/row_sum.h, so the bits are the CPU's.
#pragma once
#include "cuda/kernels/device_math.h"

namespace fastattn::cuda {

inline constexpr int kNormThreads = 128;
inline constexpr int kRowThreads = 16;
inline constexpr int kRowsOfBlock = kNormThreads / kRowThreads;
inline constexpr int kSums = 64;  // four vectors of sixteen lanes
inline constexpr int kLanes = 16;

template <bool kFour>
FA_DEVICE Four columns(const float* p, int i) {
    if constexpr (kFour) return load_four(p + i);
    return {{p[i], p[i + 1], p[i + 2], p[i + 3]}};
}

template <bool kSquares>
FA_DEVICE float add_term(float sum, float x, float center) {
    const float d = x - center;
    return kSquares ? math::fma(d, d, sum) : sum + x;
}

template <bool kSquares>
FA_DEVICE void accumulate(float (&sum)[4], const Four& v, float center) {
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[c] = add_term<kSquares>(sum[c], v.x[c], center);
}

// Sum of x [n], or of (x - center)^2. `t` is the thread's place in its row. All threads of the row get the result.
template <bool kSquares, bool kFour>
FA_DEVICE float sum_of_row(const float* x, int n, float center, int t) {
    float sum[4] = {};
    int i = 0;
#pragma unroll 4
    for (; i + kSums <= n; i += kSums) accumulate<kSquares>(sum, columns<kFour>(x, i + 4 * t), center);
    for (; i + kLanes <= n; i += kLanes)  // the remaining whole vectors go to the first vector of sums
        if (t < 4) accumulate<kSquares>(sum, columns<kFour>(x, i + 4 * t), center);
    if (i < n && t / 4 == 1) {  // a partial vector goes to the second
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int at = i + 4 * (t - 4) + c;
            if (at < n) sum[c] = add_term<kSquares>(sum[c], x[at], center);
        }
    }
#pragma unroll
    for (int mask : {4, 8, 2, 1})
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += shuffle_xor(sum[c], mask);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

}  // namespace fastattn::cuda
