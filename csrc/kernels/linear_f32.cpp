// The matrix product: rows of activations times packed panels of 64 columns.
//
// Each output element is one lane that accumulates over k in order with fused multiply-add, in sums of kSumBlock terms
// that are added up in order, whatever the number of rows, threads or the width of the machine (docs/numerics.md;
// docs/design/0005-blocked-sums.md says why not one sum). Blocks of k keep a panel slice in cache; the totals wait in
// `scratch` and are taken up again exactly where they stopped.
#include "kernels/kernel_list.h"
#include "kernels/math.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kKBlock =
    768;  // 192 KiB of a panel, read from L2 once per six rows; blocks of 96 to 384 measured no faster
constexpr int kSumBlock = 128;
static_assert(kKBlock % kSumBlock == 0);
constexpr int kVecsPerPanel = kPanelWidth / kLanes;

// Brings the panel that this thread needs next from memory into L2, a few lines at a time between the multiplications.
// Without it a thread waits for the first rows of every panel. On two threads, percent of the FMA rate without and with
// the prefetch across linears (benchmarks/percent_of_limit.py, neighbouring runs): 64x768x768 82 and 88, 128x2304x768
// 83 and 90, 512x768x768 87 and 91.
struct Prefetch {
    const float* next;
    const float* end;
    int lines;  // every kPrefetchSteps steps of k
};
constexpr int kPrefetchSteps = 16;

// kRows x kTileVecs vectors of the output, over `k` steps, with the sums in registers.
template <int kRows>
FA_INLINE void multiply_tile(const float* a, int64_t a_stride, const float* panel, int k, Prefetch& prefetch,
                             Vec (&sum)[kRows][kTileVecs]) {
    for (int begin = 0; begin < k; begin += kPrefetchSteps) {
        const int end = k - begin < kPrefetchSteps ? k : begin + kPrefetchSteps;
        for (int line = 0; line < prefetch.lines && prefetch.next < prefetch.end; ++line, prefetch.next += kLineFloats)
            __builtin_prefetch(prefetch.next, 0, 2);
        for (int p = begin; p < end; ++p) {
            // One row reads its weights once, at the rate of memory: ask for them 4 KiB ahead, across pages too.
            if constexpr (kRows == 1)
                for (int j = 0; j < kTileVecs; ++j)
                    __builtin_prefetch(panel + int64_t{p + kPrefetchSteps} * kPanelWidth + j * kLineFloats);
            Vec b[kTileVecs];
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j) b[j] = load(panel + int64_t{p} * kPanelWidth + j * kLanes);
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i) {
                const Vec x = broadcast(a[i * a_stride + p]);
#pragma GCC unroll 8
                for (int j = 0; j < kTileVecs; ++j) sum[i][j] = fma(x, b[j], sum[i][j]);
            }
        }
    }
}

struct Tile {
    const float* a;      // first row, first k of this block
    const float* panel;  // first k of this block, first column of this tile
    float* partial;      // [rows, 64] of this row block, first column of this tile
    int k;
    bool first, last;  // first or last block of k
    int row, column;   // of the output
};

template <Activation kActivation, int kRows>
FA_INLINE void finish_tile(const LinearF32Args& args, const Tile& t, Vec (&sum)[kRows][kTileVecs]) {
#pragma GCC unroll 8
    for (int j = 0; j < kTileVecs; ++j) {
        const int column = t.column + j * kLanes;
        const int n = args.n - column < kLanes ? args.n - column : kLanes;
        if (n <= 0) return;
        const Vec bias = args.bias ? load_partial(args.bias + column, n) : zero();
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            Vec y = sum[i][j];
            if (args.bias) y = add(y, bias);
            y = activate<kActivation>(y);
            if (args.residual) y = add(load_partial(args.residual + (t.row + i) * args.residual_stride + column, n), y);
            float* c = args.c + (t.row + i) * args.c_stride + column;
            if (n == kLanes)
                store(c, y);
            else
                store_partial(c, y, n);
        }
    }
}

