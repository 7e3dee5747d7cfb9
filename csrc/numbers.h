// The storage types of tensors, and the type that sums over each are made in.
#pragma once
#include <cstdint>

namespace groupnorm {

struct bfloat16 {
    uint16_t bits;
};

struct float16 {
    uint16_t bits;
};

template <class T>
struct Accumulates {
    using type = float;
};

template <>
struct Accumulates<double> {
    using type = double;
};

template <class T>
using accumulator = typename Accumulates<T>::type;

}  // namespace groupnorm
