// Validates a step against the Program.
#include <algorithm>
#include <limits>
#include <set>
#include <string>

#include "core/error.h"
#include "program/op_kind.h"
#include "program/step.h"
#include "weights/adapter.h"

namespace fastattn {
namespace {

[[noreturn]] void bad_input(const std::string& what) {
    throw Error(ErrorKind::kInput, what);
}

void check_rows(const StepArrays& step) {
    if (step.cu_seqlens[0] != 0 || step.cu_seqlens[step.n_sequences] != step.n_tokens)
        bad_input("cu_seqlens: expected 0 first and n_tokens last");
    for (int32_t s = 0; s < step.n_sequences; ++s)
        if (step.cu_seqlens[s + 1] < step.cu_seqlens[s]) bad_input("cu_seqlens: expected non-decreasing numbers");
    for (int32_t i = 0; i < step.n_wanted; ++i)
        if (step.wanted[i] < (i > 0 ? step.wanted[i - 1] + 1 : 0) || step.wanted[i] >= step.n_tokens)
            bad_input("wanted: expected rows of the step in ascending order");
}

// Checks that ids and positions have a row in their tables.
void check_ids(const ProgramSpec& spec, const StepArrays& step, const std::function<int64_t(int32_t)>& table_rows) {
    for (const auto& op : spec.ops) {
        const auto table_index = kind_of(op).table_index;
        const std::optional<TableIndex> used = table_index ? table_index(op.attrs) : std::nullopt;
        if (!used) continue;
        const int32_t* index = index_of(step, used->index);
        const int64_t rows = table_rows(op.weights[0]);
        for (int32_t i = 0; i < step.n_tokens; ++i) {
            const int64_t row = (index ? int64_t{index[i]} : 0) + used->offset;
            if (row < 0 || row >= rows)
                bad_input(std::string(kIndexNames[static_cast<int>(used->index)].name) + ": expected 0 to " +
                          std::to_string(rows - 1 - used->offset) + ", got " + std::to_string(row - used->offset) +
                          " at token " + std::to_string(i));
        }
    }
}

// Checks that sequence `s` continues where its cache ends.
void check_continues(const ProgramSpec& spec, const StepInput& step, int32_t s) {
    const int32_t begin = step.cu_seqlens[s], end = step.cu_seqlens[s + 1], cached = step.start(s);
    const int64_t length = int64_t{cached} + end - begin;
    if (length > spec.max_positions)
        throw Error(ErrorKind::kContextLength, "sequence " + std::to_string(s) + ": " + std::to_string(length) +
                                                   " positions, the model has " + std::to_string(spec.max_positions));
    for (int32_t i = begin; i < end; ++i)
        if (step.positions[i] != cached + i - begin)
            bad_input("positions: expected to continue where the cache ends, at " + std::to_string(cached) +
                      ", in sequence " + std::to_string(s));
}

// Checks that attention can leave out the last keys of a sequence. A query after the last key counts as one at its
// position, so a window must reach every key, and there may be no bias and no tables.
void check_key_counts(const ProgramSpec& spec, const StepInput& step) {
    if (step.key_counts == nullptr) return;
    if (!step.caches.empty()) bad_input("key_counts: expected none with caches");
    int32_t window = std::numeric_limits<int32_t>::max();
    for (const OpSpec& op : spec.ops) {
        if (op.is<AttentionProbsAttrs>()) bad_input("key_counts: expected none with attention maps");
        const auto* attrs = op.as<AttentionAttrs>();
        if (attrs == nullptr) continue;
        if (attrs->causal || attrs->has_bias || attrs->has_columns)
            bad_input("key_counts: expected none with causal attention, a bias or tables of positions");
        if (attrs->window > 0) window = std::min(window, attrs->window);
    }
    for (int32_t s = 0; s < step.n_sequences; ++s) {
        const int32_t length = step.length(s), count = step.key_counts[s];
        if (count < std::min(length, 1) || count > length)
            bad_input("key_counts: expected 1 to " + std::to_string(length) + " for sequence " + std::to_string(s) +
                      ", got " + std::to_string(count));
        if (count < length && length > window)
            bad_input("key_counts: expected at most " + std::to_string(window) +
                      " tokens, the window of attention, in sequence " + std::to_string(s) + ", got " +
                      std::to_string(length));
    }
}

// Checks that the tables of attention have a bias or a column for every pair of positions.
void check_lengths(const ProgramSpec& spec, const StepInput& step) {
    int32_t most = std::numeric_limits<int32_t>::max();
    bool tables = false;
    const char* limited_by = "attention bias has";
    const auto limit = [&](const AttentionAttrs* attrs) {
        if (attrs != nullptr && attrs->has_bias && attrs->bias_positions < most)
            most = attrs->bias_positions, limited_by = "attention bias has";
        if (attrs == nullptr || !attrs->has_columns) return;
        tables = true;
        if (attrs->column_positions < most) most = attrs->column_positions, limited_by = "position tables have";
    };
    for (const OpSpec& op : spec.ops) limit(op.as<AttentionAttrs>()), limit(op.as<AttentionProbsAttrs>());
    if (tables && !step.caches.empty()) bad_input("caches: expected none, because attention has tables of positions");
    for (int32_t s = 0; s < step.n_sequences; ++s) {
        const int64_t length = int64_t{step.start(s)} + step.length(s);
        if (length > most)
            throw Error(ErrorKind::kContextLength, "sequence " + std::to_string(s) + ": " + std::to_string(length) +
                                                       " positions, the " + limited_by + " " + std::to_string(most));
    }
}

// Checks that the Program applies every part of the caches' adapters, and that the matrices fit its linears.
void check_adapters(const ProgramSpec& spec, const StepInput& step) {
    const auto bad = [] { bad_input("caches: expected adapters of this Program, got one of another Program"); };
    for (const KvCache* cache : step.caches) {
        const Adapter* adapter = cache->adapter();
        if (adapter == nullptr) continue;
        std::set<int32_t> applied;
        for (const OpSpec& op : spec.ops) {
            const auto* attrs = op.as<LoraAttrs>();
            const AdapterPart* part = attrs != nullptr ? adapter->find(attrs->target) : nullptr;
            if (part == nullptr) continue;
            if (spec.in(op, 1).width != part->in_features || spec.out(op).width != part->out_features) bad();
            applied.insert(attrs->target);
        }
        if (applied.size() != adapter->parts.size()) bad();
    }
}

// Checks that the step has the rows that the ops `features` read.
void check_features(const ProgramSpec& spec, const StepInput& step) {
    for (const OpSpec& op : spec.ops) {
        const auto* attrs = op.as<FeaturesAttrs>();
        if (attrs == nullptr) continue;
        const auto index = static_cast<size_t>(attrs->index);
        const int64_t rows = step.rows(spec.out(op).rows), width = spec.out(op).width;
        const FeatureRows found = index < step.features.size() ? step.features[index] : FeatureRows{nullptr, 0, 0};
        if (index < step.features.size() && found.rows == rows && found.width == width) continue;
        const auto shape = [](int64_t r, int64_t w) {
            return "[" + std::to_string(r) + ", " + std::to_string(w) + "]";
        };
        bad_input("features: expected " + shape(rows, width) + " at index " + std::to_string(index) + ", got " +
                  (index < step.features.size() ? shape(found.rows, found.width) : "none"));
    }
}

}  // namespace

const int32_t* index_of(const StepArrays& step, Index index) {
    switch (index) {
        case Index::kTokenIds: return step.token_ids;
        case Index::kPositions: return step.positions;
        case Index::kTokenTypeIds: return step.token_type_ids;
    }
    return nullptr;
}

int64_t map_floats(int32_t n_maps, const StepInput& step, int32_t s) {
    const int64_t length = step.length(s);
    return n_maps * length * (length + step.start(s));
}

int64_t floats_of(const ProgramSpec& spec, int32_t value, const StepInput& step) {
    for (const auto& op : spec.ops) {
        const auto* probs = op.as<AttentionProbsAttrs>();
        if (op.output != value || probs == nullptr) continue;
        int64_t total = 0;
        for (int32_t s = 0; s < step.n_sequences; ++s) total += map_floats(probs->n_maps, step, s);
        return total;
    }
    const ValueSpec& of = spec.values[static_cast<size_t>(value)];
    return step.rows(of.rows) * of.width;
}

int32_t vocab_of(const ProgramSpec& spec) {
    if (spec.logits < 0)
        bad_input("program: expected logits of the wanted tokens as an output, to draw from; got none");
    return spec.values[static_cast<size_t>(spec.outputs[static_cast<size_t>(spec.logits)])].width;
}

void check_step(const ProgramSpec& spec, const StepInput& step, const PagePool* pool,
                const std::function<int64_t(int32_t)>& table_rows) {
    check_rows(step);
    if (!step.caches.empty() && step.caches.size() != static_cast<size_t>(step.n_sequences))
        bad_input("caches: expected one per sequence");
    for (int32_t s = 0; s < static_cast<int32_t>(step.caches.size()); ++s) {
        const KvCache& cache = *step.caches[static_cast<size_t>(s)];
        cache.check_open();
        if (cache.pool() != pool) bad_input("caches: expected caches of this model, got one of another model");
        check_continues(spec, step, s);
    }
    check_adapters(spec, step);
    check_lengths(spec, step);
    check_key_counts(spec, step);
    check_features(spec, step);
    check_ids(spec, step, table_rows);
}

void advance(const StepInput& step) {
    for (int32_t s = 0; s < static_cast<int32_t>(step.caches.size()); ++s)
        step.caches[static_cast<size_t>(s)]->advance(step.length(s));
}

}  // namespace fastattn