template <Activation kActivation, int kRows>
void tile(const LinearF32Args& args, const Tile& t, Prefetch& prefetch) {
    Vec sum[kRows][kTileVecs];
    int k0 = 0;
    do {
        const int k = t.k - k0 < kSumBlock ? t.k - k0 : kSumBlock;
        const bool first = t.first && k0 == 0;
        const bool last = t.last && k0 + k == t.k;
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j) sum[i][j] = zero();
        multiply_tile<kRows>(t.a + k0, args.a_stride, t.panel + int64_t{k0} * kPanelWidth, k, prefetch, sum);
        if (!first)
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
                for (int j = 0; j < kTileVecs; ++j)
                    sum[i][j] = add(load(t.partial + i * kPanelWidth + j * kLanes), sum[i][j]);
        if (last) return finish_tile<kActivation, kRows>(args, t, sum);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < kTileVecs; ++j) store(t.partial + i * kPanelWidth + j * kLanes, sum[i][j]);
        k0 += k;
    } while (k0 < t.k);
}

using TileFunction = void (*)(const LinearF32Args&, const Tile&, Prefetch&);

Prefetch prefetch_of(const LinearF32Args& args) {
    const int tiles = (args.m + kTileRows - 1) / kTileRows * (kVecsPerPanel / kTileVecs);
    const int64_t floats = int64_t{args.k} * kPanelWidth;
    // A panel has kPanelWidth / kLineFloats lines a step of k, and every tile walks over all of k.
    const int lines = kPrefetchSteps * kPanelWidth / kLineFloats / tiles + 1;
    if (args.next_panel == nullptr || tiles < 4) return {nullptr, nullptr, 0};
    return {args.next_panel, args.next_panel + floats, lines};
}

template <Activation kActivation>
void linear(const LinearF32Args& args) {
    static constexpr TileFunction tiles[kTileRows] = {tile<kActivation, 1>, tile<kActivation, 2>, tile<kActivation, 3>,
                                                      tile<kActivation, 4>, tile<kActivation, 5>, tile<kActivation, 6>};
    static_assert(kTileRows == 6 && kLinearRowBlock % kTileRows == 0);
    Prefetch prefetch = prefetch_of(args);
    for (int panel = args.panel_begin; panel < args.panel_end; ++panel) {
        const float* weights = args.panels + int64_t{panel} * args.k * kPanelWidth;
        for (int block = 0; block < args.m; block += kLinearRowBlock) {
            const int block_end = block + kLinearRowBlock < args.m ? block + kLinearRowBlock : args.m;
            int k0 = 0;
            do {
                const int k = args.k - k0 < kKBlock ? args.k - k0 : kKBlock;
                for (int row = block; row < block_end; row += kTileRows) {
                    const int rows = block_end - row < kTileRows ? block_end - row : kTileRows;
                    for (int j = 0; j < kVecsPerPanel; j += kTileVecs) {
                        const Tile t{.a = args.a + row * args.a_stride + k0,
                                     .panel = weights + int64_t{k0} * kPanelWidth + j * kLanes,
                                     .partial = args.scratch + (row - block) * kPanelWidth + j * kLanes,
                                     .k = k,
                                     .first = k0 == 0,
                                     .last = k0 + k == args.k,
                                     .row = row,
                                     .column = panel * kPanelWidth + j * kLanes};
                        tiles[rows - 1](args, t, prefetch);
                    }
                }
                k0 += k;
            } while (k0 < args.k);
        }
    }
}

}  // namespace

void linear_f32(const LinearF32Args& args) {
    switch (args.activation) {
        case Activation::kNone: return linear<Activation::kNone>(args);
        case Activation::kGeluErf: return linear<Activation::kGeluErf>(args);
        case Activation::kGeluTanh: return linear<Activation::kGeluTanh>(args);
        case Activation::kRelu: return linear<Activation::kRelu>(args);
        case Activation::kTanh: return linear<Activation::kTanh>(args);
        case Activation::kSilu: return linear<Activation::kSilu>(args);
    }
}

}  // namespace fastattn::FASTATTN_TARGET
