#include "program/decoding.h"

#include <numeric>
#include <utility>

namespace fastattn {

Decoding::Decoding(std::shared_ptr<DrawingExecutor> executor, std::vector<Row> rows, std::vector<int32_t> suppressed,
                   bool logprobs)
    : executor_(std::move(executor)), rows_(std::move(rows)), suppressed_(std::move(suppressed)), logprobs_(logprobs) {
    const size_t n = rows_.size();
    for (const Row& row : rows_) caches_.push_back(row.cache.get());
    sequence_ends_.resize(n + 1);
    std::iota(sequence_ends_.begin(), sequence_ends_.end(), 0);
    token_ids_.resize(n), positions_.resize(n), params_.resize(n);
    histories_.resize(n), history_lengths_.resize(n), suppress_.resize(n);
}

Decoding::Drawn Decoding::draw(const std::function<bool()>& poll) {
    const CacheGuard guard(caches_);
    const size_t n = rows_.size();
    for (size_t i = 0; i < n; ++i) {
        Row& row = rows_[i];
        // Reserve room for the drawn token before the step, because it may fail.
        if (row.params.repetition_penalty != 1.0f && row.history.size() == row.history.capacity())
            row.history.reserve(2 * row.history.size() + 16);
        token_ids_[i] = row.token_id;
        positions_[i] = row.cache->length();
        params_[i] = row.params;
        histories_[i] = row.history.data();
        history_lengths_[i] = static_cast<int64_t>(row.history.size());
        suppress_[i] = row.suppress;
    }
    const auto count = static_cast<int32_t>(n);
    Drawn drawn{std::vector<int32_t>(n), std::vector<float>(logprobs_ ? n : 0)};
    const SampleArgs args{.n = count,
                          .vocab = executor_->vocab(),
                          .params = params_.data(),
                          .histories = histories_.data(),
                          .history_lengths = history_lengths_.data(),
                          .suppressed = suppressed_.data(),
                          .n_suppressed = static_cast<int32_t>(suppressed_.size()),
                          .suppress = suppress_.data(),
                          .ids = drawn.ids.data(),
                          .logprobs = logprobs_ ? drawn.logprobs.data() : nullptr};
    const StepArrays arrays{.token_ids = token_ids_.data(),
                            .positions = positions_.data(),
                            .token_type_ids = nullptr,
                            .cu_seqlens = sequence_ends_.data(),
                            .wanted = sequence_ends_.data(),
                            .n_tokens = count,
                            .n_sequences = count,
                            .n_wanted = count};
    executor_->draw({arrays, caches_, {}}, args, poll);
    for (size_t i = 0; i < n; ++i) {
        Row& row = rows_[i];
        row.token_id = drawn.ids[i];
        ++row.params.counter;
        if (row.params.repetition_penalty != 1.0f) row.history.push_back(row.token_id);
        if (row.suppress > 0) --row.suppress;
    }
    return drawn;
}

}  // namespace fastattn
