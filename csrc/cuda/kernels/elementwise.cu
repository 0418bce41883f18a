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
    Four sum{};
#pragma unroll
    for (int t = 0; t < 3; ++t) {
        if (t >= args.n_tables) break;
        const EmbeddingArgs::Table& table = args.tables[t];
        const int64_t start = ((table.index ? table.index[at.row] : 0) + int64_t{table.offset}) * table.stride;
        Four v{};
        if (table.type == Type::kFloat32) {
            v = at.of(static_cast<const float*>(table.data) + start);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (j < at.n) v.x[j] = read(table.data, start + at.i + j, table.type);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) sum.x[j] = t == 0 ? v.x[j] : sum.x[j] + v.x[j];
    }
    return sum;
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
FA_DEVICE Four values(const RoundArgs& args, Columns<kFour> at) {
    return at.of(args.x + at.row * args.x_stride);
}

template <bool kFour>
FA_DEVICE Four values(const ActivationArgs& args, Columns<kFour> at) {
    Four v = at.of(args.x + at.row * args.x_stride);
#pragma unroll
    for (float& x : v.x) x = activate(x, args.activation, args.rough);
    return v;
}

template <bool kFour>
FA_DEVICE Four values(const EpilogueArgs& args, Columns<kFour> at) {
    Four v = at.of(args.product + at.row * args.product_stride), bias{}, residual{};
    if (args.bias) bias = at.of(args.bias);
    if (args.residual) residual = at.of(args.residual + at.row * args.residual_stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (args.bias) v.x[j] += bias.x[j];
        v.x[j] = activate(v.x[j], args.activation, args.rough);
        if (args.residual) v.x[j] += residual.x[j];
    }
    return v;
}

template <bool kFour>
FA_DEVICE Four values(const GatherArgs& args, Columns<kFour> at) {
    const int32_t from = args.index[at.row];
    return from < 0 ? Four{} : at.of(args.x + from * args.x_stride);
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

template <class Pair>
void launch_pair(const char* name, const PairArgs& args, Stream stream) {
    const bool fours = by_four(args.a, args.a_stride) && by_four(args.b, args.b_stride);
    launch_map<Pair>(name, {{args}, args.rows, args.width, args.out}, fours, stream);
}

}  // namespace

void launch_embedding(const EmbeddingArgs& args, Stream stream) {
    bool fours = true;
    for (int t = 0; t < args.n_tables; ++t)
        if (args.tables[t].type == Type::kFloat32) fours &= by_four(args.tables[t].data, args.tables[t].stride);
    const Output out{.data = args.out, .stride = args.out_stride};
    launch_map<EmbeddingArgs>("embedding", {args, args.rows, args.width, out}, fours, stream);
}

void launch_add(const PairArgs& args, Stream stream) {
    launch_pair<Sum>("add", args, stream);
}

void launch_multiply(const PairArgs& args, Stream stream) {
    launch_pair<Product>("multiply", args, stream);
}

void launch_round(const RoundArgs& args, Stream stream) {
    launch_map<RoundArgs>("round", {args, args.rows, args.width, args.out}, by_four(args.x, args.x_stride), stream);
}

void launch_activation(const ActivationArgs& args, Stream stream) {
    launch_map<ActivationArgs>("activation", {args, args.rows, args.width, args.out}, by_four(args.x, args.x_stride),
                               stream);
}

void launch_epilogue(const EpilogueArgs& args, Stream stream) {
    const bool fours = by_four(args.product, args.product_stride) && by_four(args.bias, 0) &&
                       by_four(args.residual, args.residual_stride);
    launch_map<EpilogueArgs>("epilogue", {args, args.rows, args.n, args.out}, fours, stream);
}

void launch_gather(const GatherArgs& args, Stream stream) {
    launch_map<GatherArgs>("gather", {args, args.rows, args.width, args.out}, by_four(args.x, args.x_stride), stream);
}

}  // namespace fastattn::cuda
