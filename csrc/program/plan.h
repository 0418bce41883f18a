// The plan of a Program on the CPU: where every value is stored, which op rounds for which linear. Made once, at load.
#pragma once
#include <cstdint>
#include <vector>

#include "program/lifetimes.h"
#include "program/spec.h"
#include "weights/weights.h"

namespace fastattn {

// Where a value is stored. A slice is in its parent's place.
struct Place {
    int32_t slot = -1;    // of the workspace; -1: nowhere, or an output
    int32_t output = -1;  // the output of the spec whose memory it has, or -1
};

// Which op rounds the input of a linear, and which of the two buffers then stores it. One per op.
struct Rounding {
    int32_t output_reader = -1;        // the linear that reads this op's output rounded
    bool output_rounded_only = false;  // nothing reads the unrounded output
    bool input_done = false;           // the previous op rounded this linear's input
    int input_buffer = 0;
};

class Plan {
public:
    // weights: one per weight of the spec, all of which fit (check_weights).
    Plan(const ProgramSpec& spec, const std::vector<const Weight*>& weights);

    const Source& source(int32_t value) const { return sources_[static_cast<size_t>(value)]; }
    const Place& place(int32_t value) const { return places_[static_cast<size_t>(value)]; }
    const std::vector<Slot>& slots() const { return slots_; }
    const Rounding& rounding(size_t op) const { return roundings_[op]; }
    // The linear of the logits, if nothing else reads them, so that they need not be written. Otherwise -1.
    int32_t sampled_op() const { return sampled_op_; }
    int32_t next_linear(size_t op) const { return next_linear_[op]; }  // the first one after an op, or -1

private:
    void plan_rounding(const ProgramSpec& spec, const std::vector<const Weight*>& weights);
    void plan_slots(const ProgramSpec& spec);

    std::vector<Source> sources_;
    std::vector<Place> places_;
    std::vector<Slot> slots_;
    std::vector<Rounding> roundings_;
    std::vector<int32_t> next_linear_;
    int32_t sampled_op_;
};

}  // namespace fastattn
