// Layout of keys and values in KV blocks (docs/design/0006-kv-dtypes.md). All targets share this header (see
// formats.h).
#pragma once
#include "kernels/formats.h"

namespace fastattn {

inline constexpr int kBlockLen = 64;  // positions of a KV block
inline constexpr int kMaxHeadDim = 256;

// One head's part of a block, in words of G values (FormatTraits::word_values). Offsets are in bytes.
struct KvHeadLayout {
    int64_t key_words;     // keys [key_words, kBlockLen] at 0: a word has neighboring elements of one position
    int64_t value_offset;  // values [kBlockLen / G, head_dim]: a word has an element of neighboring positions
    int64_t scale_offset;  // integer formats: floats [kBlockLen] of the keys, then of the values
    int64_t bytes;
};

[[gnu::always_inline]] static constexpr KvHeadLayout kv_head_layout(Format format, int32_t head_dim) {
    const FormatTraits& traits = traits_of(format);
    KvHeadLayout layout{};
    layout.key_words = (head_dim + traits.word_values - 1) / traits.word_values;
    layout.value_offset = layout.key_words * kBlockLen * kWordBytes;
    layout.scale_offset = layout.value_offset + int64_t{kBlockLen / traits.word_values} * head_dim * kWordBytes;
    layout.bytes = layout.scale_offset + (traits.integer ? 2 * kBlockLen * kWordBytes : 0);
    return layout;
}

}  // namespace fastattn
