// Runs every kernel of every target that this machine supports, or of those that the arguments name, on the same inputs
// and compares bit for bit with the first target. Prints a hash for each kernel, so that runs on different machines can
// be compared, too.
#include <algorithm>
#include <cinttypes>
#include <cstdio>

#include "native_tests/support.h"
#include "runtime/cpu.h"

namespace fastattn::native_tests {
namespace {

struct Counts {
    int passed = 0, failed = 0;
};

void run_kernel(const KernelCases& cases, const std::vector<std::string>& targets, Counts& counts) {
    Record expected;
    for (const std::string& target : targets) {
        Record record;
        cases.run(kernels_of(target), record);
        if (&target == &targets.front()) expected = record;
        const bool own_bits = cases.bfloat16_sums && bfloat16_sums(target) != "portable";
        const bool same = own_bits || record == expected;
        std::printf("%-20s %-8s %016" PRIx64 " %s\n", cases.kernel, target.c_str(), record.hash(),
                    !same      ? "FAILED"
                    : own_bits ? "ran"
                               : "passed");
        if (!same) {
            const int64_t at = record.first_difference(expected);
            std::printf("    word %" PRId64 ": %08x, %s %08x\n", at, record.word(at), targets.front().c_str(),
                        expected.word(at));
        }
        ++(same ? counts.passed : counts.failed);
        std::fflush(stdout);
    }
}

}  // namespace
}  // namespace fastattn::native_tests

int main(int argc, char** argv) {
    using namespace fastattn;
    using namespace fastattn::native_tests;
    const std::vector<std::string> available = available_targets();
    std::printf("available:");
    for (const std::string& target : available) std::printf(" %s", target.c_str());
    std::printf("\n");
    std::vector<std::string> targets(argv + 1, argv + argc);
    for (const std::string& target : targets)
        if (std::find(available.begin(), available.end(), target) == available.end()) {
            std::printf("target: expected one of those above, got %s\n", target.c_str());
            return 1;
        }
    if (targets.empty()) targets = available;
    Counts counts;
    for (const auto* group : {&kRowCases, &kFormatCases, &kAttentionCases})
        for (const KernelCases& cases : *group) run_kernel(cases, targets, counts);
    std::printf("%d passed, %d failed\n", counts.passed, counts.failed);
    return counts.failed == 0 ? 0 : 1;
}
