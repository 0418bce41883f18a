// The matrix product on AMX tiles, for bfloat16, int8 and int4 (unpacked to int8). A panel has four strips of sixteen
// columns (formats.h), so a tile of weights is 1,024 adjacent bytes.
//
// A block is 48 rows times 32 columns, 32 rows times 32 columns or 16 rows times 64 columns. Its sums stay in registers
// for a slice of k. Slices are large, because loading and storing sums is slow. Larger blocks read less from the L2
// cache per product, and that is what limits the speed (docs/design/0015-tiles.md).
#pragma once
#include "kernels/linear.h"
#if FASTATTN_HAS_TILES
#include "kernels/part_writer.h"
#endif

namespace fastattn::FASTATTN_TARGET {
namespace {

#if FASTATTN_HAS_TILES

constexpr int kBlockRows = 3 * kTileWords;  // of the largest block
constexpr int kPauses = 2;                  // in a step, at least: calls of PartWriter::step
constexpr int kTileFloats = kTileWords * kTileWords;
constexpr int kBlockFloats = kBlockRows * kPanelWidth;  // sums of a block of rows, all columns of a panel
constexpr int kSliceWords = 1536;
// Blocks whose sums are computed at a time, if k has slices.
constexpr int kSumBlocks = kLinearRowBlock / kBlockRows / 2;
constexpr int64_t kStripWordBytes = kTileWords * kWordBytes;
static_assert(kStripColumns == kTileWords);
static_assert(kSliceWords % kTileWords == 0 && kUnpackedWords % kTileWords == 0 && kInt4Block % kTileWords == 0);
static_assert(kLinearRowBlock % (2 * kBlockRows) == 0);

// Prefetches into L2 what comes after a slice, some lines per step. One stream does not reach the memory bandwidth of
// every machine, so it uses four.
class SlicePrefetch {
public:
    void start(const std::byte* next, int64_t bytes, int64_t steps) {
        constexpr int64_t kUnit = kStreams * kLineBytes;
        next_ = next;
        stream_bytes_ = bytes / kUnit * kLineBytes;
        done_ = 0;
        lines_ = next == nullptr ? 0 : static_cast<int>((stream_bytes_ / kLineBytes + steps - 1) / steps);
    }
    __attribute__((always_inline)) void step() {
        if (lines_ == 0 || done_ >= stream_bytes_) return;
        for (int i = 0; i < lines_; ++i, done_ += kLineBytes)
#pragma GCC unroll 4
            for (int s = 0; s < kStreams; ++s) __builtin_prefetch(next_ + s * stream_bytes_ + done_, 0, 2);
    }

private:
    static constexpr int kStreams = 4;
    const std::byte* next_ = nullptr;
    int64_t stream_bytes_ = 0, done_ = 0;
    int lines_ = 0;
};

// Rows of the output that are computed together.
struct RowBlock {
    int row, rows;  // to write
    int start;      // first row of the tiles; they may repeat rows that another block writes
    int tiles;      // of rows

    // The block of rows from `row` on.
    static RowBlock at(int row, int m) {
        const int left = m - row;
        const int most = left > 2 * kTileWords && m >= kBlockRows ? 3 : left > kTileWords ? 2 : 1;
        RowBlock b{row, left < most * kTileWords ? left : most * kTileWords, 0, most};
        const int last = m - most * kTileWords;
        b.start = last < 0 ? 0 : row < last ? row : last;
        return b;
    }
};

// The last words of k, if they do not fill a tile, padded with zeros.
struct Tail {
    int words;                                                  // 0: none
    alignas(kLineBytes) int32_t rows[kBlockRows * kTileWords];  // of the current block
    alignas(kLineBytes) int32_t strips[kPanelWidth / kTileWords][kTileFloats];

