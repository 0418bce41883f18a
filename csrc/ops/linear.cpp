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

}  // namespace

void linear(Team& team, const KernelTable& kernels, const LinearOp& op) {
    const int64_t panels = (op.out.width + kPanelWidth - 1) / kPanelWidth;
    const int64_t m = op.x.rows;
    if (m == 0 || panels == 0) return;
    const int64_t rows = rows_per_chunk(m, panels, team.size());
    const int64_t row_chunks = (m + rows - 1) / rows;
    // Few rows read their weights once, from memory: neighbouring panels in one chunk make one long stream.
    const int64_t panels_per_chunk = row_chunks > 1 ? 1 : std::max<int64_t>(1, panels / (32 * team.size()));
    const int64_t panel_chunks = (panels + panels_per_chunk - 1) / panels_per_chunk;
    team.for_chunks(row_chunks * panel_chunks, [&](int64_t chunk) {
        const int64_t row = chunk / panel_chunks * rows;
        const int64_t panel = chunk % panel_chunks * panels_per_chunk;
        // Threads take chunks in turn, so the panel after the next `size` ones is most likely this thread's next;
        // behind the last panel of the last rows that is one of the next linear.
        const int64_t next_panel = panel + panels_per_chunk * team.size();
        const bool behind = next_panel >= panels && row + rows >= m;
        const float* upcoming =
            behind ? op.next.at(next_panel - panels) : op.panels + next_panel % panels * op.x.width * kPanelWidth;
        const int64_t chunk_rows = std::min(rows, m - row), end = std::min(panel + panels_per_chunk, panels);
        // A sink takes what fits its room.
        const int64_t at_once =
            op.sink ? std::max<int64_t>(1, LinearSink::kTileFloats / (chunk_rows * kPanelWidth)) : panels_per_chunk;
        for (int64_t first = panel; first < end; first += at_once) {
            const int64_t last = std::min(first + at_once, end);
            View c{nullptr, chunk_rows, op.out.stride, op.out.width};
            if (op.out.data != nullptr) {
                c.data = op.out.row(row);
            } else {
                c.stride = at_once * kPanelWidth;
                c.data = op.sink->room(team.index()) - first * kPanelWidth;  // column 0 would lie before the room
            }
            kernels.linear_f32({.a = op.x.row(row),
                                .a_stride = op.x.stride,
                                .panels = op.panels,
                                .bias = op.bias,
                                .residual = op.residual.data ? op.residual.row(row) : nullptr,
                                .residual_stride = op.residual.stride,
                                .c = c.data,
                                .c_stride = c.stride,
                                .scratch = op.scratch[team.index()],
                                .next_panel = last < end ? op.panels + last * op.x.width * kPanelWidth : upcoming,
                                .m = static_cast<int32_t>(chunk_rows),
                                .k = op.x.width,
                                .n = op.out.width,
                                .panel_begin = static_cast<int32_t>(first),
                                .panel_end = static_cast<int32_t>(last),
                                .activation = op.activation});
            if (op.sink == nullptr) continue;
            const int64_t column = first * kPanelWidth;
            c.data += column;
            c.width = static_cast<int32_t>(std::min<int64_t>(last * kPanelWidth, op.out.width) - column);
            op.sink->take(team.index(), {.view = c, .row = row, .column = static_cast<int32_t>(column)});
        }
    });
}

}  // namespace fastattn::ops
