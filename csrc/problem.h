// What is asked of a kernel. The names are those of groupnorm.ops.spec and groupnorm.functional.
#pragma once
#include <cstdint>

#include "numbers.h"

namespace groupnorm {

enum class Dtype : int32_t { float32, bfloat16, float16, float64 };
enum class Activation : int32_t { none, relu, silu, gelu, gelu_tanh };

struct Problem {  // laid out as groupnorm.ops.cpu.Problem
    int64_t samples, channels, positions, groups;
    Dtype dtype;
    int32_t channels_last;
    Activation activation;
    int32_t threads;
};

// y = act((x - mean) * rstd * weight + bias), x [N, C, S] or [N, S, C], mean and rstd [N, G].
template <class T>
struct Forward {
    using A = accumulator<T>;
    const Problem& p;
    const T* x;
    const T* add;            // a residual; null for none
    T* total;                // receives x + add, which is normalised
    const A *weight, *bias;  // [C]; null is 1, and 0
    A *mean, *rstd;
    T* y;  // null: only the statistics are wanted
    double eps;
    bool given;  // the statistics are given
};

// With d = act' * dy, g = d * weight, and means over the group:
// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), dweight = sum of d * xhat, dbias = sum of d.
template <class T>
struct Backward {
    using A = accumulator<T>;
    const Problem& p;
    const T *dy, *x;
    const A *weight, *bias, *mean, *rstd;
    T* dx;               // null: not wanted
    A *dweight, *dbias;  // [C]
    A* sums;             // [2, N, G]: of g and of g * xhat; null: not wanted
    bool fixed;          // the statistics were given: dx = rstd * g
};

constexpr int64_t SLICE = 32768;  // elements of a task; a function of the shape alone, so that results are too

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace groupnorm
