// The matrix product on AMX tiles, for bfloat16, int8 and int4 (unpacked to int8). A panel has the layout of the tiles:
// 16 words of 16 columns, 256 bytes apart.
//
// The sums of 32 rows and 32 columns of the output stay in registers for a slice of k. Slices are large, because
// loading and storing sums is slow: slices that fit the L1 cache were slower.
#pragma once
#include "kernels/linear.h"
#if FASTATTN_HAS_TILES
#include "simd/amx.h"
#endif

namespace fastattn::FASTATTN_TARGET {
namespace {

#if FASTATTN_HAS_TILES

constexpr int kBlockRows = 2 * kTileWords;
// Steps between two tile stores. After about 2,000 cycles without one, a store took 900 cycles longer (measured on a
// Xeon from 2024), so a long block also stores a tile that nothing reads.
constexpr int kStepsToStore = 16;
constexpr int kSliceWords = 768;  // 192 KiB of a panel: the rows, this slice and the next one fit the L2 cache
constexpr int kSumRows = kLinearRowBlock / 2;  // rows whose sums are computed at a time
constexpr int64_t kHalfPanelBytes = kPanelWordBytes / 2;
static_assert(kSliceWords % kTileWords == 0 && kUnpackedWords % kTileWords == 0 && kSumRows % kBlockRows == 0);

// Prefetches into L2 what comes after a slice, some lines per tile product. One stream does not reach the memory
// bandwidth of every machine, so it uses four.
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

// Rows whose sums are complete. They are written to c a row at a time between the products of the next rows, so that
// vector units and tiles work at the same time.
template <Format kFormat>
class FinishedRows {
public:
    explicit FinishedRows(const LinearArgs& args) : args_(args) {}
    // Starts to write the rows of `tile`, spread over `steps` products.
    void start(const Tile& tile, int rows, int64_t steps) {
        write_all();
        tile_ = tile;
        left_ = rows;
        per_step_ = static_cast<float>(rows) / static_cast<float>(steps);
        due_ = 0.0f;
    }
    __attribute__((always_inline)) void step() {
        if (left_ == 0) return;
        for (due_ += per_step_; due_ >= 1.0f && left_ > 0; due_ -= 1.0f) write(1);
    }
    void write_all() {
        if (left_ > 0) write(left_);
    }

private:
    __attribute__((always_inline)) void write(int rows) {
        finish<kFormat>(args_, tile_, rows);
        tile_.row += rows;
        tile_.partial += rows * kPanelWidth;
        left_ -= rows;
    }
    const LinearArgs& args_;
    Tile tile_{};
    int left_ = 0;
    float per_step_ = 0, due_ = 0;
};

// The last words of k, if they do not fill a tile, padded with zeros.
struct Tail {
    int words;                                                  // 0: none
    alignas(kLineBytes) int32_t rows[kBlockRows * kTileWords];  // of the current block
    alignas(kLineBytes) int32_t panel[kTileWords * kPanelWidth];

    void read_panel(const std::byte* from) {
        for (int i = 0; i < kTileWords * kVecsPerPanel; ++i)
            store_words(panel + i * kLanes,
                        i < words * kVecsPerPanel ? load_words(from + i * kLineBytes) : zero_words());
    }
    void read_rows(const int32_t* from, int64_t stride, int count) {
        for (int r = 0; r < count; ++r)
            store_words(rows + r * kTileWords,
                        as_words(load_partial(reinterpret_cast<const float*>(from + r * stride), words)));
    }
};

// The number of steps (two by two tiles, or one by four) that multiply `rows` rows by words of a panel, at least 1.
FA_INLINE int64_t steps_of(const LinearArgs& args, int rows, int words) {
    const int most = rows < args.m ? rows : args.m;
    const int64_t of_words = words < kTileWords ? 1 : words / kTileWords;
    return most <= kTileWords ? of_words : of_words * 2 * ((most + kBlockRows - 1) / kBlockRows);
}

// Rows of the output that are computed together.
struct RowBlock {
    int row, rows;  // to write
    int start;      // first row of the tiles; they may repeat rows that another block writes
    bool two_tiles;

