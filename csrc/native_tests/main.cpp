// Runs every kernel of every target that this machine supports on the same inputs, and compares bit for bit with the
// scalar target. Prints a hash for each kernel, so that runs on different machines can be compared, too.
#include <cinttypes>
#include <cstdio>

#include "native_tests/support.h"
#include "runtime/cpu.h"

int main() {
    using namespace fastattn;
    using namespace fastattn::native_tests;
    int passed = 0, failed = 0;
    for (const auto* group : {&kRowCases, &kFormatCases, &kAttentionCases})
        for (const KernelCases& cases : *group) {
            Record expected;
            cases.run(scalar::kernel_table(), expected);
            for (const std::string& target : available_targets()) {
                Record record;
                cases.run(kernels_of(target), record);
                const bool own_bits = cases.bfloat16_sums && bfloat16_sums(target) != "portable";
                const bool same = own_bits || record == expected;
                std::printf("%-20s %-8s %016" PRIx64 " %s\n", cases.kernel, target.c_str(), record.hash(),
                            !same      ? "FAILED"
                            : own_bits ? "ran"
                                       : "passed");
                if (!same) {
                    const int64_t at = record.first_difference(expected);
                    std::printf("    word %" PRId64 ": %08x, scalar %08x\n", at, record.word(at), expected.word(at));
                }
                ++(same ? passed : failed);
                std::fflush(stdout);
            }
        }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
