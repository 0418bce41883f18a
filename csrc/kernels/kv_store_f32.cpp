#include "kernels/kernel_list.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

void kv_store_f32(const KvStoreF32Args& args) {
    for (int row = 0; row < args.rows;) {
        const int position = args.position + row;
        const int lane = position % kBlockLen;
        // Rows up to the next multiple of kLanes together: they fill whole cache lines of the transposed keys.
        int count = kLanes - lane % kLanes;
        if (count > args.rows - row) count = args.rows - row;
        const int ahead = row + count;
        const int next = args.rows - ahead < kLanes ? args.rows - ahead : kLanes;
        prefetch_rows(args.k + ahead * args.k_stride, args.k_stride, next, args.head_dim);
        prefetch_rows(args.v + ahead * args.v_stride, args.v_stride, next, args.head_dim);
        float* block = args.blocks[position / kBlockLen];
        float* keys = block + args.k_offset + lane;
        float* values = block + args.v_offset + int64_t{lane} * args.head_dim;
        const float* k = args.k + row * args.k_stride;
        for (int d = 0; d < args.head_dim; ++d)
            for (int i = 0; i < count; ++i) keys[d * kBlockLen + i] = k[i * args.k_stride + d];
        for (int i = 0; i < count; ++i) {
            const float* v = args.v + (row + i) * args.v_stride;
            int d = 0;
            for (; d + kLanes <= args.head_dim; d += kLanes) store(values + i * args.head_dim + d, load(v + d));
            if (const int tail = args.head_dim - d; tail > 0)
                store_partial(values + i * args.head_dim + d, load_partial(v + d, tail), tail);
        }
        row += count;
    }
}

}  // namespace fastattn::FASTATTN_TARGET
