// The types that kernels over a graph are compiled for: rows of three dtypes, columns of two widths.
#pragma once

#include <cstdint>

#include "core/types.h"

#define GMOE_FOR_ROWS(F)    \
  F(float, std::int32_t)    \
  F(float, std::int64_t)    \
  F(double, std::int32_t)   \
  F(double, std::int64_t)   \
  F(bfloat16, std::int32_t) \
  F(bfloat16, std::int64_t)
