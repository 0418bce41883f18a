#include "cuda/plan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "program/op_kind.h"

namespace fastattn::cuda {
namespace {

constexpr int64_t kAddressWords = sizeof(std::byte*) / sizeof(int32_t);
constexpr int32_t kCoarse = 64;  // without a graph: rows are rounded up to a multiple of this

int32_t power_of_two(int32_t n) {
    return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(std::max(n, 1))));
}

int32_t multiple(int32_t n, int32_t of) {
    return (std::max(n, 1) + of - 1) / of * of;
}

bool is_16_bit(Type type) {
    return type != Type::kFloat32;
}

// Whether an op can write its rows in the type of the linear that reads them.
bool writes_rounded(const OpSpec& op) {
    const OpKind& kind = kind_of(op);
    return !op.is<EmbeddingAttrs>() && !kind.is_view && !kind.writes_maps;
}

int64_t row_bytes(const ValueSpec& value, Type type) {
    return row_elements(value.width) * bytes_of(type);
}

// Writes the addresses of the pages that each sequence's positions need. A cache may have more of them, after a step
// that failed.
void fill_pages(const Sizes& sizes, const StepArrays& step, const std::vector<int32_t>& starts, const StepPages& pages,
                int32_t* to) {
    std::byte* own = pages.own;
    for (int32_t s = 0; s < step.n_sequences; ++s) {
        const int32_t start = starts.empty() ? 0 : starts[static_cast<size_t>(s)];
        const int32_t positions = start + step.cu_seqlens[s + 1] - step.cu_seqlens[s];
        int32_t* table = to + int64_t{s} * sizes.pages() * kAddressWords;
        for (int32_t b = 0; b * kBlockLen < positions; ++b) {
            std::byte* page = sizes.cached ? pages.cached[static_cast<size_t>(s)][b] : own;
            if (!sizes.cached) own += pages.own_bytes;
            std::memcpy(table + b * kAddressWords, &page, sizeof(page));
        }
    }
}

}  // namespace

Sizes sizes_of(const StepArrays& step, const std::vector<int32_t>& starts) {
    Sizes sizes{
        .tokens = step.n_tokens, .wanted = step.n_wanted, .sequences = step.n_sequences, .cached = !starts.empty()};
    for (int32_t s = 0, w = 0; s < step.n_sequences; ++s) {
        const int32_t begin = step.cu_seqlens[s], end = step.cu_seqlens[s + 1];
        int32_t wanted = 0;
        for (; w < step.n_wanted && step.wanted[w] < end; ++w) ++wanted;
        sizes.sequence_tokens = std::max(sizes.sequence_tokens, end - begin);
        sizes.sequence_wanted = std::max(sizes.sequence_wanted, wanted);
        const int32_t start = starts.empty() ? 0 : starts[static_cast<size_t>(s)];
        sizes.positions = std::max(sizes.positions, start + end - begin);
    }
    return sizes;
}

int32_t most_queries(const Sizes& sizes, Gather gather) {
    return gather == Gather::kTokens ? sizes.sequence_tokens : gather == Gather::kWanted ? sizes.sequence_wanted : 1;
}

Sizes bucket_of(const Sizes& sizes) {
    Sizes bucket = sizes;
    if (sizes.tokens > kGraphTokens) {
        bucket.tokens = multiple(sizes.tokens, kCoarse), bucket.wanted = multiple(sizes.wanted, kCoarse);
        bucket.sequences = multiple(sizes.sequences, kCoarse), bucket.positions = multiple(sizes.positions, kBlockLen);
        return bucket;
    }
    for (int32_t Sizes::* size :
         {&Sizes::tokens, &Sizes::wanted, &Sizes::sequences, &Sizes::sequence_tokens, &Sizes::sequence_wanted})
        bucket.*size = power_of_two(sizes.*size);
    bucket.positions = power_of_two(sizes.pages()) * kBlockLen;
    return bucket;
}

