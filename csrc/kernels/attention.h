// Softmax attention over KV blocks, one template for every format (docs/design/0006-kv-dtypes.md).
//
// Every query row goes through the blocks it sees in order, and no arithmetic of a row involves another row: which rows
// go together, how a prompt was chunked and how long the sequence is by now do not change its bits. Two things make
// that exact, not almost so:
// - A block of which a row sees nothing is not merged into that row.
// - A value beyond what a row sees is not multiplied by its probability 0 either: 0 * NaN is NaN, and a sum that
//   underflowed to -0 would turn into +0. (Sums of probabilities may take such zeros: no term is negative. Neither can
//   happen to the integers of int8.)
#pragma once
#include "kernels/kernel_list.h"
#include "kernels/kv_format.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kBlockVecs = kBlockLen / kLanes;
constexpr int kMaxRowWords = kMaxHeadDim / 2;  // of a query row that is not float32
constexpr float kLog2E = 0x1.715476p+0f;

// In float32 softmax is e^x; else 2^x, and log2(e) is a factor of the query.
template <Format kFormat>
FA_INLINE Vec softmax_exp(Vec x) {
    if constexpr (kFormat == Format::kFloat32)
        return exp(x);
    else
        return exp2_rough(x);
}

// Some query rows on their way through the blocks. Vectors of one lane a row are kept in memory, as rows read their
// own.
struct Group {
    int row, rows;
    const int32_t* q;  // words [rows, q_stride]
    int64_t q_stride;
    float* scores;     // [rows, kBlockLen], then probabilities: words in the first ones of each row
    float* sum;        // [rows, stride]  values weighted by e^(score - row_max)
    int64_t stride;    // head_dim rounded up to whole vectors
    float* q_scale;    // int8: of the row, times `scale` and log2(e)
    int32_t* q_start;  // int8: what the sum of a score starts with, for keys with the offset
    float* row_max;
    float* row_total;
    float* block_max;  // and what is subtracted from scores
    float* block_total;
    float* prob_inverse;  // int8: 1 / scale of the row's probabilities in this block
    float* old_factor;
    float* block_factor;
};

FA_INLINE Group group_in(const AttentionArgs& args) {
    auto* p = args.scratch + (-reinterpret_cast<uintptr_t>(args.scratch) % kLineBytes) / sizeof(float);
    const auto take = [&p](int64_t n) {
        float* taken = p;
        p += n;
        return taken;
    };
    Group g;
    g.stride = (args.head_dim + kLanes - 1) / kLanes * kLanes;
    g.scores = take(kAttentionRows * kBlockLen);
    g.q = reinterpret_cast<int32_t*>(take(kAttentionRows * kMaxRowWords));
    g.q_stride = kMaxRowWords;
    g.sum = take(kAttentionRows * g.stride);
    g.q_scale = take(kLanes);
    g.q_start = reinterpret_cast<int32_t*>(take(kLanes));
    g.row_max = take(kLanes);
    g.row_total = take(kLanes);
    g.block_max = take(kLanes);
    g.block_total = take(kLanes);
    g.prob_inverse = take(kLanes);
    g.old_factor = take(kLanes);
    g.block_factor = take(kLanes);
    return g;
}
static_assert(kAttentionRows == kLanes);
static_assert(kAttentionScratch >= kAttentionRows * (kBlockLen + kMaxRowWords + kMaxHeadDim) + 9 * kLanes + 16);

// Positions that query row `row` sees.
FA_INLINE int visible(const AttentionArgs& args, int row) {
    const int own = args.q_position + row + 1;
    return args.causal && own < args.kv_len ? own : args.kv_len;
}
FA_INLINE int visible_in_block(const AttentionArgs& args, int row, int block) {
    return clamp_to(visible(args, row) - block * kBlockLen, kBlockLen);
}

