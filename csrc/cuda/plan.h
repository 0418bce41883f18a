// The layout of a Program in device memory, and the sizes of a step that its launches depend on. Plain C++: no CUDA
// here.
#pragma once
#include <compare>
#include <cstdint>
#include <vector>

#include "cuda/kernels/kernels.h"
#include "program/lifetimes.h"
#include "program/spec.h"
#include "program/step.h"

namespace fastattn::cuda {

inline constexpr int64_t kAlignment = 256;  // bytes; for everything in the workspace
inline constexpr int64_t align(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Upper bounds of a step. They determine grids, memory and graphs. Kernels read the actual numbers.
struct Sizes {
    int32_t tokens = 0, wanted = 0, sequences = 0;
    int32_t sequence_tokens = 0;  // the most tokens of one sequence in this step
    int32_t sequence_wanted = 0;
    int32_t positions = 0;  // of the longest sequence, including its cache
    bool cached = false;

    int32_t rows(fastattn::Rows kind) const {
        return kind == fastattn::Rows::kTokens ? tokens : kind == fastattn::Rows::kWanted ? wanted : sequences;
    }
    int32_t pages() const { return (positions + kBlockLen - 1) / kBlockLen; }  // of the longest sequence
    auto operator<=>(const Sizes&) const = default;
};

// starts: positions before the step, one per sequence; empty without caches.
Sizes sizes_of(const StepArrays& step, const std::vector<int32_t>& starts);

// Upper bound of the query rows of one sequence in an attention whose q has these rows.
int32_t most_queries(const Sizes& sizes, Gather gather);

inline constexpr int32_t kGraphTokens = 64;  // steps with up to this many tokens are captured

// The sizes of the graph that runs steps of `sizes`: each rounded up to a power of two, and positions to a power of two
// of whole pages. So a decoding batch has one graph for each doubling of its length. Steps with more than kGraphTokens
// have no graph. Their sizes are rounded up so that similar steps share a workspace.
Sizes bucket_of(const Sizes& sizes);

// Where a value is stored. A slice is the part of its parent from `column` on.
struct Place {
    int32_t parent = -1, column = 0;
    int32_t slot = -1;     // as float32; -1: not read as float32
    int32_t rounded = -1;  // slot of the rounded rows that linears of a 16-bit type read, or -1
    Type rounded_type = Type::kFloat32;
};

class Plan {
public:
    // weight_types: one per weight of the spec.
    Plan(const ProgramSpec& spec, std::vector<Type> weight_types);

    const std::vector<Place>& places() const { return places_; }
    const std::vector<Slot>& slots() const { return slots_; }  // sizes: bytes of a row, a multiple of 16
    Type weight_type(int32_t weight) const { return weight_types_[static_cast<size_t>(weight)]; }
    // Whether the input of a linear is already rounded. If not, the linear rounds it first.
    bool input_rounded(const OpSpec& op) const;
    // Whether the bare product of a linear needs memory of its own, because its output is only rounded, or overwrites
    // the residual.
    bool product_apart(const OpSpec& op) const;

private:
    // The forms in which a value is read; find_readers returns one per value.
    struct Readers {
        bool floats = false, rounded = false;
    };
    std::vector<Readers> find_readers(const ProgramSpec& spec);
    const Place& place(int32_t value) const { return places_[static_cast<size_t>(value)]; }

    std::vector<Type> weight_types_;
    std::vector<Place> places_;
    std::vector<Slot> slots_;
};

// The arrays of a step in one piece of memory, copied to the device at once. Offsets from its start in int32.
struct StepLayout {
    int64_t counts;                                // tokens, wanted, sequences, by fastattn::Rows
    int64_t token_ids, positions, token_type_ids;  // [tokens]
    int64_t cu_seqlens;                            // [sequences + 1]
    int64_t starts;                                // [sequences]
    int64_t wanted;                                // [wanted]
    int64_t wanted_begin;                          // [sequences + 1]: bounds of each sequence's wanted rows
    int64_t one_each;                              // [sequences + 1]: 0, 1, 2 ...
    int64_t first, last;                           // [sequences]: tokens; -1 for an empty sequence
    int64_t first_query, last_query;               // the same, but the sequence's begin if it is empty
    int64_t pages;                                 // [sequences, sizes.pages()], of addresses: two words each
    int64_t words;                                 // total

    explicit StepLayout(const Sizes& sizes);
};

// The pages of a step: those of each sequence's cache, or consecutive ones of the step's own.
struct StepPages {
    std::vector<std::byte* const*> cached;  // one per sequence; empty without caches
    std::byte* own = nullptr;
    int64_t own_bytes = 0;  // of one page
};

// Writes the arrays of a step to `to`.
void fill_step(const StepLayout& layout, const Sizes& sizes, const StepArrays& step, const std::vector<int32_t>& starts,
               const StepPages& pages, int32_t* to);

// Pages of one layer that a step without caches needs.
int64_t own_pages(const Sizes& sizes);

// The workspace of steps of some sizes. Offsets in bytes.
struct Workspace {
    std::vector<int64_t> slots;
    int64_t round = 0, product = 0, partials = 0, own_pages = 0, step = 0;
    int64_t bytes = 0;

    Workspace(const Plan& plan, const ProgramSpec& spec, const Sizes& sizes, int64_t kv_layer_bytes);
};

}  // namespace fastattn::cuda
