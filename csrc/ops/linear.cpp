#include <algorithm>

#include "ops/ops.h"

namespace fastattn::ops {
namespace {

// Rows of one chunk: whole register tiles, at most a row block, and small enough for about twelve chunks a thread,
// since the cores of a shared machine are not equally fast.
int64_t rows_per_chunk(int64_t m, int64_t panels, int threads) {
    const int64_t wanted_chunks = std::max<int64_t>(1, 12 * threads / std::max<int64_t>(panels, 1));
    const int64_t blocks = std::max((m + kLinearRowBlock - 1) / kLinearRowBlock, std::min(wanted_chunks, m / 48));
    const int64_t rows = (m + std::max<int64_t>(blocks, 1) - 1) / std::max<int64_t>(blocks, 1);
    return std::min<int64_t>((rows + 5) / 6 * 6, kLinearRowBlock);
}

// x in the format of the weights, for this thread to read.
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
    // Few rows read their weights once, from memory: neighbouring panels in one chunk make one long stream.
    const auto panels_of = [&](int64_t count) {
        return row_chunks > 1 ? 1 : std::max<int64_t>(1, count / (32 * team.size()));
    };
    const int64_t panels_per_chunk = panels_of(panels);
    const int64_t panel_chunks = (panels + panels_per_chunk - 1) / panels_per_chunk;
    team.for_chunks_ahead(row_chunks * panel_chunks, [&](int64_t chunk, int64_t next) {
        const int64_t row = chunk / panel_chunks * rows;
        const int64_t panel = chunk % panel_chunks * panels_per_chunk;
        // Behind the last chunk comes the next linear, where each thread begins with the chunk of its own number.
        const std::byte* upcoming = next < row_chunks * panel_chunks
                                        ? op.weights.at(next % panel_chunks * panels_per_chunk)
                                        : op.next.at(team.index() * panels_of(op.next.count));
        const int64_t chunk_rows = std::min(rows, m - row), end = std::min(panel + panels_per_chunk, panels);
        // A sink takes what fits its room.
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
                c.data = op.sink->room(team.index()) - first * kPanelWidth;  // column 0 would lie before the room
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
