// Linears without a library. Every element of the output is one sum over k in a fixed order, for any number of rows:
// few rows and many run the same arithmetic in tiles of different shapes.
//
// Float32: sums of 128 terms in order, added in order, as on the CPU (docs/design/0005-blocked-sums.md). 16 bits:
// tensor cores, sixteen terms at a time, in order.
#include "cuda/kernels/device_math.h"

namespace fastattn::cuda {
namespace {

// `fours`: bias, residual and output can be read and written in fours.
struct LinearCall {
    LinearArgs args;
    bool fours;
};

FA_DEVICE Four four_or_fewer(const float* p, int n, bool fours) {
    if (fours) return load_four(p);
    Four v{};
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (j < n) v.x[j] = p[j];
    return v;
}

// Writes sums [kRows, kColumns] in shared memory, rows kColumns + 4 apart, to the output from row `row_begin` and
// column `column_begin` on.
template <class Tile>
FA_DEVICE void finish_tile(const LinearCall& call, const float* sums, int row_begin, int column_begin, int count) {
    const Epilogue& end = call.args.epilogue;
    constexpr int kUnits = Tile::kColumns / 4;
    for (int unit = thread_id(); unit < Tile::kRows * kUnits; unit += Tile::kThreads) {
        const int64_t row = row_begin + unit / kUnits;
        const int i = unit % kUnits * 4, column = column_begin + i, left = end.n - column;
        if (row >= count || left <= 0) continue;
        Four v = load_four(sums + unit / kUnits * (Tile::kColumns + 4) + i), bias{}, residual{};
        if (end.bias) bias = four_or_fewer(end.bias + column, left, call.fours);
        if (end.residual) residual = four_or_fewer(end.residual + row * end.residual_stride + column, left, call.fours);
        finish(end, v, bias, residual);
        if (call.fours) {
            write_four(end.out, row, column, end.n, v);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (j < left) write(end.out, row, column + j, end.n, v.x[j]);
        }
    }
}

// kThreads threads compute a tile of kRows x kColumns of the output. k goes through shared memory kDepth elements at a
// time, with up to kStages pieces in flight. kFour: rows of float32 can be copied 16 bytes at a time.
template <int kRowsOf, int kColumnsOf, int kThreadsOf, int kStagesOf>
struct TileOf {
    static constexpr int kRows = kRowsOf, kColumns = kColumnsOf, kThreads = kThreadsOf, kStages = kStagesOf;
    static constexpr int kDepth = 32;
};

// Copies elements k to k + kDepth - 1 of rows [begin, begin + kCount) of a matrix [count, width] to [kCount, kPitch].
// The rest is 0. `width` is in whole units of 16 bytes unless kFour is false.
template <class Element, int kCount, int kDepth, int kPitch, int kThreads, bool kFour>
FA_DEVICE void stage(Element* to, const void* matrix, int64_t stride, int begin, int count, int k, int width) {
    constexpr int kUnit = 16 / sizeof(Element), kUnits = kDepth / kUnit;
#pragma unroll
    for (int first = 0; first < kCount * kUnits; first += kThreads) {
        const int unit = first + thread_id(), r = unit / kUnits, i = unit % kUnits * kUnit;
        if (kCount * kUnits % kThreads != 0 && r >= kCount) break;
        const Element* from = static_cast<const Element*>(matrix) + (begin + r) * stride + k + i;
        Element* at = to + r * kPitch + i;
        const bool there = begin + r < count && k + i < width;
        if constexpr (kFour) {
            if (there)
                copy_async_16(at, from);
            else
                store_16(at, {0, 0, 0, 0});
        } else {
#pragma unroll
            for (int j = 0; j < kUnit; ++j) at[j] = there && k + i + j < width ? from[j] : Element{};
        }
    }
}

// Runs step(buffer, piece) for the pieces of k in order, while the next ones are copied.
template <class Tile, class Copy, class Step>
FA_DEVICE void for_pieces(int pieces, const Copy& copy, const Step& step) {
#pragma unroll
    for (int piece = 0; piece < Tile::kStages - 1; ++piece) {
        if (piece < pieces) copy(piece, piece);
        copy_async_commit();
    }
    for (int piece = 0; piece < pieces; ++piece) {
        copy_async_wait<Tile::kStages - 2>();
        sync_threads();  // the piece has arrived, and no thread reads the one that is overwritten now
        const int next = piece + Tile::kStages - 1;
        if (next < pieces) copy(next % Tile::kStages, next);
        copy_async_commit();
        step(piece % Tile::kStages, piece);
    }
}

constexpr int kFloatPitch = 32 + 4;  // puts eight rows of 16 bytes in different banks
constexpr int kSumTerms = 128;       // terms of a sum that starts at 0

template <class Tile>
constexpr int64_t shared_bytes_float32() {
    constexpr int64_t kBytes = int64_t{Tile::kStages} * (Tile::kRows + Tile::kColumns) * kFloatPitch * 4;
    static_assert(kBytes >= Tile::kRows * (Tile::kColumns + 4) * 4);
    return kBytes;
}

// sum[r][c] += x[r] * weight[c] of up to four terms, in order.
FA_DEVICE void add_products(const Four (&x)[4], const Four (&weight)[4], int terms, float (&sum)[4][4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (j >= terms) break;
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
            for (int c = 0; c < 4; ++c) sum[r][c] = math::fma(x[r].x[j], weight[c].x[j], sum[r][c]);
    }
}

// A thread has four rows, and four columns that are kColumns / 4 apart.
template <class Tile, bool kFour>
FA_KERNEL(Tile::kThreads)
linear_float32(const LinearCall call) {
    const LinearArgs& args = call.args;
    static_assert(Tile::kRows * Tile::kColumns == 16 * Tile::kThreads);
    constexpr int kPieceFloats = (Tile::kRows + Tile::kColumns) * kFloatPitch, kAcross = Tile::kColumns / 4;
    const int count = count_of(args.epilogue.rows), row_begin = block_y() * Tile::kRows,
              column_begin = block_x() * Tile::kColumns;
    if (row_begin >= count) return;
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int first = thread_id() / kAcross * 4, across = thread_id() % kAcross;
    const auto copy = [&](int buffer, int piece) {
        float* to = shared + buffer * kPieceFloats;
        stage<float, Tile::kRows, Tile::kDepth, kFloatPitch, Tile::kThreads, kFour>(
            to, args.x, args.x_stride, row_begin, count, piece * Tile::kDepth, args.k);
        stage<float, Tile::kColumns, Tile::kDepth, kFloatPitch, Tile::kThreads, kFour>(
            to + Tile::kRows * kFloatPitch, args.weight, args.weight_stride, column_begin, args.epilogue.n,
            piece * Tile::kDepth, args.k);
    };
    float total[4][4], sum[4][4] = {};
    const int pieces = (args.k + Tile::kDepth - 1) / Tile::kDepth;
    for_pieces<Tile>(pieces, copy, [&](int buffer, int piece) {
        const float* x = shared + buffer * kPieceFloats;
        const float* weight = x + Tile::kRows * kFloatPitch;
        // Zeros after the end of k are not multiplied in: they could turn -0 into 0, and 0 * infinity is NaN.
        const int left = args.k - piece * Tile::kDepth, depth = left < Tile::kDepth ? left : Tile::kDepth;
        const auto take = [&](int k, int terms) {
            Four a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[i] = load_four(x + (first + i) * kFloatPitch + k);
                b[i] = load_four(weight + (across + kAcross * i) * kFloatPitch + k);
            }
            add_products(a, b, terms, sum);
        };
        int k = 0;
        for (; k + 4 <= depth; k += 4) take(k, 4);
        if (k < depth) take(k, depth - k);
        constexpr int kPieces = kSumTerms / Tile::kDepth;
        if ((piece + 1) % kPieces != 0 && piece + 1 != pieces) return;
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                total[r][c] = piece < kPieces ? sum[r][c] : total[r][c] + sum[r][c];
                sum[r][c] = 0.0f;
            }
    });
    sync_threads();  // no thread reads the operands any more; the sums replace them
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) shared[(first + r) * (Tile::kColumns + 4) + across + kAcross * c] = total[r][c];
    sync_threads();
    finish_tile<Tile>(call, shared, row_begin, column_begin, count);
}

