#include "kernels/kernel_list.h"
#include "kernels/math.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

template <Activation A, bool kRough = false>
void activate_all(const ElementwiseF32Args& args) {
    int64_t i = 0;
    for (; i + 2 * kLanes <= args.n; i += 2 * kLanes) {
        const Vec a = load(args.x + i), b = load(args.x + i + kLanes);
        store(args.out + i, activate<A, kRough>(a));
        store(args.out + i + kLanes, activate<A, kRough>(b));
    }
    for (; i < args.n; i += kLanes) {
        const int tail = args.n - i < kLanes ? static_cast<int>(args.n - i) : kLanes;
        store_partial(args.out + i, activate<A, kRough>(load_partial(args.x + i, tail)), tail);
    }
}

// out = kCombine(x, y)
template <Vec (*kCombine)(Vec, Vec)>
FA_INLINE void combine(const ElementwiseF32Args& args) {
    int64_t i = 0;
    for (; i + kLanes <= args.n; i += kLanes) store(args.out + i, kCombine(load(args.x + i), load(args.y + i)));
    if (const int tail = static_cast<int>(args.n - i); tail > 0)
        store_partial(args.out + i, kCombine(load_partial(args.x + i, tail), load_partial(args.y + i, tail)), tail);
}

}  // namespace

void activation_f32(const ElementwiseF32Args& args) {
    if (args.rough && args.activation == Activation::kGeluErf) return activate_all<Activation::kGeluErf, true>(args);
    if (args.rough && args.activation == Activation::kGeluTanh) return activate_all<Activation::kGeluTanh, true>(args);
    switch (args.activation) {
        case Activation::kNone: return activate_all<Activation::kNone>(args);
        case Activation::kGeluErf: return activate_all<Activation::kGeluErf>(args);
        case Activation::kGeluTanh: return activate_all<Activation::kGeluTanh>(args);
        case Activation::kRelu: return activate_all<Activation::kRelu>(args);
        case Activation::kTanh: return activate_all<Activation::kTanh>(args);
        case Activation::kSilu: return activate_all<Activation::kSilu>(args);
        case Activation::kSigmoid: return activate_all<Activation::kSigmoid>(args);
    }
}

void add_f32(const ElementwiseF32Args& args) {
    combine<add>(args);
}

void multiply_f32(const ElementwiseF32Args& args) {
    combine<mul>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
