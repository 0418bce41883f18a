// Attention over pages of float32, with the CPU's bits: a score is one sum over head_dim in order. Within a block, an
// element of P V is one sum over the positions that the row sees, in order (csrc/kernels/attention.h).
#include "cuda/kernels/attention.h"

namespace fastattn::cuda {
namespace {

constexpr int kChunk = 64;          // elements of head_dim in shared memory at a time
constexpr int kPitch = kChunk + 4;  // floats; puts eight rows of 16 bytes in different banks
constexpr int kSide = 16;           // threads across positions, or across elements of a value
constexpr int kVectors = kBlockLen / kSide;

// Copies elements d to d + kChunk - 1 of rows [0, rows) of keys or values to a tile [kBlockLen, kPitch]. The rest of
// the tile is 0.
template <int kThreads, int kUnroll>
FA_DEVICE void copy_tile(float* tile, const float* from, int64_t row, int d, int rows, int head_dim) {
#pragma unroll kUnroll
    for (int unit = thread_id(); unit < kBlockLen * kChunk / 4; unit += kThreads) {
        const int r = unit / (kChunk / 4), i = unit % (kChunk / 4) * 4;
        float* to = tile + r * kPitch + i;
        if (r < rows && d + i < head_dim)
            copy_async_16(to, from + r * row + d + i);
        else
            store_16(to, {0, 0, 0, 0});
    }
    copy_async_commit();
}

// A block of kRows x 4 threads and its rows of one head. A thread computes four rows of S at every sixteenth position,
// then four rows of O at four neighboring elements. kDim: head_dim, rounded up to whole chunks.
template <int kDim, int kRows>
struct Prefill {
    static constexpr int kThreads = kRows / 4 * kSide;
    static constexpr int kChunks = kDim / kChunk;
    static constexpr int kQPitch = kDim + 4;
    static constexpr int64_t kSharedBytes = (kRows * kQPitch + kRows * kPitch + 2 * kBlockLen * kPitch) * sizeof(float);
    static constexpr int kUnroll = kDim == 64 ? 2 : 4;  // the most that registers allow without spilling

    const AttentionArgs& args;
    RowTile tile;
    Sequence sequence;
    int head, kv_head, head_dim;
    int64_t row_width;
    float *q, *probs, *keys, *values;  // shared: [kRows, kQPitch], [kRows, kPitch], and twice [kBlockLen, kPitch]
    int tx, first;                     // the thread's place and its first row
    Query query[4];                    // of the thread's rows
    Range blocks;                      // of positions that the tile's rows see
    Running<true> running[4];          // m and l of the thread's rows
    float sum[4][4 * kChunks] = {};    // O: rows, elements 64 chunk + 4 tx to 64 chunk + 4 tx + 3

    FA_DEVICE Prefill(const AttentionArgs& all, RowTile rows) : args(all), tile(rows) {
        const KvPages& pages = args.pages;
        sequence = sequence_at(args.sequences, pages, tile.sequence);
        head = block_y(), kv_head = head / (args.n_head / pages.n_kv_head), head_dim = pages.head_dim;
        row_width = row_elements(head_dim);
        q = reinterpret_cast<float*>(shared_memory());
        probs = q + kRows * kQPitch;
        keys = probs + kRows * kPitch;
        values = keys + kBlockLen * kPitch;
        tx = thread_id() % kSide, first = thread_id() / kSide * 4;
#pragma unroll
        for (int r = 0; r < 4; ++r)
            query[r] =
                tile.begin + first + r < tile.end ? query_of(args, sequence, tile.begin + first + r) : Query{0, {0, 0}};
        blocks = {query_of(args, sequence, tile.begin).seen.blocks().begin,
                  query_of(args, sequence, tile.end - 1).seen.blocks().end};
    }

