#include "kernels/kernel_list.h"
#include "kernels/kernels.h"
#include "kernels/measure.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

// Operations per iteration of a measurement with one number per word: on vectors, and for four tile products.
constexpr int kSumOps = 2 * kLanes * kMeasureSums * kMeasureSteps;
constexpr int kTileOps = FASTATTN_HAS_TILES ? 4 * 2 * 16 * 16 * 16 : kSumOps;

constexpr TileShape kVectors{.rows = kTileRows, .columns = kTileVecs * kLanes, .many_rows = false};
constexpr TileShape kTiles = FASTATTN_HAS_TILES ? TileShape{.rows = 48, .columns = 32, .many_rows = true} : kVectors;
static_assert(kLinearRowBlock % kVectors.rows == 0 && kPanelWidth % kVectors.columns == 0);
static_assert(kLinearRowBlock % kTiles.rows == 0 && kPanelWidth % kTiles.columns == 0);

#define FA_NAME_OF(x) #x
#define FA_NAME(x) FA_NAME_OF(x)

const KernelTable& kernel_table() {
    static constexpr KernelTable table{
        .target = FA_NAME(FASTATTN_TARGET),
        .int8_offset = kInt8Offset,
        .linear = {linear_float32, linear_bfloat16, linear_int8, linear_int4},
        .linear_tile = {kVectors, kTiles, kTiles, kTiles},
        .strip_columns = {kPanelWidth, kStripColumns, kStripColumns, kPanelWidth},
        .quantize = {nullptr, quantize_bfloat16, quantize_int8, quantize_int8},
        .pack = {nullptr, pack_bfloat16, pack_int8, pack_int4},
        .layer_norm_f32 = layer_norm_f32,
        .rms_norm_f32 = rms_norm_f32,
        .lora_f32 = lora_f32,
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
        .lstm_cell_f32 = lstm_cell_f32,
        .gru_cell_f32 = gru_cell_f32,
        .clip_f32 = clip_f32,
        .query_scores_f32 = query_scores_f32,
        .weighted_sum_f32 = weighted_sum_f32,
        .argmax_f32 = argmax_f32,
        .measure_dot = {measure_float32, measure_bfloat16, measure_int8, measure_int8},
        .measure_dot_ops = {kSumOps, 2 * kTileOps, 4 * kTileOps, 4 * kTileOps},
        .find_f32 = find_f32,
        .exp_sum_f32 = exp_sum_f32,
        .measure_read = measure_read,
    };
    return table;
}

}  // namespace fastattn::FASTATTN_TARGET
