// Powers of two, the logistic function and the normal distribution, for vectors.
#pragma once
#include <cmath>
#include <type_traits>

#include "lanes.h"

namespace groupnorm::INSTRUCTION_SET {

// The coefficients begin with that of the highest power.
template <class L, class... Lower>
inline typename L::V polynomial(typename L::V x, float highest, Lower... lower) {
    typename L::V p = L::splat(highest);
    ((p = L::fma(p, x, L::splat(lower))), ...);
    return p;
}

// 2^x for x <= 127, to an ulp of e^x where that is not tiny; below 2^-126 it is about 0. NaN stays NaN. The polynomial
// is 2^f for f from 0 to 1, fitted for the least relative error, 2e-9.
inline Lanes<float>::V power_of_two(Lanes<float>::V x) {
    using L = Lanes<float>;
    L::V f = L::fraction(x);
    L::V p = polynomial<L>(f, 0.00021702254889532924f, 0.0012439688434824347f, 0.009678840637207031f,
                           0.055483341217041016f, 0.24022983014583588f, 0.6931470036506653f, 1.0f);
    return L::times_power_of_two(p, x);
}

// Float64 is there to be exact, not fast: one element at a time.
template <class F>
inline Lanes<double>::V one_by_one(Lanes<double>::V v, F&& f) {
    double lanes[Lanes<double>::width];
    Lanes<double>::store(lanes, v);
    for (double& lane : lanes) lane = f(lane);
    return Lanes<double>::load(lanes);
}

inline Lanes<double>::V power_of_two(Lanes<double>::V x) {
    return one_by_one(x, [](double a) { return std::exp2(a); });
}

// 2^x to 2^-13, four bits more than bfloat16 has.
inline Lanes<float>::V about_power_of_two(Lanes<float>::V x) {
    using L = Lanes<float>;
    L::V f = L::fraction(x);
    L::V p = polynomial<L>(f, 0.07802453f, 0.22606714f, 0.69583356f, 0.9999252f);
    return L::times_power_of_two(p, x);
}

// 1 / (1 + e^-x), as exactly as a T can tell.
template <class T, class V = typename Lanes<accumulator<T>>::V>
inline V logistic(V x) {
    using L = Lanes<accumulator<T>>;
    constexpr int most = sizeof(accumulator<T>) == 4 ? 126 : 1022;  // beyond it a reciprocal is no normal number
    const V exponent = L::min(L::splat(most), x * L::splat(-M_LOG2E)), one = L::splat(1);
    if constexpr (std::is_same_v<T, bfloat16>)
        return L::about_reciprocal(one + about_power_of_two(exponent));
    else
        return L::reciprocal(one + power_of_two(exponent));
}

// The standard normal distribution: the probability of values below x, and the density at x.
template <class V>
struct Normal {
    V below, density;
};

// Below -a lies e^(-a^2/2) P(t), t = 1 / (1 + 0.26 a); P was fitted for the least relative error, 5e-9 up to a = 14.
inline Normal<Lanes<float>::V> normal(Lanes<float>::V x) {
    using L = Lanes<float>;
    L::V a = L::min(L::splat(1000.0f), L::abs(x)), one = L::splat(1.0f);  // of inf there is no reciprocal
    L::V e = power_of_two(a * a * L::splat(-0.5f * (float)M_LOG2E));
    L::V t = L::reciprocal(L::fma(a, L::splat(0.26f), one));
    L::V p = polynomial<L>(t, 0.03392564f, -0.17051573f, 0.2909748f, -0.20080088f, 0.20010845f, 0.031212762f,
                           0.10947967f, 0.10171587f, 0.10390656f, -7.16346e-06f);
    L::V tail = p * e;
    return {L::choose_negative(x, tail, one - tail), e * L::splat(0.398942280401432678f)};
}

inline Normal<Lanes<double>::V> normal(Lanes<double>::V x) {
    return {one_by_one(x, [](double a) { return 0.5 * std::erfc(-a * M_SQRT1_2); }),
            one_by_one(x, [](double a) { return 0.398942280401432678 * std::exp(-0.5 * a * a); })};
}

}  // namespace groupnorm::INSTRUCTION_SET