    // from: the first of these words in the first strip.
    void read_strips(const std::byte* from, int64_t strip_bytes) {
        for (int s = 0; s < kPanelWidth / kTileWords; ++s)
            for (int w = 0; w < kTileWords; ++w)
                store_words(strips[s] + w * kTileWords,
                            w < words ? load_words(from + s * strip_bytes + w * kStripWordBytes) : zero_words());
    }
    void read_rows(const int32_t* from, int64_t stride, int count) {
        for (int r = 0; r < count; ++r)
            store_words(rows + r * kTileWords,
                        as_words(load_partial(reinterpret_cast<const float*>(from + r * stride), words)));
    }
};

// The words of a panel that a block of rows is multiplied by.
struct Slice {
    const std::byte* strips;
    int64_t strip_bytes;
    int words, steps;  // steps: whole tiles
    bool first, last;
    const int32_t* start;  // int8, int4: initial sums of the columns
};

// The products of one step of k, for the three kinds of blocks, with kPauses - 1 or more calls of between(). `strip`:
// bytes between strips.
#define FA_THREE_BY_TWO(a, a_bytes, b, strip)                       \
    do {                                                            \
        FA_TILE_LOAD(6, a, a_bytes);                                \
        FA_TILE_LOAD(7, b, kLineBytes);                             \
        FA_TILE_MULTIPLY(kFormat, 0, 6, 7);                         \
        FA_TILE_LOAD(7, (b) + (strip), kLineBytes);                 \
        FA_TILE_MULTIPLY(kFormat, 1, 6, 7);                         \
        between();                                                  \
        FA_TILE_LOAD(6, (a) + kTileWords * (a_bytes), a_bytes);     \
        FA_TILE_MULTIPLY(kFormat, 3, 6, 7);                         \
        FA_TILE_LOAD(7, b, kLineBytes);                             \
        FA_TILE_MULTIPLY(kFormat, 2, 6, 7);                         \
        between();                                                  \
        FA_TILE_LOAD(6, (a) + 2 * kTileWords * (a_bytes), a_bytes); \
        FA_TILE_MULTIPLY(kFormat, 4, 6, 7);                         \
        FA_TILE_LOAD(7, (b) + (strip), kLineBytes);                 \
        FA_TILE_MULTIPLY(kFormat, 5, 6, 7);                         \
    } while (false)
#define FA_TWO_BY_TWO(a, a_bytes, b, strip)                     \
    do {                                                        \
        FA_TILE_LOAD(6, b, kLineBytes);                         \
        FA_TILE_LOAD(4, a, a_bytes);                            \
        FA_TILE_MULTIPLY(kFormat, 0, 4, 6);                     \
        FA_TILE_LOAD(5, (a) + kTileWords * (a_bytes), a_bytes); \
        FA_TILE_MULTIPLY(kFormat, 2, 5, 6);                     \
        between();                                              \
        FA_TILE_LOAD(7, (b) + (strip), kLineBytes);             \
        FA_TILE_MULTIPLY(kFormat, 1, 4, 7);                     \
        FA_TILE_MULTIPLY(kFormat, 3, 5, 7);                     \
    } while (false)
#define FA_ONE_BY_FOUR(a, a_bytes, b, strip)            \
    do {                                                \
        FA_TILE_LOAD(4, a, a_bytes);                    \
        FA_TILE_LOAD(5, b, kLineBytes);                 \
        FA_TILE_MULTIPLY(kFormat, 0, 4, 5);             \
        FA_TILE_LOAD(6, (b) + (strip), kLineBytes);     \
        FA_TILE_MULTIPLY(kFormat, 1, 4, 6);             \
        between();                                      \
        FA_TILE_LOAD(7, (b) + 2 * (strip), kLineBytes); \
        FA_TILE_MULTIPLY(kFormat, 2, 4, 7);             \
        FA_TILE_LOAD(5, (b) + 3 * (strip), kLineBytes); \
        FA_TILE_MULTIPLY(kFormat, 3, 4, 5);             \
    } while (false)

// Sums are stored by strips: the rows of the first strip, then those of the second, and so on.
#define FA_SUMS(t) (sums + ((t) % kStrips * kTiles + (t) / kStrips) * kTileFloats)
#define FA_SUMS_LOAD(t) FA_TILE_LOAD(t, FA_SUMS(t), kLineBytes)
#define FA_SUMS_STORE(t) FA_TILE_STORE(t, FA_SUMS(t), kLineBytes)
#define FA_OF_SUMS(instruction)      \
    do {                             \
        instruction(0);              \
        instruction(1);              \
        instruction(2);              \
        instruction(3);              \
        if constexpr (kTiles == 3) { \
            instruction(4);          \
            instruction(5);          \
        }                            \
    } while (false)
#define FA_SUMS_START(t, strip) FA_TILE_LOAD(t, slice.start + (strip) * kTileWords, 0)

// Adds a slice to the sums of a block: kTiles tiles of rows times the two strips from `strip` on, or one tile times all
// four strips.
template <Format kFormat, int kTiles, Activation kActivation>
__attribute__((noinline)) void multiply_block(const std::byte* a, int64_t a_bytes, const Slice& slice, const Tail& tail,
                                              int strip, float* sums, SlicePrefetch& prefetch,
                                              PartWriter<kFormat, kActivation>& writer) {
    constexpr int kStrips = kTiles == 1 ? 4 : 2;
    FA_TILE_READY();
    const int64_t strip_bytes = slice.strip_bytes;
    const std::byte* b = slice.strips + strip * strip_bytes;
    if (!slice.first) {
        FA_OF_SUMS(FA_SUMS_LOAD);
    } else if constexpr (kInteger<kFormat>) {
        FA_SUMS_START(0, strip);
        FA_SUMS_START(1, strip + 1);
        FA_SUMS_START(2, strip + (kTiles == 1 ? 2 : 0));
        FA_SUMS_START(3, strip + (kTiles == 1 ? 3 : 1));
        if constexpr (kTiles == 3) {
            FA_SUMS_START(4, strip);
            FA_SUMS_START(5, strip + 1);
        }
    } else {
        FA_OF_SUMS(FA_TILE_CLEAR);
    }
    const auto between = [&]() __attribute__((always_inline)) { writer.step(); };
    for (int s = 0; s < slice.steps; ++s) {
        const std::byte *a_step = a + s * kLineBytes, *b_step = b + s * kTileWords * kStripWordBytes;
        if constexpr (kTiles == 3)
            FA_THREE_BY_TWO(a_step, a_bytes, b_step, strip_bytes);
        else if constexpr (kTiles == 2)
            FA_TWO_BY_TWO(a_step, a_bytes, b_step, strip_bytes);
        else
            FA_ONE_BY_FOUR(a_step, a_bytes, b_step, strip_bytes);
        prefetch.step();
        between();
    }
    if (slice.last && tail.words > 0) {
        constexpr int64_t kStrip = kTileFloats * kWordBytes;
        const auto *rows = reinterpret_cast<const std::byte*>(tail.rows),
                   *strips = reinterpret_cast<const std::byte*>(tail.strips[strip]);
        if constexpr (kTiles == 3)
            FA_THREE_BY_TWO(rows, kLineBytes, strips, kStrip);
        else if constexpr (kTiles == 2)
            FA_TWO_BY_TWO(rows, kLineBytes, strips, kStrip);
        else
            FA_ONE_BY_FOUR(rows, kLineBytes, strips, kStrip);
    }
    FA_OF_SUMS(FA_SUMS_STORE);
}

#undef FA_THREE_BY_TWO
#undef FA_TWO_BY_TWO
#undef FA_ONE_BY_FOUR
#undef FA_SUMS
#undef FA_SUMS_LOAD
#undef FA_SUMS_STORE
#undef FA_SUMS_START
#undef FA_OF_SUMS

// The product of some rows and some panels.
template <Format kFormat, Activation kActivation>
class LinearOnTiles {
public:
    explicit LinearOnTiles(const LinearArgs& args) : args_(args), writer_(args) {
        tail_.words = args.words % kTileWords;
    }

