// The plan of memory and steps (cuda/plan.h), which has no kernel: random Programs and ragged steps.
#include "cuda/plan.h"

#include <algorithm>
#include <set>

#include "cuda/pause.h"
#include "native_tests/cuda/testing.h"

namespace fastattn::cuda::tests {
namespace {

using ValueRows = fastattn::Rows;

// Consecutive numbers of one stream.
class Numbers {
public:
    explicit Numbers(uint64_t stream) : stream_(stream) {}
    int32_t below(int32_t n) { return static_cast<int32_t>(bits_at(stream_, count_++) % static_cast<uint64_t>(n)); }

private:
    uint64_t stream_, count_ = 0;
};

OpSpec op_of(Attrs attrs, std::vector<int32_t> inputs) {
    OpSpec op;
    op.attrs = attrs, op.inputs = std::move(inputs);
    return op;
}

// A Program whose ops read any of the earlier values, with weights of every type.
struct RandomProgram {
    ProgramSpec spec;
    std::vector<Type> types;

    explicit RandomProgram(uint64_t stream) {
        Numbers numbers(stream);
        add(numbers, op_of(EmbeddingAttrs{}, {}), ValueRows::kTokens, 24);
        for (int i = 0; i < 40; ++i) grow(numbers);
        for (int i = 0; i < 3; ++i) spec.outputs.push_back(numbers.below(static_cast<int32_t>(spec.values.size())));
        spec.outputs.push_back(static_cast<int32_t>(spec.values.size()) - 1);
    }

private:
    int32_t weight(Numbers& numbers) {
        types.push_back(static_cast<Type>(numbers.below(3)));
        spec.weights.push_back("w" + std::to_string(types.size()));
        return static_cast<int32_t>(types.size()) - 1;
    }
    void add(Numbers& numbers, OpSpec op, ValueRows rows, int32_t width) {
        if (op.is<EmbeddingAttrs>() || op.is<LinearAttrs>()) op.weights = {weight(numbers)};
        op.output = static_cast<int32_t>(spec.values.size());
        spec.values.push_back({rows, width});
        spec.ops.push_back(std::move(op));
    }
    int32_t newest(Numbers& numbers, ValueRows rows) {
        std::vector<int32_t> found;
        for (auto v = static_cast<int32_t>(spec.values.size()) - 1; v >= 0 && found.size() < 4; --v)
            if (spec.values[static_cast<size_t>(v)].rows == rows) found.push_back(v);
        return found[static_cast<size_t>(numbers.below(static_cast<int32_t>(found.size())))];
    }
    void grow(Numbers& numbers) {
        // Mostly the newest values, so that the lives of older ones end.
        const auto n = static_cast<int32_t>(spec.values.size());
        const int32_t x = n - 1 - numbers.below(std::min(n, 5));
        const ValueSpec of = spec.values[static_cast<size_t>(x)];
        std::vector<int32_t> alike;
        for (int32_t v = 0; v < n; ++v)
            if (spec.values[static_cast<size_t>(v)].rows == of.rows &&
                spec.values[static_cast<size_t>(v)].width == of.width)
                alike.push_back(v);
        const int32_t other = alike[static_cast<size_t>(numbers.below(static_cast<int32_t>(alike.size())))];
        switch (numbers.below(7)) {
            case 0: return add(numbers, op_of(AddAttrs{}, {x, other}), of.rows, of.width);
            case 1: return add(numbers, op_of(LayerNormAttrs{}, {x}), of.rows, of.width);
            case 2: return add(numbers, op_of(ActivationAttrs{}, {x}), of.rows, of.width);
            case 3: {
                const int32_t width = std::max(1, of.width / 2);
                return add(numbers, op_of(SliceAttrs{.offset = of.width / 3, .width = width}, {x}), of.rows, width);
            }
            case 4:
                if (of.rows != ValueRows::kTokens) return;
                return add(numbers, op_of(GatherRowsAttrs{.which = Gather::kWanted}, {x}), ValueRows::kWanted,
                           of.width);
            case 5: return add(numbers, op_of(LinearAttrs{}, {x}), of.rows, 8 + numbers.below(40));
            default: {  // also of a slice of the residual
                const int32_t residual = numbers.below(2) == 0 ? other : newest(numbers, of.rows);
                return add(numbers, op_of(LinearAttrs{.has_residual = true}, {x, residual}), of.rows,
                           spec.values[static_cast<size_t>(residual)].width);
            }
        }
    }
};

// Ops whose kernels read an element, or a whole row, before they write it.
bool row_by_row(const OpSpec& op) {
    return op.is<LayerNormAttrs>() || op.is<AddAttrs>() || op.is<ActivationAttrs>();
}

// Follows a plan with the index of a value in place of its numbers: every reader must find what it expects.
void check_values(Check& check, const RandomProgram& program, const Plan& plan) {
    struct Content {
        int32_t value = -1;
        bool rounded = false;
        bool operator==(const Content&) const = default;
    };
    const ProgramSpec& spec = program.spec;
    std::vector<Content> memory(plan.slots().size());
    const auto place = [&](int32_t value) { return plan.places()[static_cast<size_t>(value)]; };
    const auto holds = [&](int32_t value, const char* who) {
        const int32_t parent = place(value).parent, slot = place(parent).slot;
        check.that(who, slot >= 0 && memory[static_cast<size_t>(slot)] == Content{parent, false});
    };
    for (const OpSpec& op : spec.ops) {
        const bool linear = op.is<LinearAttrs>();
        for (size_t i = 0; i < op.inputs.size(); ++i) {
            if (linear && i == 0 && plan.input_rounded(op)) {
                const Place& from = place(op.inputs[0]);
                check.that("a linear finds its rows rounded, in its type",
                           from.rounded_type == plan.weight_type(op.weights[0]) &&
                               memory[static_cast<size_t>(from.rounded)] == Content{op.inputs[0], true});
                continue;
            }
            if (!op.is<SliceAttrs>()) holds(op.inputs[i], "an op finds its input");
        }
        const Place& out = place(op.output);
        if (op.is<SliceAttrs>()) {
            check.that("a slice has no memory", out.slot < 0 && out.rounded < 0);
            continue;
        }
        check.that("an op writes something", out.slot >= 0 || out.rounded >= 0);
        check.that("rows and rounded rows share no slot", out.slot != out.rounded || out.slot < 0);
        for (const int32_t input : op.inputs) {
            const Place& from = place(place(input).parent);
            // Only what is read row by row before it is written may be overwritten.
            const bool same = (out.slot >= 0 && (out.slot == from.slot || out.slot == from.rounded)) ||
                              (out.rounded >= 0 && (out.rounded == from.slot || out.rounded == from.rounded));
            const bool may =
                out.slot == from.slot && out.slot >= 0 &&
                (row_by_row(op) || (linear && op.as<LinearAttrs>()->has_residual && input == op.inputs[1] &&
                                    place(op.inputs[0]).parent != place(input).parent));
            check.that("an op writes over no input that it still reads",
                       !same || may || place(input).parent == op.output);
        }
        for (const auto& [slot, rounded] : {std::pair{out.slot, false}, std::pair{out.rounded, true}}) {
            if (slot < 0) continue;
            const Slot& of = plan.slots()[static_cast<size_t>(slot)];
            const ValueSpec& value = spec.values[static_cast<size_t>(op.output)];
            const Type type = rounded ? out.rounded_type : Type::kFloat32;
            check.that("a slot is large enough",
                       of.rows == value.rows && of.size >= row_elements(value.width) * bytes_of(type));
            memory[static_cast<size_t>(slot)] = {op.output, rounded};
        }
    }
    for (const int32_t output : spec.outputs) holds(output, "an output has its memory until the end");
}

void run_plans(Check& check) {
    for (uint64_t stream = 0; stream < 200; ++stream) {
        const RandomProgram program(stream);
        const Plan plan(program.spec, program.types);
        check_values(check, program, plan);
        const Sizes sizes = bucket_of({.tokens = 5 + static_cast<int32_t>(stream),
                                       .wanted = 3,
                                       .sequences = 2,
                                       .sequence_tokens = 4,
                                       .sequence_wanted = 2,
                                       .positions = 70});
        const Workspace workspace(plan, program.spec, sizes, 1000);
        std::vector<std::pair<int64_t, int64_t>> pieces;  // begin, bytes
        for (size_t s = 0; s < plan.slots().size(); ++s)
            pieces.push_back({workspace.slots[s], plan.slots()[s].size * sizes.rows(plan.slots()[s].rows)});
        for (const OpSpec& op : program.spec.ops) {
            if (!op.is<LinearAttrs>()) continue;
            const ValueSpec &x = program.spec.values[static_cast<size_t>(op.inputs[0])],
                            &out = program.spec.values[static_cast<size_t>(op.output)];
            const Type type = plan.weight_type(op.weights[0]);
            if (type != Type::kFloat32 && !plan.input_rounded(op))
                pieces.push_back({workspace.round, row_elements(x.width) * bytes_of(type) * sizes.rows(x.rows)});
            if (plan.product_apart(op))
                pieces.push_back({workspace.product, row_elements(out.width) * 4 * sizes.rows(out.rows)});
        }
        pieces.push_back({workspace.step, StepLayout(sizes).words * 4});
        for (const auto& [begin, bytes] : pieces) {
            check.that("a piece is aligned and inside", begin % kAlignment == 0 && begin + bytes <= workspace.bytes);
            for (const auto& [other, more] : pieces)
                check.that("pieces do not overlap", begin == other || begin + bytes <= other || other + more <= begin);
        }
    }
}

void run_buckets(Check& check) {
    Numbers numbers(1);
    for (int i = 0; i < 2000; ++i) {
        Sizes sizes{.tokens = numbers.below(200),
                    .wanted = numbers.below(50),
                    .sequences = numbers.below(70),
                    .sequence_tokens = numbers.below(100),
                    .sequence_wanted = numbers.below(9),
                    .positions = numbers.below(2000),
                    .cached = i % 2 == 0};
        const Sizes bucket = bucket_of(sizes);
        check.that("a bucket is no smaller than its sizes",
                   bucket.tokens >= sizes.tokens && bucket.wanted >= sizes.wanted &&
                       bucket.sequences >= sizes.sequences && bucket.sequence_tokens >= sizes.sequence_tokens &&
                       bucket.sequence_wanted >= sizes.sequence_wanted && bucket.positions >= sizes.positions &&
                       bucket.cached == sizes.cached && bucket.positions % kBlockLen == 0);
        check.that("a bucket is in its own bucket", bucket_of(bucket) == bucket || sizes.tokens > kGraphTokens);
        check.that("one query per sequence stays one", sizes.sequence_tokens != 1 || bucket.sequence_tokens == 1);
    }
    std::set<Sizes> graphs;  // for a text that grows to 1024 positions, one token at a time
    for (int32_t position = 0; position < 1024; ++position)
        graphs.insert(bucket_of({.tokens = 1,
                                 .wanted = 1,
                                 .sequences = 1,
                                 .sequence_tokens = 1,
                                 .sequence_wanted = 1,
                                 .positions = position + 1,
                                 .cached = true}));
    check.that("a text of 1024 positions has five graphs", graphs.size() == 5);
}

// A step of up to five sequences, with or without caches. A cache may have more pages than its positions need.
struct RandomStep {
    std::vector<int32_t> ids, positions, wanted, ends{0}, starts;
    std::vector<std::vector<std::byte*>> cached;  // pages of each cache
    bool has_caches;

