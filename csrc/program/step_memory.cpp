#include "program/step_memory.h"

#include <algorithm>
#include <numeric>

#include "program/op_kind.h"

namespace fastattn {

// Offsets in the workspace, in floats.
struct StepMemory::Layout {
    int64_t scratch = 0;
    std::vector<int64_t> slots;
    int64_t quantized[2] = {}, scales = 0;
    std::vector<int64_t> blocks;  // of each sequence without a cache, whose keys and values live for one layer
    int64_t thread_blocks = 0, most_blocks = 0;
    int64_t position_room = 0, position_floats = 0;  // of all threads, of one
    int64_t recurrent_room = 0;
    std::vector<int64_t> outputs;  // that nobody requested
    int64_t layer_bytes = 0, head_block_floats = 0;
    int64_t floats = 0;

    Layout(const Model& model, const StepInput& step, const std::vector<float*>& outputs_of_caller, bool in_tiles,
           int threads);

private:
    int64_t take(int64_t n) {
        const int64_t at = floats;
        floats += (n + 15) / 16 * 16;
        return at;
    }
};

namespace {

const RecurrentAttrs* recurrent_attrs(const OpSpec& op) {  // null for other kinds
    if (const auto* lstm = op.as<LstmAttrs>()) return lstm;
    return op.as<GruAttrs>();
}

// Words of the largest input of a linear that uses this buffer.
int64_t quantized_words(const Model& model, const StepInput& step, int buffer) {
    int64_t most = 0;
    for (size_t i = 0; i < model.spec.ops.size(); ++i) {
        const OpSpec& op = model.spec.ops[i];
        if (buffer == 0 && recurrent_attrs(op) != nullptr)
            for (const int32_t weight : op.weights) {
                const Weight& found = *model.weights[weight];
                if (found.use == WeightUse::kMatrix && found.format != Format::kFloat32)
                    most = std::max(most, step.n_sequences * ops::quantized_stride(found.matrix().words));
            }
        if (!op.is<LinearAttrs>() || model.plan.rounding(i).input_buffer != buffer) continue;
        const ops::Matrix matrix = model.weights[op.weights[0]]->matrix();
        if (matrix.format != Format::kFloat32)
            most = std::max(most, step.rows(model.spec.in(op, 0).rows) * ops::quantized_stride(matrix.words));
    }
    return most;
}

// What a thread needs for the position tables of any attention.
int64_t position_floats_of(const Model& model, int64_t positions) {
    int64_t most = 0;
    for (const OpSpec& op : model.spec.ops) {
        const ops::PositionTables tables = position_tables(model, op);
        if (tables.columns > 0) most = std::max(most, ops::position_room(tables, positions));
    }
    return most;
}

// What the recurrent ops need, which run one after the other.
int64_t recurrent_floats_of(const Model& model, const StepInput& step) {
    int64_t most = 0;
    for (const OpSpec& op : model.spec.ops) {
        if (op.is<SequenceProbsAttrs>()) most = std::max<int64_t>(most, step.n_tokens);
        const RecurrentAttrs* attrs = recurrent_attrs(op);
        if (attrs == nullptr) continue;
        const int64_t width = op.is<LstmAttrs>() ? op.as<LstmAttrs>()->width : attrs->hidden;
        most = std::max(most, ops::recurrent_room(step.n_sequences, model.spec.in(op, 0).width, width, attrs->hidden));
    }
    return most;
}

// Whether the logits go to the sampler tile by tile.
bool draws_in_tiles(const Model& model, const Sampler* sampler) {
    return sampler != nullptr && model.plan.sampled_op() >= 0;
}

}  // namespace

ops::PositionTables position_tables(const Model& model, const OpSpec& op) {
    const auto* probs = op.as<AttentionProbsAttrs>();
    const AttentionAttrs* attrs = probs != nullptr ? probs : op.as<AttentionAttrs>();
    if (attrs == nullptr || !attrs->has_columns) return {};
    size_t next = attrs->has_bias ? 1 : 0;
    const auto take = [&]() -> const Weight& { return *model.weights[static_cast<size_t>(op.weights[next++])]; };
    ops::PositionTables tables{.columns = attrs->n_columns, .column_of = take().data.floats() + attrs->column_reach()};
    if (attrs->has_position_keys) tables.keys = take().matrix();
    if (attrs->has_position_queries) tables.queries = take().matrix();
    return tables;
}

StepMemory::Layout::Layout(const Model& model, const StepInput& step, const std::vector<float*>& outputs_of_caller,
                           bool in_tiles, int threads)
    : layer_bytes(model.kv.layer_bytes()),
      head_block_floats(model.kv.head_bytes() / static_cast<int64_t>(sizeof(float))) {
    scratch = take(threads * ops::kScratchFloats);
    for (const Slot& slot : model.plan.slots()) slots.push_back(take(slot.size * step.rows(slot.rows)));
    for (int buffer = 0; buffer < 2; ++buffer) quantized[buffer] = take(quantized_words(model, step, buffer));
    scales = take(std::max({step.n_tokens, step.n_wanted, step.n_sequences}));
    const bool own = step.caches.empty() && model.spec.n_layer > 0;
    for (int32_t s = 0; own && s < step.n_sequences; ++s) {
        const int64_t n_blocks = (step.length(s) + kBlockLen - 1) / kBlockLen;
        blocks.push_back(take(n_blocks * layer_bytes / static_cast<int64_t>(sizeof(float))));
        most_blocks = std::max(most_blocks, n_blocks);
    }
    thread_blocks = take(threads * most_blocks * head_block_floats);
    position_floats = position_floats_of(model, most_blocks * kBlockLen);
    position_room = take(threads * position_floats);
    recurrent_room = take(recurrent_floats_of(model, step));
    outputs.assign(outputs_of_caller.size(), 0);
    for (size_t i = 0; i < outputs.size(); ++i)
        if (outputs_of_caller[i] == nullptr && !(in_tiles && static_cast<int32_t>(i) == model.spec.logits))
            outputs[i] = take(floats_of(model.spec, model.spec.outputs[i], step));
}

void StepMemory::prepare(const Model& model, const StepInput& step, const std::vector<float*>& outputs,
                         const Sampler* sampler, int threads) {
    const Layout layout(model, step, outputs, draws_in_tiles(model, sampler), threads);
    buffer_.grow(static_cast<size_t>(layout.floats) * sizeof(float));
    float* base = buffer_.floats();
    scratch_.clear();
    position_room_.clear();
    for (int i = 0; i < threads; ++i) {
        scratch_.push_back(base + layout.scratch + i * ops::kScratchFloats);
        position_room_.push_back(base + layout.position_room + i * layout.position_floats);
    }
    for (int i = 0; i < 2; ++i)  // the second one is for bfloat16, which has no scales
        quantized_[i] = {reinterpret_cast<int32_t*>(base + layout.quantized[i]), base + layout.scales};
    recurrent_room_ = base + layout.recurrent_room;
    place_views(model, step, outputs, sampler, layout);
    place_blocks(step, layout);
    place_sequences(step, layout);
    place_positions(step);
    place_thread_blocks(layout, threads);
}

void StepMemory::place_views(const Model& model, const StepInput& step, const std::vector<float*>& outputs,
                             const Sampler* sampler, const Layout& layout) {
    float* base = buffer_.floats();
    const ProgramSpec& spec = model.spec;
    views_.assign(spec.values.size(), {});
    for (int32_t v = 0; v < static_cast<int32_t>(spec.values.size()); ++v) {
        const ValueSpec& value = spec.values[v];
        const Place& place = model.plan.place(v);
        if (model.plan.source(v).parent != v) continue;
        View& view = views_[v] = {nullptr, step.rows(value.rows), value.width, value.width};
        if (place.output >= 0 && place.output == spec.logits && draws_in_tiles(model, sampler)) {
            view = sampler->logits();
        } else if (place.output >= 0) {
            view.data = outputs[place.output] ? outputs[place.output] : base + layout.outputs[place.output];
        } else if (place.slot >= 0) {
            view.data = base + layout.slots[place.slot];
            view.stride = model.plan.slots()[place.slot].size;
        }
    }
}

View StepMemory::view(const Model& model, int32_t value) const {
    const Source& source = model.plan.source(value);
    View view = views_[source.parent];
    view.data += source.column;
    view.width = model.spec.values[value].width;
    return view;
}

void StepMemory::place_blocks(const StepInput& step, const Layout& layout) {
    own_blocks_.assign(layout.blocks.size(), {});
    for (int32_t s = 0; s < static_cast<int32_t>(layout.blocks.size()); ++s)
        for (int32_t b = 0; b * kBlockLen < step.length(s); ++b)
            own_blocks_[s].push_back(buffer_.data() + layout.blocks[s] * sizeof(float) + b * layout.layer_bytes);
}

void StepMemory::place_sequences(const StepInput& step, const Layout& layout) {
    const auto n = static_cast<size_t>(step.n_sequences);
    for (auto& sequences : sequences_) sequences.assign(n, {});
    for (auto& memories : memories_) memories.assign(n, {});
    first_tokens_.assign(n, 0);
    last_tokens_.assign(n, 0);
    for (int32_t s = 0, w = 0; s < step.n_sequences; ++s) {
        const int32_t begin = step.cu_seqlens[s], end = step.cu_seqlens[s + 1];
        ops::SequenceBlocks sequence{.blocks = nullptr,
                                     .token_begin = begin,
                                     .token_end = end,
                                     .position = 0,
                                     .q_begin = begin,
                                     .q_end = end,
                                     .key_count = step.key_counts != nullptr ? step.key_counts[s] : end - begin};
        if (!layout.blocks.empty()) {
            sequence.blocks = own_blocks_[s].data();
        } else if (!step.caches.empty()) {
            step.caches[s]->reserve(end - begin);
            sequence.blocks = step.caches[s]->blocks();
            sequence.position = step.caches[s]->length();
        }
        const KvCache* memory = step.caches.empty() ? nullptr : step.caches[s]->memory();
        const auto put = [&](Gather rows, int32_t q_begin, int32_t q_end) {
            sequence.q_begin = q_begin, sequence.q_end = q_end;
            sequences_[static_cast<int>(rows)][s] = sequence;
            if (memory == nullptr) return;
            memories_[static_cast<int>(rows)][s] = {.blocks = memory->blocks(),
                                                    .token_begin = begin,
                                                    .token_end = begin,
                                                    .position = 0,
                                                    .q_begin = q_begin,
                                                    .q_end = q_end,
                                                    .key_count = begin == end ? 0 : memory->length()};
        };
        put(Gather::kTokens, begin, end);
        const int32_t first_wanted = w;
        while (w < step.n_wanted && step.wanted[w] < end) ++w;
        put(Gather::kWanted, first_wanted, w);
        put(Gather::kFirst, s, s + 1);
        put(Gather::kLast, s, s + 1);
        first_tokens_[s] = begin;
        last_tokens_[s] = std::max(begin, end - 1);
    }
    by_length_.resize(n);
    std::iota(by_length_.begin(), by_length_.end(), 0);
    // Not stable_sort, which allocates memory, and hides it if there is none.
    std::sort(by_length_.begin(), by_length_.end(), [&](int32_t a, int32_t b) {
        return step.length(a) != step.length(b) ? step.length(a) > step.length(b) : a < b;
    });
    query_tokens_[static_cast<int>(Gather::kWanted)] = step.wanted;
    query_tokens_[static_cast<int>(Gather::kFirst)] = first_tokens_.data();
    query_tokens_[static_cast<int>(Gather::kLast)] = last_tokens_.data();
}

void StepMemory::place_positions(const StepInput& step) {
    const auto own = [this](Gather rows) -> std::vector<int32_t>& {
        std::vector<int32_t>& positions = own_positions_[static_cast<int>(rows)];
        positions.clear();
        return positions;
    };
    auto &wanted = own(Gather::kWanted), &first = own(Gather::kFirst), &last = own(Gather::kLast);
    for (int32_t w = 0; w < step.n_wanted; ++w) wanted.push_back(step.positions[step.wanted[w]]);
    for (int32_t s = 0; s < step.n_sequences; ++s) {
        const bool empty = step.length(s) == 0;
        first.push_back(empty ? 0 : step.positions[first_tokens_[s]]);
        last.push_back(empty ? 0 : step.positions[last_tokens_[s]]);
    }
    for (int rows = 0; rows < kGatherKinds; ++rows) positions_[rows] = own_positions_[rows].data();
    positions_[static_cast<int>(Gather::kTokens)] = step.positions;
}

void StepMemory::place_thread_blocks(const Layout& layout, int threads) {
    float* base = buffer_.floats() + layout.thread_blocks;
    own_thread_blocks_.assign(threads, {});
    thread_blocks_.clear();
    for (int i = 0; i < threads; ++i) {
        for (int64_t b = 0; b < layout.most_blocks; ++b)
            own_thread_blocks_[i].push_back(
                reinterpret_cast<std::byte*>(base + (i * layout.most_blocks + b) * layout.head_block_floats));
        thread_blocks_.push_back(own_thread_blocks_[i].data());
    }
}

}  // namespace fastattn