Plan::Plan(const ProgramSpec& spec, std::vector<Type> weight_types) : weight_types_(std::move(weight_types)) {
    Lifetimes lifetimes(spec);
    for (const Source& source : lifetimes.sources())
        places_.push_back({.parent = source.parent, .column = source.column});
    const std::vector<Readers> readers = find_readers(spec);
    for (size_t i = 0; i < spec.ops.size(); ++i) {
        const OpSpec& op = spec.ops[i];
        const auto out = static_cast<size_t>(op.output);
        if (!kind_of(op).is_view && !kind_of(op).writes_maps) {
            Place& place = places_[out];
            if (readers[out].floats) place.slot = lifetimes.place(i, row_bytes(spec.out(op), Type::kFloat32));
            if (readers[out].rounded)
                place.rounded = lifetimes.place_copy(i, row_bytes(spec.out(op), place.rounded_type));
        }
        lifetimes.release(i);
    }
    slots_ = lifetimes.slots();
}

bool Plan::input_rounded(const OpSpec& op) const {
    const Place& from = place(op.inputs[0]);
    return from.parent == op.inputs[0] && from.rounded >= 0 && from.rounded_type == weight_type(op.weights[0]);
}

bool Plan::product_apart(const OpSpec& op) const {
    const Place& out = place(op.output);
    if (out.slot < 0) return true;
    return op.as<LinearAttrs>()->has_residual && place(place(op.inputs[1]).parent).slot == out.slot;
}

// Finds which values are read as float32, and which as rows that their writer rounded.
std::vector<Plan::Readers> Plan::find_readers(const ProgramSpec& spec) {
    std::vector<Readers> readers(spec.values.size());
    std::vector<const OpSpec*> writer(spec.values.size(), nullptr);
    const auto as_floats = [&](int32_t value) { readers[static_cast<size_t>(place(value).parent)].floats = true; };
    const auto as_product = [&](int32_t value, Type type) {
        Place& from = places_[static_cast<size_t>(value)];
        Readers& of = readers[static_cast<size_t>(value)];
        const bool own = from.parent == value && writes_rounded(*writer[static_cast<size_t>(value)]);
        if (!own || (of.rounded && from.rounded_type != type)) return as_floats(value);
        from.rounded_type = type;
        of.rounded = true;
    };
    for (const OpSpec& op : spec.ops) {
        writer[static_cast<size_t>(op.output)] = &op;
        if (kind_of(op).is_view) continue;
        const bool rounds = op.is<LinearAttrs>() && is_16_bit(weight_type(op.weights[0]));
        for (size_t i = 0; i < op.inputs.size(); ++i) {
            if (rounds && i == 0)
                as_product(op.inputs[0], weight_type(op.weights[0]));
            else
                as_floats(op.inputs[i]);
        }
    }
    for (const int32_t output : spec.outputs) as_floats(output);
    for (const OpSpec& op : spec.ops) {  // a value without readers is written, too
        const Readers& of = readers[static_cast<size_t>(op.output)];
        if (!of.floats && !of.rounded && !kind_of(op).is_view) as_floats(op.output);
    }
    return readers;
}

StepLayout::StepLayout(const Sizes& sizes) {
    int64_t at = 0;
    const auto take = [&at](int64_t count) {
        const int64_t begin = at;
        at += (count + 3) / 4 * 4;
        return begin;
    };
    const int64_t sequences = sizes.sequences;
    counts = take(fastattn::kRowKinds);
    token_ids = take(sizes.tokens), positions = take(sizes.tokens), token_type_ids = take(sizes.tokens);
    cu_seqlens = take(sequences + 1), starts = take(sequences);
    wanted = take(sizes.wanted), wanted_begin = take(sequences + 1);
    one_each = take(sequences + 1);
    first = take(sequences), last = take(sequences);
    first_query = take(sequences), last_query = take(sequences);
    pages = take(sequences * sizes.pages() * kAddressWords);
    words = at;
}

