// The matrix product: rows of activations times packed panels of 64 columns, one template for every format.
//
// float32: each output element is one lane that accumulates over k in order with fused multiply-add, in sums of
// kSum terms. These sums are added in order, for any number of rows and threads and any SIMD width (docs/numerics.md;
// docs/design/0005-blocked-sums.md explains why it is not one sum). bfloat16 sums have the order of dot.h. int8 sums
// are exact, so their order does not matter. Blocks of k keep a panel slice in cache. Partial sums are saved in
// `scratch` and continue exactly where they stopped.
#pragma once
#include <cstddef>

#include "kernels/dot.h"
#include "kernels/kernel_list.h"
#include "kernels/math.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// How a format is multiplied: blocks of kK words, sums of kSum words. 768 words are 192 KiB of a panel, read from L2
// once per tile of rows; 96 to 384 were not faster.
template <Format kFormat>
struct Blocks;
template <>
struct Blocks<Format::kFloat32> {
    static constexpr int kK = 768, kSum = 128;
    using Dot = DotFloat32;
};
template <>
struct Blocks<Format::kBfloat16> {
    using Dot = DotBfloat16;
    static constexpr int kK = 768, kSum = Dot::kTwoChains ? kChainWords : 768;
};
template <>
struct Blocks<Format::kInt8> {
    static constexpr int kK = 768, kSum = 768;
    using Dot = DotInt8;
};
template <>
struct Blocks<Format::kInt4> {
    static constexpr int kK = kInt4Block, kSum = kInt4Block;
    using Dot = DotInt8;
};

template <Format kFormat>
constexpr bool kInteger = traits_of(kFormat).integer;

constexpr int kVecsPerPanel = kPanelWidth / kLanes;
constexpr int kGroupWords = traits_of(Format::kInt4).group_words;

// Prefetches the panel slice that this thread needs next, a few bytes per multiplied word. Otherwise a thread waits for
// the first rows of every panel: 64x768x768 reached 82 % of the FMA rate without prefetching and 88 % with the first
// version of this, in adjacent runs of two threads (benchmarks/percent_of_limit.py). Prefetching several lines every
// eight words, in a separate loop, was 1 to 2 % slower.
struct Prefetch {
    uintptr_t next;  // address of the first line of the next step
    int64_t step;    // bytes per word, rounded up; may reach past the slice
    int lines;       // cache lines that a step touches
};
constexpr int kAheadWords = 16;  // 4 KiB
constexpr int64_t kLineBytes = 64;

// kRows x kTileVecs vectors of the output, over `words` words, with the sums in registers.
template <class Dot, int kRows, bool kPrefetch = true>
FA_INLINE void multiply_words(const int32_t* a, int64_t a_stride, const std::byte* panel, int words, Prefetch& prefetch,
                              typename Dot::Sum (&sum)[kRows][kTileVecs]) {
    uintptr_t ahead = prefetch.next;
    const int64_t step = prefetch.step;
    const int lines = prefetch.lines;
    const auto prefetch_ahead = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 1  // usually one line; clang made a loop of four and one for the rest
        for (int line = 0; line < lines; ++line) prefetch_line(ahead + line * kLineBytes);
        ahead += step;
    };
    for (int p = add_pairs<Dot>(a, a_stride, panel, kPanelWordBytes, words, prefetch_ahead, sum); p < words; ++p) {
        if constexpr (!kPrefetch) {
        } else if constexpr (kRows == 1) {
            for (int j = 0; j < kTileVecs; ++j)
                prefetch_line(address_of(panel) + int64_t{p + kAheadWords} * kPanelWordBytes + j * kLineBytes);
        } else {
            prefetch_ahead();
        }
        Words b[kTileVecs];
#pragma GCC unroll 8
        for (int j = 0; j < kTileVecs; ++j) b[j] = load_words(panel + int64_t{p} * kPanelWordBytes + j * kLineBytes);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            const Words x = broadcast_word(a[i * a_stride + p]);
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j) sum[i][j] = Dot::step(sum[i][j], x, b[j]);
        }
    }
    prefetch.next = ahead;
}

