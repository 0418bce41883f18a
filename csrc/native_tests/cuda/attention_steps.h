// Attention steps for the tests: sequences with a past, their pages, and the output of each kernel.
#pragma once
#include "native_tests/cuda/testing.h"
#include "ops/ops.h"

namespace fastattn::cuda::tests {

// A sequence. `id` determines its numbers, so it is the same in any step.
struct Part {
    int id, start, tokens;
};
struct Shape {
    Type type;
    int head_dim, n_head, n_kv_head;
    int q_width() const { return n_head * head_dim; }
    int kv_width() const { return n_kv_head * head_dim; }
};
constexpr float kScale = 0.3f;

enum class Kernel { kPrefill, kDecode };

// Which positions a query sees, and whether scores have a bias.
struct Look {
    bool causal;
    int window = 0;
    bool biased = false;
};
std::string name_of(const Look& look);

// The bias of a head at a relative position.
inline float bias_of(int head, int relative) {
    return 4.0f * number_at(static_cast<uint64_t>(900 + head), static_cast<uint64_t>(100000 + relative));
}

// Element i of the query, key or value (which: 0, 1, 2) of a position.
inline float number_of(const Shape& shape, int id, int which, int position, int i) {
    const auto stream = static_cast<uint64_t>(1000 + 3 * id + which);
    const int width = which == 0 ? shape.q_width() : shape.kv_width();
    return number_at(stream, static_cast<uint64_t>(position) * static_cast<uint64_t>(width) + static_cast<uint64_t>(i));
}

class Step {
public:
    // Pages contain the past of each sequence, stored in uneven pieces. `room`: how many more sequences and tokens the
    // launches allow.
    Step(const Shape& shape, const std::vector<Part>& parts, int room = 3);

    const Shape& shape() const { return shape_; }
    const std::vector<Part>& parts() const { return parts_; }
    int n_tokens() const { return n_tokens_; }

    // Attention of query rows, [rows, n_head * head_dim]: one row per token, or the rows of `query_tokens` (rows
    // q_begin[s] to q_begin[s + 1] belong to sequence s).
    std::vector<float> attention(Kernel kernel, const Look& look) const;
    std::vector<float> attention(Kernel kernel, const Look& look, const std::vector<int32_t>& query_tokens,
                                 const std::vector<int32_t>& q_begin) const;
    // [n_head, tokens, kv_len] of each sequence, concatenated.
    std::vector<float> probs(const Look& look) const;

    // Element d that a page stores for a position, as float: of the value if `values`, else of the key.
    float stored(const Part& part, int position, int head, int d, bool values) const;
    // Sets the key and value of a position to NaN.
    void poison(const Part& part, int position);
    // Checks that every page element without a position is unchanged.
    void check_untouched(Check& check) const;

private:
    void store(const std::vector<Part>& pieces) const;
    unsigned char* head_at(const Part& part, int position, int head) const;
    Sequences sequences(const Memory<int32_t>& cu_seqlens, const Memory<int32_t>& start, int most_positions) const;
    KvPages pages() const;
    Memory<float> biases(const Look& look) const;
    Relative relative(const Look& look, const Memory<float>& biases) const;

    Shape shape_;
    std::vector<Part> parts_;
    int room_, n_tokens_ = 0;
    int64_t pages_each_ = 0, page_bytes_, layer_offset_;
    Memory<int32_t> count_, token_count_;
    std::vector<int32_t> cu_seqlens_, start_;
    mutable Memory<unsigned char> pool_;
    Memory<std::byte*> table_;
};

}  // namespace fastattn::cuda::tests