void fill_step(const StepLayout& layout, const Sizes& sizes, const StepArrays& step, const std::vector<int32_t>& starts,
               const StepPages& pages, int32_t* to) {
    std::fill(to, to + layout.words, 0);
    to[layout.counts + static_cast<int>(fastattn::Rows::kTokens)] = step.n_tokens;
    to[layout.counts + static_cast<int>(fastattn::Rows::kWanted)] = step.n_wanted;
    to[layout.counts + static_cast<int>(fastattn::Rows::kSequences)] = step.n_sequences;
    std::copy_n(step.token_ids, step.n_tokens, to + layout.token_ids);
    std::copy_n(step.positions, step.n_tokens, to + layout.positions);
    if (step.token_type_ids != nullptr) std::copy_n(step.token_type_ids, step.n_tokens, to + layout.token_type_ids);
    std::copy_n(step.wanted, step.n_wanted, to + layout.wanted);
    int32_t wanted = 0;
    for (int32_t s = 0; s <= sizes.sequences; ++s) {
        const bool real = s < step.n_sequences;
        const int32_t begin = real ? step.cu_seqlens[s] : step.n_tokens;
        to[layout.cu_seqlens + s] = begin;
        to[layout.wanted_begin + s] = wanted;
        to[layout.one_each + s] = s;
        if (!real) continue;
        const int32_t end = step.cu_seqlens[s + 1];
        while (wanted < step.n_wanted && step.wanted[wanted] < end) ++wanted;
        to[layout.starts + s] = starts.empty() ? 0 : starts[static_cast<size_t>(s)];
        to[layout.first + s] = begin < end ? begin : -1;
        to[layout.last + s] = begin < end ? end - 1 : -1;
        to[layout.first_query + s] = begin;
        to[layout.last_query + s] = std::max(begin, end - 1);
    }
    fill_pages(sizes, step, starts, pages, to + layout.pages);
}

int64_t own_pages(const Sizes& sizes) {
    if (sizes.cached) return 0;
    // Every sequence may end inside a page, and none is longer than sequence_tokens.
    const int64_t together = (int64_t{sizes.tokens} + kBlockLen - 1) / kBlockLen + sizes.sequences;
    return std::min(together, int64_t{sizes.sequences} * sizes.pages());
}

Workspace::Workspace(const Plan& plan, const ProgramSpec& spec, const Sizes& sizes, int64_t kv_layer_bytes) {
    const auto take = [this](int64_t count) {
        const int64_t begin = bytes;
        bytes += align(count);
        return begin;
    };
    step = take(StepLayout(sizes).words * int64_t{sizeof(int32_t)});
    for (const Slot& slot : plan.slots()) slots.push_back(take(slot.size * sizes.rows(slot.rows)));
    int64_t most_round = 0, most_product = 0;
    for (const OpSpec& op : spec.ops) {
        if (!op.is<LinearAttrs>()) continue;
        const ValueSpec &x = spec.in(op, 0), &out = spec.out(op);
        const int64_t rows = sizes.rows(x.rows);
        const Type type = plan.weight_type(op.weights[0]);
        if (is_16_bit(type) && !plan.input_rounded(op)) most_round = std::max(most_round, rows * row_bytes(x, type));
        if (plan.product_apart(op)) most_product = std::max(most_product, rows * row_bytes(out, Type::kFloat32));
    }
    round = take(most_round);
    product = take(most_product);
    int64_t most_partials = 0;
    for (const OpSpec& op : spec.ops) {
        const auto* attention = op.as<AttentionAttrs>();
        if (attention == nullptr || most_queries(sizes, attention->q_rows) > 1) continue;
        most_partials =
            std::max(most_partials, decode_partial_floats(sizes.rows(rows_of(attention->q_rows)), attention->n_head,
                                                          sizes.positions, attention->head_dim));
    }
    partials = take(most_partials * int64_t{sizeof(float)});
    own_pages = take(spec.n_layer > 0 ? cuda::own_pages(sizes) * kv_layer_bytes : 0);
}

}  // namespace fastattn::cuda
