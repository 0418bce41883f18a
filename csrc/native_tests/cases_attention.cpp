// KV store, attention and attention probabilities, over blocks with NaN wherever nothing was stored.
#include <algorithm>
#include <limits>
#include <memory>

#include "native_tests/support.h"
#include "ops/ops.h"

namespace fastattn::native_tests {
namespace {

struct Shape {
    int q_len, q_position, kv_len;
};
constexpr Shape kShapes[] = {{0, 0, 0},   {1, 0, 0}, {1, 0, 1},    {1, 63, 64}, {1, 64, 65}, {5, 0, 5},
                             {6, 60, 66}, {7, 0, 7}, {13, 58, 71}, {16, 0, 16}, {70, 0, 70}, {3, 200, 203}};
struct Variant {
    bool masked;
    int window;
    bool biased;
};
constexpr Variant kVariants[] = {{false, 0, false}, {true, 0, false},   {false, 1, false}, {false, 16, true},
                                 {false, 0, true},  {false, 64, false}, {true, 65, true},  {false, 1000, false}};
constexpr int kHeadDims[] = {1, 15, 16, 17, 32, 35, 64, 80, 128, 256};

// int8 with a head_dim that is not a multiple of four bytes, and bfloat16 with an odd one, end with a partial word.
template <Format kFormat>
class Blocks {
public:
    Blocks(const KernelTable& table, int kv_len, int head_dim) {
        const int64_t floats = kv_head_layout(kFormat, head_dim).bytes / static_cast<int64_t>(sizeof(float));
        for (int i = 0; i < (kv_len + kBlockLen - 1) / kBlockLen; ++i) {
            buffers_.push_back(std::make_unique<GuardedBuffer>(floats, 100));
            std::memset(buffers_.back()->data(), 0xff, static_cast<size_t>(floats) * sizeof(float));  // NaN
            pointers_.push_back(reinterpret_cast<std::byte*>(buffers_.back()->data()));
        }
        const GuardedBuffer k(int64_t{kv_len} * head_dim, 101), v(int64_t{kv_len} * head_dim, 102);
        for (int begin = 0; begin < kv_len;) {  // in uneven pieces, like the steps of a generation
            const int rows = begin + 37 < kv_len ? 37 : kv_len - begin;
            const int64_t offset = int64_t{begin} * head_dim;
            table.kv_store[static_cast<int>(kFormat)]({.k = k.data() + offset,
                                                       .v = v.data() + offset,
                                                       .k_stride = head_dim,
                                                       .v_stride = head_dim,
                                                       .blocks = pointers_.data(),
                                                       .rows = rows,
                                                       .position = begin,
                                                       .head_dim = head_dim});
            begin += rows;
        }
    }
    std::byte* const* pointers() const { return pointers_.data(); }
    void add_to(Record& record) const {
        for (const auto& buffer : buffers_) record.add(buffer->data(), buffer->size());
    }

private:
    std::vector<std::unique_ptr<GuardedBuffer>> buffers_;
    std::vector<std::byte*> pointers_;
};

template <Format kFormat>
void kv_store(const KernelTable& table, Record& record) {
    for (int head_dim : kHeadDims)
        for (const Shape& shape : kShapes) Blocks<kFormat>(table, shape.kv_len, head_dim).add_to(record);
}

// The biases have no room beyond the relative positions of the shape. There are no blocks before the window of the
// first row.
template <class Run>
void with_variant(const Shape& shape, const Variant& variant, AttentionArgs args, Run run) {
    const GuardedBuffer mask(int64_t{shape.q_len} * shape.kv_len, 113);
    for (int64_t i = 0; i < mask.size(); ++i)
        if (bits_at(114, static_cast<uint64_t>(i)) % 4 == 0 || i < shape.kv_len)
            mask.data()[i] = -std::numeric_limits<float>::infinity();  // the whole first row
    const int64_t before = std::max(0, shape.kv_len - 1);
    const GuardedBuffer bias(args.causal ? before + 1 : 2 * before + 1, 117, 5.0f);
    args.mask = variant.masked ? mask.data() : nullptr;
    args.mask_stride = shape.kv_len;
    args.window = variant.window;
    std::vector<const std::byte*> blocks(args.blocks, args.blocks + (shape.kv_len + kBlockLen - 1) / kBlockLen);
    const int first = std::min(shape.q_position, shape.kv_len - 1) - variant.window + 1;
    if (variant.window > 0)
        for (int i = 0; i < first / kBlockLen; ++i) blocks[static_cast<size_t>(i)] = nullptr;
    args.blocks = blocks.data();
    args.bias = variant.biased ? bias.data() + before : nullptr;
    run(args);
}

template <Format kFormat, class Run>
void for_each_case(const KernelTable& table, Run run) {
    for (int head_dim : kHeadDims)
        for (const Shape& shape : kShapes) {
            const Blocks<kFormat> blocks(table, shape.kv_len, head_dim);
            const GuardedBuffer q(int64_t{shape.q_len} * head_dim, 111, 3.0f), scratch(kAttentionScratch, 112);
            for (bool causal : {false, true})
                for (const Variant& variant : kVariants) {
                    if (variant.masked && kFormat != Format::kFloat32) continue;
                    with_variant(shape, variant,
                                 {.q = q.data(),
                                  .q_stride = head_dim,
                                  .blocks = blocks.pointers(),
                                  .out = nullptr,
                                  .out_stride = 0,
                                  .scratch = scratch.data(),
                                  .q_len = shape.q_len,
                                  .q_position = shape.q_position,
                                  .kv_len = shape.kv_len,
                                  .head_dim = head_dim,
                                  .causal = causal,
                                  .scale = 0.125f},
                                 run);
                }
        }
}

template <Format kFormat>
void attention(const KernelTable& table, Record& record) {
    for_each_case<kFormat>(table, [&](AttentionArgs args) {
        const GuardedBuffer out(int64_t{args.q_len} * args.head_dim, 115);
        args.out = out.data();
        args.out_stride = args.head_dim;
        table.attention[static_cast<int>(kFormat)](args);
        record.add(out.data(), out.size());
    });
}

template <Format kFormat>
void attention_probs(const KernelTable& table, Record& record) {
    for_each_case<kFormat>(table, [&](AttentionArgs args) {
        const GuardedBuffer out(int64_t{args.q_len} * args.kv_len, 116);
        args.out = out.data();
        args.out_stride = args.kv_len;
        table.attention_probs[static_cast<int>(kFormat)](args);
        record.add(out.data(), out.size());
    });
}

// Tables of relative positions, with room only for what attention may read.
struct Tables {
    static constexpr int kReach = 272, kPad = 16;
    static constexpr int kKeyWidth = 160;  // of 64 keys and the queries of the longest shape

