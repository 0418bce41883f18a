// Declarations of one target's kernels, for kernel_table.cpp.
#pragma once
#include "kernels/kernels.h"

namespace fastattn::FASTATTN_TARGET {

void linear_f32(const LinearF32Args&);
void layer_norm_f32(const LayerNormF32Args&);
void kv_store_f32(const KvStoreF32Args&);
void attention_f32(const AttentionF32Args&);
void attention_probs_f32(const AttentionProbsF32Args&);
void softmax_f32(const SoftmaxF32Args&);
void activation_f32(const ElementwiseF32Args&);
void add_f32(const ElementwiseF32Args&);
void pool_f32(const PoolF32Args&);
void l2_normalize_f32(const RowsF32Args&);
void argmax_f32(const ArgmaxF32Args&);
int32_t find_f32(const FindF32Args&);
void exp_sum_f32(const ExpSumF32Args&);
float measure_fma(int64_t iterations);
float measure_read(const float* p, int64_t n);
int32_t measure_fma_flops();

}  // namespace fastattn::FASTATTN_TARGET
