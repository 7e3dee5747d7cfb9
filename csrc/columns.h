// Rows of columns [R, K]: the numbers of each column stand in arrays that the first-level cache cached.
#pragma once
#include "moments.h"
#include "problem.h"
#include "runs.h"
#include "workspace.h"

namespace groupnorm::INSTRUCTION_SET {

// With room for a whole vector at any of them.
inline int64_t padded_columns(int64_t columns) { return ceil_div(columns, 16) * 16 + 16; }

// A parameter with room for a whole vector at any of its channels; without one, the other value.
template <class A>
const A* padded(const A* parameter, A otherwise, int64_t channels) {
    A* columns = filled<A>(padded_columns(channels), otherwise);
    if (parameter) std::copy_n(parameter, channels, columns);
    return columns;
}

// Calls f(column, tail) for each vector of `columns` columns; tail is 0 where the vector is full.
template <int W, class F>
inline void each_column(int64_t columns, F&& f) {
    int64_t j = 0;
    for (; j + W <= columns; j += W) f(j, 0);
    if (j < columns) f(j, (int)(columns - j));
}

// Sums over rows: sums[j] += x[r, j]. The arrays of this file are padded to whole vectors.
template <class T, class A = accumulator<T>>
void sum_rows(const T* x, int64_t rows, int64_t columns, A* sums) {
    using L = Lanes<A>;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const T* p = x + r * columns;
        each_column<L::width>(columns, [&](int64_t j, int tail) {
            auto a = load_prefetch<L>(p + j, tail) + load_prefetch<L>(p + columns + j, tail);
            auto b = load_prefetch<L>(p + 2 * columns + j, tail) + load_prefetch<L>(p + 3 * columns + j, tail);
            L::store(sums + j, L::load(sums + j) + (a + b));
        });
    }
    for (; r < rows; r++)
        each_column<L::width>(columns, [&](int64_t j, int tail) {
            L::store(sums + j, L::load(sums + j) + load_prefetch<L>(x + r * columns + j, tail));
        });
}

// Sums over rows of the distances from `about` and of their squares.
template <class T, class A = accumulator<T>>
void sum_distances(const T* x, int64_t rows, int64_t columns, const A* about, A* distances, A* squares) {
    using L = Lanes<A>;
    using V = typename L::V;
    auto step = [&](const T* p, int64_t some, int64_t j, int tail) {
        const V m = L::load(about + j);
        V d = L::load(distances + j), q = L::load(squares + j);
        for (int64_t r = 0; r < some; r++) {
            V v = load_prefetch<L>(p + r * columns + j, tail) - m;
            d += v;
            q = L::fma(v, v, q);
        }
        L::store(distances + j, d);
        L::store(squares + j, q);
    };
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
        each_column<L::width>(columns, [&](int64_t j, int tail) { step(x + r * columns, 4, j, tail); });
    for (; r < rows; r++)
        each_column<L::width>(columns, [&](int64_t j, int tail) { step(x + r * columns, 1, j, tail); });
}

// Sum over n columns, which may be many: no more than a few vectors are added in the arithmetic of A.
template <class A>
double column_sum(const A* a, int64_t n) {
    using L = Lanes<A>;
    constexpr int64_t some = 16 * L::width;
    double all = 0;
    for (int64_t i = 0; i < n; i += some) {
        auto sum = L::splat(0);
        each_column<L::width>(std::min(some, n - i), [&](int64_t j, int tail) { sum += load<L>(a + i + j, tail); });
        all += L::sum(sum);
    }
    return all;
}

// total[j] += a[j] * by
template <class A>
void add_scaled(double* __restrict total, const A* __restrict a, A by, int64_t n) {
    for (int64_t j = 0; j < n; j++) total[j] += (double)(a[j] * by);
}

// What each column is normalised with.
template <class A>
struct Columns {
    A *mean, *scale;
    const A* shift;                                           // z = (x - mean) * scale + shift
    A *by_d = nullptr, *by_x = nullptr, *constant = nullptr;  // dx = d * by_d + (x - mean) * by_x + constant
};

template <class T, class Act, class A = accumulator<T>>
void normalize_rows(const T* x, T* y, int64_t rows, int64_t columns, const Columns<A>& by, bool stream) {
    using L = Lanes<A>;
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns) {
        write<L>(y, columns, stream, [&](int64_t j, int tail) INLINE {
            auto v = load_prefetch<L>(x + j, tail) - L::load(by.mean + j);
            return Act::value(L::fma(v, L::load(by.scale + j), L::load(by.shift + j)));
        });
    }
}

// Sums over rows of d = act' * dy and of d * (x - mean).
template <class T, class Act, class A = accumulator<T>>
void gradient_sums_of_rows(const T* x, const T* dy, int64_t rows, int64_t columns, const Columns<A>& by, A* d, A* dx) {
    using L = Lanes<A>;
    using V = typename L::V;
    auto step = [&](int64_t from, int64_t some, int64_t j, int tail) {
        const V m = L::load(by.mean + j), k = L::load(by.scale + j), b = L::load(by.shift + j);
        V sum = L::load(d + j), sum_x = L::load(dx + j);
        for (int64_t r = from; r < from + some; r++) {
            V v = load_prefetch<L>(x + r * columns + j, tail) - m;
            V g = Act::gradient(L::fma(v, k, b), load_prefetch<L>(dy + r * columns + j, tail));
            sum += g;
            sum_x = L::fma(g, v, sum_x);
        }
        L::store(d + j, sum);
        L::store(dx + j, sum_x);
    };
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) each_column<L::width>(columns, [&](int64_t j, int tail) { step(r, 4, j, tail); });
    for (; r < rows; r++) each_column<L::width>(columns, [&](int64_t j, int tail) { step(r, 1, j, tail); });
}

template <class T, class Act, class A = accumulator<T>>
void gradient_rows(const T* x, const T* dy, T* dx, int64_t rows, int64_t columns, const Columns<A>& by, bool stream) {
    using L = Lanes<A>;
    for (int64_t r = 0; r < rows; r++, x += columns, dy += columns, dx += columns) {
        write<L>(dx, columns, stream, [&](int64_t j, int tail) {
            auto v = load_prefetch<L>(x + j, tail) - L::load(by.mean + j);
            auto z = L::fma(v, L::load(by.scale + j), L::load(by.shift + j));
            auto g = Act::gradient(z, load_prefetch<L>(dy + j, tail));
            return L::fma(g, L::load(by.by_d + j), L::fma(v, L::load(by.by_x + j), L::load(by.constant + j)));
        });
    }
}

}  // namespace groupnorm::INSTRUCTION_SET
