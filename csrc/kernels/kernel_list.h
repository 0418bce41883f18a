// Declarations of one target's kernels, for kernel_table.cpp.
#pragma once
#include "kernels/kernels.h"

namespace fastattn::FASTATTN_TARGET {

void linear_float32(const LinearArgs&);
void linear_bfloat16(const LinearArgs&);
void linear_int8(const LinearArgs&);
void linear_int4(const LinearArgs&);
void quantize_bfloat16(const QuantizeArgs&);
void quantize_int8(const QuantizeArgs&);
void pack_bfloat16(const PackArgs&);
void pack_int8(const PackArgs&);
void pack_int4(const PackArgs&);
void layer_norm_f32(const LayerNormF32Args&);
void rms_norm_f32(const RmsNormF32Args&);
void lora_f32(const LoraF32Args&);
void rotary_f32(const RotaryF32Args&);
void kv_store_float32(const KvStoreArgs&);
void kv_store_bfloat16(const KvStoreArgs&);
void kv_store_int8(const KvStoreArgs&);
void attention_float32(const AttentionArgs&);
void attention_bfloat16(const AttentionArgs&);
void attention_int8(const AttentionArgs&);
void attention_probs_float32(const AttentionArgs&);
void attention_probs_bfloat16(const AttentionArgs&);
void attention_probs_int8(const AttentionArgs&);
void softmax_f32(const SoftmaxF32Args&);
void activation_f32(const ElementwiseF32Args&);
void add_f32(const ElementwiseF32Args&);
void multiply_f32(const ElementwiseF32Args&);
void pool_f32(const PoolF32Args&);
void l2_normalize_f32(const RowsF32Args&);
void lstm_cell_f32(const CellF32Args&);
void gru_cell_f32(const CellF32Args&);
void clip_f32(const ClipF32Args&);
void query_scores_f32(const QueryScoresF32Args&);
void weighted_sum_f32(const WeightedSumF32Args&);
void argmax_f32(const ArgmaxF32Args&);
float measure_float32(int64_t iterations);
float measure_bfloat16(int64_t iterations);
float measure_int8(int64_t iterations);
int32_t find_f32(const FindF32Args&);
void exp_sum_f32(const ExpSumF32Args&);
float measure_read(const float* p, int64_t n);

}  // namespace fastattn::FASTATTN_TARGET
