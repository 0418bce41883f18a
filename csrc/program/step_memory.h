// The memory of the running step: the numbers of every value, keys and values, and scratch, in one workspace.
#pragma once
#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "kv/kv_cache.h"
#include "kv/kv_pool.h"
#include "ops/ops.h"
#include "program/plan.h"
#include "program/spec.h"
#include "program/step.h"
#include "sampling/sampler.h"
#include "weights/weights.h"

namespace fastattn {

// A validated Program with its weights.
struct Model {
    ProgramSpec spec;
    std::vector<const Weight*> weights;  // of the spec
    Plan plan;
    KvShape kv;
    const KernelTable& kernels;
};

// The tables of relative positions of an attention, without room.
ops::PositionTables position_tables(const Model& model, const OpSpec& op);

class StepMemory {
public:
    // Sets the addresses of everything that the step touches. May allocate, so it runs before the region. outputs[i]:
    // the caller's memory for output i, or null. sampler: null if no tokens are drawn.
    void prepare(const Model& model, const StepInput& step, const std::vector<float*>& outputs, const Sampler* sampler,
                 int threads);

    View view(const Model& model, int32_t value) const;
    // If the queries are these rows: sequences() has each sequence's share of an attention, and query_tokens() the
    // token of each row (null for kTokens).
    const ops::SequenceBlocks* sequences(Gather rows) const { return sequences_[static_cast<int>(rows)].data(); }
    const int32_t* query_tokens(Gather rows) const { return query_tokens_[static_cast<int>(rows)]; }
    // The position of each row's token; 0 for the row of an empty sequence.
    const int32_t* positions(Gather rows) const { return positions_[static_cast<int>(rows)]; }
    // Room for the rounded activations of one linear each.
    const ops::Quantized& quantized(int buffer) const { return quantized_[buffer]; }
    float* const* scratch() const { return scratch_.data(); }  // one per thread
    std::byte* const* const* thread_blocks() const { return thread_blocks_.data(); }
    float* const* position_room() const { return position_room_.data(); }  // one per thread, for position tables
    // For lstm, gru and sequence_probs, shared by all threads.
    float* recurrent_room() const { return recurrent_room_; }
    const int32_t* by_length() const { return by_length_.data(); }  // the sequences, the longest first
    int64_t bytes() const { return static_cast<int64_t>(buffer_.bytes()); }

private:
    struct Layout;
    void place_views(const Model& model, const StepInput& step, const std::vector<float*>& outputs,
                     const Sampler* sampler, const Layout& layout);
    void place_blocks(const StepInput& step, const Layout& layout);
    void place_sequences(const StepInput& step, const Layout& layout);
    void place_positions(const StepInput& step);
    void place_thread_blocks(const Layout& layout, int threads);

    Buffer buffer_;
    std::vector<View> views_;  // of the parents
    std::vector<ops::SequenceBlocks> sequences_[kGatherKinds];
    const int32_t* query_tokens_[kGatherKinds] = {};
    std::vector<int32_t> first_tokens_, last_tokens_, by_length_;
    float* recurrent_room_ = nullptr;
    const int32_t* positions_[kGatherKinds] = {};
    std::vector<int32_t> own_positions_[kGatherKinds];
    ops::Quantized quantized_[2];
    std::vector<float*> scratch_, position_room_;
    std::vector<std::vector<std::byte*>> own_blocks_;  // one per sequence
    std::vector<std::vector<std::byte*>> own_thread_blocks_;
    std::vector<std::byte* const*> thread_blocks_;
};

}  // namespace fastattn
