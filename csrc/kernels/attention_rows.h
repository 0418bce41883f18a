// The query rows that visit the KV blocks together, their memory, and what they see. Names are those of the
// FlashAttention papers: S = Q K^T, P = e^(S - m), m and l the running maximum and sum of a row, O its accumulator.
#pragma once
#include "kernels/kernel_list.h"
#include "kernels/kv_format.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kBlockVecs = kBlockLen / kLanes;
constexpr int kMaxRowWords = kMaxHeadDim / 2;  // words per query row in formats other than float32
constexpr float kLog2E = 0x1.715476p+0f;
static_assert(kAttentionRows == kLanes);  // one lane per row

template <Format kFormat>
using ConstHeadBlock = HeadBlock<kFormat, const std::byte>;

// One value per row, in memory, because the rows of a tile read theirs one by one.
struct alignas(kLineBytes) PerRow {
    float of[kLanes];

    Vec all() const { return load(of); }
    void operator=(Vec x) { store(of, x); }
};

// The rows, and their queries in the words that the scores take.
struct QueryRows {
    int first, count;
    const int32_t* words;  // [count, stride]
    int64_t stride;
    PerRow scale;       // int8: S times this is the score, in units of log2(e)
    PerRow late_scale;  // int8: the part of the scale that the exponent includes; 1 if S already has it
    alignas(kLineBytes) int32_t start[kLanes];  // int8: initial sum of a score, which cancels the offset of the keys
    alignas(kLineBytes) int32_t room[kAttentionRows * kMaxRowWords];  // for words that differ from args.q
};

// One block of the rows. The sum of a row's P is that of the block alone, relative to the block's maximum.
struct BlockScores {
    alignas(kLineBytes) float s[kAttentionRows * kBlockLen];  // S, then P as words at the start of each row
    PerRow m, l;                                              // maximum of S, sum of P
    PerRow factor;  // e^(block's m - new m), the factor of P V in O; int8: times the scale of P
};

// What the rows have accumulated: the output is O / l.
struct RunningRows {
    PerRow m, l;
    PerRow factor;   // e^(m - new m), the factor of O in a merge
    int64_t stride;  // of O: head_dim rounded up to whole vectors
    alignas(kLineBytes) float o[kAttentionRows * kMaxHeadDim];

    void clear() {
        m = broadcast(-kInf);
        l = zero();
    }
};

constexpr int kSumElements = kBlockVecs * kLanes;  // of O, in a row of sums from tiles

// All of it, in the scratch memory of the calling thread.
struct Workspace {
    BlockScores block;
    QueryRows q;
    RunningRows running;
#if FASTATTN_HAS_TILES
    alignas(kLineBytes) float sums[kMaxHeadDim / kSumElements][kAttentionRows * kSumElements];  // P V of the block
#endif

    FA_INLINE Workspace& in(const AttentionArgs& args) {
        float* at = args.scratch + (-reinterpret_cast<uintptr_t>(args.scratch) % kLineBytes) / sizeof(float);
        auto& work = *reinterpret_cast<Workspace*>(at);
        work.running.stride = (args.head_dim + kLanes - 1) / kLanes * kLanes;
        return work;
    }
};
static_assert(kAttentionScratch * sizeof(float) >= sizeof(Workspace) + kLineBytes);

// Some positions, the last exclusive.
struct Range {
    int begin, end;

    bool operator==(const Range&) const = default;
    FA_INLINE Range of_block(Range positions, int block) {
        return {clamp_to(positions.begin - block * kBlockLen, kBlockLen),
                clamp_to(positions.end - block * kBlockLen, kBlockLen)};
    }
    // The lanes of x at positions of the range, and `rest` elsewhere. `position` is that of the first lane.
    Vec lanes_or(Vec x, Vec rest, int position) const {
        const Vec up_to_end = select(first_lanes(clamp_to(end - position, kLanes)), x, rest);
        if (begin <= position) return up_to_end;  // always, without a window
        return select(first_lanes(clamp_to(begin - position, kLanes)), rest, up_to_end);
    }
};

// The position of query row `row`. A query after the last position counts as one at the last position.
FA_INLINE int position_of(const AttentionArgs& args, int row) {
    const int own = args.q_position + (args.rows_per_head > 0 ? 0 : row);
    return own < args.kv_len ? own : args.kv_len - 1;
}

// The position after the last one that query row `row` sees without a window.
FA_INLINE int visible_end(const AttentionArgs& args, int row) {
    return args.causal ? position_of(args, row) + 1 : args.kv_len;
}