    FA_DEVICE const float* block_at(int block) const {
        return reinterpret_cast<const float*>(keys_at(args.pages, sequence, kv_head, block));
    }
    FA_DEVICE void copy_keys(int block, int chunk) const {
        copy_tile<kThreads, kUnroll>(keys, block_at(block), row_width, chunk * kChunk,
                                     sequence.kv_len - block * kBlockLen, head_dim);
    }
    FA_DEVICE void copy_values(int block, int chunk) const {
        copy_tile<kThreads, kUnroll>(values, block_at(block) + kBlockLen * row_width, row_width, chunk * kChunk,
                                     sequence.kv_len - block * kBlockLen, head_dim);
    }
    FA_DEVICE void copy_queries() const {
        for (int i = thread_id(); i < kRows * kDim; i += kThreads) {
            const int r = i / kDim, d = i % kDim;
            const bool there = tile.begin + r < tile.end && d < head_dim;
            q[r * kQPitch + d] = there ? args.q[(tile.begin + r) * args.q_stride + head * head_dim + d] : 0.0f;
        }
    }

    // Adds the products of one chunk to the scores.
    FA_DEVICE void add_scores(int chunk, float (&score)[4][kVectors]) const {
        const int depth = head_dim - chunk * kChunk < kChunk ? (head_dim - chunk * kChunk + 3) / 4 : kChunk / 4;
        for (int i = 0; i < depth; ++i) {
            Four a[4], b[kVectors];
#pragma unroll
            for (int r = 0; r < 4; ++r) a[r] = load_four(q + (first + r) * kQPitch + chunk * kChunk + 4 * i);
#pragma unroll
            for (int c = 0; c < kVectors; ++c) b[c] = load_four(keys + (tx + kSide * c) * kPitch + 4 * i);
#pragma unroll
            for (int r = 0; r < 4; ++r)
#pragma unroll
                for (int c = 0; c < kVectors; ++c)
#pragma unroll
                    for (int j = 0; j < 4; ++j) score[r][c] = math::fma(a[r].x[j], b[c].x[j], score[r][c]);
        }
    }

    // S of the block. Copies the block's first values meanwhile.
    FA_DEVICE void score_block(int block, float (&score)[4][kVectors]) const {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            copy_async_wait<0>();
            sync_threads();
            if (chunk == kChunks - 1) copy_values(block, 0);
            add_scores(chunk, score);
            if (chunk < kChunks - 1) {
                sync_threads();
                copy_keys(block, chunk + 1);
            }
        }
    }

    // Writes P of row r and merges the block into its m and l.
    FA_DEVICE void merge_row(int r, int block, float (&score)[kVectors]) {
        const Range seen = query[r].seen.of_block(block);
        const float* bias = biases_at(args.relative, head, query[r].position, block);
        float highest = -kInf;
#pragma unroll
        for (int c = 0; c < kVectors; ++c) {
            const int column = tx + kSide * c;
            const bool sees = seen.has(column);
            score[c] *= args.scale;
            if (sees && bias != nullptr) score[c] += bias[column];
            score[c] = sees ? score[c] : -kInf;
            highest = math::max(highest, score[c]);
        }
#pragma unroll
        for (int mask : {8, 4, 2, 1}) highest = math::max(highest, shuffle_xor(highest, mask));
        const float shift = shift_of(highest);
        float p[kVectors];
#pragma unroll
        for (int c = 0; c < kVectors; ++c) {
            p[c] = math::exp(score[c] - shift);
            probs[(first + r) * kPitch + tx + kSide * c] = p[c];
        }
        float total = (p[0] + p[1]) + (p[2] + p[3]);
#pragma unroll
        for (int mask : {8, 4, 2, 1}) total += shuffle_xor(total, mask);
        if (!seen.empty()) running[r].merge(highest, total);
    }

    // Adds P V of positions [begin, end) to `part`. Rows skip the positions that they do not see.
    FA_DEVICE void weigh_seen(const Range (&seen)[4], int begin, int end, float (&part)[4][4]) const {
        for (int position = begin; position < end; ++position) {
            const Four v = load_four(values + position * kPitch + 4 * tx);
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                if (!seen[r].has(position)) continue;
                const float p = probs[(first + r) * kPitch + position];
#pragma unroll
                for (int c = 0; c < 4; ++c) part[r][c] = math::fma(p, v.x[c], part[r][c]);
            }
        }
    }

