// Draws a token for each row of logits, by the rules of csrc/sampling and with the CPU's bits; one block per row.
// Weights are probabilities as integer multiples of 2^-62, whose sums do not depend on their order. The sum of the
// softmax has the lanes and the tree of csrc/kernels/softmax_f32.cpp.
#include "cuda/kernels/device_math.h"

namespace fastattn::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDigits = 256;  // of a key, eight bits at a time
// Shared memory of a block.
struct Shared {
    uint64_t sums[kDrawBuckets];  // weights, or counts, by bucket or digit
    uint64_t total[kWarps];
    Candidate best[kWarps];
    float lanes[2 * 16];
    uint32_t found[kWarps];
    uint64_t before, at;
    float value;
    int32_t id;
};

// Rises as the logit falls; -0 and 0 have the same key.
FA_DEVICE uint32_t key_of(float logit) {
    const uint32_t bits = word_of(logit == 0.0f ? 0.0f : logit);
    return (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
}

// The highest logit with the lowest id, and whether there is a NaN. All threads get the same.
FA_DEVICE Candidate find_best(const float* logits, int vocab, Shared& shared, bool& nan) {
    Candidate best{-kInf, -1};
    bool own_nan = false;
    for (int i = thread_id(); i < vocab; i += kThreads) {
        const float logit = logits[i];
        own_nan |= logit != logit;
        if (logit > best.logit) best = {logit, i};
    }
#pragma unroll
    for (int mask : {16, 8, 4, 2, 1}) {
        const Candidate other{shuffle_xor(best.logit, mask), shuffle_xor(best.id, mask)};
        if (is_higher(other, best)) best = other;
    }
    const uint32_t nans = ballot(own_nan);
    sync_threads();  // no thread reads the shared values any more
    if (lane() == 0) {
        shared.best[warp()] = best;
        shared.found[warp()] = nans;
    }
    sync_threads();
    best = shared.best[0];
    nan = shared.found[0] != 0;
    for (int w = 1; w < kWarps; ++w) {
        if (is_higher(shared.best[w], best)) best = shared.best[w];
        nan |= shared.found[w] != 0;
    }
    return best;
}

FA_DEVICE SampleStatus status_of(Candidate best, bool nan) {
    if (nan) return SampleStatus::kNan;
    if (best.logit == kInf) return SampleStatus::kInfinite;
    return best.logit == -kInf ? SampleStatus::kEmpty : SampleStatus::kFine;
}

FA_KERNEL(kThreads)
argmax(const ArgmaxArgs args) {
    const int row = block_x();
    if (row >= count_of(args.rows)) return;
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    bool nan;
    const Candidate best = find_best(args.logits + row * args.logits_stride, args.vocab, shared, nan);
    const SampleStatus status = status_of(best, nan);
    if (thread_id() != 0) return;
    args.ids[row] = status == SampleStatus::kFine ? best.id : -1;
    args.status[row] = static_cast<int32_t>(status);
}

// Sum of a row by sixteen lanes with two sums each, then the tree. A partial vector goes to the second sum.
FA_DEVICE float sum_of_lanes(const float* x, int n, Shared& shared) {
    sync_threads();
    if (warp() == 0) {
        const int vec = lane() / 16, column = lane() % 16, whole = n / 16 * 16;
        float sum = 0.0f;
#pragma unroll 8
        for (int i = 16 * vec; i < whole; i += 32) sum += x[i + column];
        if (vec == 1 && whole + column < n) sum += x[whole + column];
        sum += shuffle_xor(sum, 16);
#pragma unroll
        for (int mask : {8, 4, 2, 1}) sum += shuffle_xor(sum, mask);
        if (lane() == 0) shared.value = sum;
    }
    sync_threads();
    return shared.value;
}

template <class T>
FA_DEVICE uint64_t sum_of_block(T own, Shared& shared) {
    uint64_t sum = own;
#pragma unroll
    for (int mask : {16, 8, 4, 2, 1}) sum += shuffle_xor(sum, mask);
    sync_threads();
    if (lane() == 0) shared.total[warp()] = sum;
    sync_threads();
    sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared.total[w];
    return sum;
}

// A probability in units of 2^-62, truncated: a shift of its mantissa. (float64 is slow on many GPUs.)
FA_DEVICE uint64_t weight_of(float probability) {
    const uint32_t bits = word_of(probability), exponent = bits >> 23, digits = bits & 0x7fffffu;
    const uint64_t whole = exponent == 0 ? digits : digits | 0x800000u;
    const int shift = (exponent == 0 ? 1 : static_cast<int>(exponent)) - 127 - 23 + 62;
    return shift >= 0 ? whole << shift : shift > -24 ? whole >> -shift : 0;
}

// Finds the first of sums [n] whose running sum, starting at shared.before, reaches `limit`. Stores its index in
// shared.id (n: none), the sum before it in shared.before, and its own in shared.at. n is a multiple of 32.
FA_DEVICE void find_crossing(int n, uint64_t limit, Shared& shared) {
    sync_threads();
    if (warp() == 0) {
        uint64_t before = shared.before;
        int found = n;
        for (int begin = 0; begin < n && found == n; begin += kWarp) {
            const uint64_t own = shared.sums[begin + lane()];
            uint64_t up_to = own;
#pragma unroll
            for (int distance = 1; distance < kWarp; distance *= 2) {
                const uint64_t lower = shuffle(up_to, lane() - distance);
                if (lane() >= distance) up_to += lower;
            }
            const uint32_t reached = ballot(before + up_to >= limit);
            if (reached == 0) {
                before += shuffle(up_to, kWarp - 1);
                continue;
            }
            const int first = lowest_bit(reached);
            found = begin + first;
            before += shuffle(up_to - own, first);
        }
        if (lane() == 0) {
            shared.id = found;
            shared.before = before;
            shared.at = found < n ? shared.sums[found] : 0;
        }
    }
    sync_threads();
}

FA_DEVICE void clear_sums(int n, Shared& shared) {
    sync_threads();
    for (int i = thread_id(); i < n; i += kThreads) shared.sums[i] = 0;
    sync_threads();
}

// Where running sums of weight(i), in order of descending logit, reach `limit` > 0: the logit's key, the sum of all
// before it, and the sum of all with this key.
struct Crossing {
    uint32_t key;  // kNowhere if they do not reach it
    uint64_t before, sum;
};
constexpr uint32_t kNowhere = 0xffffffffu;  // no number has this key
template <class Weight>
FA_DEVICE Crossing cross(const float* logits, int vocab, float highest, uint64_t limit, const Weight& weight,
                         Shared& shared) {
    const auto bucket_of = [&](int i) { return draw_bucket(highest, logits[i]); };
    clear_sums(kDrawBuckets, shared);
    for (int i = thread_id(); i < vocab; i += kThreads)
        if (const uint64_t w = weight(i); w != 0) add_shared(&shared.sums[bucket_of(i)], w);
    if (thread_id() == 0) shared.before = 0;
    find_crossing(kDrawBuckets, limit, shared);
    const int bucket = shared.id;
    if (bucket == kDrawBuckets) return {kNowhere, 0, 0};
    uint32_t prefix = 0, mask = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        clear_sums(kDigits, shared);
        for (int i = thread_id(); i < vocab; i += kThreads) {
            if (bucket_of(i) != bucket) continue;
            const uint32_t key = key_of(logits[i]);
            if ((key & mask) != prefix) continue;
            if (const uint64_t w = weight(i); w != 0) add_shared(&shared.sums[key >> shift & (kDigits - 1)], w);
        }
        find_crossing(kDigits, limit, shared);
        prefix |= static_cast<uint32_t>(shared.id) << shift;
        mask |= static_cast<uint32_t>(kDigits - 1) << shift;
    }
    return {prefix, shared.before, shared.at};
}