// The rows of the group in the words that the scores take.
template <Format kFormat>
FA_INLINE void read_queries(const AttentionArgs& args, Group& g) {
    const float* q = args.q + g.row * args.q_stride;
    auto* words = const_cast<int32_t*>(g.q);
    if constexpr (kFormat == Format::kFloat32) {
        g.q = reinterpret_cast<const int32_t*>(q);
        g.q_stride = args.q_stride;
    } else if constexpr (kFormat == Format::kBfloat16) {
        const Vec factor = broadcast(args.scale * kLog2E);
        for (int r = 0; r < g.rows; ++r)
            for (int i = 0; i < args.head_dim; i += kLanes)
                store_bf16(reinterpret_cast<uint16_t*>(words + r * kMaxRowWords) + i,
                           mul(load_lanes(q + r * args.q_stride + i, clamp_to(args.head_dim - i, kLanes)), factor));
    } else {
        const Vec scale = quantize_rows(q, args.q_stride, g.rows, args.head_dim, words, kMaxRowWords).scale;
        // Above 0, so that it leaves a score of -inf as it is; a NaN stays.
        store(g.q_scale, max(broadcast(0x1p-126f), mul(scale, broadcast(args.scale * kLog2E))));
        if constexpr (kInt8Offset != 0) {
            const Words ones = broadcast_word(0x01010101);
            Words sum[kLanes];
            for (int r = 0; r < g.rows; ++r) {
                sum[r] = zero_words();
                for (int i = 0; i < args.head_dim; i += 4 * kLanes)
                    sum[r] = dot_int8(sum[r], ones, load_words(words + r * kMaxRowWords + i / 4));
            }
            const Words total = reduce_rows(sum, g.rows, [](Words a, Words b) { return add_int(a, b); });
            store_words(g.q_start, mul_int(total, broadcast_word(-kInt8Offset)));
        }
    }
}

// The next block of a single row: it is read once, at the rate of memory. Null: none.
struct Ahead {
    const std::byte* at;
};

// sum[r, c] += sum over w of a[r, w] * b[w, c], for `words` words of kVecs vectors each, b_stride bytes apart.
template <class Dot, int kRows, int kVecs>
FA_INLINE void multiply(const int32_t* a, int64_t a_stride, const std::byte* b, int64_t b_stride, int words,
                        const std::byte* ahead, typename Dot::Sum (&sum)[kRows][kVecs]) {
    for (int w = 0; w < words; ++w) {
        if constexpr (kRows == 1)
            for (int c = 0; c < kVecs; ++c) __builtin_prefetch(ahead + w * b_stride + c * kLineBytes);
        Words y[kVecs];
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) y[c] = load_words(b + w * b_stride + c * kLineBytes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Words x = broadcast_word(a[r * a_stride + w]);
#pragma GCC unroll 8
            for (int c = 0; c < kVecs; ++c) sum[r][c] = Dot::step(sum[r][c], x, y[c]);
        }
    }
}

// The keys of a score are the operand that takes the offset of int8, as they are shared by all rows.
template <Format kFormat>
struct ScoreDot : Kv<kFormat>::Dot {
    using Dot = typename Kv<kFormat>::Dot;
    FA_INLINE typename Dot::Sum step(typename Dot::Sum sum, Words q, Words key) {
        return Dot::step(sum, kFormat == Format::kInt8 ? add_int8_offset(key) : key, q);
    }
};

