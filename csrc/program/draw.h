// Draws one token from the logits of one row, on one thread.
//
// Weights are softmax probabilities as integer multiples of 2^-62, so their sums are exact. The drawn token does not
// depend on the order of the candidates or on how many are omitted because their weight is 0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace fastattn {

// One record per row, laid out like the numpy dtype SAMPLE_PARAMS of fastattn.graph.ir.
struct SampleParams {
    float temperature;         // 0: greedy
    float top_p;               // 1: off
    float min_p;               // 0: off
    float repetition_penalty;  // 1: off
    int32_t top_k;             // 0: off
    int32_t do_sample;         // 0: greedy
    uint64_t seed;
    uint64_t counter;  // position of the token to draw, so that a text does not depend on its batch

    bool greedy() const { return do_sample == 0 || temperature == 0.0f; }
};
static_assert(sizeof(SampleParams) == 40);

// Four random words of Philox4x32-10 (Salmon et al. 2011) for a key and a counter.
void philox(uint64_t key, uint64_t counter, uint32_t (&out)[4]);

// An id and its logit, or the logit divided by the temperature.
struct Candidate {
    float logit;
    int32_t id;
};

// Drops most candidates that are neither among the k highest nor tied with the k-th after division by the temperature.
// Returns the threshold: candidates with at least this logit remain. Needs k in [1, size].
float thin_out(std::vector<Candidate>& candidates, size_t k, float temperature);

// What drawing needs besides the row. Each thread has its own.
class Drawer {
public:
    Drawer(const KernelTable& kernels, int32_t vocab) : kernels_(&kernels), vocab_(vocab) {}

    // Draws from `candidates`, the only ids that may be drawn, with logits not yet divided by the temperature. `best`
    // is the highest logit with its first id. Changes `candidates`.
    int32_t from_candidates(std::vector<Candidate>& candidates, Candidate best, const SampleParams& params);

    // Draws from all of logits [vocab].
    int32_t from_logits(const float* logits, Candidate best, const SampleParams& params);

private:
    struct Ranked {
        float logit;
        int32_t id;
        uint64_t weight;
    };

    // Where running sums of weights, in order of descending logit and ties by id, reach `limit`.
    struct Crossing {
        uint64_t sum = 0;  // up to and including `id`
        int32_t id = -1;   // -1: nowhere
    };
    static Crossing cross(const std::vector<Ranked>& ranked, uint64_t before, uint64_t limit);
    Crossing cross_buckets(const float* logits, uint64_t limit);
    void fill_buckets(const float* logits, float highest);

    const KernelTable* kernels_;
    int32_t vocab_;
    std::vector<float> scaled_, probs_;
    std::vector<Ranked> ranked_;
    std::vector<uint16_t> places_;   // [vocab], the bucket of each id
    std::vector<uint64_t> buckets_;  // sums of weights
};

}  // namespace fastattn