// Number of logits with this key.
FA_DEVICE uint64_t count_key(const float* logits, int vocab, uint32_t key, Shared& shared) {
    uint64_t own = 0;
    for (int i = thread_id(); i < vocab; i += kThreads) own += key_of(logits[i]) == key ? 1 : 0;
    return sum_of_block(own, shared);
}

// The id of rank `rank` (from 0, and below their number) among the logits with this key, by ascending id. A warp scans
// a piece of the vocabulary.
FA_DEVICE int32_t id_of_rank(const float* logits, int vocab, uint32_t key, uint64_t rank, Shared& shared) {
    const int piece = (vocab + kThreads - 1) / kThreads * kWarp, begin = warp() * piece;
    const auto same = [&](int i) { return ballot(i + lane() < vocab && key_of(logits[i + lane()]) == key); };
    uint32_t count = 0;
    for (int i = begin; i < begin + piece; i += kWarp) count += static_cast<uint32_t>(count_bits(same(i)));
    sync_threads();
    if (lane() == 0) shared.found[warp()] = count;
    sync_threads();
    int holder = 0;
    for (; holder < kWarps - 1 && rank >= shared.found[holder]; ++holder) rank -= shared.found[holder];
    if (warp() == holder)
        for (int i = begin; i < begin + piece; i += kWarp) {
            uint32_t bits = same(i);
            const auto here = static_cast<uint64_t>(count_bits(bits));
            if (rank >= here) {
                rank -= here;
                continue;
            }
            for (; rank > 0; --rank) bits &= bits - 1;
            if (lane() == 0) shared.id = i + lowest_bit(bits);
            break;
        }
    sync_threads();
    return shared.id;
}