constexpr int kHalfPitch = 32 + 8;

template <class Tile>
constexpr int64_t shared_bytes_mma() {
    constexpr int64_t kBytes = int64_t{Tile::kStages} * (Tile::kRows + Tile::kColumns) * kHalfPitch * 2;
    static_assert(kBytes >= Tile::kRows * (Tile::kColumns + 4) * 4);
    return kBytes;
}

// A warp has sixteen rows and kWarpColumns columns.
template <class T, class Tile, int kWarpColumns>
FA_KERNEL(Tile::kThreads)
linear_mma(const LinearCall call) {
    const LinearArgs& args = call.args;
    static_assert(Tile::kRows / 16 * (Tile::kColumns / kWarpColumns) * kWarp == Tile::kThreads);
    constexpr int kPieceElements = (Tile::kRows + Tile::kColumns) * kHalfPitch, kTiles = kWarpColumns / 8;
    const int count = count_of(args.epilogue.rows), row_begin = block_y() * Tile::kRows,
              column_begin = block_x() * Tile::kColumns;
    if (row_begin >= count) return;
    uint16_t* shared = reinterpret_cast<uint16_t*>(shared_memory());
    const int warp_row = warp() % (Tile::kRows / 16) * 16, warp_column = warp() / (Tile::kRows / 16) * kWarpColumns;
    const int width = static_cast<int>(row_elements(args.k));
    const auto copy = [&](int buffer, int piece) {
        uint16_t* to = shared + buffer * kPieceElements;
        stage<uint16_t, Tile::kRows, Tile::kDepth, kHalfPitch, Tile::kThreads, true>(
            to, args.x, args.x_stride, row_begin, count, piece * Tile::kDepth, width);
        stage<uint16_t, Tile::kColumns, Tile::kDepth, kHalfPitch, Tile::kThreads, true>(
            to + Tile::kRows * kHalfPitch, args.weight, args.weight_stride, column_begin, args.epilogue.n,
            piece * Tile::kDepth, width);
    };
    float sum[kTiles][4] = {};
    for_pieces<Tile>((args.k + Tile::kDepth - 1) / Tile::kDepth, copy, [&](int buffer, int) {
        const uint16_t* x = shared + buffer * kPieceElements + (warp_row + lane() % 16) * kHalfPitch + lane() / 16 * 8;
        const uint16_t* weight = shared + buffer * kPieceElements + Tile::kRows * kHalfPitch +
                                 (warp_column + lane() % 8 + lane() / 16 * 8) * kHalfPitch + lane() / 8 % 2 * 8;
        sync_warp();  // ldmatrix and mma need all lanes together; the copies may have separated them
#pragma unroll
        for (int k = 0; k < Tile::kDepth; k += 16) {
            uint32_t a[4];
            load_matrices(a, x + k);
#pragma unroll
            for (int n = 0; n < kTiles; n += 2) {
                uint32_t b[4];
                load_matrices(b, weight + 8 * n * kHalfPitch + k);
                mma_16x8x16<T>(sum[n], a, b[0], b[1]);
                mma_16x8x16<T>(sum[n + 1], a, b[2], b[3]);
            }
        }
    });
    float* sums = reinterpret_cast<float*>(shared);
    sync_threads();  // no thread reads the operands any more; the sums replace them
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = warp_row + lane() / 4 + i / 2 * 8, column = warp_column + 8 * n + lane() % 4 * 2 + i % 2;
            sums[row * (Tile::kColumns + 4) + column] = sum[n][i];
        }
    sync_threads();
    finish_tile<Tile>(call, sums, row_begin, column_begin, count);
}