    // part = P V of one chunk.
    FA_DEVICE void weigh_values(const Range (&seen)[4], float (&part)[4][4]) const {
        Range some{kBlockLen, 0}, all{0, kBlockLen};  // positions that any of the rows sees, and that all of them see
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            some.begin = seen[r].begin < some.begin ? seen[r].begin : some.begin;
            some.end = seen[r].end > some.end ? seen[r].end : some.end;
            all.begin = seen[r].begin > all.begin ? seen[r].begin : all.begin;
            all.end = seen[r].end < all.end ? seen[r].end : all.end;
        }
        int from = (all.begin + 3) / 4 * 4, to = all.end / 4 * 4;  // whole fours that all rows see
        if (from >= to) from = to = some.end;
        weigh_seen(seen, some.begin, from, part);
        for (int position = from; position < to; position += 4) {
            Four p[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) p[r] = load_four(probs + (first + r) * kPitch + position);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const Four v = load_four(values + (position + j) * kPitch + 4 * tx);
#pragma unroll
                for (int r = 0; r < 4; ++r)
#pragma unroll
                    for (int c = 0; c < 4; ++c) part[r][c] = math::fma(p[r].x[j], v.x[c], part[r][c]);
            }
        }
        weigh_seen(seen, to, some.end, part);
    }

    // Merges P V of the block into O. Copies the first keys of the next block meanwhile.
    FA_DEVICE void value_block(int block) {
        Range seen[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) seen[r] = query[r].seen.of_block(block);
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            copy_async_wait<0>();
            sync_threads();
            if (chunk == kChunks - 1 && block + 1 < blocks.end) copy_keys(block + 1, 0);
            float part[4][4] = {};
            weigh_values(seen, part);
#pragma unroll
            for (int r = 0; r < 4; ++r)
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    if (!seen[r].empty()) sum[r][4 * chunk + c] = running[r].merged(sum[r][4 * chunk + c], part[r][c]);
            if (chunk < kChunks - 1) {
                sync_threads();
                copy_values(block, chunk + 1);
            }
        }
    }

    FA_DEVICE void write_rows() const {
        const int width = args.n_head * head_dim;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int row = tile.begin + first + r;
            if (row >= tile.end) continue;
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                const int d = chunk * kChunk + 4 * tx;
                Four v;
#pragma unroll
                for (int c = 0; c < 4; ++c) v.x[c] = running[r].divided(sum[r][4 * chunk + c]);
                write_some(args.out, row, head * head_dim + d, width, v, head_dim - d);
            }
        }
    }
};

template <int kDim, int kRows>
FA_KERNEL((Prefill<kDim, kRows>::kThreads))
prefill_float32(const AttentionArgs args) {
    const RowTile tile = find_tile<kRows>(args.q_begin, count_of(args.sequences.rows), block_x());
    if (tile.sequence < 0) return;
    Prefill<kDim, kRows> prefill(args, tile);
    if (!prefill.blocks.empty()) prefill.copy_keys(prefill.blocks.begin, 0);
    prefill.copy_queries();
    for (int block = prefill.blocks.begin; block < prefill.blocks.end; ++block) {
        float score[4][kVectors] = {};
        prefill.score_block(block, score);
#pragma unroll
        for (int r = 0; r < 4; ++r) prefill.merge_row(r, block, score[r]);
        prefill.value_block(block);
    }
    prefill.write_rows();
}

template <int kDim, int kRows>
void launch_prefill(const AttentionArgs& args, Stream stream) {
    using Shape = Prefill<kDim, kRows>;
    launch("attention_prefill_float32", prefill_float32<kDim, kRows>, {most_tiles<kRows>(args), args.n_head},
           Shape::kThreads, Shape::kSharedBytes, args, stream);
}

// Decode: a block of positions, for all query heads of a KV head. Scores: one thread per position. P V: one thread per
// element.
constexpr int kDecodeThreads = 64;
static_assert(kDecodeThreads == kBlockLen);
FA_ANYWHERE int key_pitch(int head_dim) {
    return (head_dim + 3) / 4 * 4 + 4;
}

