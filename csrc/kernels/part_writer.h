// Writes the output of a linear on AMX tiles from sums in memory.
#pragma once
#include "kernels/linear.h"
#include "simd/amx.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kBlockVecs = 2;  // vectors of columns of a part

// A part of the output whose sums are complete: some rows and two vectors of columns. Pointers are to the first row
// that is not written yet.
struct FinishedPart {
    const float* sums;  // [rows, 16] of the first vector
    int64_t vec;        // floats from there to those of the second vector
    int row, column, c_column;
    int rows;  // to write
};

// Writes the next `rows` rows of a part, which has whole vectors of columns.
template <Format kFormat, Activation kActivation>
FA_INLINE void write_rows(const LinearArgs& args, const FinishedPart& part, int rows) {
    using Dot = typename Blocks<kFormat>::Dot;
    const ColumnTerms first = column_terms<kFormat>(args, part.column, kLanes);
    const ColumnTerms second = column_terms<kFormat>(args, part.column + kLanes, kLanes);
    const float* sums = part.sums;
    const auto value = [&](const float* sum, const ColumnTerms& terms, int row) __attribute__((always_inline)) {
        return activate<kActivation, true>(scaled<kFormat>(args, row, Dot::load_sum(sum), terms));
    };
    for (int row = part.row; row < part.row + rows; ++row, sums += kTileWords) {
        Vec y0 = value(sums, first, row), y1 = value(sums + part.vec, second, row);
        if (args.residual != nullptr) {
            const float* residual = args.residual + row * args.residual_stride + part.column;
            y0 = add(load(residual), y0);
            y1 = add(load(residual + kLanes), y1);
        }
        store_result<kFormat>(args, row, part.c_column, y0);
        store_result<kFormat>(args, row, part.c_column + kLanes, y1);
    }
}

// The same for a part with fewer columns.
template <Format kFormat, Activation kActivation>
__attribute__((noinline)) void write_part(const LinearArgs& args, const FinishedPart& part, int rows) {
    for (int j = 0; j < kBlockVecs; ++j) {
        const int column = part.column + j * kLanes, columns = args.n - column;
        if (columns <= 0) return;
        const Tile tile{.partial = const_cast<float*>(part.sums) + j * part.vec,
                        .row = part.row,
                        .column = column,
                        .c_column = part.c_column + j * kLanes};
        finish_columns<kFormat, kActivation, 1, true, SumLayout{.row = kTileWords, .vec = 0}>(
            args, tile, rows, 0, columns < kLanes ? columns : kLanes);
    }
}

// Writes finished parts to c between the products of the next block, so that vector units and tiles work at the same
// time. It writes a row or two at a time: a core looks ahead some hundred instructions, and must find the next product
// among them.
template <Format kFormat, Activation kActivation>
class PartWriter {
public:
    explicit PartWriter(const LinearArgs& args) : args_(args) {}
    // Starts to write `part`, spread over `calls` calls of step().
    void start(const FinishedPart& part, int64_t calls) {
        write_all();
        part_ = part;
        if (part.column >= args_.n) part_.rows = 0;
        whole_ = args_.n - part.column >= kBlockVecs * kLanes;
        rows_per_call_ = static_cast<int>((part_.rows + calls - 1) / calls);
    }
    __attribute__((always_inline)) void step() {
        if (part_.rows > 0) write(rows_per_call_ < part_.rows ? rows_per_call_ : part_.rows);
    }
    void write_all() {
        if (part_.rows > 0) write(part_.rows);
    }

private:
    __attribute__((always_inline)) void write(int rows) {
        if (whole_)
            write_rows<kFormat, kActivation>(args_, part_, rows);
        else
            write_part<kFormat, kActivation>(args_, part_, rows);
        part_.sums += rows * kTileWords;
        part_.row += rows;
        part_.rows -= rows;
    }
    const LinearArgs& args_;
    FinishedPart part_{};
    bool whole_ = true;
    int rows_per_call_ = 0;
};

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