// Scores of kRows query rows from `row` on with kVecs vectors of positions, from position `column` on. float32: times
// scale. int8: without the row's factor.
template <Format kFormat, int kRows, int kVecs>
FA_INLINE void score_tile(const Group& g, const HeadBlock<kFormat, const std::byte>& block, float scale, int row,
                          int column, Ahead ahead) {
    using Dot = typename Kv<kFormat>::Dot;
    const int32_t* q = g.q + row * g.q_stride;
    const std::byte* keys = block.keys + column * kWordBytes;
    typename Dot::Sum sum[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        typename Dot::Sum start = Dot::zero_sum();
        if constexpr (kFormat == Format::kInt8 && kInt8Offset != 0) start = broadcast_word(g.q_start[row + r]);
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) sum[r][c] = start;
    }
    multiply<ScoreDot<kFormat>, kRows, kVecs>(q, g.q_stride, keys, kKeyWordBytes, block.key_words, ahead.at, sum);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) {
            Vec s;
            if constexpr (kFormat == Format::kInt8)
                s = mul(to_float(sum[r][c]),
                        load(reinterpret_cast<const float*>(block.key_scales()) + column + c * kLanes));
            else
                s = sum[r][c];
            if constexpr (kFormat == Format::kFloat32) s = mul(s, broadcast(scale));
            store(g.scores + (row + r) * kBlockLen + column + c * kLanes, s);
        }
}

// Scores with the positions of the first `vecs` vectors of a block.
template <Format kFormat, int kRows>
FA_INLINE void score_rows(const Group& g, const HeadBlock<kFormat, const std::byte>& block, float scale, int row,
                          int vecs, Ahead ahead) {
    if constexpr (kRows == 1 || kTileVecs == kBlockVecs) {
        if (vecs == 4) return score_tile<kFormat, kRows, 4>(g, block, scale, row, 0, ahead);
        if (vecs == 3) return score_tile<kFormat, kRows, 3>(g, block, scale, row, 0, ahead);
        if (vecs == 2) return score_tile<kFormat, kRows, 2>(g, block, scale, row, 0, ahead);
        return score_tile<kFormat, kRows, 1>(g, block, scale, row, 0, ahead);
    } else {
        for (int c = 0; c < vecs; ++c) score_tile<kFormat, kRows, 1>(g, block, scale, row, c * kLanes, ahead);
    }
}

template <int kVecs, class F>
FA_INLINE auto in_pairs(const F& combine, const auto (&x)[kVecs]) {
    if constexpr (kVecs == 1) return x[0];
    if constexpr (kVecs == 2) return combine(x[0], x[1]);
    if constexpr (kVecs == 3) return combine(combine(x[0], x[1]), x[2]);
    if constexpr (kVecs == 4) return combine(combine(x[0], x[1]), combine(x[2], x[3]));
}

// The block's maximum of each row, in the exponent's units. Scores beyond what a row sees become -inf.
template <Format kFormat, int kVecs>
FA_INLINE void find_maxima(const AttentionArgs& args, const Group& g, int block) {
    Words highest[kLanes];
    const bool whole = args.mask == nullptr && visible_in_block(args, g.row, block) == kBlockLen;
    for (int r = 0; r < g.rows; ++r) {
        float* scores = g.scores + r * kBlockLen;
        Vec s[kVecs];
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) s[c] = load(scores + c * kLanes);
        if (!whole) {
            const int row = g.row + r, count = visible_in_block(args, row, block);
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c) {
                const int lanes = clamp_to(count - c * kLanes, kLanes);
                if constexpr (kFormat == Format::kFloat32)
                    if (args.mask)
                        s[c] = add(
                            s[c],
                            load_partial(args.mask + row * args.mask_stride + block * kBlockLen + c * kLanes, lanes));
                s[c] = select(first_lanes(lanes), s[c], broadcast(-kInf));
                store(scores + c * kLanes, s[c]);
            }
        }
        highest[r] = as_words(in_pairs<kVecs>([](Vec a, Vec b) { return max(a, b); }, s));
    }
    Vec maxima = max_rows(highest, g.rows);
    if constexpr (kFormat == Format::kInt8) maxima = mul(maxima, load(g.q_scale));
    store(g.block_max, maxima);
}

// With nothing but -inf the shift is 0, so that the probabilities are 0 and not NaN. (A NaN score may hide from the
// maximum, not from the sum.)
FA_INLINE Vec shift_of(Vec highest) {
    return select(equal(highest, broadcast(-kInf)), zero(), highest);
}

