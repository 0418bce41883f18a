#include "native_tests/cuda/attention_steps.h"

#include <algorithm>

namespace fastattn::cuda::tests {
namespace {

constexpr int kLayers = 2, kLayer = 1;

int longest(const std::vector<Part>& parts) {
    int most = 1;
    for (const Part& part : parts) most = std::max(most, part.start + part.tokens);
    return most;
}

}  // namespace

std::string name_of(const Look& look) {
    return std::string(look.causal ? ", causal" : "") + (look.biased ? ", biased" : "") +
           (look.window > 0 ? ", window of " + std::to_string(look.window) : "");
}

Step::Step(const Shape& shape, const std::vector<Part>& parts, int room)
    : shape_(shape),
      parts_(parts),
      room_(room),
      pages_each_((longest(parts) + kBlockLen - 1) / kBlockLen + 1),
      page_bytes_(kLayers * kv_layer_bytes(shape.type, shape.n_kv_head, shape.head_dim)),
      layer_offset_(kLayer * kv_layer_bytes(shape.type, shape.n_kv_head, shape.head_dim)),
      count_({static_cast<int32_t>(parts.size())}),
      token_count_(1),
      cu_seqlens_{0},
      pool_(static_cast<int64_t>(parts.size()) * pages_each_ * page_bytes_),
      table_(static_cast<int64_t>(parts.size()) * pages_each_) {
    // Pages in scattered order; 5 and the number of pages have no common factor.
    const int64_t n_pages = table_.size(), step = n_pages % 5 == 0 ? 1 : 5;
    for (int64_t i = 0; i < n_pages; ++i)
        table_[i] = reinterpret_cast<std::byte*>(pool_.data()) + (i * step + 3) % n_pages * page_bytes_;
    int most_start = 0;
    for (const Part& part : parts_) {
        n_tokens_ += part.tokens;
        cu_seqlens_.push_back(n_tokens_);
        start_.push_back(part.start);
        most_start = std::max(most_start, part.start);
    }
    token_count_[0] = n_tokens_;
    for (int from = 0; from < most_start; from += 37) {
        std::vector<Part> pieces = parts_;
        for (Part& piece : pieces) {
            piece.tokens = std::clamp(piece.start - from, 0, 37);
            piece.start = std::min(from, piece.start);
        }
        store(pieces);
    }
    store(parts_);
}

KvPages Step::pages() const {
    return {.table = table_.data(),
            .table_stride = pages_each_,
            .layer_offset = layer_offset_,
            .type = shape_.type,
            .n_kv_head = shape_.n_kv_head,
            .head_dim = shape_.head_dim};
}

Sequences Step::sequences(const Memory<int32_t>& cu_seqlens, const Memory<int32_t>& start, int most_positions) const {
    return {.cu_seqlens = cu_seqlens.data(),
            .start = start.data(),
            .rows = {.count = count_.data(), .most = static_cast<int32_t>(parts_.size()) + room_},
            .most_positions = most_positions};
}

void Step::store(const std::vector<Part>& pieces) const {
    Memory<int32_t> cu_seqlens(static_cast<int64_t>(pieces.size()) + 1), start(static_cast<int64_t>(pieces.size()));
    cu_seqlens[0] = 0;
    int tokens = 0, s = 0;
    for (const Part& piece : pieces) {
        tokens += piece.tokens;
        start[s] = piece.start;
        cu_seqlens[++s] = tokens;
    }
    // Keys and values side by side, as a linear of both writes them.
    const int width = shape_.kv_width();
    Memory<float> kv((tokens + 1) * int64_t{2} * width);
    int token = 0;
    for (const Part& piece : pieces)
        for (int position = piece.start; position < piece.start + piece.tokens; ++position, ++token)
            for (int i = 0; i < 2 * width; ++i)
                kv[token * int64_t{2} * width + i] =
                    number_of(shape_, piece.id, i < width ? 1 : 2, position, i % width);
    const Memory<int32_t> count = {tokens};
    launch_kv_store({.k = kv.data(),
                     .k_stride = 2 * width,
                     .v = kv.data() + width,
                     .v_stride = 2 * width,
                     .tokens = {.count = count.data(), .most = tokens + room_},
                     .sequences = sequences(cu_seqlens, start, longest(pieces)),
                     .pages = pages()},
                    nullptr);
}

// The table has only the relative positions of the longest sequence.
Memory<float> Step::biases(const Look& look) const {
    const int positions = longest(parts_), columns = look.causal ? positions : 2 * positions - 1;
    Memory<float> table(look.biased ? int64_t{shape_.n_head} * columns : 0);
    for (int64_t i = 0; i < table.size(); ++i)
        table[i] = bias_of(static_cast<int>(i / columns), static_cast<int>(i % columns) - positions + 1);
    return table;
}

Relative Step::relative(const Look& look, const Memory<float>& biases) const {
    return {.causal = look.causal,
            .window = look.window,
            .bias = look.biased ? biases.data() + longest(parts_) - 1 : nullptr,
            .bias_stride = biases.size() / shape_.n_head};
}

std::vector<float> Step::attention(Kernel kernel, const Look& look) const {
    return attention(kernel, look, {}, cu_seqlens_);
}

std::vector<float> Step::attention(Kernel kernel, const Look& look, const std::vector<int32_t>& query_tokens,
                                   const std::vector<int32_t>& q_begin) const {
    const int rows = q_begin.back(), width = shape_.q_width();
    const bool all = query_tokens.empty();
    Memory<float> q((rows + room_) * int64_t{width});
    for (int row = 0, s = 0; row < rows; ++row) {
        while (q_begin[static_cast<size_t>(s) + 1] <= row) ++s;
        const Part& part = parts_[static_cast<size_t>(s)];
        const int token = all ? row : query_tokens[static_cast<size_t>(row)];
        const int position = part.start + token - cu_seqlens_[static_cast<size_t>(s)];
        for (int i = 0; i < width && token >= 0; ++i)
            q[row * int64_t{width} + i] = number_of(shape_, part.id, 0, position, i);
    }
    const Memory<int32_t> begin(q_begin), tokens(query_tokens), cu_seqlens(cu_seqlens_), start(start_), count = {rows};
    const int most_positions = longest(parts_);
    Memory<float> partials(decode_partial_floats(rows + room_, shape_.n_head, most_positions, shape_.head_dim));
    Memory<float> out((rows + room_) * int64_t{width});
    const Memory<float> biases = this->biases(look);
    const AttentionArgs args{.q = q.data(),
                             .q_stride = width,
                             .rows = {.count = count.data(), .most = rows + room_},
                             .q_begin = begin.data(),
                             .query_tokens = all ? nullptr : tokens.data(),
                             .sequences = sequences(cu_seqlens, start, most_positions),
                             .pages = pages(),
                             .n_head = shape_.n_head,
                             .relative = relative(look, biases),
                             .scale = kScale,
                             .out = {.data = out.data(), .stride = width},
                             .partials = partials.data(),
                             .most_q_len = most_positions};
    if (kernel == Kernel::kPrefill)
        launch_attention_prefill(args, nullptr);
    else
        launch_attention_decode(args, nullptr);
    return {out.data(), out.data() + rows * int64_t{width}};
}

std::vector<float> Step::probs(const Look& look) const {
    const int width = shape_.q_width();
    Memory<float> q((n_tokens_ + 1) * int64_t{width});
    Memory<int64_t> offsets(static_cast<int64_t>(parts_.size()));
    int64_t floats = 0;
    int token = 0, s = 0;
    for (const Part& part : parts_) {
        offsets[s++] = floats;
        floats += int64_t{shape_.n_head} * part.tokens * (part.start + part.tokens);
        for (int position = part.start; position < part.start + part.tokens; ++position, ++token)
            for (int i = 0; i < width; ++i) q[token * int64_t{width} + i] = number_of(shape_, part.id, 0, position, i);
    }
    const Memory<int32_t> cu_seqlens(cu_seqlens_), start(start_);
    Memory<float> out(floats);
    const Memory<float> biases = this->biases(look);
    launch_attention_probs({.q = q.data(),
                            .q_stride = width,
                            .tokens = {.count = token_count_.data(), .most = n_tokens_ + room_},
                            .sequences = sequences(cu_seqlens, start, longest(parts_)),
                            .pages = pages(),
                            .n_head = shape_.n_head,
                            .first_head = 0,
                            .n_maps = shape_.n_head,
                            .relative = relative(look, biases),
                            .scale = kScale,
                            .probs = out.data(),
                            .offsets = offsets.data()},
                           nullptr);
    return {out.data(), out.data() + floats};
}

// A head's part of the page that has the position.
unsigned char* Step::head_at(const Part& part, int position, int head) const {
    const auto s = std::find_if(parts_.begin(), parts_.end(), [&](const Part& p) { return p.id == part.id; });
    std::byte* page = table_[(s - parts_.begin()) * pages_each_ + position / kBlockLen];
    return reinterpret_cast<unsigned char*>(page) + layer_offset_ + head * kv_head_bytes(shape_.type, shape_.head_dim);
}

float Step::stored(const Part& part, int position, int head, int d, bool values) const {
    const unsigned char* at = head_at(part, position, head);
    const int64_t element = (position % kBlockLen + (values ? kBlockLen : 0)) * row_elements(shape_.head_dim) + d;
    if (shape_.type == Type::kFloat32) return reinterpret_cast<const float*>(at)[element];
    return static_cast<float>(to_double(shape_.type, reinterpret_cast<const uint16_t*>(at)[element]));
}

void Step::poison(const Part& part, int position) {
    const int64_t row_bytes = row_elements(shape_.head_dim) * bytes_of(shape_.type);
    for (int head = 0; head < shape_.n_kv_head; ++head)
        for (const int row : {position % kBlockLen, kBlockLen + position % kBlockLen})
            std::memset(head_at(part, position, head) + row * row_bytes, 0xff, static_cast<size_t>(row_bytes));
}

void Step::check_untouched(Check& check) const {
    for (int64_t i = 0; i < layer_offset_; ++i)
        for (int64_t page = 0; page < table_.size(); ++page)
            check.that("another layer was written to", pool_[page * page_bytes_ + i] == 0xff);
    for (const Part& part : parts_) {
        const int length = part.start + part.tokens;
        for (int position = length; position < pages_each_ * kBlockLen; ++position)
            for (int head = 0; head < shape_.n_kv_head; ++head)
                for (const bool values : {false, true})
                    check.that("a position after the end was written to",
                               std::isnan(stored(part, position, head, 0, values)));
    }
}

}  // namespace fastattn::cuda::tests
