// Which values of a Program share memory, for the plan of every executor.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "program/spec.h"

namespace fastattn {

// Where a value's numbers are: in the value itself, or from a column of its parent (a slice).
struct Source {
    int32_t parent, column;
};

// Memory that several values use, one after the other. `size`: of a row, in the unit of the plan.
struct Slot {
    Rows rows;
    int64_t size;
};

// The slots of a Program. Ask for the ops in order: place(i, size) for what op i writes, then release(i).
class Lifetimes {
public:
    explicit Lifetimes(const ProgramSpec& spec);

    const std::vector<Source>& sources() const { return sources_; }
    const std::vector<Slot>& slots() const { return slots_; }

    // A slot for the output of op i: that of an input which it may overwrite, or else a free or new one.
    int32_t place(size_t i, int64_t size);
    // A free or new slot for another form of the output of op i, freed together with the output.
    int32_t place_copy(size_t i, int64_t size);
    // Frees what nothing reads after op i.
    void release(size_t i);

private:
    struct Held {  // by a parent value
        int32_t slot = -1, copy = -1;
    };
    int32_t overwritten(size_t i) const;
    int32_t take(Rows rows, int64_t size);
    void release_value(size_t value, size_t i);

    const ProgramSpec& spec_;
    std::vector<Source> sources_;
    std::vector<size_t> last_use_;  // by parent: the last op that reads or writes it; n_ops for an output
    std::vector<Held> held_;
    std::vector<Slot> slots_;
    std::vector<bool> free_;
};

}  // namespace fastattn