// Scores become e^(score - block_max), as words; and their sums.
template <Format kFormat, int kVecs>
FA_INLINE void exponentiate(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& kv,
                            int block) {
    constexpr bool kInteger = kFormat == Format::kInt8;
    alignas(64) float shift[kLanes];
    store(shift, shift_of(load(g.block_max)));
    const bool whole = visible_in_block(args, g.row, block) == kBlockLen;
    Vec value_scale[kVecs];
    Words total[kLanes], highest[kLanes];
    if constexpr (kInteger)
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c)
            value_scale[c] = load(reinterpret_cast<const float*>(kv.value_scales()) + c * kLanes);
    for (int r = 0; r < g.rows; ++r) {
        float* scores = g.scores + r * kBlockLen;
        Vec p[kVecs];
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) {
            const Vec s = load(scores + c * kLanes);
            p[c] = softmax_exp<kFormat>(kInteger ? fma(s, broadcast(g.q_scale[r]), broadcast(-shift[r]))
                                                 : sub(s, broadcast(shift[r])));
        }
        total[r] = as_words(in_pairs<kVecs>([](Vec a, Vec b) { return add(a, b); }, p));
        if constexpr (kInteger) {
            Words bits[kVecs];
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c) p[c] = mul(p[c], value_scale[c]);
            if (!whole) {  // what a row does not see may have any scale
                const int count = visible_in_block(args, g.row + r, block);
#pragma GCC unroll 4
                for (int c = 0; c < kVecs; ++c)
                    p[c] = select(first_lanes(clamp_to(count - c * kLanes, kLanes)), p[c], zero());
            }
#pragma GCC unroll 4
            for (int c = 0; c < kVecs; ++c) bits[c] = as_words(p[c]);
            highest[r] = in_pairs<kVecs>([](Words a, Words b) { return max_unsigned(a, b); }, bits);
        }
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) {
            if constexpr (kFormat == Format::kBfloat16)
                store_bf16(reinterpret_cast<uint16_t*>(scores) + c * kLanes, p[c]);
            else
                store(scores + c * kLanes, p[c]);
        }
    }
    store(g.block_total, add_rows(total, g.rows));
    if constexpr (kInteger) {
        const RowScales scales = row_scales(max_rows_or_nan(highest, g.rows));
        store(g.prob_inverse, scales.inverse);
        store(g.block_factor, scales.scale);
        for (int r = 0; r < g.rows; ++r) {
            float* scores = g.scores + r * kBlockLen;
            const Vec inverse = broadcast(g.prob_inverse[r]);
            Words q[4];
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c)
                q[c] = c < kVecs ? round_to_int(mul(load(scores + c * kLanes), inverse)) : zero_words();
            store_words(scores, pack_int8(q[0], q[1], q[2], q[3]));
        }
    }
}

// Merges the block into the maxima and totals of all rows, and leaves the two factors for the values. For a row that
// has only -inf in the block (total 0) this changes nothing.
template <Format kFormat>
FA_INLINE void merge_totals(const Group& g) {
    const Vec old_max = load(g.row_max), block_max = load(g.block_max);
    const Vec new_max = max(old_max, block_max);
    const Vec shift = shift_of(new_max);
    const Vec old_factor = softmax_exp<kFormat>(sub(old_max, shift));
    const Vec block_factor = softmax_exp<kFormat>(sub(block_max, shift));
    store(g.row_max, new_max);
    store(g.row_total, fma(load(g.block_total), block_factor, mul(load(g.row_total), old_factor)));
    store(g.old_factor, old_factor);
    store(g.block_factor, kFormat == Format::kInt8 ? mul(block_factor, load(g.block_factor)) : block_factor);
}

// What the rows of a tile see of a block.
template <int kRows>
struct Seen {
    int count[kRows];
    int all;   // words of values that every row sees wholly (int8: all words that any row sees part of)
    int last;  // words of which the last row sees anything
};

