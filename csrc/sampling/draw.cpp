#include "sampling/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fastattn {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr int kLanes = 16;  // of a sum over a row (docs/numerics.md)
constexpr int kLook = 64;   // ids whose buckets are checked together

uint64_t weight_of(float probability) {
    return static_cast<uint64_t>(static_cast<int64_t>(static_cast<double>(probability) * 0x1p62));
}

// The sum of the weights of all probabilities of at least `least`, which min_p keeps.
uint64_t weight_from(const std::vector<float>& probs, float least) {
    uint64_t total = 0;
    for (const float prob : probs)
        if (prob >= least) total += weight_of(prob);
    return total;
}

// The sum of a softmax over `n` logits, all -inf except `candidates`, which are in order of ascending id. Uses the
// lanes and the tree of the softmax kernel, without the zeros.
float sum_of_lanes(const std::vector<Candidate>& candidates, const std::vector<float>& exponentials, int32_t n) {
    float sums[2][kLanes] = {};
    for (size_t i = 0; i < candidates.size(); ++i) {
        const int32_t vec = candidates[i].id / kLanes;
        const bool in_tail = vec == n / kLanes;
        sums[in_tail ? 1 : vec % 2][candidates[i].id % kLanes] += exponentials[i];
    }
    for (int lane = 0; lane < kLanes; ++lane) sums[0][lane] += sums[1][lane];
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) sums[0][lane] += sums[0][lane + half];
    return sums[0][0];
}

// The lowest logit that equals `logit` after division by the temperature, or kLowest if that logit is far away.
float lowest_level_with(float logit, float temperature) {
    const float level = logit / temperature;
    for (int step = 0; step < 8; ++step) {
        const float below = std::nextafter(logit, -std::numeric_limits<float>::infinity());
        if (below / temperature < level) return logit;
        logit = below;
    }
    return kLowest;
}

}  // namespace

float thin_out(std::vector<Candidate>& candidates, size_t k, float temperature) {
    constexpr int kSteps = 64;
    const size_t n = candidates.size();
    float lows[4], highs[4];  // four chains, because each min or max waits for the one before
    for (size_t i = 0; i < 4; ++i) lows[i] = highs[i] = candidates[std::min(i, n - 1)].logit;
    for (size_t i = 4; i < n; ++i) {
        lows[i % 4] = std::min(lows[i % 4], candidates[i].logit);
        highs[i % 4] = std::max(highs[i % 4], candidates[i].logit);
    }
    const float low = *std::min_element(lows, lows + 4), high = *std::max_element(highs, highs + 4);
    const float steps_per_unit = (kSteps - 1) / (high - low);
    if (!std::isnormal(steps_per_unit)) return kLowest;  // all equal, or too far apart to count
    uint32_t counts[kSteps + 1] = {};
    for (const Candidate& c : candidates) ++counts[static_cast<int>((c.logit - low) * steps_per_unit)];
    int last = kSteps;
    for (size_t kept = counts[last]; kept < k;) kept += counts[--last];
    // Slightly below the start of step `last`, so that rounding leaves no candidate of that step below the edge. At
    // least k candidates are at the edge or above it.
    const float edge = low + (static_cast<float>(last) - 0.01f) / steps_per_unit;
    const float least = lowest_level_with(edge, temperature);
    size_t count = 0;  // no branch: which candidates stay is unpredictable
    for (const Candidate& c : candidates) {
        candidates[count] = c;
        count += c.logit >= least ? 1 : 0;
    }
    candidates.resize(count);
    return least;
}

