// The arrays of a step and those for drawing tokens, as every executor takes them from Python, checked.
#pragma once
#include <optional>
#include <vector>

#include "bindings/bindings.h"
#include "program/step.h"
#include "sampling/sampler.h"

namespace fastattn {

inline StepArrays arrays_from(const py::array& token_ids, const py::array& cu_seqlens, const py::array& positions,
                              const py::array& wanted, const std::optional<py::array>& token_type_ids) {
    const StepArrays step{
        .token_ids = data_of<int32_t>("token_ids", token_ids, 1),
        .positions = data_of<int32_t>("positions", positions, 1),
        .token_type_ids = token_type_ids ? data_of<int32_t>("token_type_ids", *token_type_ids, 1) : nullptr,
        .cu_seqlens = data_of<int32_t>("cu_seqlens", cu_seqlens, 1),
        .wanted = data_of<int32_t>("wanted", wanted, 1),
        .n_tokens = static_cast<int32_t>(token_ids.size()),
        .n_sequences = static_cast<int32_t>(cu_seqlens.size() - 1),
        .n_wanted = static_cast<int32_t>(wanted.size())};
    if (step.n_sequences < 0) throw Error(ErrorKind::kInput, "cu_seqlens: expected at least one number");
    if (positions.size() != token_ids.size() || (token_type_ids && token_type_ids->size() != token_ids.size()))
        throw Error(ErrorKind::kInput, "positions, token_type_ids: expected one per token");
    return step;
}

// The arrays for drawing tokens, checked.
struct Draws {
    const SampleParams* params;
    std::vector<const int32_t*> histories;
    std::vector<int64_t> lengths, no_suppress;
    const int32_t* suppressed = nullptr;
    int32_t n_suppressed = 0;
    const int64_t* suppress = nullptr;
    int32_t n, vocab;

    // The ids before the token of row i are history[offsets[i]:offsets[i + 1]].
    Draws(int32_t n, int32_t vocab, const py::array& params, const py::array& history, const py::array& offsets,
          const std::optional<py::array>& ids_to_suppress = {}, const std::optional<py::array>& counts = {})
        : params(static_cast<const SampleParams*>(params.data())), no_suppress(n), n(n), vocab(vocab) {
        if (params.itemsize() != sizeof(SampleParams) || params.size() != n || !(params.flags() & py::array::c_style))
            throw Error(ErrorKind::kInput, "params: expected one SAMPLE_PARAMS record per row");
        const int64_t* begins = data_of<int64_t>("history_offsets", offsets, 1);
        const int32_t* ids = data_of<int32_t>("history", history, 1);
        if (offsets.size() != n + 1 || begins[0] != 0 || begins[n] != history.size())
            throw Error(ErrorKind::kInput, "history_offsets: expected n + 1 numbers from 0 to the length of history");
        for (int32_t i = 0; i < n; ++i) {
            if (begins[i + 1] < begins[i])
                throw Error(ErrorKind::kInput, "history_offsets: expected non-decreasing numbers");
            histories.push_back(ids + begins[i]);
            lengths.push_back(begins[i + 1] - begins[i]);
        }
        for (py::ssize_t i = 0; i < history.size(); ++i)
            if (ids[i] < 0 || ids[i] >= vocab)
                throw Error(ErrorKind::kInput, "history: expected ids from 0 to " + std::to_string(vocab - 1) +
                                                   ", got " + std::to_string(ids[i]));
        suppress = no_suppress.data();
        if (!ids_to_suppress || !counts) return;
        suppressed = data_of<int32_t>("suppressed", *ids_to_suppress, 1);
        n_suppressed = static_cast<int32_t>(ids_to_suppress->size());
        suppress = data_of<int64_t>("suppress", *counts, 1);
        if (counts->size() != n) throw Error(ErrorKind::kInput, "suppress: expected one number per row");
    }
    SampleArgs args(int32_t* ids, float* logprobs) const {
        return {.n = n,
                .vocab = vocab,
                .params = params,
                .histories = histories.data(),
                .history_lengths = lengths.data(),
                .suppressed = suppressed,
                .n_suppressed = n_suppressed,
                .suppress = suppress,
                .ids = ids,
                .logprobs = logprobs};
    }
};

}  // namespace fastattn