template <Format kFormat, int kRows>
FA_INLINE Seen<kRows> seen_by(const AttentionArgs& args, int row, int block) {
    constexpr int kPositions = kGroup<kFormat>;
    Seen<kRows> seen;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) seen.count[r] = visible_in_block(args, row + r, block);
    seen.last = (seen.count[kRows - 1] + kPositions - 1) / kPositions;
    seen.all = kFormat == Format::kInt8 ? seen.last : seen.count[0] / kPositions;
    return seen;
}

// Merges the block's values, weighted by the rows' probabilities, into their sums: kVecs vectors of elements from `d`
// on. `lanes` is the number of elements of the (only) vector where that is not a whole one.
template <Format kFormat, int kRows, int kVecs, bool kTail>
FA_INLINE void value_tile(const Group& g, const HeadBlock<kFormat, const std::byte>& block, const Seen<kRows>& seen,
                          int row, int d, int lanes, Ahead ahead) {
    using Dot = typename Kv<kFormat>::Dot;
    const auto* probs = reinterpret_cast<const int32_t*>(g.scores + row * kBlockLen);
    const std::byte* values = block.values + d * kWordBytes;
    typename Dot::Sum sum[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) sum[r][c] = Dot::zero_sum();
    const auto load_value = [&](int w, int c) {
        const std::byte* from = values + w * block.value_stride + c * kLineBytes;
        return kTail ? as_words(load_partial(reinterpret_cast<const float*>(from), lanes)) : load_words(from);
    };
    if constexpr (kTail)
        for (int w = 0; w < seen.all; ++w) {
            const Words value = load_value(w, 0);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
                sum[r][0] = Dot::step(sum[r][0], broadcast_word(probs[r * kBlockLen + w]), value);
        }
    else
        multiply<Dot, kRows, kVecs>(probs, kBlockLen, values, block.value_stride, seen.all,
                                    ahead.at + (values - block.keys), sum);
    if constexpr (kFormat != Format::kInt8)
        for (int w = seen.all; w < seen.last; ++w) {  // rows see more and more of these
            Words value[kVecs];
#pragma GCC unroll 8
            for (int c = 0; c < kVecs; ++c) value[c] = load_value(w, c);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                const int positions = seen.count[r] - w * kGroup<kFormat>;
                if (positions <= 0) continue;
                const Words p = broadcast_word(probs[r * kBlockLen + w]);
                const Words some = broadcast_word(positions < kGroup<kFormat> ? 0xffff : -1);
#pragma GCC unroll 8
                for (int c = 0; c < kVecs; ++c)
                    sum[r][c] =
                        Dot::step(sum[r][c], p, kFormat == Format::kBfloat16 ? and_words(value[c], some) : value[c]);
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        const Vec old_factor = broadcast(g.old_factor[row + r]), block_factor = broadcast(g.block_factor[row + r]);
        float* to = g.sum + (row + r) * g.stride + d;
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) {
            Vec block_sum;
            if constexpr (kFormat == Format::kInt8)
                block_sum = to_float(sum[r][c]);
            else
                block_sum = sum[r][c];
            store(to + c * kLanes, fma(block_sum, block_factor, mul(load(to + c * kLanes), old_factor)));
        }
    }
}

