// Ops that compute every number of a row independently: embedding, add, multiply, rounding, activation, epilogue,
// gather.
//
// A thread takes four neighboring columns of a row, with loads of 16 bytes if the rows allow it (kFour).
#include "cuda/kernels/device_math.h"

namespace fastattn::cuda {
namespace {

constexpr int kMapThreads = 64;
constexpr int kMapColumns = 4 * kMapThreads;  // 768 and 1024 are multiples of it

// The columns of a thread: i to i + n - 1, with n at most four.
template <bool kFour>
struct Columns {
    int64_t row;
    int i, n;

    FA_DEVICE Four of(const float* p) const {
        if constexpr (kFour) return load_four(p + i);
        Four v{};
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < n) v.x[j] = p[i + j];
        return v;
    }
};

template <bool kFour>
FA_DEVICE Four values(const EmbeddingArgs& args, Columns<kFour> at) {
    const int64_t start = ((args.index ? args.index[at.row] : 0) + int64_t{args.offset}) * args.stride;
    if (args.type == Type::kFloat32) return at.of(static_cast<const float*>(args.table) + start);
    Four v{};
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (j < at.n) v.x[j] = read(args.table, start + at.i + j, args.type);
    return v;
}

struct Sum : PairArgs {};
struct Product : PairArgs {};

template <bool kFour>
FA_DEVICE Four values(const Sum& args, Columns<kFour> at) {
    const Four a = at.of(args.a + at.row * args.a_stride), b = at.of(args.b + at.row * args.b_stride);
    return {{a.x[0] + b.x[0], a.x[1] + b.x[1], a.x[2] + b.x[2], a.x[3] + b.x[3]}};
}

template <bool kFour>
FA_DEVICE Four values(const Product& args, Columns<kFour> at) {
    const Four a = at.of(args.a + at.row * args.a_stride), b = at.of(args.b + at.row * args.b_stride);
    return {{a.x[0] * b.x[0], a.x[1] * b.x[1], a.x[2] * b.x[2], a.x[3] * b.x[3]}};
}

template <bool kFour>
FA_DEVICE Four values(const RowArgs& args, Columns<kFour> at) {
    return at.of(args.x + at.row * args.x_stride);
}

template <bool kFour>
FA_DEVICE Four values(const ActivationArgs& args, Columns<kFour> at) {
    Four v = at.of(args.io.x + at.row * args.io.x_stride);
#pragma unroll
    for (float& x : v.x) x = activate(x, args.activation, args.rough);
    return v;
}

template <bool kFour>
FA_DEVICE Four values(const EpilogueArgs& args, Columns<kFour> at) {
    Four v = at.of(args.product + at.row * args.product_stride), bias{}, residual{};
    const Epilogue& epilogue = args.epilogue;
    if (epilogue.bias) bias = at.of(epilogue.bias);
    if (epilogue.residual) residual = at.of(epilogue.residual + at.row * epilogue.residual_stride);
    finish(epilogue, v, bias, residual);
    return v;
}

template <bool kFour>
FA_DEVICE Four values(const GatherArgs& args, Columns<kFour> at) {
    const int32_t from = args.index[at.row];
    return from < 0 ? Four{} : at.of(args.io.x + from * args.io.x_stride);
}

template <class Args>
struct Map {
    Args args;
    Rows rows;
    int32_t width;
    Output out;
};

template <class Args, bool kFour>
FA_KERNEL(kMapThreads)
map_rows(const Map<Args> map) {
    const int row = block_x(), i = block_y() * kMapColumns + 4 * thread_id(), left = map.width - i;
    if (row >= count_of(map.rows) || left <= 0) return;
    const Columns<kFour> at{row, i, left < 4 ? left : 4};
    const Four v = values(map.args, at);
    if constexpr (kFour) {
        write_four(map.out, row, i, map.width, v);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < at.n) write(map.out, row, i + j, map.width, v.x[j]);
    }
}

// `fours`: the inputs can be read in fours.
template <class Args>
void launch_map(const char* name, const Map<Args>& map, bool fours, Stream stream) {
    const Grid grid{map.rows.most, divide_up(map.width, kMapColumns)};
    const auto kernel = fours && by_four(map.out, map.width) ? map_rows<Args, true> : map_rows<Args, false>;
    launch(name, kernel, grid, kMapThreads, /*shared_bytes=*/0, map, stream);
}

template <class Args>
void launch_rows(const char* name, const Args& args, const RowArgs& io, Stream stream) {
    launch_map<Args>(name, {args, io.rows, io.width, io.out}, by_four(io.x, io.x_stride), stream);
}

template <class Pair>
void launch_pair(const char* name, const PairArgs& args, Stream stream) {
    const bool fours = by_four(args.a, args.a_stride) && by_four(args.b, args.b_stride);
    launch_map<Pair>(name, {{args}, args.rows, args.width, args.out}, fours, stream);
}

}  // namespace

void launch_embedding(const EmbeddingArgs& args, Stream stream) {
    const bool fours = args.type != Type::kFloat32 || by_four(args.table, args.stride);
    const Output out{.data = args.out, .stride = args.out_stride};
    launch_map<EmbeddingArgs>("embedding", {args, args.rows, args.width, out}, fours, stream);
}

void launch_add(const PairArgs& args, Stream stream) {
    launch_pair<Sum>("add", args, stream);
}

void launch_multiply(const PairArgs& args, Stream stream) {
    launch_pair<Product>("multiply", args, stream);
}

void launch_round(const RowArgs& args, Stream stream) {
    launch_rows("round", args, args, stream);
}

void launch_activation(const ActivationArgs& args, Stream stream) {
    launch_rows("activation", args, args.io, stream);
}

void launch_epilogue(const EpilogueArgs& args, Stream stream) {
    const Epilogue& epilogue = args.epilogue;
    const bool fours = by_four(args.product, args.product_stride) && by_four(epilogue.bias, 0) &&
                       by_four(epilogue.residual, epilogue.residual_stride);
    launch_map<EpilogueArgs>("epilogue", {args, epilogue.rows, epilogue.n, epilogue.out}, fours, stream);
}

void launch_gather(const GatherArgs& args, Stream stream) {
    launch_rows("gather", args, args.io, stream);
}

}  // namespace fastattn::cuda
