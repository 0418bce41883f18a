// Validates that an executor can run a Program: shapes, rows and counts of every op, before any memory is planned.
#include <string>

#include "core/error.h"
#include "program/op_kind.h"

namespace fastattn {
namespace {

// Checks one op of a Program at a time. `written` marks the values that earlier ops wrote.
class Checker {
public:
    explicit Checker(const ProgramSpec& spec)
        : spec_(spec), written_(spec.values.size(), false), maps_(spec.values.size(), false) {}

    void check() {
        check_sizes();
        for (index_ = 0; index_ < spec_.ops.size(); ++index_) check_op();
        check_outputs();
    }

private:
    // Checks that sizes are not negative, and that the bytes of a page fit into 63 bits.
    void check_sizes() const {
        for (const ValueSpec& value : spec_.values)
            if (value.width < 0) bad_spec("a value has a negative width");
        if (spec_.n_layer < 0 || spec_.n_kv_head < 0 || spec_.head_dim < 0 || spec_.max_positions < 0)
            bad_spec("n_layer, n_kv_head, head_dim or max_positions is negative");
        if (spec_.n_layer > 0 && (spec_.n_kv_head < 1 || spec_.head_dim < 1 || spec_.head_dim > kMaxHeadDim))
            bad_spec("attention: expected at least one head, and head_dim from 1 to 256");
        int64_t floats = int64_t{spec_.n_layer} * spec_.n_kv_head;
        if (__builtin_mul_overflow(floats, int64_t{2} * kBlockLen * sizeof(float) * spec_.head_dim, &floats))
            bad_spec("attention: too many heads");
    }

    bool is_written(int32_t value) const {
        return value >= 0 && value < static_cast<int32_t>(written_.size()) && written_[value];
    }

    void check_op() {
        const OpCheck check(spec_, index_);
        const OpSpec& op = check.op();
        const OpKind& kind = kind_of(op);
        check_counts(check, op, kind);
        for (const int32_t weight : op.weights)
            if (weight < 0 || weight >= static_cast<int32_t>(spec_.weights.size())) check.bad("an unknown weight");
        for (const int32_t input : op.inputs) {
            if (!is_written(input)) check.bad("it reads a value before it is written");
            if (maps_[input]) check.bad("attention maps cannot be read");
        }
        if (op.output < 0 || op.output >= static_cast<int32_t>(written_.size()) || written_[op.output])
            check.bad("it writes a value twice, or one that is unknown");
        kind.check(check);
        written_[op.output] = true;
        maps_[op.output] = kind.writes_maps;
    }

    static void check_counts(const OpCheck& check, const OpSpec& op, const OpKind& kind) {
        const OpKind::Absent absent = kind.absent ? kind.absent(op.attrs) : OpKind::Absent{0, 0};
        const auto expect = [&](size_t found, size_t expected, const char* what) {
            if (found != expected)
                check.bad("expected " + std::to_string(expected) + what + ", got " + std::to_string(found));
        };
        expect(op.inputs.size(), kind.inputs - absent.inputs, " inputs");
        expect(op.weights.size(), kind.weights - absent.weights, " weights");
    }

    void check_outputs() const {
        std::vector<bool> given(spec_.values.size(), false);
        for (const int32_t output : spec_.outputs) {
            if (!is_written(output)) bad_spec("an output is never written");
            if (maps_[output] && given[output])
                bad_spec("attention maps: expected them once in the outputs, got them twice");
            given[output] = true;
        }
        if (spec_.logits < -1 || spec_.logits >= static_cast<int32_t>(spec_.outputs.size()) ||
            (spec_.logits >= 0 && spec_.values[spec_.outputs[spec_.logits]].rows != Rows::kWanted))
            bad_spec("logits: expected an output with a row for each wanted token");
        for (size_t value = 0; value < maps_.size(); ++value)
            if (maps_[value] && !given[value]) bad_spec("attention maps: expected them in the outputs");
    }

    const ProgramSpec& spec_;
    std::vector<bool> written_, maps_;  // one per value
    size_t index_ = 0;                  // of the op
};

bool fits(const WeightShape& weight, const WeightNeed& need) {
    if ((need.rows >= 0 && weight.rows != need.rows) || weight.columns != need.columns) return false;
    if (need.only_table || need.use == WeightUse::kVector) return weight.use == need.use && weight.is_float32;
    if (need.use == WeightUse::kTable) return weight.use != WeightUse::kVector;
    return weight.use == need.use;
}

}  // namespace

void bad_spec(const std::string& what) {
    throw Error(ErrorKind::kConfig, "program: " + what);
}

void check_spec(const ProgramSpec& spec) {
    Checker(spec).check();
}

void check_weights(const ProgramSpec& spec, const std::function<WeightShape(int32_t)>& shape_of) {
    for (const OpSpec& op : spec.ops) {
        const auto needs = kind_of(op).needs;
        if (needs == nullptr) continue;
        size_t i = 0;
        for (const WeightNeed& need : needs(spec, op)) {
            const int32_t weight = op.weights[i++];
            if (!fits(shape_of(weight), need))
                bad_spec("weight " + spec.weights[static_cast<size_t>(weight)] + " does not fit its op");
        }
    }
}

}  // namespace fastattn