// The same for a block of at most kSum words. With two chains, the second one reads the block from the L1 cache.
template <class Dot, int kRows>
FA_INLINE void multiply_block(const int32_t* a, int64_t a_stride, const std::byte* panel, int words, Prefetch& prefetch,
                              typename Dot::Sum (&sum)[kRows][kTileVecs]) {
    if constexpr (!Dot::kTwoChains) {
        multiply_words<Dot, kRows>(a, a_stride, panel, words, prefetch, sum);
    } else {
        multiply_words<typename Dot::Even, kRows>(a, a_stride, panel, words, prefetch, sum);
        typename Dot::Sum odd[kRows][kTileVecs];
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j) odd[i][j] = Dot::zero_sum();
        multiply_words<typename Dot::Odd, kRows, false>(a, a_stride, panel, words, prefetch, odd);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j) sum[i][j] = end_chains(sum[i][j], odd[i][j], words);
    }
}

// `finish` needs only `partial` and the places in the output.
struct Tile {
    const int32_t* a = nullptr;        // first row, first word of this block
    const std::byte* panel = nullptr;  // first word of this block, first column of this tile
    float* partial;                    // sums of this row block, first column of this tile (SumLayout)
    int words = 0;
    bool first = true, last = true;  // first or last block of k
    int row, column;                 // of the output
    int c_column;                    // of args.c
};

// The correction for int8_offset, from the sums of the weights.
FA_INLINE Words offset_of(const LinearArgs& args, int column) {
    return mul_int(load_words(args.sums + column), broadcast_word(-kInt8Offset));
}

template <Format kFormat>
using SumOf = typename Blocks<kFormat>::Dot::Sum;

// Terms that are the same for all rows of a vector of columns: `scale` of integer formats, `bias` or zeros.
struct ColumnTerms {
    Vec scale, bias;
};

template <Format kFormat>
FA_INLINE ColumnTerms column_terms(const LinearArgs& args, int column, int n) {
    ColumnTerms terms{zero(), zero()};
    if (args.bias) terms.bias = n < kLanes ? load_partial(args.bias + column, n) : load(args.bias + column);
    if constexpr (kInteger<kFormat>) terms.scale = load(args.scales + column);
    return terms;
}

// Converts a sum to the input of the activation.
template <Format kFormat>
FA_INLINE Vec scaled(const LinearArgs& args, int row, SumOf<kFormat> sum, const ColumnTerms& terms) {
    if constexpr (kInteger<kFormat>)
        return fma(mul(to_float(sum), broadcast(args.a_scales[row])), terms.scale, terms.bias);
    else
        return add(sum, terms.bias);
}

template <Format kFormat>
FA_INLINE void store_result(const LinearArgs& args, int row, int c_column, Vec y) {
    float* c = args.c + row * args.c_stride;
#if FASTATTN_HAS_TILES
    if (args.c_stream) {
        if (kFormat == Format::kBfloat16 && args.c_bfloat16)
            return stream_bf16(reinterpret_cast<uint16_t*>(c) + c_column, y);
        return stream(c + c_column, y);
    }
#endif
    if constexpr (kFormat == Format::kBfloat16)
        if (args.c_bfloat16) return store_bf16(reinterpret_cast<uint16_t*>(c) + c_column, y);
    store(c + c_column, y);
}

// Where sums are in Tile::partial, in floats between rows and between vectors of columns.
struct SumLayout {
    int row, vec;
};
constexpr SumLayout kRowsOfSums{.row = kPanelWidth, .vec = kLanes};

// Writes rows of sums to c: kVecs whole vectors of columns, or one vector of `n` columns.
template <Format kFormat, Activation kActivation, int kVecs, bool kPart, SumLayout kSums = kRowsOfSums>
FA_INLINE void finish_columns(const LinearArgs& args, const Tile& t, int rows, int first, int n) {
    using Dot = typename Blocks<kFormat>::Dot;
    const int column = t.column + first, c_column = t.c_column + first;
    ColumnTerms terms[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) terms[j] = column_terms<kFormat>(args, column + j * kLanes, kPart ? n : kLanes);
    for (int i = 0; i < rows; ++i) {
        // From an address, because args.residual may be null.
        const auto* residual = reinterpret_cast<const float*>(
            address_of(args.residual) + sizeof(float) * ((t.row + i) * args.residual_stride + column));
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
            const auto sum = Dot::load_sum(t.partial + i * kSums.row + (first / kLanes + j) * kSums.vec);
            Vec y = activate<kActivation, kFormat != Format::kFloat32>(scaled<kFormat>(args, t.row + i, sum, terms[j]));
            if (args.residual) y = add(kPart ? load_partial(residual, n) : load(residual + j * kLanes), y);
            if (kPart && n < kLanes)
                store_partial(args.c + (t.row + i) * args.c_stride + c_column, y, n);
            else
                store_result<kFormat>(args, t.row + i, c_column + j * kLanes, y);
        }
    }
}

