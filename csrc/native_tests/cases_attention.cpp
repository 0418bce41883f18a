// KV store, attention and attention probabilities, over blocks that hold NaN wherever nothing was stored.
#include <limits>
#include <memory>

#include "native_tests/support.h"

namespace fastattn::native_tests {
namespace {

struct Shape {
    int q_len, q_position, kv_len;
};
constexpr Shape kShapes[] = {{0, 0, 0},   {1, 0, 0}, {1, 0, 1},    {1, 63, 64}, {1, 64, 65}, {5, 0, 5},
                             {6, 60, 66}, {7, 0, 7}, {13, 58, 71}, {16, 0, 16}, {70, 0, 70}, {3, 200, 203}};
constexpr int kHeadDims[] = {1, 15, 16, 17, 32, 35, 64, 80, 128, 256};

class Blocks {
public:
    Blocks(const KernelTable& table, int kv_len, int head_dim) {
        const int64_t floats = int64_t{2} * kBlockLen * head_dim;
        for (int i = 0; i < (kv_len + kBlockLen - 1) / kBlockLen; ++i) {
            buffers_.push_back(std::make_unique<GuardedBuffer>(floats, 100));
            for (int64_t j = 0; j < floats; ++j) buffers_.back()->data()[j] = std::numeric_limits<float>::quiet_NaN();
            pointers_.push_back(buffers_.back()->data());
        }
        const GuardedBuffer k(int64_t{kv_len} * head_dim, 101), v(int64_t{kv_len} * head_dim, 102);
        for (int begin = 0; begin < kv_len;) {  // in uneven pieces, as steps of a generation come
            const int rows = begin + 37 < kv_len ? 37 : kv_len - begin;
            const int64_t offset = int64_t{begin} * head_dim;
            table.kv_store_f32({.k = k.data() + offset,
                                .v = v.data() + offset,
                                .k_stride = head_dim,
                                .v_stride = head_dim,
                                .blocks = pointers_.data(),
                                .k_offset = 0,
                                .v_offset = int64_t{kBlockLen} * head_dim,
                                .rows = rows,
                                .position = begin,
                                .head_dim = head_dim});
            begin += rows;
        }
    }
    float* const* pointers() const { return pointers_.data(); }
    void add_to(Record& record) const {
        for (const auto& buffer : buffers_) record.add(buffer->data(), buffer->size());
    }

private:
    std::vector<std::unique_ptr<GuardedBuffer>> buffers_;
    std::vector<float*> pointers_;
};

void kv_store(const KernelTable& table, Record& record) {
    for (int head_dim : kHeadDims)
        for (const Shape& shape : kShapes) Blocks(table, shape.kv_len, head_dim).add_to(record);
}

template <class Run>
void for_each_case(const KernelTable& table, Run run) {
    for (int head_dim : kHeadDims)
        for (const Shape& shape : kShapes)
            for (bool causal : {false, true})
                for (bool masked : {false, true}) {
                    const Blocks blocks(table, shape.kv_len, head_dim);
                    const GuardedBuffer q(int64_t{shape.q_len} * head_dim, 111, 3.0f), scratch(kAttentionScratch, 112);
                    const GuardedBuffer mask(int64_t{shape.q_len} * shape.kv_len, 113);
                    for (int64_t i = 0; i < mask.size(); ++i)
                        if (bits_at(114, static_cast<uint64_t>(i)) % 4 == 0 || i < shape.kv_len)
                            mask.data()[i] = -std::numeric_limits<float>::infinity();  // all of the first row
                    run(AttentionF32Args{.q = q.data(),
                                         .q_stride = head_dim,
                                         .blocks = blocks.pointers(),
                                         .k_offset = 0,
                                         .v_offset = int64_t{kBlockLen} * head_dim,
                                         .mask = masked ? mask.data() : nullptr,
                                         .mask_stride = shape.kv_len,
                                         .out = nullptr,
                                         .out_stride = 0,
                                         .scratch = scratch.data(),
                                         .q_len = shape.q_len,
                                         .q_position = shape.q_position,
                                         .kv_len = shape.kv_len,
                                         .head_dim = head_dim,
                                         .causal = causal,
                                         .scale = 0.125f});
                }
}

void attention(const KernelTable& table, Record& record) {
    for_each_case(table, [&](AttentionF32Args args) {
        const GuardedBuffer out(int64_t{args.q_len} * args.head_dim, 115);
        args.out = out.data();
        args.out_stride = args.head_dim;
        table.attention_f32(args);
        record.add(out.data(), out.size());
    });
}

void attention_probs(const KernelTable& table, Record& record) {
    for_each_case(table, [&](AttentionF32Args args) {
        const GuardedBuffer out(int64_t{args.q_len} * args.kv_len, 116);
        args.out = out.data();
        args.out_stride = args.kv_len;
        table.attention_probs_f32({.attention = args});
        record.add(out.data(), out.size());
    });
}

}  // namespace

const std::vector<KernelCases> kAttentionCases = {
    {"kv_store_f32", kv_store},
    {"attention_f32", attention},
    {"attention_probs_f32", attention_probs},
};

}  // namespace fastattn::native_tests