// The positions that query row `row` sees, among them its own. The range is empty only if there are no positions.
FA_INLINE Range visible(const AttentionArgs& args, int row) {
    const int own = position_of(args, row);
    Range seen{0, visible_end(args, row)};
    if (args.window == 0) return seen;
    if (args.window <= own) seen.begin = own - args.window + 1;
    if (args.window < seen.end - own) seen.end = own + args.window;
    return seen;
}
// The same within a block, from its first position on.
FA_INLINE Range visible(const AttentionArgs& args, int row, int block) {
    return Range::of_block(visible(args, row), block);
}

// The blocks of which query row `row` sees a part.
FA_INLINE Range blocks_of(const AttentionArgs& args, int row) {
    const Range seen = visible(args, row);
    return {seen.begin / kBlockLen, (seen.end + kBlockLen - 1) / kBlockLen};
}

// How many rows from `first` on visit the blocks together. All of them see a part of the same blocks.
FA_INLINE int rows_together(const AttentionArgs& args, int first) {
    // Groups of causal rows end at multiples of kAttentionRows, which divides kBlockLen.
    const bool positions = args.causal && args.rows_per_head == 0;
    const int most = positions ? kAttentionRows - (args.q_position + first) % kAttentionRows : kAttentionRows;
    int rows = clamp_to(args.q_len - first, most);
    // The ends of a window do not have to be at such multiples.
    if (args.window > 0 && args.rows_per_head == 0)
        while (rows > 1 && blocks_of(args, first + rows - 1) != blocks_of(args, first)) --rows;
    return rows;
}

// True if every row sees the whole block.
FA_INLINE bool all_see(const AttentionArgs& args, const QueryRows& q, int block) {
    return visible(args, q.first, block).end == kBlockLen && visible(args, q.first + q.count - 1, block).begin == 0;
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

// The block's part of the rows' first KV head.
template <Format kFormat>
FA_INLINE ConstHeadBlock<kFormat> block_at(const AttentionArgs& args, const QueryRows& q, int block) {
    const auto of_args = ConstHeadBlock<kFormat>::at(args.blocks[block] + args.offset, args.head_dim);
    if (args.rows_per_head == 0) return of_args;
    return ConstHeadBlock<kFormat>::at(of_args.keys + q.first / args.rows_per_head * of_args.bytes(), args.head_dim);
}

// Calls run(kv, row, rows) for the rows of each KV head, one head after the other. `first`: block_at.
template <Format kFormat, class F>
FA_INLINE void for_heads(const AttentionArgs& args, const QueryRows& q, const ConstHeadBlock<kFormat>& first,
                         const F& run) {
    if (args.rows_per_head == 0) return run(first, 0, q.count);
    for (int row = 0; row < q.count;) {
        const int head = (q.first + row) / args.rows_per_head - q.first / args.rows_per_head;
        const int left = args.rows_per_head - (q.first + row) % args.rows_per_head;
        const int rows = q.count - row < left ? q.count - row : left;
        run(ConstHeadBlock<kFormat>::at(first.keys + head * first.bytes(), args.head_dim), row, rows);
        row += rows;
    }
}

template <class Dot, int kRows, int kVecs>
FA_INLINE void clear_sums(typename Dot::Sum (&sum)[kRows][kVecs]) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < kVecs; ++c) sum[r][c] = Dot::zero_sum();
}

// Calls run.template operator()<Dot>(begin, end, sum) for words [begin, end), or for two chains over each kChainWords
// words, whose sums it adds to `sum`.
template <class Dot, int kRows, int kVecs, class F>
FA_INLINE void for_chains(int begin, int end, typename Dot::Sum (&sum)[kRows][kVecs], const F& run) {
    if constexpr (!Dot::kTwoChains) {
        run.template operator()<Dot>(begin, end, sum);
    } else {
        for (int w = begin; w < end;) {
            const int next = w / kChainWords * kChainWords + kChainWords, last = next < end ? next : end;
            typename Dot::Sum even[kRows][kVecs], odd[kRows][kVecs];
            clear_sums<Dot, kRows, kVecs>(even);
            clear_sums<Dot, kRows, kVecs>(odd);
            run.template operator()<typename Dot::Even>(w, last, even);
            run.template operator()<typename Dot::Odd>(w, last, odd);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
                for (int c = 0; c < kVecs; ++c) sum[r][c] = add(sum[r][c], end_chains(even[r][c], odd[r][c], last - w));
            w = last;
        }
    }
}

// sum[r, c] += sum over w of a[r, w] * b[w, c]: `words` words of kVecs vectors each, b_stride bytes apart. A single row
// reads its words once, at the speed of memory, and prefetches as many words from `ahead` with the same stride.
template <class Dot, int kRows, int kVecs>
FA_INLINE void multiply(const int32_t* a, int64_t a_stride, const std::byte* b, int64_t b_stride, int words,
                        const std::byte* ahead, typename Dot::Sum (&sum)[kRows][kVecs]) {
    for (int w = add_pairs<Dot>(a, a_stride, b, b_stride, words, [] {}, sum); w < words; ++w) {
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

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