// Writes the sums of a whole tile from registers to c, without an activation.
template <Format kFormat, int kRows>
FA_INLINE void finish_sums(const LinearArgs& args, const Tile& t, const SumOf<kFormat> (&sum)[kRows][kTileVecs]) {
#pragma GCC unroll 8
    for (int j = 0; j < kTileVecs; ++j) {
        const int column = t.column + j * kLanes;
        const ColumnTerms terms = column_terms<kFormat>(args, column, kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            Vec y = scaled<kFormat>(args, t.row + i, sum[i][j], terms);
            if (args.residual) y = add(load(args.residual + (t.row + i) * args.residual_stride + column), y);
            store_result<kFormat>(args, t.row + i, t.c_column + j * kLanes, y);
        }
    }
}

// Writes the sums of `rows` rows and kVecs vectors of columns from t.partial to c. Not inlined: a tile calls it once,
// and inlining it into every tile made the library several times larger and no faster.
template <Format kFormat, Activation kActivation>
__attribute__((noinline)) void finish_rows(const LinearArgs& args, const Tile& t, int rows) {
    const int columns = args.n - t.column;
    if (columns >= kTileVecs * kLanes)
        return finish_columns<kFormat, kActivation, kTileVecs, false>(args, t, rows, 0, 0);
    for (int j = 0; j < columns; j += kLanes)
        finish_columns<kFormat, kActivation, 1, true>(args, t, rows, j, columns - j < kLanes ? columns - j : kLanes);
}

template <Format kFormat>
FA_INLINE void finish(const LinearArgs& args, const Tile& t, int rows) {
    switch (args.activation) {
        case Activation::kNone: return finish_rows<kFormat, Activation::kNone>(args, t, rows);
        case Activation::kGeluErf: return finish_rows<kFormat, Activation::kGeluErf>(args, t, rows);
        case Activation::kGeluTanh: return finish_rows<kFormat, Activation::kGeluTanh>(args, t, rows);
        case Activation::kRelu: return finish_rows<kFormat, Activation::kRelu>(args, t, rows);
        case Activation::kTanh: return finish_rows<kFormat, Activation::kTanh>(args, t, rows);
        case Activation::kSilu: return finish_rows<kFormat, Activation::kSilu>(args, t, rows);
        case Activation::kSigmoid: return finish_rows<kFormat, Activation::kSigmoid>(args, t, rows);
    }
}

template <Format kFormat, int kRows>
void tile(const LinearArgs& args, const Tile& t, Prefetch& prefetch) {
    using Dot = typename Blocks<kFormat>::Dot;
    constexpr int kSumBlock = Blocks<kFormat>::kSum;
    typename Dot::Sum sum[kRows][kTileVecs];
    const bool whole = t.last && args.activation == Activation::kNone && args.n - t.column >= kTileVecs * kLanes;
    if (t.last)  // prefetch the lines of c, which are written at the end
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kTileVecs; ++j)
                prefetch_line</*kWrite=*/true>(
                    address_of(args.c) +
                    sizeof(float) * ((t.row + i) * args.c_stride + ((t.c_column + j * kLanes) >> args.c_bfloat16)));
    for (int k0 = 0; k0 == 0 || k0 < t.words; k0 += kSumBlock) {
        const int words = t.words - k0 < kSumBlock ? t.words - k0 : kSumBlock;
        const bool first = t.first && k0 == 0;
#pragma GCC unroll 8
        for (int j = 0; j < kTileVecs; ++j) {
            typename Dot::Sum start = Dot::zero_sum();
            if constexpr (kInteger<kFormat> && kInt8Offset != 0)
                if (first) start = offset_of(args, t.column + j * kLanes);
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i) sum[i][j] = start;
        }
        multiply_block<Dot, kRows>(t.a + k0, args.a_stride, t.panel + k0 * kPanelWordBytes, words, prefetch, sum);
        if (!first || Dot::kTwoChains)
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
                for (int j = 0; j < kTileVecs; ++j)
                    sum[i][j] = Dot::add_sum(
                        first ? Dot::zero_sum() : Dot::load_sum(t.partial + i * kPanelWidth + j * kLanes), sum[i][j]);
        if (whole && k0 + words == t.words) return finish_sums<kFormat>(args, t, sum);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j) Dot::store_sum(t.partial + i * kPanelWidth + j * kLanes, sum[i][j]);
    }
    if (t.last) finish<kFormat>(args, t, kRows);
}