    void run() {
        const int64_t bytes = panel_bytes_of(kFormat, args_.words);
        const auto* panels = static_cast<const std::byte*>(args_.panels);
        for (int panel = args_.panel_begin; panel < args_.panel_end; ++panel) {
            const std::byte* next = panel + 1 < args_.panel_end ? panels + (panel + 1) * bytes
                                                                : static_cast<const std::byte*>(args_.next_panel);
            multiply_panel(panel, panels + panel * bytes, next);
        }
        writer_.write_all();
    }

private:
    static constexpr bool kUnpacked = kFormat == Format::kInt4;

    // All rows times one panel. `weights`: words of the panel (int4: groups).
    void multiply_panel(int panel, const std::byte* weights, const std::byte* next_panel) {
        column_ = panel * kPanelWidth, c_column_ = (panel - args_.panel_begin) * kPanelWidth;
        if constexpr (kInteger<kFormat>)
            for (int j = 0; j < kPanelWidth; j += kLanes) store_words(start_ + j, offset_of(args_, column_ + j));
        // Few rows use an unpacked slice once, so it should be in the L1 cache.
        const int limit = !kUnpacked ? kSliceWords : args_.m <= kBlockRows ? kInt4Block : kUnpackedWords;
        const int most = args_.words > limit ? limit : args_.words;
        const bool sliced = most < args_.words;
        if (kUnpacked && !sliced) unpack_panel(weights, 0, most, unpacked());
        SlicePrefetch prefetch;
        prefetch.start(next_panel, panel_bytes_of(kFormat, most), steps_of(args_.m, most));
        for (int first = 0; first < args_.m;) {
            const int end = sliced ? group_end(first) : first + RowBlock::at(first, args_.m).rows;
            int k0 = 0;
            do {
                const int words = args_.words - k0 < most ? args_.words - k0 : most;
                Slice slice{.strips = weights + k0 * kStripWordBytes,
                            .strip_bytes = args_.words * kStripWordBytes,
                            .words = words,
                            .steps = words / kTileWords,
                            .first = k0 == 0,
                            .last = k0 + words == args_.words,
                            .start = start_};
                if constexpr (kUnpacked) {
                    if (sliced) unpack_panel(weights, k0, words, unpacked());
                    slice.strips = reinterpret_cast<const std::byte*>(unpacked());
                    slice.strip_bytes = words * kStripWordBytes;
                }
                if (sliced) {
                    // The first rows prefetch the slices of this panel, and the last rows the first slice of the next
                    // panel.
                    const bool missing = slice.last ? end == args_.m : first == 0;
                    const std::byte* next = slice.last ? next_panel : weights + panel_bytes_of(kFormat, k0 + words);
                    prefetch.start(missing ? next : nullptr, panel_bytes_of(kFormat, most),
                                   steps_of(end - first, words));
                }
                multiply_slice(first, end, k0, slice, prefetch);
                k0 += words;
            } while (k0 < args_.words);
            first = end;
            half_ = 1 - half_;
        }
    }