template <Format kFormat, int kRows>
FA_INLINE void value_rows(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& kv,
                          int row, int block, Ahead ahead) {
    constexpr int kWide = kRows == 1 ? kBlockVecs : kTileVecs;
    const Seen<kRows> seen = seen_by<kFormat, kRows>(args, g.row + row, block);
    int d = 0;
    for (; d + kWide * kLanes <= args.head_dim; d += kWide * kLanes)
        value_tile<kFormat, kRows, kWide, false>(g, kv, seen, row, d, kLanes, ahead);
    if constexpr (kWide > 2)
        if (d + 2 * kLanes <= args.head_dim) {
            value_tile<kFormat, kRows, 2, false>(g, kv, seen, row, d, kLanes, ahead);
            d += 2 * kLanes;
        }
    if constexpr (kWide > 1)
        if (d + kLanes <= args.head_dim) {
            value_tile<kFormat, kRows, 1, false>(g, kv, seen, row, d, kLanes, ahead);
            d += kLanes;
        }
    if (d < args.head_dim) value_tile<kFormat, kRows, 1, true>(g, kv, seen, row, d, args.head_dim - d, ahead);
}

// Calls run.template operator()<n>(row) for tiles of n rows.
template <class F>
FA_INLINE void for_tiles(int rows, const F& run) {
    int row = 0;
    for (; row + kTileRows <= rows; row += kTileRows) run.template operator()<kTileRows>(row);
    static_assert(kTileRows == 6);
    switch (rows - row) {
        case 1: return run.template operator()<1>(row);
        case 2: return run.template operator()<2>(row);
        case 3: return run.template operator()<3>(row);
        case 4: return run.template operator()<4>(row);
        case 5: return run.template operator()<5>(row);
        default: return;
    }
}

template <Format kFormat>
FA_INLINE HeadBlock<kFormat, const std::byte> block_at(const AttentionArgs& args, int block) {
    return HeadBlock<kFormat, const std::byte>::at(args.blocks[block] + args.offset, args.head_dim);
}

// Scores of the group with a block, its maxima and its probabilities, of which the rows' totals know.
template <Format kFormat>
void score_block(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& kv, int vecs,
                 Ahead ahead) {
    for_tiles(g.rows, [&]<int kRows>(int row) { score_rows<kFormat, kRows>(g, kv, args.scale, row, vecs, ahead); });
}

template <Format kFormat>
void find_maxima(const AttentionArgs& args, const Group& g, int block, int vecs) {
    switch (vecs) {
        case 1: return find_maxima<kFormat, 1>(args, g, block);
        case 2: return find_maxima<kFormat, 2>(args, g, block);
        case 3: return find_maxima<kFormat, 3>(args, g, block);
        default: return find_maxima<kFormat, 4>(args, g, block);
    }
}

template <Format kFormat>
void exponentiate(const AttentionArgs& args, const Group& g, const HeadBlock<kFormat, const std::byte>& kv, int block,
                  int vecs) {
    switch (vecs) {
        case 1: exponentiate<kFormat, 1>(args, g, kv, block); break;
        case 2: exponentiate<kFormat, 2>(args, g, kv, block); break;
        case 3: exponentiate<kFormat, 3>(args, g, kv, block); break;
        default: exponentiate<kFormat, 4>(args, g, kv, block);
    }
    merge_totals<kFormat>(g);
}

FA_INLINE void begin(Group& g) {
    store(g.row_max, broadcast(-kInf));
    store(g.row_total, zero());
}