// What to prefetch while `rows` rows are multiplied by words [k0, k0 + words) of a panel: its next words, or the first
// words of the next panel. At most one slice, which fits in the cache next to the current one.
template <Format kFormat>
FA_INLINE Prefetch prefetch_of(const LinearArgs& args, int panel, int k0, int words, int rows) {
    constexpr int kKBlock = Blocks<kFormat>::kK;
    const auto* weights = static_cast<const std::byte*>(args.panels) + panel * panel_bytes_of(kFormat, args.words);
    int left = args.words - k0 - words;
    const std::byte* next = weights + panel_bytes_of(kFormat, k0 + words);
    if (left == 0) {
        left = args.words;
        if (panel + 1 == args.panel_end) next = static_cast<const std::byte*>(args.next_panel);
    }
    // A tile of a single row prefetches its own panel while it reads it.
    if (next == nullptr || rows <= 1) return {0, 0, 0};
    const int tiles = (rows + kTileRows - 2) / kTileRows * (kVecsPerPanel / kTileVecs);
    const int64_t steps = int64_t{words > 0 ? words : 1} * tiles;
    const int64_t step = (panel_bytes_of(kFormat, left < kKBlock ? left : kKBlock) + steps - 1) / steps;
    return {address_of(next), step, static_cast<int>((step + kLineBytes - 1) / kLineBytes)};
}

using TileFunction = void (*)(const LinearArgs&, const Tile&, Prefetch&);

// Unpacks `words` words of an int4 panel, from word k0 on, to int8, in strips of kStripColumns.
FA_INLINE void unpack_panel(const std::byte* panel, int k0, int words, float* out) {
    constexpr int64_t kWord = kStripColumns * kWordBytes;  // bytes of a word of a strip
    const auto place = [words](int j) {                    // of a vector of columns
        return j * kLanes / kStripColumns * words * kWord + j * kLanes % kStripColumns * kWordBytes;
    };
    auto* to = reinterpret_cast<std::byte*>(out);
    for (int p = 0; p < words; p += kGroupWords, to += kGroupWords * kWord) {
        const std::byte* group = panel + (k0 + p) / kGroupWords * kInt4GroupBytes;
        Words scale[kVecsPerPanel];
        for (int j = 0; j < kVecsPerPanel; ++j)
            scale[j] = load_int8(reinterpret_cast<const int8_t*>(group) + j * kLanes);
        for (int w = 0; w < kGroupWords / 2; ++w)
            for (int j = 0; j < kVecsPerPanel; ++j) {
                Words low, high;
                unpack_int4(load_words(group + kPanelWidth + w * kPanelWordBytes + j * kLineBytes), low, high);
                store_words(to + w * kWord + place(j), scale_int8(low, scale[j]));
                store_words(to + (w + kGroupWords / 2) * kWord + place(j), scale_int8(high, scale[j]));
            }
    }
}

