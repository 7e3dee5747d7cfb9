// Mean and variance of runs of neighbours, merged as Chan, Golub & LeVeque (1983).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lanes.h"

namespace groupnorm::INSTRUCTION_SET {

constexpr int64_t AHEAD = 1024;  // bytes: asked for early, for the processor alone does not look that far along rows

// The vector at p, or the first `tail` elements of it where that is not 0.
template <class L, class T>
inline typename L::V load(const T* p, int tail) {
    return tail ? L::load(p, tail) : L::load(p);
}

// The same of what comes from far.
template <class L, class T>
inline typename L::V load_prefetch(const T* p, int tail) {
    if (!tail) _mm_prefetch((const char*)p + AHEAD, _MM_HINT_T0);
    return load<L>(p, tail);
}

struct Moments {
    double count = 0, mean = 0, squares = 0;  // squares: the sum of the squared distances from the mean

    void merge(const Moments& other) {
        if (count == 0) {
            *this = other;
            return;
        }
        if (other.count == 0) return;
        double all = count + other.count, distance = other.mean - mean;
        mean += distance * (other.count / all);
        squares += other.squares + distance * distance * (count * other.count / all);
        count = all;
    }
};

// Of n values near `about`, from the sums of their distances from it and of the squares of these.
inline Moments from_distances(double n, double about, double sum, double squares) {
    const double left = squares - sum * sum / n;
    return {n, about + sum / n, left < 0 ? 0 : left};  // by rounding; NaN stays
}

// 1 / sqrt(variance + eps), and NaN where the squares overflowed: 0 would hide that a training has diverged.
inline double inverse_deviation(const Moments& m, double eps) {
    const double variance = m.squares / m.count;
    return std::isinf(variance) ? NAN : 1 / std::sqrt(variance + eps);
}

constexpr int64_t CHUNK = 2048;  // elements that the first-level cache holds while they are read twice

// total = x + add
template <class T>
void add_run(const T* x, const T* add, T* total, int64_t n) {
    using L = Lanes<accumulator<T>>;
    constexpr int W = L::width;
    int64_t i = 0;
    for (; i + W <= n; i += W) L::store(total + i, load_prefetch<L>(x + i, 0) + load_prefetch<L>(add + i, 0));
    if (const int tail = n - i) L::store(total + i, L::load(x + i, tail) + L::load(add + i, tail), tail);
}

// The mean of n neighbours, roughly.
template <class T, class A = accumulator<T>>
A mean_of_chunk(const T* x, int64_t n) {
    using L = Lanes<A>;
    using V = typename L::V;
    constexpr int W = L::width;
    V s[4] = {L::splat(0), L::splat(0), L::splat(0), L::splat(0)};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int k = 0; k < 4; k++) s[k] += load_prefetch<L>(x + i + k * W, 0);
    for (; i + W <= n; i += W) s[0] += L::load(x + i);
    if (const int tail = n - i) s[1] += L::load(x + i, tail);
    return L::sum((s[0] + s[1]) + (s[2] + s[3])) / n;
}

// Moments of n <= CHUNK neighbours, whose mean may be `about`.
template <class T, class A = accumulator<T>>
Moments moments_of_chunk(const T* x, int64_t n, A about) {
    using L = Lanes<A>;
    using V = typename L::V;
    constexpr int W = L::width;
    const V m = L::splat(about);
    V d[2] = {L::splat(0), L::splat(0)}, q[4] = {L::splat(0), L::splat(0), L::splat(0), L::splat(0)};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int k = 0; k < 4; k++) {
            V v = load_prefetch<L>(x + i + k * W, 0) - m;
            d[k % 2] += v;
            q[k] = L::fma(v, v, q[k]);
        }
    for (; i + W <= n; i += W) {
        V v = L::load(x + i) - m;
        d[0] += v;
        q[0] = L::fma(v, v, q[0]);
    }
    if (const int tail = n - i) {
        V v = L::keep(L::load(x + i, tail) - m, tail);
        d[1] += v;
        q[1] = L::fma(v, v, q[1]);
    }
    return from_distances(n, about, L::sum(d[0] + d[1]), L::sum((q[0] + q[1]) + (q[2] + q[3])));
}

// Moments of n neighbours; with `add`, of x + add, which is stored as `total` and read back.
//
// Only the first chunk is read twice. The others take the mean of the one before for theirs: what the squares then hold
// too much, and lose again, is at most four times the squared distances between the chunks' means (von Neumann 1941),
// which are part of the result. Its rounding error is therefore at most five times that of two passes.
template <class T>
Moments moments_of_run(const T* x, const T* add, T* total, int64_t n) {
    Moments all;
    accumulator<T> about = 0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t some = std::min(CHUNK, n - i);
        if (add) add_run(x + i, add + i, total + i, some);
        const T* chunk = (add ? total : x) + i;
        if (i == 0) about = mean_of_chunk(chunk, some);
        const Moments one = moments_of_chunk(chunk, some, about);
        if (some == n) return one;
        about = one.mean;
        all.merge(one);
    }
    return all;
}

}  // namespace groupnorm::INSTRUCTION_SET
