#include <algorithm>

#include "ops/ops.h"

namespace fastattn::ops {
namespace {

struct Chunk {
    int64_t row, rows, panel, panels;
};

// How a linear is split: chunks have a multiple of tile_rows rows, at most `rows`. There are about `chunks` per thread.
struct Limits {
    int64_t tile_rows, rows, chunks;
};

// Chunks of a linear: some panels times a block of rows, one row block after the other. The last chunks are split in
// two by rows, so that threads of unequal speed end together. The halves of a panel usually go to one thread.
class Chunks {
public:
    Chunks(int64_t m, int64_t panels, int64_t threads, const Limits& limits)
        : m_(m), panels_(panels), threads_(threads), limits_(limits) {
        rows_ = rows_per_chunk();
        panels_per_chunk_ = panels_per_chunk(panels);
        across_ = (panels + panels_per_chunk_ - 1) / panels_per_chunk_;
        whole_ = row_chunks() * across_;
        if (panels_per_chunk_ > 1 || m < kLeastCut) return;
        halves_ = std::min<int64_t>(2, whole_ / threads) * threads;
        whole_ -= halves_;
    }
    int64_t count() const { return whole_ + 2 * halves_; }
    Chunk at(int64_t i) const {
        if (i < whole_) return block(i);
        i -= whole_;
        Chunk chunk = block(whole_ + i / (2 * threads_) * threads_ + i % threads_);
        const int64_t first = std::min(whole_tiles(chunk.rows / 2), chunk.rows);
        if (i / threads_ % 2 == 0)
            chunk.rows = first;
        else
            chunk.row += first, chunk.rows -= first;
        return chunk;
    }
    // A few rows read their weights once, from memory. Consecutive panels in one chunk make one long stream.
    int64_t panels_per_chunk(int64_t panels) const {
        return row_chunks() > 1 ? 1 : std::max<int64_t>(1, panels / (32 * threads_));
    }

private:
    static constexpr int64_t kLeastCut = 24;  // rows; reading a panel takes longer than multiplying fewer rows by it

    int64_t whole_tiles(int64_t rows) const {
        return (rows + limits_.tile_rows - 1) / limits_.tile_rows * limits_.tile_rows;
    }
    int64_t row_chunks() const { return (m_ + rows_ - 1) / rows_; }
    // Whole register tiles, at most `limits.rows`, and small enough for several chunks per thread, because the cores of
    // a shared machine are not equally fast.
    int64_t rows_per_chunk() const {
        const int64_t wanted_chunks = std::max<int64_t>(1, limits_.chunks * threads_ / panels_);
        const int64_t blocks = std::max((m_ + limits_.rows - 1) / limits_.rows, std::min(wanted_chunks, m_ / 48));
        return std::min<int64_t>(whole_tiles((m_ + blocks - 1) / blocks), limits_.rows);
    }
    Chunk block(int64_t i) const {
        const int64_t row = i / across_ * rows_, panel = i % across_ * panels_per_chunk_;
        return {row, std::min(rows_, m_ - row), panel, std::min(panels_per_chunk_, panels_ - panel)};
    }
    int64_t m_, panels_, threads_;
    Limits limits_;
    int64_t rows_, panels_per_chunk_, across_, whole_, halves_ = 0;
};

// Tiles multiply so fast that weights from memory must be used for many rows, as long as these rows stay in the L2
// cache.
Limits limits_of(const KernelTable& kernels, const LinearOp& op) {
    constexpr int64_t kRowBytes = int64_t{1} << 20;
    const TileShape tile = kernels.linear_tile[static_cast<int>(op.weights.format)];
    if (!tile.many_rows) return {.tile_rows = tile.rows, .rows = kLinearRowBlock, .chunks = 12};
    const int64_t fit = kRowBytes / (quantized_stride(op.weights.words) * kWordBytes) / kLinearRowBlock;
    const int64_t blocks = op.sink == nullptr ? std::max<int64_t>(fit, 1) : 1;
    return {.tile_rows = tile.rows, .rows = blocks * kLinearRowBlock, .chunks = 4};
}

// True if the output is larger than the caches. Writing whole lines without reading them first halves the traffic. An
// output that overwrites the residual is read first in any case.
bool streams(const Team& team, const KernelTable& kernels, const LinearOp& op) {
    constexpr int64_t kCacheBytes = int64_t{512} << 10, kLine = 64;
    if (!kernels.linear_tile[static_cast<int>(op.weights.format)].many_rows) return false;
    const bool rounded = op.rounded.format != Format::kFloat32;
    const void* out = rounded ? static_cast<const void*>(op.rounded.to.words) : op.out.data;
    if (out != nullptr && out == op.residual.data) return false;
    const int64_t row_bytes = kWordBytes * (rounded ? quantized_stride(op.rounded.words) : op.out.stride);
    return out != nullptr && op.x.rows * row_bytes > kCacheBytes * team.size() && op.out.width % kPanelWidth == 0 &&
           row_bytes % kLine == 0 && reinterpret_cast<uintptr_t>(out) % kLine == 0;
}

// A few rows of x in the format of the weights, in the scratch of a thread.
Quantized rounded_alone(int thread, const KernelTable& kernels, const LinearOp& op) {
    float* own = op.scratch[thread] + kLinearScratch;
    const Quantized to{reinterpret_cast<int32_t*>(own), own + kAloneWords};
    round_rows(kernels, op.x, 0, op.x.rows, {.format = op.weights.format, .words = op.weights.words, .to = to});
    return to;
}

// x in the format of the weights, ready for this thread to read.
Quantized rounded_x(Team& team, const KernelTable& kernels, const LinearOp& op) {
    const int64_t m = op.x.rows, stride = quantized_stride(op.weights.words);
    if (op.weights.format == Format::kFloat32) return {reinterpret_cast<int32_t*>(op.x.data), nullptr};
    if (op.x_rounded) return op.quantized;
    if (m <= kAloneRows && m * stride <= kAloneWords) return rounded_alone(team.index(), kernels, op);
    const Rounded rounded{.format = op.weights.format, .words = op.weights.words, .to = op.quantized};
    const int64_t rows = std::max<int64_t>(1, 16384 / std::max(op.x.width, 1));
    team.for_chunks((m + rows - 1) / rows, [&](int64_t chunk) {
        round_rows(kernels, op.x, chunk * rows, std::min(rows, m - chunk * rows), rounded);
    });
    team.barrier();
    return op.quantized;
}

// Where the kernel writes a chunk: the output, its rounded copy, or the sink's room.
View place_of(const LinearOp& op, const Chunk& chunk, int thread) {
    const int64_t column = chunk.panel * kPanelWidth, whole = chunk.panels * kPanelWidth;
    View c{nullptr, chunk.rows, op.out.stride, static_cast<int32_t>(std::min(whole, op.out.width - column))};
    if (op.rounded.format != Format::kFloat32) {  // two bfloat16 per float
        c.stride = quantized_stride(op.rounded.words);
        c.data = reinterpret_cast<float*>(op.rounded.to.words) + chunk.row * c.stride + column / 2;
    } else if (op.out.data != nullptr) {
        c.data = op.out.row(chunk.row) + column;
    } else {
        c.stride = whole;
        c.data = op.sink->room(thread);
    }
    return c;
}

// A linear on one thread. `x` is in the format of the weights.
struct Run {
    const KernelTable& kernels;
    const LinearOp& op;
    Quantized x;
    int64_t x_stride;
    int thread;
    bool stream;

