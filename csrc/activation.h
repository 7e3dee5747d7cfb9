// What follows the normalisation: its value at z, and its derivative at z times the gradient from above.
#pragma once
#include "functions.h"

namespace groupnorm::INSTRUCTION_SET {

template <class T>
struct Identity {
    using L = Lanes<accumulator<T>>;
    using V = typename L::V;
    static V value(V z) { return z; }
    static V gradient(V, V dy) { return dy; }
};

template <class T>
struct Relu {
    using L = Lanes<accumulator<T>>;
    using V = typename L::V;
    static V value(V z) { return L::max(L::splat(0), z); }
    static V gradient(V z, V dy) { return L::where_positive(z, dy); }
};

template <class T>
struct Silu {
    using L = Lanes<accumulator<T>>;
    using V = typename L::V;
    static V within(V z) { return L::max(L::splat(-1000), z); }  // below it is 0, which logistic is not quite
    static V value(V z) { return within(z) * logistic<T>(z); }
    static V gradient(V z, V dy) {
        V s = logistic<T>(z), one = L::splat(1);
        return dy * (s * L::fma(within(z), one - s, one));
    }
};

// z Phi(z), Phi the normal distribution
template <class T>
struct Gelu {
    using L = Lanes<accumulator<T>>;
    using V = typename L::V;
    static V above(V z) { return L::max(L::splat(-1000), z); }  // where all is 0, which normal is not quite
    static V value(V z) { return above(z) * normal(z).below; }
    static V gradient(V z, V dy) {
        auto at = normal(z);
        return dy * L::fma(L::min(L::splat(1000), above(z)), at.density, at.below);
    }
};

// z logistic(2u) = z (1 + tanh u) / 2, u = sqrt(2 / pi) (z + 0.044715 z^3)
template <class T>
struct GeluTanh {
    using L = Lanes<accumulator<T>>;
    using V = typename L::V;
    static constexpr accumulator<T> slope = 1.595769121605730711759, cubic = 0.044715;
    static V twice_u(V z, V square) { return z * L::fma(square, L::splat(slope * cubic), L::splat(slope)); }
    static V within(V z) { return L::min(L::splat(32), L::max(L::splat(-32), z)); }  // beyond it is 0, and z
    static V value(V z) {
        V c = within(z);
        return L::max(L::splat(-32), z) * logistic<T>(twice_u(c, c * c));
    }
    static V gradient(V z, V dy) {
        V c = within(z), square = c * c, one = L::splat(1);
        V s = logistic<T>(twice_u(c, square));
        V inner = c * L::fma(square, L::splat(3 * slope * cubic), L::splat(slope));
        return dy * (s * L::fma(inner, one - s, one));
    }
};

}  // namespace groupnorm::INSTRUCTION_SET
