// Neighbours in memory that share a mean, a scale and a shift.
#pragma once
#include <sys/mman.h>

#include "moments.h"

namespace groupnorm::INSTRUCTION_SET {

// Where n results are written. Where they are more than the caches hold, and their memory is there, they go past these.
// Memory that is new to the process the system fills with zeros first, which are then in the caches: what is written
// past them would move twice more. For many new pages at once the system takes less time than for one after the other.
template <class T>
class Destination {
    static constexpr int64_t MANY = int64_t(1) << 25, PAGE = 4096;  // bytes
    bool large, there = true;

    static uintptr_t page_of(const T* p) { return (uintptr_t)p / PAGE * PAGE; }

  public:
    Destination(const T* results, int64_t n) : large(results && n * (int64_t)sizeof(T) >= MANY) {
        unsigned char middle;
        if (large && mincore((void*)page_of(results + n / 2), 1, &middle) == 0) there = middle & 1;
    }

    bool streams() const { return large && there; }

    // Have the memory of n results that are written next.
    void prepare(T* results, int64_t n) const {
#ifdef MADV_POPULATE_WRITE
        if (!large || there) return;
        const uintptr_t begin = page_of(results) + PAGE, end = page_of(results + n);
        if (begin < end) madvise((void*)begin, end - begin, MADV_POPULATE_WRITE);
#endif
    }
};

template <class L, class T>
inline void store(T* p, typename L::V v, int tail) {
    if (tail)
        L::store(p, v, tail);
    else
        L::store(p, v);
}

// Of the body of a forward loop: called, it takes a fifth longer, and the compiler inlines it in some kernels alone.
#define INLINE __attribute__((always_inline))

// y[i] = at(i, 0) for each full vector of n elements, and at(i, tail) for what is left.
template <class L, class T, class At>
inline void write(T* y, int64_t n, bool stream, At&& at) {
    constexpr int W = L::width;
    int64_t i = 0;
    if (stream && (uintptr_t)y % 64 == 0)
        for (; i + 2 * W <= n; i += 2 * W) L::stream(y + i, at(i, 0), at(i + W, 0));
    for (; i + W <= n; i += W) L::store(y + i, at(i, 0));
    if (i < n) L::store(y + i, at(i, (int)(n - i)), (int)(n - i));
}

// y = act((x - mean) * scale + shift)
template <class T, class Act, class A = accumulator<T>>
void normalize_run(const T* x, T* y, int64_t n, A mean, A scale, A shift, bool stream) {
    using L = Lanes<A>;
    using V = typename L::V;
    const V m = L::splat(mean), k = L::splat(scale), b = L::splat(shift);
    write<L>(y, n, stream,
             [&](int64_t i, int tail) INLINE { return Act::value(L::fma(load_prefetch<L>(x + i, tail) - m, k, b)); });
}

// Sums over positions of d = act' * dy, and of d * (x - mean).
struct GradientSums {
    double d = 0, dx = 0;
};

template <class T, class Act, class A = accumulator<T>>
GradientSums gradient_sums_of_run(const T* x, const T* dy, int64_t n, A mean, A scale, A shift) {
    using L = Lanes<A>;
    using V = typename L::V;
    constexpr int W = L::width;
    const V m = L::splat(mean), k = L::splat(scale), b = L::splat(shift);
    GradientSums all;
    for (int64_t start = 0; start < n; start += CHUNK) {
        const int64_t end = std::min(n, start + CHUNK);
        V d[2] = {L::splat(0), L::splat(0)}, dx[2] = {L::splat(0), L::splat(0)};
        auto add = [&](V xs, V dys, int into) {
            V v = xs - m, g = Act::gradient(L::fma(v, k, b), dys);
            d[into] += g;
            dx[into] = L::fma(g, v, dx[into]);
        };
        int64_t i = start;
        for (; i + 2 * W <= end; i += 2 * W) {
            add(load_prefetch<L>(x + i, 0), load_prefetch<L>(dy + i, 0), 0);
            add(load_prefetch<L>(x + i + W, 0), load_prefetch<L>(dy + i + W, 0), 1);
        }
        if (i + W <= end) {
            add(L::load(x + i), L::load(dy + i), 0);
            i += W;
        }
        if (i < end) add(L::load(x + i, end - i), L::load(dy + i, end - i), 1);  // dy is 0 beyond, and so is d
        all.d += L::sum(d[0] + d[1]);
        all.dx += L::sum(dx[0] + dx[1]);
    }
    return all;
}

// dx = d * by_d + (x - mean) * by_x + constant
template <class T, class Act, class A = accumulator<T>>
void gradient_run(const T* x, const T* dy, T* dx, int64_t n, A mean, A scale, A shift, A by_d, A by_x, A constant,
                  bool stream) {
    using L = Lanes<A>;
    using V = typename L::V;
    const V m = L::splat(mean), k = L::splat(scale), b = L::splat(shift);
    const V kd = L::splat(by_d), kx = L::splat(by_x), k0 = L::splat(constant);
    write<L>(dx, n, stream, [&](int64_t i, int tail) {
        V v = load_prefetch<L>(x + i, tail) - m, g = Act::gradient(L::fma(v, k, b), load_prefetch<L>(dy + i, tail));
        return L::fma(g, kd, L::fma(v, kx, k0));
    });
}

}  // namespace groupnorm::INSTRUCTION_SET
