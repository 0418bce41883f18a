#include "cuda/plan.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace fastattn::cuda {
namespace {

constexpr int32_t kCoarse = 64;  // without a graph: rows are rounded up to a multiple of this

int32_t power_of_two(int32_t n) {
    return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(std::max(n, 1))));
}

// Number of rows of q.
int32_t query_rows(const Sizes& sizes, Gather gather) {
    return gather == Gather::kTokens ? sizes.tokens : gather == Gather::kWanted ? sizes.wanted : sizes.sequences;
}

int32_t multiple(int32_t n, int32_t of) {
    return (std::max(n, 1) + of - 1) / of * of;
}

bool is_16_bit(Type type) {
    return type != Type::kFloat32;
}

bool writes_rounded(OpKind kind) {
    return kind != OpKind::kEmbedding && kind != OpKind::kSlice && kind != OpKind::kAttentionProbs;
}

int64_t row_bytes(const ValueSpec& value, Type type) {
    return row_elements(value.width) * bytes_of(type);
}

// The input whose memory an op may overwrite with its output, or -1.
int32_t taken_by(const OpSpec& op) {
    if (op.kind == OpKind::kLayerNorm) return op.inputs[0];
    if (op.kind == OpKind::kLinear && op.has_residual && op.inputs[0] != op.inputs[1]) return op.inputs[1];
    return -1;
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
    find_places(spec);
    find_readers(spec);
    find_slots(spec);
}

void Plan::find_places(const ProgramSpec& spec) {
    places_.resize(spec.values.size());
    for (size_t v = 0; v < places_.size(); ++v) places_[v].parent = static_cast<int32_t>(v);
    for (const OpSpec& op : spec.ops) {
        if (op.kind != OpKind::kSlice) continue;
        const Place& source = places_[static_cast<size_t>(op.inputs[0])];
        Place& place = places_[static_cast<size_t>(op.output)];
        place.parent = source.parent, place.column = source.column + op.offset;
    }
}

bool Plan::input_rounded(const OpSpec& op) const {
    const Place& place = places_[static_cast<size_t>(op.inputs[0])];
    return place.parent == op.inputs[0] && reads_rounded_[static_cast<size_t>(op.inputs[0])] &&
           place.rounded_type == weight_type(op.weights[0]);
}

bool Plan::product_apart(const OpSpec& op) const {
    const Place& out = places_[static_cast<size_t>(op.output)];
    if (out.slot < 0) return true;
    return op.has_residual &&
           places_[static_cast<size_t>(places_[static_cast<size_t>(op.inputs[1])].parent)].slot == out.slot;
}

// Finds which values are read as float32, and which as rows that their writer rounded.
void Plan::find_readers(const ProgramSpec& spec) {
    const size_t n = spec.values.size();
    reads_floats_.assign(n, false), reads_rounded_.assign(n, false);
    std::vector<const OpSpec*> writer(n, nullptr);
    std::vector<bool> read(n, false);
    const auto as_floats = [&](int32_t value) {
        const auto parent = static_cast<size_t>(places_[static_cast<size_t>(value)].parent);
        read[parent] = reads_floats_[parent] = true;
    };
    for (const OpSpec& op : spec.ops) {
        writer[static_cast<size_t>(op.output)] = &op;
        for (size_t i = 0; i < op.inputs.size(); ++i) {
            const int32_t input = op.inputs[i];
            const bool product = op.kind == OpKind::kLinear && i == 0 && is_16_bit(weight_type(op.weights[0]));
            if (!product) {
                if (op.kind != OpKind::kSlice) as_floats(input);
                continue;
            }
            Place& place = places_[static_cast<size_t>(input)];
            const Type type = weight_type(op.weights[0]);
            const bool own = place.parent == input && writes_rounded(writer[static_cast<size_t>(input)]->kind);
            if (own && (!reads_rounded_[static_cast<size_t>(input)] || place.rounded_type == type)) {
                place.rounded_type = type;
                read[static_cast<size_t>(input)] = reads_rounded_[static_cast<size_t>(input)] = true;
            } else {
                as_floats(input);
            }
        }
    }
    for (const int32_t output : spec.outputs) as_floats(output);
    for (const OpSpec& op : spec.ops)  // a value without readers is written, too
        if (!read[static_cast<size_t>(op.output)] && op.kind != OpKind::kSlice) as_floats(op.output);
}

int32_t Plan::slot_for(fastattn::Rows rows, int64_t row_bytes) {
    size_t found = slots_.size();
    for (size_t s = 0; s < slots_.size() && found == slots_.size(); ++s)
        if (free_[s] && slots_[s].rows == rows) found = s;
    if (found == slots_.size()) {
        slots_.push_back({rows, 0});
        free_.push_back(false);
    }
    free_[found] = false;
    slots_[found].row_bytes = std::max(slots_[found].row_bytes, row_bytes);
    return static_cast<int32_t>(found);
}

