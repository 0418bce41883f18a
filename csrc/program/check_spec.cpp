// Validates that an executor can run a Program: shapes, rows and counts of every op, before any memory is planned.
#include <string>

#include "core/error.h"
#include "program/spec.h"

namespace fastattn {
namespace {

struct Kind {
    const char* name;
    size_t inputs, weights;  // without the bias and residual of a linear
};

Kind kind_of(const OpSpec& op) {
    switch (op.kind) {
        case OpKind::kEmbedding: return {"embedding", 0, 1};
        case OpKind::kAdd: return {"add", 2, 0};
        case OpKind::kLayerNorm: return {"layer_norm", 1, 2};
        case OpKind::kLinear: return {"linear", size_t{1} + op.has_residual, size_t{1} + op.has_bias};
        case OpKind::kActivation: return {"activation", 1, 0};
        case OpKind::kSlice: return {"slice", 1, 0};
        case OpKind::kAttention: return {"attention", 3, 0};
        case OpKind::kAttentionProbs: return {"attention_probs", 2, 0};
        case OpKind::kGatherRows: return {"gather_rows", 1, 0};
        case OpKind::kPool: return {"pool", 1, 0};
        case OpKind::kL2Normalize: return {"l2_normalize", 1, 0};
    }
    return {"op", 0, 0};
}

Rows rows_of(Gather which) {
    return which == Gather::kTokens ? Rows::kTokens : which == Gather::kWanted ? Rows::kWanted : Rows::kSequences;
}

// Checks one op of a Program at a time. `written` marks the values that earlier ops wrote.
class Checker {
public:
    explicit Checker(const ProgramSpec& spec)
        : spec_(spec), written_(spec.values.size(), false), maps_(spec.values.size(), false) {}

    void check() {
        check_sizes();
        for (index_ = 0; index_ < spec_.ops.size(); ++index_) check(spec_.ops[index_]);
        std::vector<bool> given(spec_.values.size(), false);
        for (const int32_t output : spec_.outputs) {
            if (!is_written(output)) bad_spec("an output is never written");
            if (maps_[output] && given[output]) bad_spec("attention maps are an output twice");
            given[output] = true;
        }
        if (spec_.logits < -1 || spec_.logits >= static_cast<int32_t>(spec_.outputs.size()) ||
            (spec_.logits >= 0 && spec_.values[spec_.outputs[spec_.logits]].rows != Rows::kWanted))
            bad_spec("logits: expected an output with a row for each wanted token");
        for (size_t value = 0; value < maps_.size(); ++value)
            if (maps_[value] && !given[value]) bad_spec("attention maps are no output");
    }

private:
    // Sizes derived from these, such as the floats of a page, must fit into 63 bits.
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

    [[noreturn]] void bad(const std::string& what) const {
        bad_spec("op " + std::to_string(index_) + ", " + kind_of(spec_.ops[index_]).name + ": " + what);
    }

    bool is_written(int32_t value) const {
        return value >= 0 && value < static_cast<int32_t>(written_.size()) && written_[value];
    }

    void check(const OpSpec& op) {
        const Kind kind = kind_of(op);
        if (op.inputs.size() != kind.inputs)
            bad("expected " + std::to_string(kind.inputs) + " inputs, got " + std::to_string(op.inputs.size()));
        if (op.weights.size() != kind.weights)
            bad("expected " + std::to_string(kind.weights) + " weights, got " + std::to_string(op.weights.size()));
        for (const int32_t weight : op.weights)
            if (weight < 0 || weight >= static_cast<int32_t>(spec_.weights.size())) bad("an unknown weight");
        for (const int32_t input : op.inputs) {
            if (!is_written(input)) bad("it reads a value before it is written");
            if (maps_[input]) bad("attention maps cannot be read");
        }
        if (op.output < 0 || op.output >= static_cast<int32_t>(written_.size()) || written_[op.output])
            bad("it writes a value twice, or one that is unknown");
        check_shapes(op);
        written_[op.output] = true;
        maps_[op.output] = op.kind == OpKind::kAttentionProbs;
    }

