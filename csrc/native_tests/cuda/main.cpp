// Runs every CUDA kernel in the emulation, with the threads of a block in three orders, and compares with the CPU's
// kernels or a float64 loop.
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "native_tests/cuda/testing.h"

namespace fastattn::cuda::tests {

void Check::failure(const std::string& message) {
    if (++failed_ <= 5) std::printf("    %s\n", message.c_str());
}

template <class T>
static std::string shown(T x) {
    char text[64];
    std::snprintf(text, sizeof text, "%.9g", static_cast<double>(x));
    return text;
}

void Check::same(std::string_view what, const float* got, const float* expected, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        ++compared_;
        if (std::memcmp(got + i, expected + i, sizeof(float)) == 0) continue;
        if (std::isnan(got[i]) && std::isnan(expected[i])) continue;
        failure(std::string(what) + ", element " + std::to_string(i) + ": expected " + shown(expected[i]) + ", got " +
                shown(got[i]));
    }
}
void Check::same(std::string_view what, const uint16_t* got, const uint16_t* expected, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        ++compared_;
        if (got[i] != expected[i])
            failure(std::string(what) + ", element " + std::to_string(i) + ": expected bits " +
                    std::to_string(expected[i]) + ", got " + std::to_string(got[i]));
    }
}
void Check::same(std::string_view what, const int32_t* got, const int32_t* expected, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        ++compared_;
        if (got[i] != expected[i])
            failure(std::string(what) + ", element " + std::to_string(i) + ": expected " + std::to_string(expected[i]) +
                    ", got " + std::to_string(got[i]));
    }
}
void Check::within(std::string_view what, double got, double expected, double bound) {
    ++compared_;
    const double error = std::fabs(got - expected);
    if (bound > 0.0) worst_ = std::max(worst_, error / bound);
    if (!(error <= bound))
        failure(std::string(what) + ": expected " + shown(expected) + " within " + shown(bound) + ", got " +
                shown(got));
}
void Check::that(std::string_view what, bool condition) {
    ++compared_;
    if (!condition) failure(std::string(what));
}

}  // namespace fastattn::cuda::tests

// Arguments: names of cases to run, none for all, or --list to print the names.
int main(int argc, char** argv) {
    using namespace fastattn::cuda;
    using namespace fastattn::cuda::tests;
    struct {
        const char* name;
        Order order;
    } const orders[] = {{"forward", Order::kForward}, {"backward", Order::kBackward}, {"shuffled", Order::kShuffled}};
    const bool list = argc == 2 && std::strcmp(argv[1], "--list") == 0;
    int64_t passed = 0, failed = 0;
    for (const auto* group : {&kRowCases, &kLinearCases, &kAttentionCases, &kSamplingCases, &kPlanCases})
        for (const Case& test : *group) {
            if (list) std::puts(test.name);
            bool wanted = argc == 1;
            for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], test.name) == 0;
            if (!wanted) continue;
            for (const auto& order : orders) {
                emulation::order = order.order;
                Check check;
                test.run(check);
                const bool fine = check.failed() == 0 && check.compared() > 0;
                std::printf("%-36s %-8s %9" PRId64 " compared, %5.1f%% of the bound  %s\n", test.name, order.name,
                            check.compared(), 100.0 * check.worst(), fine ? "passed" : "FAILED");
                std::fflush(stdout);
                ++(fine ? passed : failed);
            }
        }
    if (list) return 0;
    std::printf("%" PRId64 " passed, %" PRId64 " failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}