void Plan::find_slots(const ProgramSpec& spec) {
    std::vector<size_t> last_use(spec.values.size(), 0);
    for (size_t i = 0; i < spec.ops.size(); ++i) {
        const OpSpec& op = spec.ops[i];
        last_use[static_cast<size_t>(places_[static_cast<size_t>(op.output)].parent)] = i;
        for (const int32_t input : op.inputs)
            last_use[static_cast<size_t>(places_[static_cast<size_t>(input)].parent)] = i;
    }
    for (const int32_t output : spec.outputs)  // read after all ops
        last_use[static_cast<size_t>(places_[static_cast<size_t>(output)].parent)] = spec.ops.size();
    for (size_t i = 0; i < spec.ops.size(); ++i) {
        const OpSpec& op = spec.ops[i];
        const auto out = static_cast<size_t>(op.output);
        Place& place = places_[out];
        const ValueSpec& value = spec.values[out];
        if (op.kind != OpKind::kSlice && op.kind != OpKind::kAttentionProbs) {
            if (reads_floats_[out] && can_take_over(spec, op) && last_use[static_cast<size_t>(taken_by(op))] == i)
                place.slot = places_[static_cast<size_t>(taken_by(op))].slot;
            if (reads_floats_[out] && place.slot < 0)
                place.slot = slot_for(value.rows, row_bytes(value, Type::kFloat32));
            if (reads_rounded_[out]) place.rounded = slot_for(value.rows, row_bytes(value, place.rounded_type));
        }
        for (const int32_t input : op.inputs) {
            const auto parent = static_cast<size_t>(places_[static_cast<size_t>(input)].parent);
            const Place& source = places_[parent];
            if (last_use[parent] != i) continue;
            if (source.slot >= 0 && source.slot != place.slot) free_[static_cast<size_t>(source.slot)] = true;
            if (source.rounded >= 0) free_[static_cast<size_t>(source.rounded)] = true;
        }
        if (last_use[out] != i || place.parent != op.output) continue;  // else it has no reader
        if (place.slot >= 0) free_[static_cast<size_t>(place.slot)] = true;
        if (place.rounded >= 0) free_[static_cast<size_t>(place.rounded)] = true;
    }
}

// Whether the output may overwrite the input of taken_by().
bool Plan::can_take_over(const ProgramSpec& spec, const OpSpec& op) const {
    const int32_t from = taken_by(op);
    if (from < 0) return false;
    const Place& source = places_[static_cast<size_t>(from)];
    const ValueSpec &given = spec.values[static_cast<size_t>(from)],
                    &value = spec.values[static_cast<size_t>(op.output)];
    // x may be a slice of the linear's residual, whose other columns are read later.
    const bool looks = op.kind == OpKind::kLinear && places_[static_cast<size_t>(op.inputs[0])].parent == from;
    return !looks && source.parent == from && source.slot >= 0 && given.width == value.width &&
           given.rows == value.rows;
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
    pages = take(sequences * sizes.pages());
    words = at;
}

void fill_step(const StepLayout& layout, const Sizes& sizes, const StepArrays& step, const std::vector<int32_t>& starts,
               const std::vector<std::vector<int32_t>>& pages_of, int32_t* to) {
    std::fill(to, to + layout.words, 0);
    to[layout.counts + static_cast<int>(fastattn::Rows::kTokens)] = step.n_tokens;
    to[layout.counts + static_cast<int>(fastattn::Rows::kWanted)] = step.n_wanted;
    to[layout.counts + static_cast<int>(fastattn::Rows::kSequences)] = step.n_sequences;
    std::copy_n(step.token_ids, step.n_tokens, to + layout.token_ids);
    std::copy_n(step.positions, step.n_tokens, to + layout.positions);
    if (step.token_type_ids != nullptr) std::copy_n(step.token_type_ids, step.n_tokens, to + layout.token_type_ids);
    std::copy_n(step.wanted, step.n_wanted, to + layout.wanted);
    int32_t wanted = 0, own_page = 0;
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
        int32_t* pages = to + layout.pages + int64_t{s} * sizes.pages();
        if (sizes.cached)
            std::copy(pages_of[static_cast<size_t>(s)].begin(), pages_of[static_cast<size_t>(s)].end(), pages);
        else
            for (int32_t b = 0; b * kBlockLen < end - begin; ++b) pages[b] = own_page++;
    }
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
    for (const Slot& slot : plan.slots()) slots.push_back(take(slot.row_bytes * sizes.rows(slot.rows)));
    int64_t most_round = 0, most_product = 0;
    for (const OpSpec& op : spec.ops) {
        if (op.kind != OpKind::kLinear) continue;
        const ValueSpec &x = spec.values[static_cast<size_t>(op.inputs[0])],
                        &out = spec.values[static_cast<size_t>(op.output)];
        const int64_t rows = sizes.rows(x.rows);
        const Type type = plan.weight_type(op.weights[0]);
        if (is_16_bit(type) && !plan.input_rounded(op)) most_round = std::max(most_round, rows * row_bytes(x, type));
        if (plan.product_apart(op)) most_product = std::max(most_product, rows * row_bytes(out, Type::kFloat32));
    }
    round = take(most_round);
    product = take(most_product);
    int64_t most_partials = 0;
    for (const OpSpec& op : spec.ops)
        if (op.kind == OpKind::kAttention && most_queries(sizes, op.gather) <= 1)
            most_partials = std::max(most_partials, decode_partial_floats(query_rows(sizes, op.gather), op.n_head,
                                                                          sizes.positions, op.head_dim));
    partials = take(most_partials * int64_t{sizeof(float)});
    own_pages = take(spec.n_layer > 0 ? cuda::own_pages(sizes) * kv_layer_bytes : 0);
}

}  // namespace fastattn::cuda
