// The input of one step, for every executor.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "kv/kv_cache.h"
#include "program/spec.h"

namespace fastattn {

// Pointers must stay valid during the call. Shapes are as in src/fastattn/graph/ir.py.
struct StepArrays {
    const int32_t* token_ids;       // [n_tokens]
    const int32_t* positions;       // [n_tokens]
    const int32_t* token_type_ids;  // [n_tokens] or null
    const int32_t* cu_seqlens;      // [n_sequences + 1]
    const int32_t* wanted;          // [n_wanted]
    int32_t n_tokens, n_sequences, n_wanted;
    const int32_t* key_counts = nullptr;  // [n_sequences]: only these first tokens are attended to; null: all
};

// Rows of floats that the caller computed, [rows, width]; see the op `features`.
struct FeatureRows {
    const float* data;
    int64_t rows, width;
};

struct StepInput : StepArrays {
    std::vector<KvCache*> caches;       // one per sequence, or empty
    std::vector<FeatureRows> features;  // by the index of the op

    int64_t rows(Rows kind) const {
        return kind == Rows::kTokens ? n_tokens : kind == Rows::kWanted ? n_wanted : n_sequences;
    }
    int32_t length(int32_t s) const { return cu_seqlens[s + 1] - cu_seqlens[s]; }  // of a sequence in this step
    int32_t start(int32_t s) const { return caches.empty() ? 0 : caches[static_cast<size_t>(s)]->length(); }
};

const int32_t* index_of(const StepArrays& step, Index index);  // null: all zeros

// Number of floats in the attention maps of a sequence, [n_maps, q_len, kv_len].
int64_t map_floats(int32_t n_maps, const StepInput& step, int32_t s);

// Number of floats in a value: rows x width, or [n_maps, q_len, kv_len] of every sequence. The caller must acquire the
// caches (CacheGuard) before, because attention maps grow with the caches.
int64_t floats_of(const ProgramSpec& spec, int32_t value, const StepInput& step);

// The width of the logits. Throws Error(kInput) if there are none.
int32_t vocab_of(const ProgramSpec& spec);

// Checks the arrays. Checks that every cache is open, belongs to this pool and is continued by its sequence. Checks
// that the tables have a row for every id and position, and a bias or column for every pair of positions.
// table_rows(weight): rows of the weight with this index in the spec. Throws Error(kInput), or Error(kContextLength)
// beyond the model's limit.
void check_step(const ProgramSpec& spec, const StepInput& step, const PagePool* pool,
                const std::function<int64_t(int32_t weight)>& table_rows);

// Adds the step's tokens to the lengths of the caches.
void advance(const StepInput& step);

}  // namespace fastattn
