// Contiguous tensors with few positions [N, C, S], or none: a sample is one line, in which each channel is S columns
// wide. The groups of a line are neighbours; scale and shift are read beside them.
#pragma once
#include <cmath>
#include <numeric>

#include "columns.h"
#include "schedule.h"
#include "workspace.h"

struct LinesShape {
    int64_t samples, channels, wide, columns, groups, size;  // size: columns of a group

    LinesShape(const Problem& p)
        : samples(p.samples),
          channels(p.channels),
          wide(p.positions),
          columns(channels * wide),
          groups(p.groups),
          size(columns / groups) {}

    int64_t block() const { return samples_of_block(samples, 1, size); }
    int64_t blocks() const { return divide_up(samples, block()); }
};

template <class T, class Act>
class LinesForward {
    using A = accumulator<T>;
    using L = Lanes<A>;
    const Forward<T>& f;
    const LinesShape shape;
    const Destination<T> to;
    const A *const weight, *const bias;
    A* low;  // what rounding the mean to its dtype took off

  public:
    LinesForward(const Forward<T>& f)
        : f(f),
          shape(f.p),
          to(f.y, shape.samples * shape.columns),
          weight(widened<A>(f.weight, 1, shape.channels, shape.wide)),
          bias(widened<A>(f.bias, 0, shape.channels, shape.wide)),
          low(filled<A>(shape.samples * shape.groups)) {}

    int64_t units() const { return shape.samples; }
    int64_t slices() const { return 1; }
    int64_t block() const { return shape.block(); }
    bool reduces() const { return !f.given; }
    bool applies() const { return f.y; }

    void reduce(int, int64_t sample, int64_t) {
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g, at = i * shape.size;
            const Moments all =
                moments_of_run(f.x + at, f.add ? f.add + at : nullptr, f.add ? f.total + at : nullptr, shape.size);
            f.mean[i] = all.mean;
            f.rstd[i] = 1 / std::sqrt(all.squares / all.count + f.eps);
            low[i] = all.mean - f.mean[i];
        }
    }

    void finish(int, int64_t) {}

    void apply(int, int64_t sample, int64_t) {
        const T* x = f.add ? f.total : f.x;
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g, at = i * shape.size, j = g * shape.size;
            const auto m = L::splat(f.mean[i]), r = L::splat(f.rstd[i]), off = L::splat(-low[i] * f.rstd[i]);
            write<L>(f.y + at, shape.size, to.streams(), [&](int64_t k, int rest) {
                auto xhat = L::fma(take<L>(x + at + k, rest) - m, r, off);
                return Act::value(L::fma(xhat, L::load(weight + j + k), L::load(bias + j + k)));
            });
        }
    }
};

template <class T, class Act>
class LinesBackward {
    using A = accumulator<T>;
    using L = Lanes<A>;
    using V = typename L::V;
    const Backward<T>& b;
    const LinesShape shape;
    const Destination<T> to;
    const A *const weight, *const bias;
    A* totals;  // [of d, of d xhat] of each column and block of samples
    struct Factors {
        A xhat, constant;
    };
    Factors* factors;

    A* total(int64_t block, int which) const { return totals + (2 * block + which) * padded_columns(shape.columns); }

  public:
    LinesBackward(const Backward<T>& b)
        : b(b),
          shape(b.p),
          to(b.dx, shape.samples * shape.columns),
          weight(widened<A>(b.weight, 1, shape.channels, shape.wide)),
          bias(widened<A>(b.bias, 0, shape.channels, shape.wide)),
          totals(filled<A>(2 * shape.blocks() * padded_columns(shape.columns))),
          factors(temporary<Factors>(shape.samples * shape.groups)) {}

    int64_t units() const { return shape.samples; }
    int64_t slices() const { return 1; }
    int64_t block() const { return shape.block(); }
    bool reduces() const { return !b.fixed || b.dweight || b.dbias || b.sums; }
    bool applies() const { return b.dx; }

    void reduce(int, int64_t sample, int64_t) {
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g, at = i * shape.size, j = g * shape.size;
            const V m = L::splat(b.mean[i]), r = L::splat(b.rstd[i]);
            A *d = total(sample / block(), 0) + j, *dx = total(sample / block(), 1) + j;
            V sum = L::splat(0), sum_x = L::splat(0);
            each_column<L::width>(shape.size, [&](int64_t k, int rest) {
                const V xhat = (take<L>(b.x + at + k, rest) - m) * r, w = load<L>(weight + j + k, rest);
                const V grad =
                    Act::gradient(L::fma(xhat, w, load<L>(bias + j + k, rest)), take<L>(b.dy + at + k, rest));
                store<L>(d + k, load<L>(d + k, rest) + grad, rest);
                store<L>(dx + k, L::fma(grad, xhat, load<L>(dx + k, rest)), rest);
                sum = L::fma(grad, w, sum);
                sum_x = L::fma(grad * w, xhat, sum_x);
            });
            const A of_g = L::sum(sum), of_gx = L::sum(sum_x);
            if (b.sums) {
                b.sums[i] = of_g;
                b.sums[shape.samples * shape.groups + i] = of_gx;
            }
            factors[i] = {-b.rstd[i] * of_gx / shape.size, -b.rstd[i] * of_g / shape.size};
        }
    }

    void finish(int, int64_t) {}

    void apply(int, int64_t sample, int64_t) {
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g, at = i * shape.size, j = g * shape.size;
            const Factors by = b.fixed ? Factors{0, 0} : factors[i];
            const V m = L::splat(b.mean[i]), r = L::splat(b.rstd[i]), kx = L::splat(by.xhat),
                    k0 = L::splat(by.constant);
            write<L>(b.dx + at, shape.size, to.streams(), [&](int64_t k, int rest) {
                const V xhat = (take<L>(b.x + at + k, rest) - m) * r, w = L::load(weight + j + k);
                const V grad = Act::gradient(L::fma(xhat, w, L::load(bias + j + k)), take<L>(b.dy + at + k, rest));
                return L::fma(grad * w, r, L::fma(xhat, kx, k0));
            });
        }
    }

    void parameters() {
        double *d = filled<double>(shape.columns), *dx = filled<double>(shape.columns);
        for (int64_t i = 0; i < shape.blocks(); i++) {
            add_scaled<A>(d, total(i, 0), 1, shape.columns);
            add_scaled<A>(dx, total(i, 1), 1, shape.columns);
        }
        for (int64_t c = 0, j = 0; c < shape.channels; c++, j += shape.wide) {
            if (b.dweight) b.dweight[c] = std::accumulate(dx + j, dx + j + shape.wide, 0.0);
            if (b.dbias) b.dbias[c] = std::accumulate(d + j, d + j + shape.wide, 0.0);
        }
    }
};
