// The scores of relative positions of one head, computed by one thread for windows of 64 query positions.
#pragma once
#include "ops/ops.h"

namespace fastattn::ops {

// A product is a linear without bias, in the format of the table: its bits do not depend on which rows and panels are
// computed together. The rows of a window are multiplied with the columns of all distances to keys. Each block of 64
// keys is multiplied with the columns of its distances to the rows of the window, at most 127. So the work per pair of
// positions is about twice that of its score, and the memory is proportional to the length.
class PositionProducts {
public:
    // `head` of sequence `s`, on thread `thread`.
    PositionProducts(const KernelTable& kernels, const AttentionOp& op, const SequenceBlocks& s, int32_t head,
                     int thread);

    // The scores of query rows [begin, end), at consecutive positions from `position` on, in one window. Overwrites
    // those of the previous call. Windows should come one after the other, because all of a window's rows share the
    // scores of keys.
    const PositionScores& of(int32_t begin, int32_t end, int32_t position);

    static int32_t window_of(int32_t position) { return position / kBlockLen; }

private:
    struct Panels {
        int32_t begin, end;
    };
    Panels panels_between(int32_t first, int32_t last) const;
    void score_queries(int32_t begin, int32_t end);
    void score_keys();
    void multiply(const Matrix& table, View x, Panels panels, float* out, int64_t out_stride) const;

    const KernelTable& kernels_;
    const AttentionOp& op_;
    const SequenceBlocks& s_;
    int32_t head_, kv_len_, window_ = -1;
    float *scratch_, *query_, *key_;
    int32_t* key_first_;
    Quantized rounded_;
    PositionScores scores_{};
};

}  // namespace fastattn::ops