constexpr int kFewRows = 16;

LinearCall call_of(const LinearArgs& args) {
    return {args, by_four(args.epilogue.out, args.epilogue.n) && by_four(args.epilogue.bias, 0) &&
                      by_four(args.epilogue.residual, args.epilogue.residual_stride)};
}

template <class Tile>
Grid grid_of(const LinearArgs& args) {
    return {divide_up(args.epilogue.n, Tile::kColumns), divide_up(args.epilogue.rows.most, Tile::kRows)};
}

template <class Tile>
void launch_float32(const LinearArgs& args, Stream stream) {
    const bool fours = args.k % 4 == 0 && by_four(args.x, args.x_stride) && by_four(args.weight, args.weight_stride);
    launch("linear_float32", fours ? linear_float32<Tile, true> : linear_float32<Tile, false>, grid_of<Tile>(args),
           Tile::kThreads, shared_bytes_float32<Tile>(), call_of(args), stream);
}

template <class T>
void launch_mma(const LinearArgs& args, Stream stream) {
    using Few = TileOf<kFewRows, 64, 128, 4>;
    using Many = TileOf<64, 64, 128, 3>;
    if (args.epilogue.rows.most <= kFewRows)
        launch("linear_mma", linear_mma<T, Few, 16>, grid_of<Few>(args), Few::kThreads, shared_bytes_mma<Few>(),
               call_of(args), stream);
    else
        launch("linear_mma", linear_mma<T, Many, 64>, grid_of<Many>(args), Many::kThreads, shared_bytes_mma<Many>(),
               call_of(args), stream);
}

}  // namespace

void launch_linear(const LinearArgs& args, Stream stream) {
    switch (args.type) {
        case Type::kFloat32:
            if (args.epilogue.rows.most <= kFewRows) return launch_float32<TileOf<kFewRows, 32, 32, 4>>(args, stream);
            return launch_float32<TileOf<64, 64, 256, 2>>(args, stream);
        case Type::kBfloat16: return launch_mma<Bf16>(args, stream);
        case Type::kFloat16: return launch_mma<F16>(args, stream);
    }
}

}  // namespace fastattn::cuda