    const ValueSpec& in(const OpSpec& op, size_t i) const { return spec_.values[op.inputs[i]]; }
    const ValueSpec& out(const OpSpec& op) const { return spec_.values[op.output]; }
    void expect_rows(const ValueSpec& value, Rows rows) const {
        if (value.rows != rows) bad("an input or the output has rows of another kind");
    }
    void expect_width(const ValueSpec& value, int64_t width) const {
        if (value.width != width)
            bad("expected a width of " + std::to_string(width) + ", got " + std::to_string(value.width));
    }
    void expect_same(const ValueSpec& a, const ValueSpec& b) const {
        expect_rows(a, b.rows);
        expect_width(a, b.width);
    }

    void check_shapes(const OpSpec& op) {
        switch (op.kind) {
            case OpKind::kEmbedding: return expect_rows(out(op), Rows::kTokens);
            case OpKind::kAdd: expect_same(in(op, 1), in(op, 0)); [[fallthrough]];
            case OpKind::kLayerNorm:
            case OpKind::kActivation:
            case OpKind::kL2Normalize: return expect_same(out(op), in(op, 0));
            case OpKind::kLinear:
                expect_rows(out(op), in(op, 0).rows);
                if (op.has_residual) expect_same(in(op, 1), out(op));
                return;
            case OpKind::kSlice:
                expect_rows(out(op), in(op, 0).rows);
                if (op.offset < 0 || int64_t{op.offset} + out(op).width > in(op, 0).width) bad("outside of its input");
                return;
            case OpKind::kAttention:
            case OpKind::kAttentionProbs: return check_attention(op);
            case OpKind::kGatherRows:
                if (op.gather == Gather::kTokens) bad("expected wanted, first or last rows");
                expect_rows(in(op, 0), Rows::kTokens);
                expect_rows(out(op), rows_of(op.gather));
                return expect_width(out(op), in(op, 0).width);
            case OpKind::kPool:
                expect_rows(in(op, 0), Rows::kTokens);
                expect_rows(out(op), Rows::kSequences);
                return expect_width(out(op), in(op, 0).width);
        }
    }

    void check_attention(const OpSpec& op) {
        const bool maps = op.kind == OpKind::kAttentionProbs;
        if (spec_.kv_format != Format::kFloat32 && !(op.scale > 0.0f))
            bad_spec("attention: the scale must be positive unless kv_dtype is float32");
        if (op.layer < 0 || op.layer >= spec_.n_layer)
            bad("expected a layer below " + std::to_string(spec_.n_layer) + ", got " + std::to_string(op.layer));
        if (op.n_kv_head != spec_.n_kv_head || op.head_dim != spec_.head_dim || op.n_head < 1 ||
            op.n_head % op.n_kv_head != 0)
            bad("the numbers of heads or head_dim do not fit");
        if (maps && op.gather != Gather::kTokens) bad("expected one query per token");
        expect_rows(in(op, 0), rows_of(op.gather));
        expect_width(in(op, 0), int64_t{op.n_head} * op.head_dim);
        for (size_t i = 1; i < op.inputs.size(); ++i) {
            expect_rows(in(op, i), Rows::kTokens);
            expect_width(in(op, i), int64_t{op.n_kv_head} * op.head_dim);
        }
        expect_rows(out(op), in(op, 0).rows);
        expect_width(out(op), maps ? 0 : in(op, 0).width);
        if (maps) return;
        for (size_t i = 0; i < index_; ++i)
            if (spec_.ops[i].kind == OpKind::kAttention && spec_.ops[i].layer == op.layer)
                bad("layer " + std::to_string(op.layer) + " stands twice");
    }

    const ProgramSpec& spec_;
    std::vector<bool> written_, maps_;  // one per value
    size_t index_ = 0;                  // of the op
};

}  // namespace

void bad_spec(const std::string& what) {
    throw Error(ErrorKind::kConfig, "program: " + what);
}

void check_spec(const ProgramSpec& spec) {
    Checker(spec).check();
}

}  // namespace fastattn
