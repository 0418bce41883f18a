#include "kernels/kernel_list.h"
#include "kernels/math.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// Columns [i, i + count) of the pooled row. Rows are taken in order.
template <bool kMax>
FA_INLINE Vec pool_columns(const PoolF32Args& args, int i, int count) {
    const auto row = [&](int r) {
        const float* x = args.x + r * args.x_stride + i;
        return count == kLanes ? load(x) : load_partial(x, count);
    };
    if (args.rows == 0) return zero();
    Vec result = row(0);
    for (int r = 1; r < args.rows; ++r) {
        if constexpr (kMax)
            result = select(is_nan(result), result, max(result, row(r)));  // NaN stays NaN
        else
            result = add(result, row(r));
    }
    return result;
}

}  // namespace

void pool_f32(const PoolF32Args& args) {
    const float rows = args.rows > 0 ? static_cast<float>(args.rows) : 1.0f;
    const Vec divisor = broadcast(args.kind == PoolKind::kMean ? rows : __builtin_sqrtf(rows));
    for (int i = 0; i < args.n; i += kLanes) {
        const int count = args.n - i < kLanes ? args.n - i : kLanes;
        const Vec pooled = args.kind == PoolKind::kMax ? pool_columns<true>(args, i, count)
                                                       : div(pool_columns<false>(args, i, count), divisor);
        store_partial(args.out + i, pooled, count);
    }
}

void l2_normalize_f32(const RowsF32Args& args) {
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        float* out = args.out + r * args.out_stride;
        Vec squares = zero();
        int i = 0;
        for (; i + kLanes <= args.n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
        if (const int tail = args.n - i; tail > 0) {
            const Vec v = load_partial(x + i, tail);
            squares = fma(v, v, squares);
        }
        const float norm = __builtin_sqrtf(reduce_add(squares));
        const Vec divisor = broadcast(args.eps > norm ? args.eps : norm);  // a NaN norm stays NaN
        for (i = 0; i + kLanes <= args.n; i += kLanes) store(out + i, div(load(x + i), divisor));
        if (const int tail = args.n - i; tail > 0)
            store_partial(out + i, div(load_partial(x + i, tail), divisor), tail);
    }
}

void argmax_f32(const ArgmaxF32Args& args) {
    Vec highest = broadcast(-kInf), nan_seen = zero();
    int i = 0;
    const auto take = [&](Vec v) {
        nan_seen = select(is_nan(v), broadcast(1.0f), nan_seen);
        highest = max(highest, v);
    };
    for (; i + kLanes <= args.n; i += kLanes) take(load(args.x + i));
    if (const int tail = args.n - i; tail > 0)
        take(select(first_lanes(tail), load_partial(args.x + i, tail), broadcast(-kInf)));
    *args.index = -1;
    *args.value = __builtin_nanf("");
    if (args.n == 0 || reduce_max(nan_seen) != 0.0f) return;
    const float top = reduce_max(highest);
    i = 0;
    while (i + kLanes <= args.n && !any(equal(load(args.x + i), broadcast(top)))) i += kLanes;
    while (args.x[i] != top) ++i;
    *args.index = i;
    *args.value = args.x[i];
}

int32_t find_f32(const FindF32Args& args) {
    const Vec threshold = broadcast(args.threshold);
    const auto found = [&](int at) -> int { return any(not_less(load(args.x + at), threshold)); };
    int i = 0;
    while (i + 4 * kLanes <= args.n && !(found(i) | found(i + kLanes) | found(i + 2 * kLanes) | found(i + 3 * kLanes)))
        i += 4 * kLanes;
    while (i + kLanes <= args.n && !found(i)) i += kLanes;
    while (i < args.n && args.x[i] < args.threshold) ++i;
    return i;
}

}  // namespace fastattn::FASTATTN_TARGET
