// What to draw in a step, for every executor.
#pragma once
#include <string>

#include "core/error.h"
#include "sampling/draw_math.h"

namespace fastattn {

// Repetition penalty over the row's history, then temperature, top-k, top-p, min-p, and one draw by Philox. Candidates
// are in order of descending logit, ties by ascending id.
struct SampleArgs {
    int32_t n, vocab;
    const SampleParams* params;  // [n]
    // The ids before each row's token, for the penalty.
    const int32_t* const* histories;  // [n] of [history_lengths[i]]
    const int64_t* history_lengths;   // [n]
    // Ids that count as -inf in rows where `suppress` is above 0.
    const int32_t* suppressed;  // [n_suppressed]
    int32_t n_suppressed;
    const int64_t* suppress;  // [n]
    int32_t* ids;             // [n]
    float* logprobs;          // [n], log-softmax of the ids over the logits without penalty; or null
};

// Throws Error(kNonFinite) if no token can be drawn from the row.
inline void check_row(int32_t row, SampleStatus status) {
    if (status == SampleStatus::kFine) return;
    const char* found = status == SampleStatus::kNan ? "NaN" : status == SampleStatus::kInfinite ? "+inf" : "-inf only";
    throw Error(ErrorKind::kNonFinite,
                std::string("logits: expected finite numbers, got ") + found + " in row " + std::to_string(row));
}

}  // namespace fastattn