    RandomStep(Numbers& numbers, bool caches) : has_caches(caches) {
        const int32_t n = numbers.below(6);
        for (int32_t s = 0; s < n; ++s) {
            const int32_t length = numbers.below(4) == 0 ? 0 : numbers.below(150), start = numbers.below(100);
            if (caches) add_cache(numbers, start, start + length);
            for (int32_t t = 0; t < length; ++t) {
                if (numbers.below(3) == 0) wanted.push_back(static_cast<int32_t>(ids.size()));
                ids.push_back(numbers.below(500)), positions.push_back(t);
            }
            ends.push_back(static_cast<int32_t>(ids.size()));
        }
    }
    StepArrays arrays() const {
        return {.token_ids = ids.data(),
                .positions = positions.data(),
                .token_type_ids = nullptr,
                .cu_seqlens = ends.data(),
                .wanted = wanted.data(),
                .n_tokens = static_cast<int32_t>(ids.size()),
                .n_sequences = static_cast<int32_t>(ends.size()) - 1,
                .n_wanted = static_cast<int32_t>(wanted.size())};
    }
    // `own`: where the step's own pages of 16 bytes begin.
    StepPages pages(std::byte* own) const {
        StepPages pages{.own = own, .own_bytes = 16};
        for (const auto& of : cached) pages.cached.push_back(of.data());
        return pages;
    }

private:
    void add_cache(Numbers& numbers, int32_t start, int32_t length) {
        starts.push_back(start);
        auto& pages = cached.emplace_back(length / kBlockLen + 1 + numbers.below(20));
        for (std::byte*& page : pages) page = reinterpret_cast<std::byte*>(uintptr_t{1 + bits_at(3, next_page_++)});
    }
    uint64_t next_page_ = 0;
};

// The arrays that fill_step wrote for a step.
class Filled {
public:
    explicit Filled(const RandomStep& step)
        : step_(step),
          arrays_(step.arrays()),
          sizes_(bucket_of(sizes_of(arrays_, step.starts))),
          layout_(sizes_),
          words_(layout_.words + kRoom) {
        std::fill_n(words_.data(), words_.size(), kUnwritten);
        fill_step(layout_, sizes_, arrays_, step.starts, step.pages(kOwn), words_.data());
    }