    // Rows [first, end) times a slice.
    void multiply_slice(int first, int end, int k0, const Slice& slice, SlicePrefetch& prefetch) {
        const bool has_tail = slice.last && tail_.words > 0;
        if (has_tail) tail_.read_strips(slice.strips + slice.steps * kTileWords * kStripWordBytes, slice.strip_bytes);
        float* sums = args_.scratch + half_ * kSumBlocks * kBlockFloats;
        for (int row = first; row < end; sums += kBlockFloats) {
            const RowBlock block = RowBlock::at(row, args_.m);
            const int32_t* a = static_cast<const int32_t*>(args_.a) + block.start * args_.a_stride + k0;
            if (has_tail) {
                const int count = args_.m - block.start, most = block.tiles * kTileWords;
                tail_.read_rows(a + slice.steps * kTileWords, args_.a_stride, count < most ? count : most);
            }
            multiply_rows(block, reinterpret_cast<const std::byte*>(a), slice, sums, prefetch);
            row += block.rows;
        }
    }

    // A block of rows times a slice.
    void multiply_rows(const RowBlock& block, const std::byte* a, const Slice& slice, float* sums,
                       SlicePrefetch& prefetch) {
        const int64_t a_bytes = args_.a_stride * kWordBytes;
        if (block.tiles == 1) {
            if (slice.last) writer_.prefetch(block.row, block.rows, c_column_);
            multiply_block<kFormat, 1, kActivation>(a, a_bytes, slice, tail_, 0, sums, prefetch, writer_);
            if (!slice.last) return;
            finish(block, sums, 0, slice.steps);
            finish(block, sums + 2 * kTileFloats, 2, slice.steps);
            return;
        }
        for (int strip = 0; strip < kPanelWidth / kTileWords; strip += kBlockVecs) {
            float* of_strips = sums + strip / kBlockVecs * (kBlockFloats / 2);
            if (block.tiles == 3)
                multiply_block<kFormat, 3, kActivation>(a, a_bytes, slice, tail_, strip, of_strips, prefetch, writer_);
            else
                multiply_block<kFormat, 2, kActivation>(a, a_bytes, slice, tail_, strip, of_strips, prefetch, writer_);
            if (slice.last) finish(block, of_strips, strip, slice.steps);
        }
    }

    void finish(const RowBlock& block, const float* sums, int strip, int64_t steps) {
        writer_.start({.sums = sums + (block.row - block.start) * kTileWords,
                       .vec = block.tiles * kTileFloats,
                       .row = block.row,
                       .column = column_ + strip * kTileWords,
                       .c_column = c_column_ + strip * kTileWords,
                       .rows = block.rows},
                      steps > 0 ? kPauses * steps : 1);
    }

    // The end of a group of rows whose sums are computed slice by slice.
    int group_end(int first) const {
        for (int i = 0; i < kSumBlocks && first < args_.m; ++i) first += RowBlock::at(first, args_.m).rows;
        return first;
    }

