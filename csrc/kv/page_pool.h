// Pages of keys and values. A page has kBlockLen positions of every layer and head of one sequence. Every executor has
// a pool of its own kind; caches (kv/kv_cache.h) take pages from it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace fastattn {

// Reuses freed pages for later sequences. Frees memory only when it is destroyed.
class PagePool : public std::enable_shared_from_this<PagePool> {
public:
    using Page = std::shared_ptr<std::byte>;  // the last reference frees the page

    explicit PagePool(int64_t page_bytes) : page_bytes_(page_bytes) {}
    virtual ~PagePool() = default;
    PagePool(const PagePool&) = delete;
    PagePool& operator=(const PagePool&) = delete;

    int64_t page_bytes() const { return page_bytes_; }
    int64_t bytes() const;         // of all pages, in use or free
    int64_t pages_in_use() const;  // pages that some reference holds

    // One caller at a time. Any thread may free a page.
    Page page();
    virtual void copy_page(std::byte* to, const std::byte* from) = 0;
    // Copies a page to or from the memory of the host. Throws Error(kInput) if this kind of pool cannot.
    virtual void read_page(std::byte* to, const std::byte* page);
    virtual void write_page(std::byte* page, const std::byte* from);

protected:
    // How many pages to add to a pool of `n_pages`.
    virtual int64_t growth(int64_t n_pages) const = 0;
    // Allocates pages, at least one and at most `most`, and returns their addresses; the last is used first. Throws
    // Error(kOutOfMemory).
    virtual std::vector<std::byte*> add_pages(int64_t most) = 0;

private:
    void grow();
    void free_page(std::byte* page) noexcept;

    int64_t page_bytes_;
    mutable std::mutex mutex_;  // guards the rest
    std::vector<std::byte*> free_;
    int64_t n_pages_ = 0;
};

}  // namespace fastattn