    void check_arrays(Check& check) const {
        check.that("counts", at(layout_.counts, 0) == arrays_.n_tokens && at(layout_.counts, 1) == arrays_.n_wanted &&
                                 at(layout_.counts, 2) == arrays_.n_sequences);
        check.same("token_ids", words_.data() + layout_.token_ids, step_.ids.data(), arrays_.n_tokens);
        check.same("wanted", words_.data() + layout_.wanted, step_.wanted.data(), arrays_.n_wanted);
        const int32_t* end = words_.data() + layout_.words;
        check.that("every word is written", std::count(words_.data(), end, kUnwritten) == 0);
        check.that("no word after the end is", std::count(end, end + kRoom, kUnwritten) == kRoom);
    }

    void check_sequences(Check& check) const {
        for (int32_t s = 0; s < sizes_.sequences; ++s) {
            const int32_t begin = at(layout_.cu_seqlens, s), end = at(layout_.cu_seqlens, s + 1);
            const int32_t first = at(layout_.wanted_begin, s), last = at(layout_.wanted_begin, s + 1);
            if (s >= arrays_.n_sequences) {
                check.that("sequences after the last are empty", begin == end && first == last);
                continue;
            }
            check.that("cu_seqlens",
                       begin == step_.ends[static_cast<size_t>(s)] && end == step_.ends[static_cast<size_t>(s) + 1]);
            const auto inside = [&](int32_t w) { return w >= begin && w < end; };
            check.that("wanted rows of a sequence",
                       last - first == std::count_if(step_.wanted.begin(), step_.wanted.end(), inside));
            for (int32_t w = first; w < last; ++w)
                check.that("a wanted row", inside(step_.wanted[static_cast<size_t>(w)]));
            const bool empty = begin == end;
            check.that("first and last",
                       at(layout_.first, s) == (empty ? -1 : begin) && at(layout_.last, s) == (empty ? -1 : end - 1));
            check.that("one each", at(layout_.one_each, s) == s && at(layout_.one_each, s + 1) == s + 1);
            if (step_.has_caches) check.that("start", at(layout_.starts, s) == step_.starts[static_cast<size_t>(s)]);
        }
    }

