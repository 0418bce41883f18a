// The table of number formats, and the sizes of what is stored in them. All targets share this header, so its functions
// are static and always inlined: the linker must not choose one target's copy for all.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastattn {

// How weights, keys and values are stored. Kernels read 32-bit words: one float32, two bfloat16 or four int8. int4 is
// unpacked to int8 on the way into the registers.
enum class Format : int32_t { kFloat32, kBfloat16, kInt8, kInt4 };
inline constexpr int kFormats = 4;
inline constexpr int kKvFormats = 3;   // the first three: also formats of keys and values
inline constexpr int kInt4Group = 32;  // values along k that share an integer scale

struct FormatTraits {
    Format format;
    const char* name;     // in Python
    int32_t word_values;  // values per word
    // A column of a packed weight is a sequence of groups. A group is group_bytes bytes for group_words words.
    int32_t group_words, group_bytes;
    bool integer;  // exact sums, times float scales: one per row of activations, column of weights, position of keys
};

// An int4 group has its scale, then the nibbles.
constexpr FormatTraits kFormatTraits[kFormats] = {
    {Format::kFloat32, "float32", 1, 1, 4, false},
    {Format::kBfloat16, "bfloat16", 2, 1, 4, false},
    {Format::kInt8, "int8", 4, 1, 4, true},
    {Format::kInt4, "int4", 4, kInt4Group / 4, 1 + kInt4Group / 2, true},
};

[[gnu::always_inline]] static constexpr const FormatTraits& traits_of(Format format) {
    return kFormatTraits[static_cast<int>(format)];
}

static_assert(traits_of(Format::kFloat32).format == Format::kFloat32);
static_assert(traits_of(Format::kBfloat16).format == Format::kBfloat16);
static_assert(traits_of(Format::kInt8).format == Format::kInt8);
static_assert(traits_of(Format::kInt4).format == Format::kInt4);

inline constexpr int kPanelWidth = 64;  // columns of a packed weight panel
// A panel is stored in strips of adjacent columns, each [words, columns of a strip] words: one strip of 64 columns, or
// four of 16 columns for AMX tiles (KernelTable::strip_columns). Files have panels with one strip.
inline constexpr int64_t kWordBytes = 4;
inline constexpr int64_t kPanelWordBytes = kPanelWidth * kWordBytes;  // one word of every column of a panel
// An int4 group of a panel: one scale per column, then one word per column for each of four words of the group. The low
// nibbles belong to that word. The high nibbles belong to the fourth word after it.
inline constexpr int64_t kInt4GroupBytes = kPanelWidth * traits_of(Format::kInt4).group_bytes;

// Words along k of a packed weight [n, k], and of a row of activations for it.
[[gnu::always_inline]] static constexpr int32_t words_of(Format format, int64_t k) {
    const FormatTraits& traits = traits_of(format);
    const int64_t values = int64_t{traits.word_values} * traits.group_words;
    return static_cast<int32_t>((k + values - 1) / values * traits.group_words);
}

// Bytes of the first `words` words of a panel; whole groups.
[[gnu::always_inline]] static constexpr int64_t panel_bytes_of(Format format, int32_t words) {
    const FormatTraits& traits = traits_of(format);
    return int64_t{kPanelWidth} * traits.group_bytes * (words / traits.group_words);
}

// Bytes of a value outside of panels, in a row of a table; not int4.
[[gnu::always_inline]] static constexpr int64_t value_bytes_of(Format format) {
    return kWordBytes / traits_of(format).word_values;
}

}  // namespace fastattn
