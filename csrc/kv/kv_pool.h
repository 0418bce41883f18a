// Pages of keys and values in the memory of the CPU.
#pragma once
#include <vector>

#include "core/buffer.h"
#include "kernels/kv_layout.h"
#include "kv/page_pool.h"

namespace fastattn {

struct KvShape {
    Format format;
    int32_t n_layer, n_kv_head, head_dim;

    int64_t head_bytes() const { return kv_head_layout(format, head_dim).bytes; }
    int64_t layer_bytes() const { return n_kv_head * head_bytes(); }
    int64_t page_bytes() const { return n_layer * layer_bytes(); }
    bool operator==(const KvShape&) const = default;
};

// Allocates one page at a time. It keeps freed pages, because page faults cost more than the memory is worth.
class KvPool final : public PagePool {
public:
    explicit KvPool(const KvShape& shape) : PagePool(shape.page_bytes()), shape_(shape) {}
    const KvShape& shape() const { return shape_; }
    void copy_page(std::byte* to, const std::byte* from) override;
    void read_page(std::byte* to, const std::byte* page) override { copy_page(to, page); }
    void write_page(std::byte* page, const std::byte* from) override { copy_page(page, from); }

protected:
    int64_t growth(int64_t) const override { return 1; }
    std::vector<std::byte*> add_pages(int64_t most) override;

private:
    KvShape shape_;
    std::vector<Buffer> pages_;
};

}  // namespace fastattn