// Draws from logits [vocab], whose highest is `best`. `scaled` and `probs`: scratch [vocab].
FA_DEVICE int32_t draw(const float* logits, int vocab, Candidate best, const SampleParams& params, float* scaled,
                       float* probs, Shared& shared) {
    const float highest = best.logit / params.temperature;
    // If a logit overflows after the division, the highest one is drawn.
    if (!(math::abs(highest) < kInf)) return best.id;
    for (int i = thread_id(); i < vocab; i += kThreads) scaled[i] = logits[i] / params.temperature;
    sync_threads();
    // With top-k, all logits tied with the k-th are candidates.
    const auto one_each = [](int) { return uint64_t{1}; };
    uint32_t last_key = kNowhere;
    if (params.top_k > 0 && params.top_k < vocab)
        last_key = cross(scaled, vocab, highest, static_cast<uint64_t>(params.top_k), one_each, shared).key;
    for (int i = thread_id(); i < vocab; i += kThreads)
        probs[i] = key_of(scaled[i]) <= last_key ? math::exp(scaled[i] - highest) : 0.0f;
    const float sum = sum_of_lanes(probs, vocab, shared);
    for (int i = thread_id(); i < vocab; i += kThreads) probs[i] = probs[i] / sum;
    sync_threads();
    const float least = params.min_p > 0.0f ? params.min_p * probs[best.id] : 0.0f;
    uint64_t own = 0, own_kept = 0;
    for (int i = thread_id(); i < vocab; i += kThreads) {
        const uint64_t weight = weight_of(probs[i]);
        own += weight;
        if (probs[i] >= least) own_kept += weight;
    }
    uint64_t total = sum_of_block(own, shared);
    const uint64_t kept = sum_of_block(own_kept, shared);  // by min_p
    const auto weight = [&](int i) { return weight_of(probs[i]); };
    // Equal logits have equal weights, so their number tells at which of them the sum reaches its limit.
    const auto rank_at = [&](const Crossing& at, uint64_t limit, uint64_t& each) {
        each = at.sum / count_key(scaled, vocab, at.key, shared);
        return (limit - at.before + each - 1) / each - 1;
    };
    uint64_t each;
    if (params.top_p < 1.0f) {
        uint64_t limit = nucleus_limit(params.top_p);
        if (limit == 0) limit = 1;
        const Crossing nucleus = cross(scaled, vocab, highest, limit, weight, shared);
        if (nucleus.key != kNowhere) total = nucleus.before + (rank_at(nucleus, limit, each) + 1) * each;
    }
    const uint64_t limit = drawn_part(total < kept ? total : kept, params) + 1;
    const Crossing at = cross(scaled, vocab, highest, limit, weight, shared);
    return at.key == kNowhere ? -1 : id_of_rank(scaled, vocab, at.key, rank_at(at, limit, each), shared);
}

FA_KERNEL(kThreads)
sample(const SampleRowsArgs args) {
    const int row = block_x(), vocab = args.vocab;
    if (row >= count_of(args.rows)) return;
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    float* logits = args.logits + row * args.logits_stride;
    const SampleParams params = args.params[row];
    const int64_t room = sample_scratch_floats(1, vocab) / 2;
    float* scaled = args.scratch + 2 * row * room;
    float* probs = scaled + room;
    if (args.suppress != nullptr && args.suppress[row] > 0)
        for (int i = thread_id(); i < args.n_suppressed; i += kThreads)
            if (args.suppressed[i] < vocab) logits[args.suppressed[i]] = -kInf;
    sync_threads();
    bool nan;
    Candidate best = find_best(logits, vocab, shared, nan);
    const SampleStatus status = status_of(best, nan);
    if (thread_id() == 0) args.status[row] = static_cast<int32_t>(status);
    if (status != SampleStatus::kFine) {
        if (thread_id() == 0) args.ids[row] = -1;
        return;
    }
    const float highest = best.logit;
    float log_sum = 0.0f;
    if (args.logprobs != nullptr) {
        for (int i = thread_id(); i < vocab; i += kThreads) probs[i] = math::exp(logits[i] - highest);
        const float sum = sum_of_lanes(probs, vocab, shared);
        log_sum = sum == 0.0f ? 0.0f : math::log(sum);
    }
    // The penalized logits are in the scratch, so that an id that occurs twice is penalized once.
    const float* from = logits;
    if (params.repetition_penalty != 1.0f && args.histories != nullptr) {
        for (int i = thread_id(); i < vocab; i += kThreads) probs[i] = logits[i];
        sync_threads();
        const int32_t* history = args.histories + row * args.history_stride;
        for (int i = thread_id(); i < args.history_lengths[row]; i += kThreads) {
            const float logit = logits[history[i]];
            probs[history[i]] = logit < 0.0f ? logit * params.repetition_penalty : logit / params.repetition_penalty;
        }
        sync_threads();
        best = find_best(probs, vocab, shared, nan);
        if (best.id < 0) best.id = 0;  // the penalty made all logits -inf
        from = probs;
    }
    int32_t id = best.id;
    if (!params.greedy()) id = draw(from, vocab, best, params, scaled, probs, shared);
    if (thread_id() != 0) return;
    args.ids[row] = id;
    if (args.logprobs != nullptr) args.logprobs[row] = logits[id] - highest - log_sum;
}

}  // namespace

void launch_argmax(const ArgmaxArgs& args, Stream stream) {
    launch("argmax", argmax, {args.rows.most}, kThreads, sizeof(Shared), args, stream);
}

void launch_sample(const SampleRowsArgs& args, Stream stream) {
    launch("sample", sample, {args.rows.most}, kThreads, sizeof(Shared), args, stream);
}

}  // namespace fastattn::cuda
