// State that does not survive a fork: threads, their locks, and memory that they write to. The child has only the
// thread that forked, so it makes such state again on first use and leaks the parent's (docs/design/0012-fork.md).
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace fastattn {

// Incremented in the child of every fork.
uint64_t fork_generation();

// Locked while a process's state is looked up or created, and while a step prepares its memory. A fork waits for it. So
// no child finds it locked, or its data half written, by a thread that does not exist there. The holder must not wait
// for Python's GIL, because the forking thread holds it.
std::mutex& start_mutex();

// The process in which an object was created.
class HomeProcess {
public:
    // False in a child that was forked after the object was created.
    bool here() const { return generation_ == fork_generation(); }

private:
    uint64_t generation_ = fork_generation();
};

// A T of this process. Never destroys a T of another process: its threads cannot be joined, and its data may be half
// written.
template <class T>
class ForkLocal {
public:
    ForkLocal() = default;
    explicit ForkLocal(std::unique_ptr<T> value) : value_(std::move(value)) {}
    ~ForkLocal() { drop_foreign(); }
    ForkLocal(const ForkLocal&) = delete;
    ForkLocal& operator=(const ForkLocal&) = delete;

    // Returns the T of this process, or null if there is none yet.
    T* find() const { return value_ && home_.here() ? value_.get() : nullptr; }

    // Returns the T of this process. make() returns a std::unique_ptr<T>; it is called if there is none yet. Call it
    // under start_mutex() if several threads may.
    template <class Make>
    T& get(const Make& make) {
        drop_foreign();
        if (!value_) {
            value_ = make();
            home_ = HomeProcess();
        }
        return *value_;
    }

private:
    void drop_foreign() {
        if (!home_.here()) (void)value_.release();
    }
    std::unique_ptr<T> value_;
    HomeProcess home_;
};

}  // namespace fastattn
