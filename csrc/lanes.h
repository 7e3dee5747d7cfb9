// The vectors of the instruction set that this library is compiled for.
#pragma once

#ifdef __AVX512F__
#include "lanes_avx512.h"
#else
#include "lanes_avx2.h"
#endif
