// AMX: eight tile registers of up to 16 rows of 64 bytes. A tile product multiplies up to 16 rows of 16 words by 16
// columns of 16 words. Sums are float32 for bfloat16 words and int32 for int8 words.
#pragma once
#include <immintrin.h>

#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

constexpr int kTileWords = 16;    // rows of a tile, columns of sums, and words of a row
constexpr int kTileBytes = 1024;  // of a whole tile

// Completes all writes to memory that tile instructions read next. GCC does not know that its intrinsics read memory,
// so it could move or drop the writes.
#define FA_TILE_READY() asm volatile("" : : : "memory")

// Tiles 0 to 3 are sums, and 4 to 7 are operands:
//
//   two tiles of rows, two of columns         one tile of rows, four of columns
//     sums 0 1  (first rows)  rows 4            sums 0 1 2 3            rows 4
//          2 3  (second rows)      5
//     columns 6 7                               columns 5, 6, 7, 5
//
// The configurations are constants. Loading one that was just written would wait for all earlier writes of the core,
// such as results that must first be fetched from another core.
struct TileConfigs {
    struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };
    Config of_rows[2 * kTileWords + 1];

    constexpr TileConfigs() {
        for (int rows = 1; rows <= 2 * kTileWords; ++rows) {
            const int first = rows < kTileWords ? rows : kTileWords;
            const int second = rows <= kTileWords || rows == 2 * kTileWords ? first : rows - kTileWords;
            const int of_tile[8] = {
                first, first, second, second, first, rows <= kTileWords ? kTileWords : second, kTileWords, kTileWords};
            for (int t = 0; t < 8; ++t) {
                of_rows[rows].row_bytes[t] = 64;
                of_rows[rows].rows[t] = static_cast<uint8_t>(of_tile[t]);
            }
        }
    }
};
constexpr TileConfigs kTileConfigs;

// Context switches of a thread are slower while its tiles are in use, so a kernel releases them when it returns.
class TileRegisters {
public:
    // For `rows` rows: whole tiles for 32 or more, nothing for 0.
    explicit TileRegisters(int rows) : in_use_(rows > 0) {
        if (!in_use_) return;
        FA_TILE_READY();
        _tile_loadconfig(&kTileConfigs.of_rows[rows < 2 * kTileWords ? rows : 2 * kTileWords]);
    }
    ~TileRegisters() {
        if (in_use_) _tile_release();
    }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;

private:
    bool in_use_;
};

// Macros, because the number of a tile is part of the instruction. Strides are in bytes. A format is a Format of
// kernels/formats.h.
#define FA_TILE_CLEAR(t) _tile_zero(t)
#define FA_TILE_CLEAR_SUMS() \
    do {                     \
        FA_TILE_CLEAR(0);    \
        FA_TILE_CLEAR(1);    \
        FA_TILE_CLEAR(2);    \
        FA_TILE_CLEAR(3);    \
    } while (false)
#define FA_TILE_LOAD(t, p, stride) _tile_loadd(t, p, stride)
#define FA_TILE_STORE(t, p, stride) _tile_stored(t, p, stride)
#define FA_TILE_PRODUCT(format, int8_product, sum, a, b) \
    do {                                                 \
        if constexpr (format == Format::kBfloat16)       \
            _tile_dpbf16ps(sum, a, b);                   \
        else                                             \
            int8_product(sum, a, b);                     \
    } while (false)
// int8: bytes of `a` from 0 to 255 (SIGNED: signed bytes), and signed bytes of `b`.
#define FA_TILE_MULTIPLY(format, sum, a, b) FA_TILE_PRODUCT(format, _tile_dpbusd, sum, a, b)
#define FA_TILE_MULTIPLY_SIGNED(format, sum, a, b) FA_TILE_PRODUCT(format, _tile_dpbssd, sum, a, b)

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