// Drops all candidates that thin_out may drop.
static void keep_highest(std::vector<Candidate>& candidates, size_t k, float temperature) {
    thin_out(candidates, k, temperature);
    const auto kth = candidates.begin() + static_cast<long>(k) - 1;
    std::nth_element(candidates.begin(), kth, candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
    const float level = kth->logit / temperature;
    std::erase_if(candidates, [&](const Candidate& c) { return c.logit / temperature < level; });
}

int32_t Drawer::from_candidates(std::vector<Candidate>& candidates, Candidate best, const SampleParams& params) {
    const float highest = best.logit / params.temperature;
    // If a logit overflows after the division, choose the highest one, as with temperature 0.
    if (!std::isfinite(highest)) return best.id;
    const auto k = static_cast<size_t>(params.top_k);
    if (k < candidates.size()) keep_highest(candidates, k, params.temperature);
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    const size_t n = candidates.size();
    probs_.resize(n);
    for (size_t i = 0; i < n; ++i) probs_[i] = candidates[i].logit /= params.temperature;
    float unused_sum, unused_log;
    kernels_->exp_sum_f32({.x = probs_.data(),
                           .out = probs_.data(),
                           .n = static_cast<int32_t>(n),
                           .shift = highest,
                           .sum = &unused_sum,
                           .log_sum = &unused_log});
    const float sum = sum_of_lanes(candidates, probs_, vocab_);
    ranked_.clear();
    uint64_t total = 0;
    float best_prob = 0.0f;
    for (size_t i = 0; i < n; ++i) {
        const float prob = probs_[i] / sum;
        best_prob = std::max(best_prob, prob);
        ranked_.push_back({{candidates[i].logit, candidates[i].id}, weight_of(prob)});
        probs_[i] = prob;
        total += ranked_.back().weight;
    }
    const uint64_t kept = params.min_p > 0.0f ? weight_from(probs_, params.min_p * best_prob) : total;
    std::sort(ranked_.begin(), ranked_.end(), [](const Ranked& a, const Ranked& b) { return is_higher(a, b); });
    if (params.top_p < 1.0f) {
        const Crossing nucleus = cross(ranked_, 0, nucleus_limit(params.top_p));
        if (nucleus.id >= 0) total = nucleus.sum;
    }
    return cross(ranked_, 0, drawn_part(std::min(total, kept), params) + 1).id;
}

int32_t Drawer::from_logits(const float* logits, Candidate best, const SampleParams& params) {
    const float highest = best.logit / params.temperature;
    if (!std::isfinite(highest)) return best.id;
    if (params.temperature != 1.0f) {
        scaled_.resize(static_cast<size_t>(vocab_));
        for (int32_t i = 0; i < vocab_; ++i) scaled_[static_cast<size_t>(i)] = logits[i] / params.temperature;
        logits = scaled_.data();
    }
    probs_.resize(static_cast<size_t>(vocab_));
    kernels_->softmax_f32({.x = logits,
                           .x_stride = vocab_,
                           .out = probs_.data(),
                           .out_stride = vocab_,
                           .rows = 1,
                           .n = vocab_,
                           .log = false});
    fill_buckets(logits, highest);
    uint64_t total = 0;
    for (const uint64_t bucket : buckets_) total += bucket;
    const float least = params.min_p * probs_[static_cast<size_t>(best.id)];
    const uint64_t kept = params.min_p > 0.0f ? weight_from(probs_, least) : total;
    if (params.top_p < 1.0f) {
        const Crossing nucleus = cross_buckets(logits, nucleus_limit(params.top_p));
        if (nucleus.id >= 0) total = nucleus.sum;
    }
    return cross_buckets(logits, drawn_part(std::min(total, kept), params) + 1).id;
}

Drawer::Crossing Drawer::cross(const std::vector<Ranked>& ranked, uint64_t before, uint64_t limit) {
    for (const Ranked& candidate : ranked) {
        before += candidate.weight;
        if (before >= limit) return {before, candidate.id};
    }
    return {};
}

void Drawer::fill_buckets(const float* logits, float highest) {
    places_.resize(static_cast<size_t>((vocab_ + kLook - 1) / kLook * kLook), kDrawBuckets);
    buckets_.assign(2 * kDrawBuckets, 0);
    uint16_t* places = places_.data();
    const float* probs = probs_.data();
    uint64_t* sums = buckets_.data();
    for (int32_t i = 0; i < vocab_; ++i) {
        places[i] = static_cast<uint16_t>(draw_bucket(highest, logits[i]));
        // Two sums per bucket, so that the additions of neighboring ids do not wait for each other.
        sums[places[i] + i % 2 * kDrawBuckets] += weight_of(probs[i]);
    }
    for (int bucket = 0; bucket < kDrawBuckets; ++bucket) sums[bucket] += sums[bucket + kDrawBuckets];
    buckets_.resize(kDrawBuckets);
}

Drawer::Crossing Drawer::cross_buckets(const float* logits, uint64_t limit) {
    uint64_t before = 0;
    int bucket = 0;
    while (bucket < kDrawBuckets && before + buckets_[static_cast<size_t>(bucket)] < limit)
        before += buckets_[static_cast<size_t>(bucket++)];
    if (bucket == kDrawBuckets) return {};
    ranked_.clear();
    for (int32_t begin = 0; begin < vocab_; begin += kLook) {
        const uint16_t* places = places_.data() + begin;
        uint16_t found = 0;
        for (int j = 0; j < kLook; ++j) found |= places[j] == bucket ? 1 : 0;
        for (int j = 0; j < kLook && found != 0; ++j)
            if (places[j] == bucket)
                ranked_.push_back({{logits[begin + j], begin + j}, weight_of(probs_[static_cast<size_t>(begin + j)])});
    }
    std::sort(ranked_.begin(), ranked_.end(), [](const Ranked& a, const Ranked& b) { return is_higher(a, b); });
    return cross(ranked_, before, limit);
}

}  // namespace fastattn
