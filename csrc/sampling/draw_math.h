// The arithmetic of drawing a token, for the CPU and for CUDA kernels.
//
// Weights are softmax probabilities as integer multiples of 2^-62, so their sums are exact. The drawn token does not
// depend on the order of the candidates or on how many are omitted because their weight is 0.
#pragma once
#include <cstdint>

#include "core/anywhere.h"

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

    FA_ANYWHERE bool greedy() const { return do_sample == 0 || temperature == 0.0f; }
};
static_assert(sizeof(SampleParams) == 40);

// An id and its logit, or the logit divided by the temperature.
struct Candidate {
    float logit;
    int32_t id;
};

// The order of candidates: by descending logit, ties by ascending id.
FA_ANYWHERE bool is_higher(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Why no token can be drawn from a row.
enum class SampleStatus : int32_t { kFine, kNan, kInfinite, kEmpty };

// Four random words of Philox4x32-10 (Salmon et al. 2011) for a key and a counter.
FA_ANYWHERE void philox(uint64_t key, uint64_t counter, uint32_t (&out)[4]) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// The part of `total` that the row's random number selects. The first candidate whose running sum exceeds it is drawn.
FA_ANYWHERE uint64_t drawn_part(uint64_t total, const SampleParams& params) {
    uint32_t words[4] = {};
    philox(params.seed, params.counter, words);
    const uint64_t u = words[0] >> 8;  // below 2^24
    return u * (total >> 24) + ((u * (total & 0xffffff)) >> 24);
}

// The lowest sum of weights that reaches top_p < 1.
FA_ANYWHERE uint64_t nucleus_limit(float top_p) {
    const double exact = static_cast<double>(top_p) * 0x1p62;
    const auto whole = static_cast<uint64_t>(exact);
    return whole + (static_cast<double>(whole) < exact ? 1 : 0);
}

// Buckets of candidates by distance from the highest logit: a coarse order that spreads them evenly, so that only one
// bucket has to be sorted. e^-44 is below 2^-62.
inline constexpr int kDrawBuckets = 1024;
FA_ANYWHERE int draw_bucket(float highest, float logit) {
    constexpr float kPerUnit = (kDrawBuckets - 1) / 44.0f, kLast = kDrawBuckets - 1;
    const float at = (highest - logit) * kPerUnit;
    return static_cast<int>(kLast < at ? kLast : at);
}

}  // namespace fastattn
