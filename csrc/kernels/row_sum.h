// The sum over a row in the order of docs/numerics.md: four vectors of sixteen lanes, then a tree.
#pragma once
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

// Starts from zeros; accumulate(sums, elements) adds the terms of sixteen elements. Four accumulators make the
// additions independent.
template <class Accumulate>
FA_INLINE float row_sum(const float* x, int n, const Accumulate& accumulate) {
    Vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    int i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
        s0 = accumulate(s0, load(x + i));
        s1 = accumulate(s1, load(x + i + kLanes));
        s2 = accumulate(s2, load(x + i + 2 * kLanes));
        s3 = accumulate(s3, load(x + i + 3 * kLanes));
    }
    for (; i + kLanes <= n; i += kLanes) s0 = accumulate(s0, load(x + i));
    if (i < n) {
        const Vec s = accumulate(s1, load_partial(x + i, n - i));
        s1 = select(first_lanes(n - i), s, s1);
    }
    return reduce_add(add(add(s0, s1), add(s2, s3)));
}

}  // namespace fastattn::FASTATTN_TARGET
