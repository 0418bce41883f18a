// Draws one token from the logits of one row, on one thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "sampling/draw_math.h"

namespace fastattn {

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
    struct Ranked : Candidate {
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