    // Computes a chunk, and prefetches `next_panel` (or null) meanwhile.
    void operator()(const Chunk& chunk, const std::byte* next_panel) const {
        const View c = place_of(op, chunk, thread);
        kernels.linear[static_cast<int>(op.weights.format)](
            {.a = x.words + chunk.row * x_stride,
             .a_stride = x_stride,
             .a_scales = x.scales ? x.scales + chunk.row : nullptr,
             .panels = op.weights.panels,
             .scales = op.weights.scales,
             .sums = op.weights.sums,
             .bias = op.bias,
             .residual = op.residual.data ? op.residual.row(chunk.row) : nullptr,
             .residual_stride = op.residual.stride,
             .c = c.data,
             .c_stride = c.stride,
             .scratch = op.scratch[thread],
             .next_panel = next_panel,
             .m = static_cast<int32_t>(chunk.rows),
             .words = op.weights.words,
             .n = op.out.width,
             .panel_begin = static_cast<int32_t>(chunk.panel),
             .panel_end = static_cast<int32_t>(chunk.panel + chunk.panels),
             .activation = op.activation,
             .c_stream = stream,
             .c_bfloat16 = op.rounded.format != Format::kFloat32});
        if (op.sink == nullptr) return;
        const auto column = static_cast<int32_t>(chunk.panel * kPanelWidth);
        op.sink->take(thread, {.view = c, .row = chunk.row, .column = column});
    }
};

}  // namespace

int64_t most_alone(const Matrix& weights) {
    return std::min(kAloneRows, kAloneWords / quantized_stride(weights.words));
}

void linear_alone(int thread, const KernelTable& kernels, const LinearOp& op) {
    const bool plain = op.weights.format == Format::kFloat32;
    const Quantized x =
        plain ? Quantized{reinterpret_cast<int32_t*>(op.x.data), nullptr} : rounded_alone(thread, kernels, op);
    const int64_t stride = plain ? op.x.stride : quantized_stride(op.weights.words);
    const Run run{.kernels = kernels, .op = op, .x = x, .x_stride = stride, .thread = thread, .stream = false};
    run({.row = 0, .rows = op.x.rows, .panel = 0, .panels = op.weights.count}, nullptr);
}

void linear(Team& team, const KernelTable& kernels, const LinearOp& op) {
    const int64_t m = op.x.rows, panels = op.weights.count;
    if (m == 0 || panels == 0) return;
    const bool plain = op.weights.format == Format::kFloat32;
    const Run run{.kernels = kernels,
                  .op = op,
                  .x = rounded_x(team, kernels, op),
                  .x_stride = plain ? op.x.stride : quantized_stride(op.weights.words),
                  .thread = team.index(),
                  .stream = streams(team, kernels, op)};
    const Chunks chunks(m, panels, team.size(), limits_of(kernels, op));
    // After the last chunk comes the next linear, where each thread starts with the chunk of its own index.
    const std::byte* after_last = op.next.at(team.index() * chunks.panels_per_chunk(op.next.count));
    team.for_chunks_ahead(chunks.count(), [&](int64_t i, int64_t next) {
        const Chunk chunk = chunks.at(i);
        if (chunk.rows == 0) return;
        const std::byte* upcoming = next < chunks.count() ? op.weights.at(chunks.at(next).panel) : after_last;
        const int64_t end = chunk.panel + chunk.panels;
        // What a sink takes at once must fit in its room.
        const int64_t at_once =
            op.sink ? std::max<int64_t>(1, LinearSink::kTileFloats / (chunk.rows * kPanelWidth)) : chunk.panels;
        for (int64_t panel = chunk.panel; panel < end; panel += at_once) {
            const int64_t count = std::min(at_once, end - panel);
            run({chunk.row, chunk.rows, panel, count}, panel + count < end ? op.weights.at(panel + count) : upcoming);
        }
    });
}

}  // namespace fastattn::ops
