#pragma once

namespace fastattn {

// Extensions of Arm that the CPU has and the operating system reports.
struct ArmFeatures {
    bool dotprod = false;        // sdot
    bool i8mm_and_bf16 = false;  // smmla and bfmlal; every known CPU has both or neither
};

ArmFeatures arm_features();

}  // namespace fastattn