// One row of an int4 panel: multiplies the nibbles directly, then each group's sum by its scale. Sums are exact, so the
// result is that of the unpacked panel.
FA_INLINE void one_row_int4(const LinearArgs& args, const std::byte* panel, int column) {
    constexpr int64_t kAhead = 4 * kInt4GroupBytes;
    const auto* a = static_cast<const int32_t*>(args.a);
    for (int j0 = 0; j0 < kVecsPerPanel; j0 += kTileVecs) {
        Words sum[kTileVecs];
        for (int j = 0; j < kTileVecs; ++j) sum[j] = offset_of(args, column + (j0 + j) * kLanes);
        const std::byte* group = panel;
        for (int p = 0; p < args.words; p += kGroupWords, group += kInt4GroupBytes) {
            if (j0 == 0)
                for (int64_t line = 0; line < kInt4GroupBytes; line += kLineBytes)
                    prefetch_line(address_of(group) + kAhead + line);
            Words dot[kTileVecs];
            for (int j = 0; j < kTileVecs; ++j) dot[j] = zero_words();
#pragma GCC unroll 4
            for (int w = 0; w < kGroupWords / 2; ++w) {
                const Words x = broadcast_word(a[p + w]), y = broadcast_word(a[p + w + kGroupWords / 2]);
#pragma GCC unroll 8
                for (int j = 0; j < kTileVecs; ++j) {
                    Words low, high;
                    unpack_int4(load_words(group + kPanelWidth + w * kPanelWordBytes + (j0 + j) * kLineBytes), low,
                                high);
                    dot[j] = dot_int8(dot_int8(dot[j], x, low), y, high);
                }
            }
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j)
                sum[j] = add_int(
                    sum[j], mul_int(dot[j], load_int8(reinterpret_cast<const int8_t*>(group) + (j0 + j) * kLanes)));
        }
        const Tile t{.partial = args.scratch,
                     .row = 0,
                     .column = column + j0 * kLanes,
                     .c_column = column + j0 * kLanes - args.panel_begin * kPanelWidth};
        for (int j = 0; j < kTileVecs; ++j) store_words(t.partial + j * kLanes, sum[j]);
        finish<Format::kInt4>(args, t, 1);
    }
}

// One row times all int4 panels.
FA_INLINE void row_of_int4(const LinearArgs& args) {
    const int64_t bytes = panel_bytes_of(Format::kInt4, args.words);
    for (int panel = args.panel_begin; panel < args.panel_end; ++panel)
        one_row_int4(args, static_cast<const std::byte*>(args.panels) + panel * bytes, panel * kPanelWidth);
}

template <Format kFormat>
void linear(const LinearArgs& args) {
    if constexpr (kFormat == Format::kInt4)
        if (args.m == 1) return row_of_int4(args);
    static constexpr TileFunction tiles[kTileRows] = {tile<kFormat, 1>, tile<kFormat, 2>, tile<kFormat, 3>,
                                                      tile<kFormat, 4>, tile<kFormat, 5>, tile<kFormat, 6>};
    static_assert(kTileRows == 6);
    constexpr int kKBlock = Blocks<kFormat>::kK;
    const auto* a = static_cast<const int32_t*>(args.a);
    for (int panel = args.panel_begin; panel < args.panel_end; ++panel) {
        const std::byte* weights =
            static_cast<const std::byte*>(args.panels) + panel * panel_bytes_of(kFormat, args.words);
        for (int block = 0; block < args.m; block += kLinearRowBlock) {
            const int block_end = block + kLinearRowBlock < args.m ? block + kLinearRowBlock : args.m;
            int k0 = 0;
            do {
                const int words = args.words - k0 < kKBlock ? args.words - k0 : kKBlock;
                const std::byte* slice = weights + k0 * kPanelWordBytes;
                Prefetch prefetch = prefetch_of<kFormat>(args, panel, k0, words, block_end - block);
                if constexpr (kFormat == Format::kInt4) {
                    float* unpacked = args.scratch + kLinearRowBlock * kPanelWidth;
                    unpack_panel(weights, k0, words, unpacked);
                    slice = reinterpret_cast<const std::byte*>(unpacked);
                }
                for (int row = block; row < block_end; row += kTileRows) {
                    const int rows = block_end - row < kTileRows ? block_end - row : kTileRows;
                    for (int j = 0; j < kVecsPerPanel; j += kTileVecs) {
                        const Tile t{.a = a + row * args.a_stride + k0,
                                     .panel = slice + j * kLineBytes,
                                     .partial = args.scratch + (row - block) * kPanelWidth + j * kLanes,
                                     .words = words,
                                     .first = k0 == 0,
                                     .last = k0 + words == args.words,
                                     .row = row,
                                     .column = panel * kPanelWidth + j * kLanes,
                                     .c_column = (panel - args.panel_begin) * kPanelWidth + j * kLanes};
                        tiles[rows - 1](args, t, prefetch);
                    }
                }
                k0 += words;
            } while (k0 < args.words);
        }
    }
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
