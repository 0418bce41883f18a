// Attention over pages. float32: the CPU's bits. 16 bits: a float64 loop over the rounded operands, within bounds that
// are derived below. All types: the same bits alone and in a batch, in chunks and at once, in prefill and in decode.
#include <algorithm>

#include "native_tests/cuda/attention_steps.h"

namespace fastattn::cuda::tests {
namespace {

constexpr Type kTypes[] = {Type::kFloat32, Type::kBfloat16, Type::kFloat16};
const std::vector<Part> kRagged = {{1, 0, 5}, {2, 60, 9}, {3, 0, 0}, {4, 130, 70}, {5, 64, 1}, {6, 0, 66}};

const std::vector<Look> kLooks = {{.causal = false},
                                  {.causal = true},
                                  {.causal = false, .window = 17},
                                  {.causal = true, .window = 64},
                                  {.causal = false, .window = 0, .biased = true},
                                  {.causal = true, .window = 0, .biased = true},
                                  {.causal = false, .window = 65, .biased = true},
                                  {.causal = true, .window = 16, .biased = true}};

std::string name_of(const Shape& shape, const char* what, const Look& look = {}) {
    static const char* const types[] = {"float32", "bfloat16", "float16"};
    return std::string(what) + " " + types[static_cast<int>(shape.type)] + " of head_dim " +
           std::to_string(shape.head_dim) + name_of(look);
}

void kv_store(Check& check) {
    for (const Type type : kTypes)
        for (const int head_dim : {1, 4, 15, 16, 20, 64, 72}) {
            const Shape shape{type, head_dim, 2, 2};
            const Step step(shape, kRagged);
            const std::string name = name_of(shape, "kv_store");
            for (const Part& part : kRagged)
                for (int position = 0; position < part.start + part.tokens; ++position)
                    for (int head = 0; head < shape.n_kv_head; ++head)
                        for (int d = 0; d < row_elements(head_dim); ++d)
                            for (const int which : {1, 2}) {
                                const float expected =
                                    d < head_dim
                                        ? held(type, number_of(shape, part.id, which, position, head * head_dim + d))
                                        : 0.0f;
                                const float got = step.stored(part, position, head, d, which == 2);
                                check.same(name, &got, &expected, 1);
                            }
            step.check_untouched(check);
        }
}

// One head of one sequence by the CPU's kernel: [tokens, head_dim], or [tokens, kv_len] with `probs`.
std::vector<float> cpu_float32(const Shape& shape, const Part& part, int head, const Look& look, bool probs) {
    const int kv_len = part.start + part.tokens, head_dim = shape.head_dim;
    const int kv_head = head / (shape.n_head / shape.n_kv_head);
    const auto rows = [&](int which, int from, int of_head) {
        std::vector<float> x;
        for (int position = from; position < kv_len; ++position)
            for (int d = 0; d < head_dim; ++d)
                x.push_back(number_of(shape, part.id, which, position, of_head * head_dim + d));
        return x;
    };
    const std::vector<float> q = rows(0, part.start, head), k = rows(1, 0, kv_head), v = rows(2, 0, kv_head);
    const int64_t block_bytes = kv_head_layout(Format::kFloat32, head_dim).bytes;
    const int n_blocks = (kv_len + kBlockLen - 1) / kBlockLen;
    std::vector<std::byte> memory(static_cast<size_t>(n_blocks * block_bytes));
    std::vector<std::byte*> blocks;
    for (int i = 0; i < n_blocks; ++i) blocks.push_back(memory.data() + i * block_bytes);
    const KernelTable& cpu = scalar::kernel_table();
    cpu.kv_store[0]({.k = k.data(),
                     .v = v.data(),
                     .k_stride = head_dim,
                     .v_stride = head_dim,
                     .blocks = blocks.data(),
                     .rows = kv_len,
                     .position = 0,
                     .head_dim = head_dim});
    std::vector<float> bias;  // of relative positions 1 - kv_len to kv_len - 1
    for (int relative = 1 - kv_len; relative < kv_len; ++relative) bias.push_back(bias_of(head, relative));
    const int width = probs ? kv_len : head_dim;
    std::vector<float> out(static_cast<size_t>(part.tokens * width)), scratch(kAttentionScratch);
    (probs ? cpu.attention_probs : cpu.attention)[0]({.q = q.data(),
                                                      .q_stride = head_dim,
                                                      .blocks = blocks.data(),
                                                      .out = out.data(),
                                                      .out_stride = width,
                                                      .scratch = scratch.data(),
                                                      .q_len = part.tokens,
                                                      .q_position = part.start,
                                                      .kv_len = kv_len,
                                                      .head_dim = head_dim,
                                                      .causal = look.causal,
                                                      .scale = kScale,
                                                      .window = look.window,
                                                      .bias = look.biased ? bias.data() + kv_len - 1 : nullptr});
    return out;
}

void float32_as_cpu(Check& check) {
    for (const int head_dim : {1, 16, 20, 64, 80, 128, 160, 256}) {
        const Shape shape{Type::kFloat32, head_dim, 2, 1};
        const Step step(shape, kRagged);
        for (const Look& look : kLooks) {
            const std::vector<float> out = step.attention(Kernel::kPrefill, look);
            int row = 0;
            for (const Part& part : kRagged) {
                for (int head = 0; head < shape.n_head; ++head) {
                    const std::vector<float> expected = cpu_float32(shape, part, head, look, /*probs=*/false);
                    for (int i = 0; i < part.tokens; ++i)
                        check.same(name_of(shape, "attention", look),
                                   out.data() + (row + i) * shape.q_width() + head * head_dim,
                                   expected.data() + i * head_dim, head_dim);
                }
                row += part.tokens;
            }
        }
    }
}

void probs_as_cpu(Check& check) {
    for (const int head_dim : {1, 20, 64, 256}) {
        const Shape shape{Type::kFloat32, head_dim, 2, 2};
        const Step step(shape, kRagged);
        for (const Look& look : kLooks) {
            const std::vector<float> probs = step.probs(look);
            const float* at = probs.data();
            for (const Part& part : kRagged)
                for (int head = 0; head < shape.n_head; ++head) {
                    const std::vector<float> expected = cpu_float32(shape, part, head, look, /*probs=*/true);
                    check.same(name_of(shape, "probs", look), at, expected.data(),
                               static_cast<int64_t>(expected.size()));
                    at += expected.size();
                }
        }
    }
}

// A query row in float64 over operands rounded as the kernel rounds them: the probabilities, and for the bounds the
// error and the magnitude of a score, in units of log2(e).
struct Reference {
    int begin = 0;          // the first position that it sees
    std::vector<double> p;  // of the positions that it sees; they sum to 1
    double score_error = 0.0, largest = 0.0;

