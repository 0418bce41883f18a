// Choosing next tokens from logits.
#pragma once
#include <cstdint>

namespace fastattn {

// One record a row, laid out as the numpy dtype SAMPLE_PARAMS of fastattn.generation.numpy_sampler.
struct SampleParams {
    float temperature;         // 0: greedy
    float top_p;               // 1: off
    float min_p;               // 0: off
    float repetition_penalty;  // 1: off
    int32_t top_k;             // 0: off
    int32_t do_sample;         // 0: greedy
    uint64_t seed;
    uint64_t counter;  // position of the token to be drawn, so that a text does not depend on how it was batched
};
static_assert(sizeof(SampleParams) == 40);

// Four random words of Philox4x32-10 (Salmon et al. 2011) for a key and a counter.
void philox(uint64_t key, uint64_t counter, uint32_t (&out)[4]);

// Draws one token for each row of logits [n, vocab]: repetition penalty over the row's history, then temperature,
// top-k, top-p, min-p, and one draw by Philox. Candidates stand in order of falling logit, ties by rising id. Writes
// the id and its log-softmax under the unprocessed logits. Throws Error(kNonFinite) naming the row for NaN, +inf or all
// -inf.
struct SampleArgs {
    const float* logits;
    int32_t n, vocab;
    const SampleParams* params;      // [n]
    const int32_t* history;          // ids of all rows, one behind the other
    const int64_t* history_offsets;  // [n + 1]
    int32_t* ids;
    float* logprobs;  // or null
};
void sample(const SampleArgs& args);

}  // namespace fastattn