FA_KERNEL(kDecodeThreads)
decode_float32(const AttentionArgs args) {
    const KvPages& pages = args.pages;
    const int s = block_x() / pages.n_kv_head, kv_head = block_x() % pages.n_kv_head, block = block_y();
    if (s >= count_of(args.sequences.rows) || args.q_begin[s] == args.q_begin[s + 1]) return;
    const Sequence sequence = sequence_at(args.sequences, pages, s);
    const int row = args.q_begin[s];
    const Query query = query_of(args, sequence, row);
    const Range seen = query.seen.of_block(block);
    if (seen.empty()) return;
    const int head_dim = pages.head_dim, pitch = key_pitch(head_dim), group = args.n_head / pages.n_kv_head;
    const int t = thread_id();
    const int64_t row_width = row_elements(head_dim);
    const float* from = reinterpret_cast<const float*>(keys_at(pages, sequence, kv_head, block));
    float* keys = reinterpret_cast<float*>(shared_memory());  // [kBlockLen, pitch]
    float* q = keys + kBlockLen * pitch;                      // [pitch]
    float* probs = q + pitch;                                 // [kBlockLen]
    float* room = probs + kBlockLen;                          // [kBlockSumFloats]

    const int units = pitch / 4 - 1;
    for (int unit = seen.begin * units + t; unit < seen.end * units; unit += kDecodeThreads)
        copy_async_16(keys + unit / units * pitch + unit % units * 4,
                      from + unit / units * row_width + unit % units * 4);
    copy_async_commit();
    for (int g = 0; g < group; ++g) {
        const int head = kv_head * group + g;
        for (int d = t; d < 4 * units; d += kDecodeThreads)
            q[d] = d < head_dim ? args.q[row * args.q_stride + head * head_dim + d] : 0.0f;
        copy_async_wait<0>();
        sync_threads();
        float score = 0.0f;
        if (seen.has(t))
            for (int d = 0; d < 4 * units; d += 4) {
                const Four a = load_four(q + d), b = load_four(keys + t * pitch + d);
#pragma unroll
                for (int j = 0; j < 4; ++j) score = math::fma(a.x[j], b.x[j], score);
            }
        score *= args.scale;
        const float* bias = biases_at(args.relative, head, query.position, block);
        if (seen.has(t) && bias != nullptr) score += bias[t];
        score = seen.has(t) ? score : -kInf;
        const BlockSums sums = sum_block<true>(score, room);
        probs[t] = sums.p;
        float* partial = args.partials + partial_at(args, row, head, block);
        if (t == 0) {
            partial[head_dim] = sums.highest;
            partial[head_dim + 1] = sums.total;
        }
        sync_threads();
        const float* values = from + kBlockLen * row_width;
        for (int d = t; d < head_dim; d += kDecodeThreads) {
            float sum = 0.0f;
#pragma unroll 16
            for (int position = seen.begin; position < seen.end; ++position)
                sum = math::fma(probs[position], values[position * row_width + d], sum);
            partial[d] = sum;
        }
        sync_threads();  // before the query and probabilities of the next head
    }
}

}  // namespace

void launch_prefill_float32(const AttentionArgs& args, Stream stream) {
    if (args.pages.head_dim <= 64) return launch_prefill<64, 64>(args, stream);
    if (args.pages.head_dim <= 128) return launch_prefill<128, 64>(args, stream);
    launch_prefill<256, 32>(args, stream);
}

void launch_decode_float32(const AttentionArgs& args, Stream stream) {
    const int64_t floats = (kBlockLen + 1) * key_pitch(args.pages.head_dim) + kBlockLen + kBlockSumFloats;
    // Sequences are in x, because y has at most 65,535 blocks.
    const Grid grid{int64_t{args.sequences.rows.most} * args.pages.n_kv_head,
                    divide_up(args.sequences.most_positions, kBlockLen)};
    launch("attention_decode_float32", decode_float32, grid, kDecodeThreads, floats * 4, args, stream);
}

}  // namespace fastattn::cuda