    // Pages of positions that a sequence has. The others are null.
    void check_pages(Check& check) const {
        std::set<const std::byte*> own;
        for (int32_t s = 0; s < sizes_.sequences; ++s)
            for (int32_t b = 0; b < sizes_.pages(); ++b) {
                std::byte* page = nullptr;
                std::memcpy(&page, words_.data() + layout_.pages + 2 * (s * sizes_.pages() + b), sizeof(page));
                if (b * kBlockLen >= positions(s))
                    check.that("no page without positions", page == nullptr);
                else if (step_.has_caches)
                    check.that("a page of the cache",
                               page == step_.cached[static_cast<size_t>(s)][static_cast<size_t>(b)]);
                else
                    check.that("an own page is nobody else's",
                               own.insert(page).second && page >= kOwn && page < kOwn + 16 * own_pages(sizes_));
            }
    }

private:
    static constexpr int32_t kUnwritten = -7;
    static constexpr int64_t kRoom = 64;
    static inline std::byte* const kOwn = reinterpret_cast<std::byte*>(uintptr_t{1} << 40);

    int32_t at(int64_t offset, int64_t j) const { return words_[offset + j]; }
    int32_t positions(int32_t s) const {
        if (s >= arrays_.n_sequences) return 0;
        const auto of = static_cast<size_t>(s);
        return (step_.has_caches ? step_.starts[of] : 0) + step_.ends[of + 1] - step_.ends[of];
    }

    const RandomStep& step_;
    StepArrays arrays_;
    Sizes sizes_;
    StepLayout layout_;
    Memory<int32_t> words_;
};

void run_steps(Check& check) {
    Numbers numbers(2);
    for (int i = 0; i < 300; ++i) {
        const RandomStep step(numbers, /*caches=*/i % 2 == 0);
        const Filled filled(step);
        filled.check_arrays(check);
        filled.check_sequences(check);
        filled.check_pages(check);
    }
}

// A wait never sleeps for more than a hundredth of what it has waited, and ends up sleeping.
void run_pauses(Check& check) {
    using std::chrono::microseconds;
    constexpr microseconds kGroupedTimers{50};
    for (int64_t waited = 1; waited < 1'000'000; waited += 1 + waited / 10) {
        const bool sleeps = pause_after(microseconds(waited)) == Pause::kSleep;
        check.that("a sleep is short", !sleeps || 100 * (kSleep + kGroupedTimers) <= microseconds(waited));
        check.that("a long wait sleeps", sleeps || waited <= 10'000);
    }
}

}  // namespace

const std::vector<Case> kPlanCases = {
    {"plan", run_plans}, {"plan_buckets", run_buckets}, {"plan_steps", run_steps}, {"plan_pauses", run_pauses}};

}  // namespace fastattn::cuda::tests