    // The number of steps that multiply about `rows` rows by words of a panel, at least 1.
    static int64_t steps_of(int rows, int words) {
        const int64_t of_words = words < kTileWords ? 1 : words / kTileWords;
        return rows <= kTileWords ? of_words : of_words * 2 * ((rows + kBlockRows - 1) / kBlockRows);
    }

    float* unpacked() const { return args_.scratch + kLinearRowBlock * kPanelWidth; }

    const LinearArgs& args_;
    const TileRegisters tiles_{args_.m};
    PartWriter<kFormat, kActivation> writer_;
    Tail tail_;
    alignas(kLineBytes) int32_t start_[kPanelWidth];
    int column_ = 0, c_column_ = 0;
    // args.scratch has memory for the sums of two groups of kSumBlocks blocks. One is written while the next one is
    // computed in the other half.
    int half_ = 0;
};

// One row times int8 panels, on vectors, which are faster than tiles for one row. It prefetches each strip ahead of its
// use, and at the end of a panel the strips of the next one.
FA_INLINE void one_row_int8(const LinearArgs& args) {
    constexpr int kStrips = kPanelWidth / kTileWords, kAhead = 32;
    const auto* a = static_cast<const int32_t*>(args.a);
    const int64_t strip_bytes = args.words * kStripWordBytes, bytes = kStrips * strip_bytes;
    const auto* panels = static_cast<const std::byte*>(args.panels);
    for (int panel = args.panel_begin; panel < args.panel_end; ++panel) {
        const int column = panel * kPanelWidth;
        const std::byte* weights = panels + panel * bytes;
        const auto* next =
            panel + 1 < args.panel_end ? weights + bytes : static_cast<const std::byte*>(args.next_panel);
        Words sum[kStrips];
        for (int s = 0; s < kStrips; ++s) sum[s] = offset_of(args, column + s * kLanes);
        const auto add_words = [&](int begin, int end, uintptr_t ahead) __attribute__((always_inline)) {
            for (int w = begin; w < end; ++w) {
                const Words x = broadcast_word(a[w]);
#pragma GCC unroll 4
                for (int s = 0; s < kStrips; ++s) {
                    prefetch_line(ahead + s * strip_bytes + w * kStripWordBytes);
                    sum[s] = dot_int8(sum[s], x, load_words(weights + s * strip_bytes + w * kStripWordBytes));
                }
            }
        };
        const int last = args.words < kAhead ? 0 : args.words - kAhead;
        add_words(0, last, address_of(weights) + kAhead * kStripWordBytes);
        add_words(last, args.words, address_of(next == nullptr ? weights : next) - last * kStripWordBytes);
        for (int s = 0; s < kStrips; ++s) store_words(args.scratch + s * kLanes, sum[s]);
        finish<Format::kInt8>(
            args,
            {.partial = args.scratch, .row = 0, .column = column, .c_column = column - args.panel_begin * kPanelWidth},
            1);
    }
}

#endif

template <Format kFormat>
FA_INLINE void linear_of_target(const LinearArgs& args) {
#if FASTATTN_HAS_TILES
    // A single row is limited by the memory bandwidth anyway. bfloat16 sums need the order of tiles.
    if (kInteger<kFormat> && args.m == 1) {
        if constexpr (kFormat == Format::kInt8) one_row_int8(args);
        if constexpr (kFormat == Format::kInt4) row_of_int4(args);
    } else if (args.m > 0) {
        switch (args.activation) {
            case Activation::kNone: LinearOnTiles<kFormat, Activation::kNone>(args).run(); break;
            case Activation::kGeluErf: LinearOnTiles<kFormat, Activation::kGeluErf>(args).run(); break;
            case Activation::kGeluTanh: LinearOnTiles<kFormat, Activation::kGeluTanh>(args).run(); break;
            case Activation::kRelu: LinearOnTiles<kFormat, Activation::kRelu>(args).run(); break;
            case Activation::kTanh: LinearOnTiles<kFormat, Activation::kTanh>(args).run(); break;
            case Activation::kSilu: LinearOnTiles<kFormat, Activation::kSilu>(args).run(); break;
            case Activation::kSigmoid: LinearOnTiles<kFormat, Activation::kSigmoid>(args).run(); break;
        }
    }
    if (args.c_stream) end_streams();
#else
    linear<kFormat>(args);
#endif
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
