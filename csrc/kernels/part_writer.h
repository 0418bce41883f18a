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

// Writes finished parts to c between the products of the next block, so that vector units and tiles work at the same
// time. It writes a row or two at a time: a core looks ahead some hundred instructions, and must find the next product
// among them. So it also keeps the instructions of a row few.
template <Format kFormat, Activation kActivation>
class PartWriter {
public:
    explicit PartWriter(const LinearArgs& args)
        : args_(args), bfloat16_(kFormat == Format::kBfloat16 && args.c_bfloat16), stream_(args.c_stream) {}
    // Prefetches the lines of a panel's output. Another core may have them, and what this core reads later waits for
    // them to be written.
    void prefetch(int row, int rows, int c_column) const {
        if (stream_) return;
        const float* c = args_.c + row * args_.c_stride + (bfloat16_ ? c_column / 2 : c_column);
        const int lines = bfloat16_ ? 2 : 4;
        for (int i = 0; i < rows; ++i, c += args_.c_stride)
            for (int j = 0; j < lines; ++j) asm volatile("prefetchw %0" : : "m"(c[j * kLanes]));
    }
    // Starts to write `part`, spread over `calls` calls of step().
    void start(const FinishedPart& part, int64_t calls) {
        write_all();
        part_ = part;
        if (part.column >= args_.n) part_.rows = 0;
        whole_ = args_.n - part.column >= kBlockVecs * kLanes;
        rows_per_call_ = static_cast<int>((part_.rows + calls - 1) / calls);
        c_ = args_.c + part.row * args_.c_stride + (bfloat16_ ? part.c_column / 2 : part.c_column);
        residual_ = args_.residual ? args_.residual + part.row * args_.residual_stride + part.column : nullptr;
    }
    __attribute__((always_inline)) void step() {
        if (part_.rows > 0) write(rows_per_call_ < part_.rows ? rows_per_call_ : part_.rows);
    }
    void write_all() {
        if (part_.rows > 0) write(part_.rows);
    }

private:
    using Dot = typename Blocks<kFormat>::Dot;

    __attribute__((always_inline)) void write(int rows) {
        if (whole_)
            write_rows(rows);
        else
            write_columns(rows);
        part_.sums += rows * kTileWords;
        part_.row += rows;
        part_.rows -= rows;
    }

    // Writes the next `rows` rows of a part, which has whole vectors of columns.
    __attribute__((always_inline)) void write_rows(int rows) {
        const ColumnTerms first = column_terms<kFormat>(args_, part_.column, kLanes);
        const ColumnTerms second = column_terms<kFormat>(args_, part_.column + kLanes, kLanes);
        const float* sums = part_.sums;
        for (int i = 0; i < rows; ++i, sums += kTileWords, c_ += args_.c_stride) {
            const int row = part_.row + i;
            Vec y0 = value(sums, row, first), y1 = value(sums + part_.vec, row, second);
            if (residual_ != nullptr) {
                y0 = add(load(residual_), y0);
                y1 = add(load(residual_ + kLanes), y1);
                residual_ += args_.residual_stride;
            }
            if (bfloat16_ && stream_) {
                stream_factors_bf16(reinterpret_cast<uint16_t*>(c_), y0, y1);
            } else if (bfloat16_) {
                store_factors_bf16(reinterpret_cast<uint16_t*>(c_), y0, y1);
            } else if (stream_) {
                stream(c_, y0);
                stream(c_ + kLanes, y1);
            } else {
                store(c_, y0);
                store(c_ + kLanes, y1);
            }
        }
    }
    __attribute__((always_inline)) Vec value(const float* sum, int row, const ColumnTerms& terms) const {
        return activate<kActivation, true>(scaled<kFormat>(args_, row, Dot::load_sum(sum), terms));
    }

    // The same for a part with fewer columns.
    __attribute__((noinline)) void write_columns(int rows) {
        for (int j = 0; j < kBlockVecs; ++j) {
            const int column = part_.column + j * kLanes, columns = args_.n - column;
            if (columns <= 0) return;
            const Tile tile{.partial = const_cast<float*>(part_.sums) + j * part_.vec,
                            .row = part_.row,
                            .column = column,
                            .c_column = part_.c_column + j * kLanes};
            finish_columns<kFormat, kActivation, 1, true, SumLayout{.row = kTileWords, .vec = 0}>(
                args_, tile, rows, 0, columns < kLanes ? columns : kLanes);
        }
    }

    const LinearArgs& args_;
    const bool bfloat16_, stream_;
    FinishedPart part_{};
    float* c_ = nullptr;               // of the next row; two bfloat16 per float
    const float* residual_ = nullptr;  // of the next row, or null
    bool whole_ = true;
    int rows_per_call_ = 0;
};

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
