#include "kernels/kernel_list.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// The pairs (i, i + half). The result may be x, so both elements of a pair are read before one is written.
FA_INLINE void rotate_halves(const float* x, const float* table, float* out, int half) {
    const auto first = [](Vec a, Vec b, Vec cosine, Vec sine) { return fma(a, cosine, neg(mul(b, sine))); };
    const auto second = [](Vec a, Vec b, Vec cosine, Vec sine) { return fma(b, cosine, mul(a, sine)); };
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const Vec a = load(x + i), b = load(x + half + i), c = load(table + i), s = load(table + half + i);
        store(out + i, first(a, b, c, s));
        store(out + half + i, second(a, b, c, s));
    }
    if (const int tail = half - i; tail > 0) {
        const Vec a = load_partial(x + i, tail), b = load_partial(x + half + i, tail);
        const Vec c = load_partial(table + i, tail), s = load_partial(table + half + i, tail);
        store_partial(out + i, first(a, b, c, s), tail);
        store_partial(out + half + i, second(a, b, c, s), tail);
    }
}

// The pairs (2 i, 2 i + 1).
FA_INLINE void rotate_neighbors(const float* x, const float* table, float* out, int n) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, rotate_pairs(load(x + i), load(table + i)));
    if (const int tail = n - i; tail > 0)
        store_partial(out + i, rotate_pairs(load_partial(x + i, tail), load_partial(table + i, tail)), tail);
}

FA_INLINE void copy(const float* x, float* out, int n) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i));
    if (const int tail = n - i; tail > 0) store_partial(out + i, load_partial(x + i, tail), tail);
}

}  // namespace

void rotary_f32(const RotaryF32Args& args) {
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        const float* table = args.table + int64_t{args.positions[r]} * args.dimensions;
        float* out = args.out + r * args.out_stride;
        for (int h = 0; h < args.n_head; ++h, x += args.head_dim, out += args.head_dim) {
            if (args.interleaved)
                rotate_neighbors(x, table, out, args.dimensions);
            else
                rotate_halves(x, table, out, args.dimensions / 2);
            if (out != x) copy(x + args.dimensions, out + args.dimensions, args.head_dim - args.dimensions);
        }
    }
}

}  // namespace fastattn::FASTATTN_TARGET