    int end() const { return begin + static_cast<int>(p.size()); }
};

Reference reference(const Step& step, const Part& part, int head, int position, const Look& look) {
    const Shape& shape = step.shape();
    const int kv_head = head / (shape.n_head / shape.n_kv_head), kv_len = part.start + part.tokens;
    const int reach = look.window > 0 ? look.window : kv_len;
    Reference r;
    r.begin = std::max(0, position - reach + 1);
    double highest = -std::numeric_limits<double>::infinity(), total = 0.0;
    for (int j = r.begin; j < (look.causal ? position + 1 : std::min(kv_len, position + reach)); ++j) {
        double score = 0.0, magnitude = 0.0;
        for (int d = 0; d < shape.head_dim; ++d) {
            const float q = number_of(shape, part.id, 0, position, head * shape.head_dim + d);
            const double product =
                double{held(shape.type, q * (kScale * 0x1.715476p+0f))} * step.stored(part, j, kv_head, d, false);
            score += product;
            magnitude += std::fabs(product);
        }
        // Each of the head_dim additions of a tensor core loses at most a unit in the last place (it may truncate).
        double error = (shape.head_dim + 1) * 2 * kHalfUlp * magnitude;
        if (look.biased) {  // fma(bias, log2 e, score): the factor and the result are rounded
            const double bias = bias_of(head, j - position) * 1.4426950408889634;
            score += bias;
            error += kHalfUlp * (std::fabs(bias) + std::fabs(score));
        }
        r.p.push_back(score);
        highest = std::max(highest, score);
        r.score_error = std::max(r.score_error, error);
        r.largest = std::max(r.largest, std::fabs(score));
    }
    for (double& p : r.p) total += p = std::exp2(p - highest);
    for (double& p : r.p) p /= total;
    return r;
}

// Relative error of a probability before it is rounded to T. The score and the maximum have errors, their difference is
// rounded, 2^x has an error of 2 ulp, and each block multiplies by a factor of the same kind.
double probability_error(const Reference& r) {
    const double blocks = (r.end() + kBlockLen - 1) / kBlockLen - r.begin / kBlockLen;
    const double exponent = 2 * r.score_error + 2 * r.largest * kHalfUlp;
    return (1 + blocks) * (exponent * 0.6931471805599453 * 1.01 + 4 * kHalfUlp) + 2 * blocks * kHalfUlp;
}

void within_bounds(Check& check) {
    for (const Type type : {Type::kBfloat16, Type::kFloat16})
        for (const int head_dim : {16, 20, 64, 80, 256}) {
            const Shape shape{type, head_dim, 2, 1};
            const std::vector<Part> parts = {{1, 0, 3}, {2, 130, 70}, {3, 63, 2}};
            const Step step(shape, parts);
            for (const Look& look : kLooks) {
                const std::vector<float> out = step.attention(Kernel::kPrefill, look);
                int row = 0;
                for (const Part& part : parts)
                    for (int position = part.start; position < part.start + part.tokens; ++position, ++row) {
                        if (position % 3 == 1) continue;  // float64 loops are slow
                        for (int head = 0; head < shape.n_head; ++head) {
                            const Reference r = reference(step, part, head, position, look);
                            // Twice the error of the probability itself (the sum has it, too), its rounding to T, and a
                            // sum of 64 values, each addition of which may truncate. Float16 has no steps below 2^-24.
                            const double relative =
                                2 * probability_error(r) + roundoff(type) + (kBlockLen + 8) * 2 * kHalfUlp;
                            for (int d = 0; d < head_dim; ++d) {
                                double expected = 0.0, magnitude = 0.0, largest = 0.0;
                                for (size_t j = 0; j < r.p.size(); ++j) {
                                    const double v = step.stored(part, r.begin + static_cast<int>(j),
                                                                 head / (shape.n_head / shape.n_kv_head), d, true);
                                    expected += r.p[j] * v;
                                    magnitude += r.p[j] * std::fabs(v);
                                    largest = std::max(largest, std::fabs(v));
                                }
                                const double steps =
                                    type == Type::kFloat16 ? 0x1p-25 * largest * static_cast<double>(r.p.size()) : 0.0;
                                check.within(name_of(shape, "attention", look),
                                             out[static_cast<size_t>(row * shape.q_width() + head * head_dim + d)],
                                             expected, relative * magnitude + steps);
                            }
                        }
                    }
            }
        }
}

void probs_within_bounds(Check& check) {
    for (const Type type : {Type::kBfloat16, Type::kFloat16}) {
        const Shape shape{type, 20, 2, 1};
        const std::vector<Part> parts = {{1, 0, 3}, {2, 130, 10}};
        const Step step(shape, parts);
        for (const Look& look : kLooks) {
            const std::vector<float> probs = step.probs(look);
            const float* at = probs.data();
            for (const Part& part : parts)
                for (int head = 0; head < shape.n_head; ++head)
                    for (int position = part.start; position < part.start + part.tokens; ++position) {
                        const Reference r = reference(step, part, head, position, look);
                        for (int j = 0; j < part.start + part.tokens; ++j, ++at) {
                            const auto i = static_cast<size_t>(j - r.begin);
                            const double expected = j >= r.begin && i < r.p.size() ? r.p[i] : 0.0;
                            check.within(name_of(shape, "probs", look), *at, expected,
                                         expected * (2 * probability_error(r) + (kBlockLen + 8) * kHalfUlp));
                        }
                    }
        }
    }
}

std::vector<float> rows_of(const std::vector<float>& out, int width, int begin, int end) {
    return {out.begin() + begin * width, out.begin() + end * width};
}
void same(Check& check, const std::string& what, const std::vector<float>& got, const std::vector<float>& expected) {
    check.that(what + ": as many rows", got.size() == expected.size());
    check.same(what, got.data(), expected.data(), static_cast<int64_t>(expected.size()));
}

void alone_as_in_batch(Check& check) {
    for (const Type type : kTypes)
        for (const int head_dim : {20, 64}) {
            const Shape shape{type, head_dim, 2, 1};
            const Step batch(shape, kRagged);
            for (const Look& look : kLooks) {
                const std::vector<float> all = batch.attention(Kernel::kPrefill, look);
                int row = 0;
                for (const Part& part : kRagged) {
                    if (part.tokens > 0)
                        same(check, name_of(shape, "alone", look),
                             Step(shape, {part}, /*room=*/0).attention(Kernel::kPrefill, look),
                             rows_of(all, shape.q_width(), row, row + part.tokens));
                    row += part.tokens;
                }
            }
        }
}

void chunks_as_at_once(Check& check) {
    for (const Type type : kTypes)
        for (const int head_dim : {20, 64}) {
            const Shape shape{type, head_dim, 2, 2};
            for (const Look& look : kLooks) {
                if (!look.causal) continue;
                const std::vector<float> whole = Step(shape, {{7, 0, 140}}).attention(Kernel::kPrefill, look);
                for (int begin = 0, chunk = 37; begin < 140; begin += chunk, chunk = std::min(2 * chunk, 140 - begin)) {
                    const Step step(shape, {{8, 3, 2}, {7, begin, chunk}});
                    same(check, name_of(shape, "chunk", look),
                         rows_of(step.attention(Kernel::kPrefill, look), shape.q_width(), 2, 2 + chunk),
                         rows_of(whole, shape.q_width(), begin, begin + chunk));
                }
            }
        }
}

void decode_as_prefill(Check& check) {
    for (const Type type : kTypes)
        for (const int head_dim : {16, 20, 64, 128, 256})
            for (const int group : {1, 3, 20}) {  // query heads per KV head; also more than the rows of a tile
                if (group == 3 && head_dim > 64) continue;
                if (group == 20 && head_dim > 16) continue;
                const Shape shape{type, head_dim, 2 * group, 2};
                const Step step(shape, {{1, 0, 1}, {2, 63, 1}, {3, 64, 1}, {4, 5, 0}, {5, 200, 1}});
                for (const Look& look : kLooks) {
                    if ((head_dim > 16 || group > 1) && look.biased != (look.window > 0)) continue;
                    same(check, name_of(shape, "decode", look), step.attention(Kernel::kDecode, look),
                         step.attention(Kernel::kPrefill, look));
                }
            }
}

// Windows that end at and next to the ends of vectors, blocks and texts: the CPU's bits in float32, and the same bits
// in chunks, in decode and in prefill.
void windows(Check& check) {
    for (const Type type : kTypes)
        for (const int window : {1, 15, 16, 17, 63, 64, 65, 128, 199, 200, 201, 1 << 30})
            for (const bool biased : {false, true}) {
                const Shape shape{type, 16, 1, 1};
                const Look look{.causal = true, .window = window, .biased = biased};
                const Part part{9, 0, 200};
                const std::vector<float> whole = Step(shape, {part}).attention(Kernel::kPrefill, look);
                if (type == Type::kFloat32) same(check, "whole", whole, cpu_float32(shape, part, 0, look, false));
                for (const Part& piece : {Part{9, 100, 37}, Part{9, 137, 1}, Part{9, 199, 1}}) {
                    const Step step(shape, {piece});
                    const std::vector<float> expected =
                        rows_of(whole, shape.q_width(), piece.start, piece.start + piece.tokens);
                    same(check, name_of(shape, "chunk", look), step.attention(Kernel::kPrefill, look), expected);
                    if (piece.tokens == 1)
                        same(check, name_of(shape, "decode", look), step.attention(Kernel::kDecode, look), expected);
                }
            }
}

// Selected query rows have the same output as among all rows. A sequence without tokens gives zeros.
void selected_rows(Check& check) {
    for (const Type type : kTypes) {
        const Shape shape{type, 20, 2, 1};
        const Step step(shape, kRagged);
        for (const Look& look : kLooks) {
            const std::vector<float> all = step.attention(Kernel::kPrefill, look);
            const std::vector<int32_t> wanted = {4, 5, 13, 14, 70, 83, 84, 90, 150}, begin = {0, 1, 3, 3, 6, 7, 9};
            const std::vector<float> some = step.attention(Kernel::kPrefill, look, wanted, begin);
            const std::vector<int32_t> last = {4, 13, -1, 83, 84, 150}, one_each = {0, 1, 2, 3, 4, 5, 6};
            for (const Kernel kernel : {Kernel::kPrefill, Kernel::kDecode}) {
                const std::vector<float> ends = step.attention(kernel, look, last, one_each);
                for (size_t i = 0; i < last.size(); ++i) {
                    const std::vector<float> zeros(static_cast<size_t>(shape.q_width()));
                    const auto row = static_cast<int>(i);
                    same(check, name_of(shape, "last row", look), rows_of(ends, shape.q_width(), row, row + 1),
                         last[i] < 0 ? zeros : rows_of(all, shape.q_width(), last[i], last[i] + 1));
                }
            }
            for (size_t i = 0; i < wanted.size(); ++i)
                same(check, name_of(shape, "wanted row", look),
                     rows_of(some, shape.q_width(), static_cast<int>(i), static_cast<int>(i) + 1),
                     rows_of(all, shape.q_width(), wanted[i], wanted[i] + 1));
        }
    }
}

// More sequences than lanes in a warp.
void many_sequences(Check& check) {
    std::vector<Part> parts;
    for (int i = 0; i < 75; ++i) parts.push_back({100 + i, i % 4 * 30, i % 11 == 3 ? 70 : i % 3});
    const Shape shape{Type::kBfloat16, 16, 1, 1};
    const std::vector<float> all = Step(shape, parts).attention(Kernel::kPrefill, {.causal = true});
    int row = 0;
    for (const Part& part : parts) {
        if (part.tokens > 0)
            same(check, "one of many", Step(shape, {part}).attention(Kernel::kPrefill, {.causal = true}),
                 rows_of(all, shape.q_width(), row, row + part.tokens));
        row += part.tokens;
    }
}

// More sequences times heads than a grid may have in y. One type per order of threads, because the grid is large.
void more_heads_than_grid_rows(Check& check) {
    constexpr int kHeads = 64, kRoom = 65536 / kHeads;
    const Shape shape{kTypes[static_cast<int>(emulation::order)], 1, kHeads, kHeads};
    const std::vector<Part> parts = {{1, 3, 1}, {2, 0, 1}};
    same(check, name_of(shape, "decode"), Step(shape, parts, kRoom).attention(Kernel::kDecode, {.causal = true}),
         Step(shape, parts, /*room=*/0).attention(Kernel::kDecode, {.causal = true}));
}

// A NaN reaches the rows that see it and no other sequence. In float32 it reaches no earlier row either; in 16 bits, no
// row of an earlier block.
void nan_stays(Check& check) {
    for (const Type type : kTypes) {
        const Shape shape{type, 20, 1, 1};
        Step step(shape, kRagged);
        const std::vector<float> before = step.attention(Kernel::kPrefill, {.causal = true});
        const Part& part = kRagged[3];
        constexpr int kPosition = 195, kFirstRow = 14;  // 195 is the fourth of a block; part 3 begins at row 14
        step.poison(part, kPosition);
        const std::vector<float> after = step.attention(Kernel::kPrefill, {.causal = true});
        const int poisoned = kFirstRow + kPosition - part.start, end = kFirstRow + part.tokens;
        for (int row = 0; row < step.n_tokens(); ++row) {
            const float* got = after.data() + row * shape.q_width();
            if (row >= poisoned && row < end)
                for (int d = 0; d < shape.q_width(); ++d) check.that("a row that sees NaN", std::isnan(got[d]));
            else if (type == Type::kFloat32 || row < poisoned - kPosition % kBlockLen || row >= end)
                check.same(name_of(shape, "a row that does not see NaN"), got, before.data() + row * shape.q_width(),
                           shape.q_width());
        }
    }
}

// The same with a window, for rows whose window begins later.
void nan_before_the_window(Check& check) {
    constexpr int kPosition = 135, kBlockEnd = 192, kFirstRow = 14;  // part 3 has positions from 130 on
    const Look look{.causal = true, .window = 5};
    for (const Type type : kTypes) {
        const Shape shape{type, 20, 1, 1};
        Step step(shape, kRagged);
        const Part& part = kRagged[3];
        const std::vector<float> before = step.attention(Kernel::kPrefill, look);
        step.poison(part, kPosition);
        const std::vector<float> after = step.attention(Kernel::kPrefill, look);
        const int unseen_from = (type == Type::kFloat32 ? kPosition + 1 : kBlockEnd) + look.window - 1;
        for (int position = kPosition; position < part.start + part.tokens; ++position) {
            const int at = (kFirstRow + position - part.start) * shape.q_width();
            if (position < kPosition + look.window)
                for (int d = 0; d < shape.q_width(); ++d) check.that("a row that sees NaN", std::isnan(after[at + d]));
            if (position >= unseen_from)
                check.same(name_of(shape, "a row after NaN"), after.data() + at, before.data() + at, shape.q_width());
        }
        const Part last{part.id, part.start + part.tokens - 1, 1};
        Step decode(shape, {last});
        const std::vector<float> clean = decode.attention(Kernel::kDecode, look);
        decode.poison(last, kPosition);
        same(check, name_of(shape, "decode after NaN"), decode.attention(Kernel::kDecode, look), clean);
    }
}

}  // namespace

const std::vector<Case> kAttentionCases = {{"kv_store", kv_store},
                                           {"attention_float32_as_cpu", float32_as_cpu},
                                           {"attention_probs_as_cpu", probs_as_cpu},
                                           {"attention_within_bounds", within_bounds},
                                           {"attention_probs_within_bounds", probs_within_bounds},
                                           {"attention_alone_as_in_batch", alone_as_in_batch},
                                           {"attention_chunks_as_at_once", chunks_as_at_once},
                                           {"attention_decode_as_prefill", decode_as_prefill},
                                           {"attention_selected_rows", selected_rows},
                                           {"attention_many_sequences", many_sequences},
                                           {"attention_more_heads_than_grid_rows", more_heads_than_grid_rows},
                                           {"attention_windows", windows},
                                           {"attention_nan_stays", nan_stays},
                                           {"attention_nan_before_the_window", nan_before_the_window}};

}  // namespace fastattn::cuda::tests