    // grouped: from a distance of 20 on, two distances share a column.
    Tables(const AttentionArgs& args, bool grouped)
        : columns(2 * kReach + 1, 120),
          width(fill_columns(grouped)),
          query(int64_t{args.q_len} * width + 2 * kPad, 121, 2.0f),
          key(int64_t{blocks_of(args)} * kBlockLen * kKeyWidth + 2 * kPad, 122, 2.0f) {
        const float* column_of = columns.data() + kReach;
        for (int b = 0; b < blocks_of(args); ++b)
            key_first.push_back(static_cast<int32_t>(column_of[b * kBlockLen - (args.q_position + args.q_len - 1)]));
        scores = {.columns = column_of,
                  .query = query.data() + kPad,
                  .query_stride = width,
                  .query_first = 0,
                  .key = key.data() + kPad,
                  .key_stride = kKeyWidth,
                  .key_first = key_first.data()};
    }
    static int blocks_of(const AttentionArgs& args) { return (args.kv_len + kBlockLen - 1) / kBlockLen; }

    GuardedBuffer columns;
    int width;
    GuardedBuffer query, key;
    std::vector<int32_t> key_first;
    PositionScores scores;

private:
    int fill_columns(bool grouped) {
        float column = 0.0f;
        for (int i = 0; i <= 2 * kReach; ++i) {
            const int relative = i - kReach, distance = relative < 0 ? -relative : relative;
            const bool same = i == 0 || (grouped && distance >= 20 && distance % 2 != 0);
            columns.data()[i] = column += same ? 0.0f : 1.0f;
        }
        return static_cast<int>(column) + 1;
    }
};

// Which scores there are: of queries, of keys or both.
constexpr bool kScored[][2] = {{true, false}, {false, true}, {true, true}};

template <Format kFormat, bool kProbs>
void attention_of_positions(const KernelTable& table, Record& record) {
    for_each_case<kFormat>(table, [&](AttentionArgs args) {
        const bool plain = !args.causal && args.mask == nullptr && args.bias == nullptr;
        const bool chosen =
            args.window % 64 == 0 && (args.head_dim == 16 || args.head_dim == 35 || args.head_dim == 64);
        if (!plain || !chosen) return;
        for (const bool grouped : {false, true})
            for (const auto& [of_query, of_key] : kScored) {
                const Tables tables(args, grouped);
                PositionScores scores = tables.scores;
                if (!of_query) scores.query = nullptr;
                if (!of_key) scores.key = nullptr;
                args.positions = &scores;
                const int width = kProbs ? args.kv_len : args.head_dim;
                const GuardedBuffer out(int64_t{args.q_len} * width, 123);
                args.out = out.data();
                args.out_stride = width;
                (kProbs ? table.attention_probs : table.attention)[static_cast<int>(kFormat)](args);
                record.add(out.data(), out.size());
            }
    });
}

}  // namespace

const std::vector<KernelCases> kAttentionCases = {
    {"kv_store_float32", kv_store<Format::kFloat32>},
    {"attention_float32", attention<Format::kFloat32>},
    {"attention_probs_float32", attention_probs<Format::kFloat32>},
    {"kv_store_int8", kv_store<Format::kInt8>},
    {"attention_int8", attention<Format::kInt8>},
    {"attention_probs_int8", attention_probs<Format::kInt8>},
    {"kv_store_bfloat16", kv_store<Format::kBfloat16>},
    {.kernel = "attention_bfloat16", .run = attention<Format::kBfloat16>, .bfloat16_sums = true},
    {.kernel = "attention_probs_bfloat16", .run = attention_probs<Format::kBfloat16>, .bfloat16_sums = true},
    {"positions_float32", attention_of_positions<Format::kFloat32, false>},
    {"positions_probs_float32", attention_of_positions<Format::kFloat32, true>},
    {"positions_int8", attention_of_positions<Format::kInt8, false>},
    {"positions_probs_int8", attention_of_positions<Format::kInt8, true>},
    {.kernel = "positions_bfloat16", .run = attention_of_positions<Format::kBfloat16, false>, .bfloat16_sums = true},
    {.kernel = "positions_probs_bfloat16",
     .run = attention_of_positions<Format::kBfloat16, true>,
     .bfloat16_sums = true},
};

}  // namespace fastattn::native_tests
