// Instructions by which a warp multiplies matrices, as the PTX manual lays out their fragments.
#pragma once

#include "core/cuda/host/executor.h"

namespace gmoe::core::cuda::host {

// Of a lane: c += a b with a [16, 16] and b [16, 8] in bfloat16, c [16, 8] in float.
struct MatrixFragments {
  unsigned a[4], b[2];
  float c[4];
};
void multiply_m16n8k16(MatrixFragments& own, const Place& place);

}  // namespace gmoe::core::cuda::host
