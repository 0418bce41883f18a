#include "kernels/kernel_list.h"
#include "kernels/math.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

template <Activation A>
void linear(const LinearF32Args& args) {
    for (int panel = args.panel_begin; panel < args.panel_end; ++panel)
        for (int i = 0; i < args.m; ++i)
            for (int j = 0; j < kPanelWidth; j += kLanes) {
                const int column = panel * kPanelWidth + j;
                const int count = args.n - column < kLanes ? args.n - column : kLanes;
                if (count <= 0) break;
                const float* b = args.panels + int64_t{panel} * args.k * kPanelWidth + j;
                Vec sum = zero();
                for (int k = 0; k < args.k; ++k)
                    sum = fma(broadcast(args.a[i * args.a_stride + k]), load(b + int64_t{k} * kPanelWidth), sum);
                if (args.bias) sum = add(sum, load_partial(args.bias + column, count));
                sum = activate<A>(sum);
                if (args.residual)
                    sum = add(sum, load_partial(args.residual + i * args.residual_stride + column, count));
                store_partial(args.c + i * args.c_stride + column, sum, count);
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
