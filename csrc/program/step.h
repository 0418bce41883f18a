// The arrays of one step, for every executor.
#pragma once
#include <cstdint>
#include <functional>

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
};

const int32_t* index_of(const StepArrays& step, Index index);  // null: all zeros

// The checks of a step, in this order. All throw Error(kInput).
void check_lengths(const StepArrays& step);  // cu_seqlens and wanted

// Checks that sequence `s` continues where its cache of `cached` positions ends. Throws Error(kContextLength) beyond
// the model's limit.
void check_continues(const ProgramSpec& spec, const StepArrays& step, int32_t s, int32_t cached);

// Checks that ids and positions have a row in their tables. table_rows(weight): rows of a weight, by its index in the
// spec.
void check_ids(const ProgramSpec& spec, const StepArrays& step,
               const std::function<int64_t(int32_t weight)>& table_rows);

}  // namespace fastattn
