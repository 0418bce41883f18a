// Shared by the attention kernels: the sequence and the positions of a query row, the location of keys and values, and
// how a block of 64 positions is merged into a row.
#pragma once
#include "cuda/kernels/device_math.h"

namespace fastattn::cuda {

// The sequence that row `row` belongs to: begin[s] <= row < begin[s + 1]. Needs row < begin[n].
FA_DEVICE int sequence_of(const int32_t* begin, int n, int row) {
    int low = 0, high = n - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (begin[middle + 1] <= row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// One sequence of a step, as its query rows need it.
struct Sequence {
    int token_begin, start, kv_len;
    std::byte* const* table;
};
FA_DEVICE Sequence sequence_at(const Sequences& sequences, const KvPages& pages, int s) {
    const int begin = sequences.cu_seqlens[s], start = sequences.start == nullptr ? 0 : sequences.start[s];
    return {begin, start, start + sequences.cu_seqlens[s + 1] - begin, pages.table + s * pages.table_stride};
}

// Some positions, the last exclusive.
struct Range {
    int begin, end;

    FA_DEVICE bool empty() const { return begin >= end; }
    FA_DEVICE bool has(int position) const { return begin <= position && position < end; }
    // The part in a block, from the block's first position on.
    FA_DEVICE Range of_block(int block) const {
        const int from = begin - block * kBlockLen, to = end - block * kBlockLen;
        return {from > 0 ? from : 0, to < kBlockLen ? to : kBlockLen};
    }
    // The blocks of which it has a part.
    FA_DEVICE Range blocks() const { return {begin / kBlockLen, (end + kBlockLen - 1) / kBlockLen}; }
};

// What a query row sees, as in csrc/kernels/attention_rows.h. `position` is the row's own, at most the last one of its
// sequence. A row without a token sees nothing.
struct Query {
    int position;
    Range seen;
};
FA_DEVICE Query query_at(const Relative& relative, const Sequence& sequence, int token) {
    int own = sequence.start + token - sequence.token_begin;
    if (own >= sequence.kv_len) own = sequence.kv_len - 1;
    if (token < 0 || own < 0) return {0, {0, 0}};
    Range seen{0, relative.causal ? own + 1 : sequence.kv_len};
    if (relative.window > 0) {
        if (relative.window <= own) seen.begin = own - relative.window + 1;
        if (relative.window < seen.end - own) seen.end = own + relative.window;
    }
    return {own, seen};
}
FA_DEVICE Query query_of(const AttentionArgs& args, const Sequence& sequence, int row) {
    return query_at(args.relative, sequence, args.query_tokens == nullptr ? row : args.query_tokens[row]);
}

// Biases of a head, from the block's first position on, for a query at `position`; or null. Only those of positions
// that the query sees may be read.
FA_DEVICE const float* biases_at(const Relative& relative, int head, int position, int block) {
    if (relative.bias == nullptr) return nullptr;
    return relative.bias + head * relative.bias_stride + (block * kBlockLen - position);
}

// Keys [kBlockLen, row_elements(head_dim)] of block `block` for a KV head. The values follow, kBlockLen rows later.
FA_DEVICE const std::byte* keys_at(const KvPages& pages, const Sequence& sequence, int head, int block) {
    return sequence.table[block] + pages.layer_offset + head * kv_head_bytes(pages.type, pages.head_dim);
}

// A tile of query rows: [begin, end) of sequence `sequence`.
struct RowTile {
    int sequence, begin, end;  // sequence -1: no such tile
};

// Tile `index` of tiles of kRows rows, each of one sequence. All lanes of a warp call it. The last tiles of a sequence
// come first, because they take longest with causal.
template <int kRows>
FA_DEVICE RowTile find_tile(const int32_t* q_begin, int n_sequences, int index) {
    for (int base = 0; base < n_sequences; base += kWarp) {
        const int s = base + lane();
        const int rows = s < n_sequences ? q_begin[s + 1] - q_begin[s] : 0, tiles = (rows + kRows - 1) / kRows;
        int up_to = tiles;  // tiles up to and including this lane's
#pragma unroll
        for (int distance = 1; distance < kWarp; distance *= 2) {
            const int before = shuffle(up_to, lane() - distance);
            if (lane() >= distance) up_to += before;
        }
        const uint32_t beyond = ballot(up_to > index);
        if (beyond == 0) {
            index -= shuffle(up_to, kWarp - 1);
            continue;
        }
        const int found = lowest_bit(beyond);
        const int of_sequence = shuffle(tiles, found), in_sequence = index - shuffle(up_to, found) + of_sequence;
        const int begin = q_begin[base + found] + (of_sequence - 1 - in_sequence) * kRows;
        const int last = q_begin[base + found + 1];
        return {base + found, begin, begin + kRows < last ? begin + kRows : last};
    }
    return {-1, 0, 0};
}
// Upper bound of the number of tiles.
template <int kRows>
int64_t most_tiles(const AttentionArgs& args) {
    const int64_t apart = args.rows.most / kRows + args.sequences.rows.most;
    return apart < args.rows.most ? apart : args.rows.most;
}

// e^x in float32. 2^x in 16 bits, where the queries include the factor log2(e).
template <bool kFloat32>
FA_DEVICE float softmax_exp(float x) {
    return kFloat32 ? math::exp(x) : exp2_fast(x);
}
// What is subtracted from scores: 0 if all are -inf, so that probabilities are 0 and not NaN.
FA_DEVICE float shift_of(float highest) {
    return highest == -kInf ? 0.0f : highest;
}

// A row's running maximum m (`highest`) and running sum l (`total`), as in the FlashAttention papers. `merge` adds a
// block and stores the factors for the output accumulator O and the block's P V. `merged` applies them. `divided`
// divides O by l.
template <bool kFloat32>
struct Running {
    float highest = -kInf, total = 0.0f;
    float old_factor, block_factor;

    FA_DEVICE void merge(float block_highest, float block_total) {
        const float now = math::max(highest, block_highest), shift = shift_of(now);
        old_factor = softmax_exp<kFloat32>(highest - shift);
        block_factor = softmax_exp<kFloat32>(block_highest - shift);
        total = math::fma(block_total, block_factor, total * old_factor);
        highest = now;
    }
    FA_DEVICE float merged(float sum, float block_sum) const {
        return math::fma(block_sum, block_factor, sum * old_factor);
    }
    FA_DEVICE float divided(float sum) const {
        const float divisor = total == 0.0f ? 1.0f : total;  // a row that sees nothing gives 0, not 0 / 0
        return kFloat32 ? sum / divisor : sum * (1.0f / divisor);
    }
};

// A block of 64 scores S, one per thread of two warps: the thread's p = e^(S - highest), the block's maximum and its
// sum of p. All threads get the latter two. The sum is in the order of csrc/kernels: positions i and i + 16, then both
// warps, then the tree over sixteen. `room`: 34 floats of shared memory.
struct BlockSums {
    float highest, p, total;
};
template <bool kFloat32>
FA_DEVICE BlockSums sum_block(float score, float* room) {
    BlockSums sums{score, 0.0f, 0.0f};
#pragma unroll
    for (int mask : {16, 8, 4, 2, 1}) sums.highest = math::max(sums.highest, shuffle_xor(sums.highest, mask));
    if (lane() == 0) room[warp()] = sums.highest;
    sync_threads();
    sums.highest = math::max(room[0], room[1]);
    sums.p = softmax_exp<kFloat32>(score - shift_of(sums.highest));
    const float pair = sums.p + shuffle_xor(sums.p, 16);
    if (lane() < 16) room[2 + warp() * 16 + lane()] = pair;
    sync_threads();
    sums.total = room[2 + lane() % 16] + room[2 + 16 + lane() % 16];
#pragma unroll
    for (int mask : {8, 4, 2, 1}) sums.total += shuffle_xor(sums.total, mask);
    return sums;
}
inline constexpr int kBlockSumFloats = 34;

// Decode: a block's share of a row is P V [head_dim], its maximum and its sum of P.
FA_DEVICE int64_t partial_at(const AttentionArgs& args, int64_t row, int head, int block) {
    const int64_t blocks = (args.sequences.most_positions + kBlockLen - 1) / kBlockLen;
    return ((row * args.n_head + head) * blocks + block) * (args.pages.head_dim + 2);
}

// For pages of float32.
void launch_prefill_float32(const AttentionArgs& args, Stream stream);
void launch_decode_float32(const AttentionArgs& args, Stream stream);

}  // namespace fastattn::cuda