    // The block of rows from `row` on, before `end`.
    static RowBlock at(int row, int end, int m) {
        RowBlock b{row, end - row < kBlockRows ? end - row : kBlockRows, 0, false};
        b.two_tiles = b.rows > kTileWords;
        const int last = m - (b.two_tiles ? kBlockRows : kTileWords);
        b.start = last < 0 ? 0 : row < last ? row : last;
        return b;
    }
};

// The words of a panel that a block of rows is multiplied by.
struct Slice {
    const std::byte* panel;
    int words, steps;  // steps: whole tiles
    bool first, last;
    const int32_t* start;  // int8, int4: initial sums of the columns
};

// One step of k: two tiles of rows times two tiles of columns.
#define FA_TWO_BY_TWO(a, a_bytes, b)                            \
    do {                                                        \
        FA_TILE_LOAD(6, b, kPanelWordBytes);                    \
        FA_TILE_LOAD(4, a, a_bytes);                            \
        FA_TILE_MULTIPLY(kFormat, 0, 4, 6);                     \
        FA_TILE_LOAD(5, (a) + kTileWords * (a_bytes), a_bytes); \
        FA_TILE_MULTIPLY(kFormat, 2, 5, 6);                     \
        FA_TILE_LOAD(7, (b) + kLineBytes, kPanelWordBytes);     \
        FA_TILE_MULTIPLY(kFormat, 1, 4, 7);                     \
        FA_TILE_MULTIPLY(kFormat, 3, 5, 7);                     \
    } while (false)

// The same for one tile of rows times four tiles of columns.
#define FA_ONE_BY_FOUR(a, a_bytes, b)                           \
    do {                                                        \
        FA_TILE_LOAD(4, a, a_bytes);                            \
        FA_TILE_LOAD(5, b, kPanelWordBytes);                    \
        FA_TILE_MULTIPLY(kFormat, 0, 4, 5);                     \
        FA_TILE_LOAD(6, (b) + kLineBytes, kPanelWordBytes);     \
        FA_TILE_MULTIPLY(kFormat, 1, 4, 6);                     \
        FA_TILE_LOAD(7, (b) + 2 * kLineBytes, kPanelWordBytes); \
        FA_TILE_MULTIPLY(kFormat, 2, 4, 7);                     \
        FA_TILE_LOAD(5, (b) + 3 * kLineBytes, kPanelWordBytes); \
        FA_TILE_MULTIPLY(kFormat, 3, 4, 5);                     \
    } while (false)

// Adds a slice to the sums of two tiles of rows and half a panel, from column `half` * 32 on.
template <Format kFormat>
FA_INLINE void two_by_two(const std::byte* a, int64_t a_bytes, const Slice& slice, const Tail& tail, int half,
                          float* sums, SlicePrefetch& prefetch, FinishedRows<kFormat>& finished) {
    constexpr int64_t kSumBytes = kPanelWordBytes;
    alignas(kLineBytes) float idle[kTileWords];
    FA_TILE_READY();
    const std::byte* b = slice.panel + half * kHalfPanelBytes;
    float *first = sums + half * 2 * kTileWords, *second = first + kTileWords * kPanelWidth;
    if (!slice.first) {
        FA_TILE_LOAD(0, first, kSumBytes);
        FA_TILE_LOAD(1, first + kTileWords, kSumBytes);
        FA_TILE_LOAD(2, second, kSumBytes);
        FA_TILE_LOAD(3, second + kTileWords, kSumBytes);
    } else if constexpr (kInteger<kFormat>) {
        const int32_t* start = slice.start + half * 2 * kTileWords;
        FA_TILE_LOAD(0, start, 0);
        FA_TILE_LOAD(1, start + kTileWords, 0);
        FA_TILE_LOAD(2, start, 0);
        FA_TILE_LOAD(3, start + kTileWords, 0);
    } else {
        FA_TILE_CLEAR_SUMS();
    }
    for (int s = 0; s < slice.steps; ++s) {
        FA_TWO_BY_TWO(a + s * kLineBytes, a_bytes, b + s * kTileWords * kPanelWordBytes);
        if (s % kStepsToStore == kStepsToStore - 1) FA_TILE_STORE(7, idle, 0);
        prefetch.step();
        finished.step();
    }
    if (slice.last && tail.words > 0)
        FA_TWO_BY_TWO(reinterpret_cast<const std::byte*>(tail.rows), kLineBytes,
                      reinterpret_cast<const std::byte*>(tail.panel) + half * kHalfPanelBytes);
    FA_TILE_STORE(0, first, kSumBytes);
    FA_TILE_STORE(1, first + kTileWords, kSumBytes);
    FA_TILE_STORE(2, second, kSumBytes);
    FA_TILE_STORE(3, second + kTileWords, kSumBytes);
}

// Adds a slice to the sums of one tile of rows and a panel.
template <Format kFormat>
FA_INLINE void one_by_four(const std::byte* a, int64_t a_bytes, const Slice& slice, const Tail& tail, float* sums,
                           SlicePrefetch& prefetch, FinishedRows<kFormat>& finished) {
    constexpr int64_t kSumBytes = kPanelWordBytes;
    alignas(kLineBytes) float idle[kTileWords];
    FA_TILE_READY();
    if (!slice.first || kInteger<kFormat>) {
        const float* from = slice.first ? reinterpret_cast<const float*>(slice.start) : sums;
        const int64_t stride = slice.first ? 0 : kSumBytes;
        FA_TILE_LOAD(0, from, stride);
        FA_TILE_LOAD(1, from + kTileWords, stride);
        FA_TILE_LOAD(2, from + 2 * kTileWords, stride);
        FA_TILE_LOAD(3, from + 3 * kTileWords, stride);
    } else {
        FA_TILE_CLEAR_SUMS();
    }
    for (int s = 0; s < slice.steps; ++s) {
        FA_ONE_BY_FOUR(a + s * kLineBytes, a_bytes, slice.panel + s * kTileWords * kPanelWordBytes);
        if (s % kStepsToStore == kStepsToStore - 1) FA_TILE_STORE(7, idle, 0);
        prefetch.step();
        finished.step();
    }
    if (slice.last && tail.words > 0)
        FA_ONE_BY_FOUR(reinterpret_cast<const std::byte*>(tail.rows), kLineBytes,
                       reinterpret_cast<const std::byte*>(tail.panel));
    FA_TILE_STORE(0, sums, kSumBytes);
    FA_TILE_STORE(1, sums + kTileWords, kSumBytes);
    FA_TILE_STORE(2, sums + 2 * kTileWords, kSumBytes);
    FA_TILE_STORE(3, sums + 3 * kTileWords, kSumBytes);
}

#undef FA_TWO_BY_TWO
#undef FA_ONE_BY_FOUR

// Adds a slice to the sums of a block of rows.
template <Format kFormat>
FA_INLINE void multiply_rows(const LinearArgs& args, const RowBlock& block, int k0, const Slice& slice, Tail& tail,
                             float* sums, SlicePrefetch& prefetch, FinishedRows<kFormat>& finished) {
    const int32_t* a = static_cast<const int32_t*>(args.a) + block.start * args.a_stride + k0;
    const auto* bytes = reinterpret_cast<const std::byte*>(a);
    const int64_t a_bytes = args.a_stride * kWordBytes;
    if (slice.last && tail.words > 0) {
        const int rows = block.two_tiles ? kBlockRows : kTileWords;
        tail.read_rows(a + slice.steps * kTileWords, args.a_stride,
                       args.m - block.start < rows ? args.m - block.start : rows);
    }
    if (block.two_tiles) {
        two_by_two<kFormat>(bytes, a_bytes, slice, tail, 0, sums, prefetch, finished);
        two_by_two<kFormat>(bytes, a_bytes, slice, tail, 1, sums, prefetch, finished);
    } else {
        one_by_four<kFormat>(bytes, a_bytes, slice, tail, sums, prefetch, finished);
    }
}

// Moves the sums that a block of rows writes to the start of the block's memory.
FA_INLINE void skip_repeated(const RowBlock& block, float* sums) {
    const int skipped = block.row - block.start;
    if (skipped == 0) return;
    for (int i = 0; i < block.rows * kPanelWidth; i += kLanes)
        store_words(sums + i, load_words(sums + skipped * kPanelWidth + i));
}

// Rows [first, end) times a slice of a panel. Their sums are in `sums`.
template <Format kFormat>
void multiply_slice(const LinearArgs& args, int first, int end, int k0, const Slice& slice, Tail& tail, float* sums,
                    SlicePrefetch& prefetch, FinishedRows<kFormat>& finished) {
    if (slice.last && tail.words > 0) tail.read_panel(slice.panel + slice.steps * kTileWords * kPanelWordBytes);
    for (int row = first; row < end; row += kBlockRows) {
        const RowBlock block = RowBlock::at(row, end, args.m);
        float* of_block = sums + (row - first) * kPanelWidth;
        multiply_rows<kFormat>(args, block, k0, slice, tail, of_block, prefetch, finished);
        if (slice.last) skip_repeated(block, of_block);
    }
}

// All rows times one panel. `weights`: words of the panel (int4: groups). args.scratch has memory for the sums of two
// times kSumRows rows: the sums of some rows are written while the next rows use the other half. `half`: the free one.
template <Format kFormat>
void multiply_panel(const LinearArgs& args, int panel, const std::byte* weights, const std::byte* next_panel,
                    FinishedRows<kFormat>& finished, int& half) {
    Tail tail;
    tail.words = args.words % kTileWords;
    alignas(kLineBytes) int32_t start[kPanelWidth];
    if constexpr (kInteger<kFormat>)
        for (int j = 0; j < kPanelWidth; j += kLanes) store_words(start + j, offset_of(args, panel * kPanelWidth + j));
    constexpr bool kUnpacked = kFormat == Format::kInt4;
    float* unpacked = args.scratch + kLinearRowBlock * kPanelWidth;
    // Few rows use an unpacked slice once, so it should be in the L1 cache.
    const int limit = !kUnpacked ? kSliceWords : args.m <= kBlockRows ? kInt4Block : kUnpackedWords;
    const int most = args.words > limit ? limit : args.words;
    if (kUnpacked && most == args.words) unpack_panel(weights, 0, most, unpacked);
    SlicePrefetch prefetch;
    prefetch.start(next_panel, panel_bytes_of(kFormat, most), steps_of(args, args.m, most));
    for (int first = 0; first < args.m; first += kSumRows) {
        const int end = first + kSumRows < args.m ? first + kSumRows : args.m;
        float* sums = args.scratch + half * kSumRows * kPanelWidth;
        int k0 = 0;
        do {
            Slice slice{.panel = weights + k0 * kPanelWordBytes,
                        .words = args.words - k0 < most ? args.words - k0 : most,
                        .steps = 0,
                        .first = k0 == 0,
                        .last = false,
                        .start = start};
            slice.steps = slice.words / kTileWords;
            slice.last = k0 + slice.words == args.words;
            if constexpr (kUnpacked) {
                if (most < args.words) unpack_panel(weights, k0, slice.words, unpacked);
                slice.panel = reinterpret_cast<const std::byte*>(unpacked);
            }
            if (most < args.words) {
                const std::byte* next = slice.last ? next_panel : weights + panel_bytes_of(kFormat, k0 + slice.words);
                // The first rows prefetch the slices of this panel, and the last rows the first slice of the next
                // panel.
                const bool missing = slice.last ? end == args.m : first == 0;
                prefetch.start(missing ? next : nullptr, panel_bytes_of(kFormat, most),
                               steps_of(args, end - first, slice.words));
            }
            multiply_slice<kFormat>(args, first, end, k0, slice, tail, sums, prefetch, finished);
            k0 += slice.words;
        } while (k0 < args.words);
        const Tile t{.partial = sums,
                     .row = first,
                     .column = panel * kPanelWidth,
                     .c_column = (panel - args.panel_begin) * kPanelWidth};
        finished.start(t, end - first, steps_of(args, kSumRows, args.words));
        half = 1 - half;
    }
}

template <Format kFormat>
void linear_on_tiles(const LinearArgs& args) {
    const TileRegisters tiles(args.m);
    const int64_t bytes = panel_bytes_of(kFormat, args.words);
    FinishedRows<kFormat> finished(args);
    int half = 0;
    for (int panel = args.panel_begin; panel < args.panel_end; ++panel) {
        const std::byte* weights = static_cast<const std::byte*>(args.panels) + panel * bytes;
        const auto* next =
            panel + 1 < args.panel_end ? weights + bytes : static_cast<const std::byte*>(args.next_panel);
        multiply_panel<kFormat>(args, panel, weights, next, finished, half);
    }
    finished.write_all();
    if (args.c_stream) end_streams();
}

#endif

template <Format kFormat>
FA_INLINE void linear_of_target(const LinearArgs& args) {
#if FASTATTN_HAS_TILES
    // A single row is limited by the memory bandwidth anyway. bfloat16 sums need the order of tiles.
    if (!kInteger<kFormat> || args.m > 1) return linear_on_tiles<kFormat>(args);
#endif
    if constexpr (kInteger<kFormat> || !FASTATTN_HAS_TILES) linear<kFormat>(args);
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