template <Format kFormat>
void attend(const AttentionArgs& args, Group& g) {
    begin(g);
    read_queries<kFormat>(args, g);
    for (int64_t d = 0; d < g.rows * g.stride; d += kLanes) store(g.sum + d, zero());
    const int ahead_row = g.row + g.rows;
    prefetch_rows(args.q + ahead_row * args.q_stride, args.q_stride, clamp_to(args.q_len - ahead_row, kAttentionRows),
                  args.head_dim);
    // All rows of a group see something of the same blocks (see attention below).
    const int seen = visible(args, g.row + g.rows - 1), blocks = (seen + kBlockLen - 1) / kBlockLen;
    for (int block = 0; block < blocks; ++block) {
        const auto kv = block_at<kFormat>(args, block);
        const Ahead ahead{args.blocks[block + 1 < blocks ? block + 1 : block] + args.offset};
        const int vecs = (clamp_to(seen - block * kBlockLen, kBlockLen) + kLanes - 1) / kLanes;
        score_block<kFormat>(args, g, kv, vecs, ahead);
        find_maxima<kFormat>(args, g, block, vecs);
        exponentiate<kFormat>(args, g, kv, block, vecs);
        for_tiles(g.rows, [&]<int kRows>(int row) { value_rows<kFormat, kRows>(args, g, kv, row, block, ahead); });
    }
    const Vec one = broadcast(1.0f), total = load(g.row_total);
    const Vec divisor = select(equal(total, zero()), one, total);  // sees nothing: 0, not 0 / 0
    store(g.row_total, kFormat == Format::kFloat32 ? divisor : div(one, divisor));
    for (int r = 0; r < g.rows; ++r) {
        const Vec factor = broadcast(g.row_total[r]);
        float* out = args.out + (g.row + r) * args.out_stride;
        for (int d = 0; d < args.head_dim; d += kLanes) {
            const Vec sum = load(g.sum + r * g.stride + d);
            const Vec o = kFormat == Format::kFloat32 ? div(sum, factor) : mul(sum, factor);
            const int lanes = clamp_to(args.head_dim - d, kLanes);
            if (lanes == kLanes)
                store(out + d, o);
            else
                store_partial(out + d, o, lanes);
        }
    }
}

template <Format kFormat>
void attention(const AttentionArgs& args) {
    Group g = group_in(args);
    const Group fresh = g;
    for (int row = 0; row < args.q_len; row += g.rows) {
        g = fresh;
        g.row = row;
        // Causal groups end at multiples of their length, which divides that of a block: so their rows see the same
        // blocks, and something of each.
        const int most = args.causal ? kAttentionRows - (args.q_position + row) % kAttentionRows : kAttentionRows;
        g.rows = args.q_len - row < most ? args.q_len - row : most;
        attend<kFormat>(args, g);
    }
}

// One row: the scores into probs, block by block, with the maximum and total of `attention`; then one pass that turns
// them into probabilities.
template <Format kFormat>
void probs_row(const AttentionArgs& args, Group g) {
    float* probs = args.out + g.row * args.out_stride;
    begin(g);
    read_queries<kFormat>(args, g);
    const int seen = visible(args, g.row);
    for (int block = 0; block * kBlockLen < seen; ++block) {
        const auto kv = block_at<kFormat>(args, block);
        const int count = visible_in_block(args, g.row, block), vecs = (count + kLanes - 1) / kLanes;
        score_block<kFormat>(args, g, kv, vecs, {args.blocks[block] + args.offset});
        find_maxima<kFormat>(args, g, block, vecs);
        for (int i = 0; i < count; i += kLanes)
            store_partial(probs + block * kBlockLen + i, load(g.scores + i), clamp_to(count - i, kLanes));
        exponentiate<kFormat>(args, g, kv, block, vecs);
    }
    const Vec shift = shift_of(broadcast(g.row_max[0]));
    const float row_total = g.row_total[0];
    const Vec total = broadcast(row_total == 0.0f ? 1.0f : row_total);  // sees nothing: 0, not 0 / 0
    for (int i = 0; i < args.kv_len; i += kLanes) {
        const int lanes = clamp_to(args.kv_len - i, kLanes), lanes_seen = clamp_to(seen - i, kLanes);
        const Vec s = load_partial(probs + i, lanes_seen);
        const Vec x = kFormat == Format::kInt8 ? fma(s, broadcast(g.q_scale[0]), neg(shift)) : sub(s, shift);
        store_partial(probs + i, select(first_lanes(lanes_seen), div(softmax_exp<kFormat>(x), total), zero()), lanes);
    }
}

template <Format kFormat>
void attention_probs(const AttentionArgs& args) {
    Group g = group_in(args);
    g.rows = 1;
    for (g.row = 0; g.row < args.q_len; ++g.row) probs_row<kFormat>(args, g);
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
