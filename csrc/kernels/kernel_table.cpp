#include "kernels/kernel_list.h"
#include "kernels/kernels.h"

namespace fastattn::FASTATTN_TARGET {

#define FA_NAME_OF(x) #x
#define FA_NAME(x) FA_NAME_OF(x)

const KernelTable& kernel_table() {
    static constexpr KernelTable table{
        .target = FA_NAME(FASTATTN_TARGET),
        .linear_f32 = linear_f32,
        .layer_norm_f32 = layer_norm_f32,
        .kv_store_f32 = kv_store_f32,
        .attention_f32 = attention_f32,
        .attention_probs_f32 = attention_probs_f32,
        .softmax_f32 = softmax_f32,
        .activation_f32 = activation_f32,
        .add_f32 = add_f32,
        .pool_f32 = pool_f32,
        .l2_normalize_f32 = l2_normalize_f32,
        .argmax_f32 = argmax_f32,
        .find_f32 = find_f32,
        .exp_sum_f32 = exp_sum_f32,
        .measure_fma = measure_fma,
        .measure_read = measure_read,
        .measure_fma_flops = measure_fma_flops,
    };
    return table;
}

}  // namespace fastattn::FASTATTN_TARGET
