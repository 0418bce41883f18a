#include <algorithm>

#include "ops/ops.h"

namespace fastattn::ops {
namespace {

// Rows per chunk: whole register tiles, at most one row block, and small enough for about twelve chunks per thread,
// because the cores of a shared machine are not equally fast.
int64_t rows_per_chunk(int64_t m, int64_t panels, int threads) {
    const int64_t wanted_chunks = std::max<int64_t>(1, 12 * threads / std::max<int64_t>(panels, 1));
    const int64_t blocks = std::max((m + kLinearRowBlock - 1) / kLinearRowBlock, std::min(wanted_chunks, m / 48));
    const int64_t rows = (m + std::max<int64_t>(blocks, 1) - 1) / std::max<int64_t>(blocks, 1);
    return std::min<int64_t>((rows + 5) / 6 * 6, kLinearRowBlock);
}

struct Chunk {
    int64_t row, rows, panel;
};

// Chunks of a linear: some panels times a block of rows, one row block after the other. The last chunks are split in
// two by rows, so that threads of unequal speed end together. The halves of a panel usually go to one thread.
class Chunks {
public:
    Chunks(int64_t m, int64_t rows, int64_t panels, int64_t panels_per_chunk, int64_t threads)
        : m_(m), rows_(rows), panels_per_chunk_(panels_per_chunk), threads_(threads) {
        across_ = (panels + panels_per_chunk - 1) / panels_per_chunk;
        whole_ = (m + rows - 1) / rows * across_;
        if (panels_per_chunk > 1 || m < kLeastCut) return;
        halves_ = std::min<int64_t>(2, whole_ / threads) * threads;
        whole_ -= halves_;
    }
    int64_t count() const { return whole_ + 2 * halves_; }
    Chunk at(int64_t i) const {
        if (i < whole_) return block(i);
        i -= whole_;
        Chunk chunk = block(whole_ + i / (2 * threads_) * threads_ + i % threads_);
        const int64_t first = std::min((chunk.rows / 2 + 5) / 6 * 6, chunk.rows);
        return i / threads_ % 2 == 0 ? Chunk{chunk.row, first, chunk.panel}
                                     : Chunk{chunk.row + first, chunk.rows - first, chunk.panel};
    }

private:
    static constexpr int64_t kLeastCut = 24;  // rows; fewer take less time than their panel
    Chunk block(int64_t i) const {
        const int64_t row = i / across_ * rows_;
        return {row, std::min(rows_, m_ - row), i % across_ * panels_per_chunk_};
    }
    int64_t m_, rows_, panels_per_chunk_, threads_, across_, whole_, halves_ = 0;
};

// x in the format of the weights, ready for this thread to read.
Quantized rounded_x(Team& team, const KernelTable& kernels, const LinearOp& op) {
    const int64_t m = op.x.rows, stride = quantized_stride(op.weights.words);
    if (op.weights.format == Format::kFloat32) return {reinterpret_cast<int32_t*>(op.x.data), nullptr};
    if (op.x_rounded) return op.quantized;
    Rounded rounded{.format = op.weights.format, .words = op.weights.words, .to = op.quantized};
    if (m <= kAloneRows && m * stride <= kAloneWords) {
        float* own = op.scratch[team.index()] + kLinearScratch;
        rounded.to = {reinterpret_cast<int32_t*>(own), own + kAloneWords};
        round_rows(kernels, op.x, 0, m, rounded);
        return rounded.to;
    }
    const int64_t rows = std::max<int64_t>(1, 16384 / std::max(op.x.width, 1));
    team.for_chunks((m + rows - 1) / rows, [&](int64_t chunk) {
        round_rows(kernels, op.x, chunk * rows, std::min(rows, m - chunk * rows), rounded);
    });
    team.barrier();
    return op.quantized;
}

}  // namespace

int32_t words_of(Format format, int64_t k) {
    const int64_t words = format == Format::kFloat32    ? k
                          : format == Format::kBfloat16 ? (k + 1) / 2
                          : format == Format::kInt8     ? (k + 3) / 4
                                                        : (k + kInt4Group - 1) / kInt4Group * (kInt4Group / 4);
    return static_cast<int32_t>(words);
}

int64_t panel_bytes_of(Format format, int64_t k) {
    const int64_t words = words_of(format, k);
    return format == Format::kInt4 ? words / (kInt4Group / 4) * kInt4GroupBytes : words * kPanelWordBytes;
}

void linear(Team& team, const KernelTable& kernels, const LinearOp& op) {
    const int64_t panels = op.weights.count;
    const int64_t m = op.x.rows;
    if (m == 0 || panels == 0) return;
    const Quantized a = rounded_x(team, kernels, op);
    const bool round = op.rounded.format != Format::kFloat32;
    const int64_t a_stride = op.weights.format == Format::kFloat32 ? op.x.stride : quantized_stride(op.weights.words);
    const int64_t rows = rows_per_chunk(m, panels, team.size());
    const int64_t row_chunks = (m + rows - 1) / rows;
    // A few rows read their weights once, from memory. Consecutive panels in one chunk make one long stream.
    const auto panels_of = [&](int64_t count) {
        return row_chunks > 1 ? 1 : std::max<int64_t>(1, count / (32 * team.size()));
    };
    const int64_t panels_per_chunk = panels_of(panels);
    const Chunks chunks(m, rows, panels, panels_per_chunk, team.size());
    team.for_chunks_ahead(chunks.count(), [&](int64_t i, int64_t next) {
        const auto [row, chunk_rows, panel] = chunks.at(i);
        if (chunk_rows == 0) return;
        // After the last chunk comes the next linear, where each thread starts with the chunk of its own index.
        const std::byte* upcoming = next < chunks.count() ? op.weights.at(chunks.at(next).panel)
                                                          : op.next.at(team.index() * panels_of(op.next.count));
        const int64_t end = std::min(panel + panels_per_chunk, panels);
        // A tile for a sink must fit in its room.
        const int64_t at_once =
            op.sink ? std::max<int64_t>(1, LinearSink::kTileFloats / (chunk_rows * kPanelWidth)) : panels_per_chunk;
        for (int64_t first = panel; first < end; first += at_once) {
            const int64_t last = std::min(first + at_once, end);
            View c{nullptr, chunk_rows, op.out.stride, op.out.width};
            if (round) {
                c.stride = quantized_stride(op.rounded.words);
                c.data = reinterpret_cast<float*>(op.rounded.to.words) + row * c.stride;
            } else if (op.out.data != nullptr) {
                c.data = op.out.row(row);
            } else {
                c.stride = at_once * kPanelWidth;
                c.data = op.sink->room(team.index()) - first * kPanelWidth;  // column 0 would be before the room
            }
            kernels.linear[static_cast<int>(op.weights.format)](
                {.a = a.words + row * a_stride,
                 .a_stride = a_stride,
                 .a_scales = a.scales ? a.scales + row : nullptr,
                 .panels = op.weights.panels,
                 .scales = op.weights.scales,
                 .sums = op.weights.sums,
                 .bias = op.bias,
                 .residual = op.residual.data ? op.residual.row(row) : nullptr,
                 .residual_stride = op.residual.stride,
                 .c = c.data,
                 .c_stride = c.stride,
                 .scratch = op.scratch[team.index()],
                 .next_panel = last < end ? op.weights.at(last) : upcoming,
                 .m = static_cast<int32_t>(chunk_rows),
                 .words = op.weights.words,
                 .n = op.out.width,
                 .panel_begin = static_cast<int32_t>(first),
                 .panel_end = static_cast<int32_t>(last),
                 .activation = op.activation,
                 .c_bfloat16 = round});
            if (op.sink == nullptr) continue;
            const int64_t column = first * kPanelWidth;
            c.data += column;
            c.width = static_cast<int32_t>(std::min<int64_t>(last * kPanelWidth, op.out.width) - column);
            op.sink->take(team.index(), {.view = c, .row = row, .column = static_cast<int32_t>(column)});
        }
    });
}

}  // namespace fastattn::ops
