#include "kernels/kernel_list.h"
#include "kernels/kernels.h"
#include "kernels/measure.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

constexpr int kSumOps = 2 * kLanes * kMeasureSums * kMeasureSteps;  // operations with one number per word

constexpr TileShape kTile{.rows = kTileRows, .columns = kTileVecs * kLanes};
static_assert(kLinearRowBlock % kTile.rows == 0 && kPanelWidth % kTile.columns == 0);

#define FA_NAME_OF(x) #x
#define FA_NAME(x) FA_NAME_OF(x)

const KernelTable& kernel_table() {
    static constexpr KernelTable table{
        .target = FA_NAME(FASTATTN_TARGET),
        .int8_offset = kInt8Offset,
        .linear = {linear_float32, linear_bfloat16, linear_int8, linear_int4},
        .linear_tile = {kTile, kTile, kTile, kTile},
        .quantize_bfloat16 = quantize_bfloat16,
        .quantize_int8 = quantize_int8,
        .pack = {nullptr, pack_bfloat16, pack_int8, pack_int4},
        .layer_norm_f32 = layer_norm_f32,
        .rms_norm_f32 = rms_norm_f32,
        .rotary_f32 = rotary_f32,
        .kv_store = {kv_store_float32, kv_store_bfloat16, kv_store_int8},
        .attention = {attention_float32, attention_bfloat16, attention_int8},
        .attention_probs = {attention_probs_float32, attention_probs_bfloat16, attention_probs_int8},
        .softmax_f32 = softmax_f32,
        .activation_f32 = activation_f32,
        .add_f32 = add_f32,
        .multiply_f32 = multiply_f32,
        .pool_f32 = pool_f32,
        .l2_normalize_f32 = l2_normalize_f32,
        .argmax_f32 = argmax_f32,
        .measure_dot = {measure_float32, measure_bfloat16, measure_int8, measure_int8},
        .measure_dot_ops = {kSumOps, 2 * kSumOps, 4 * kSumOps, 4 * kSumOps},
        .find_f32 = find_f32,
        .exp_sum_f32 = exp_sum_f32,
        .measure_read = measure_read,
    };
    return table;
}

}  // namespace fastattn::FASTATTN_TARGET
