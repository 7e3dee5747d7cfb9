// Contiguous tensors with few positions [N, C, S], or none: a sample is one line, in which each channel is S columns
// wide. The groups of a line are neighbours; scale and shift are read beside them.
#pragma once
#include <cmath>
#include <utility>

#include "columns.h"
#include "schedule.h"
#include "workspace.h"

namespace groupnorm::INSTRUCTION_SET {

struct NchwSmallShape {
    static constexpr int64_t PART = 4096;                    // columns that are gone through together
    int64_t samples, channels, wide, columns, groups, size;  // size: columns of a group

    NchwSmallShape(const Problem& p)
        : samples(p.samples),
          channels(p.channels),
          wide(p.positions),
          columns(channels * wide),
          groups(p.groups),
          size(columns / groups) {}

    // Calls f(first column of the line, columns) for each part of a group.
    template <class F>
    void each_part(int64_t group, F&& f) const {
        for (int64_t k = 0; k < size; k += PART) f(group * size + k, std::min(PART, size - k));
    }
};

// Scale and shift of each column. Those of long lines are widened part by part: as arrays they could take more memory
// than the input.
template <class A>
class ColumnParameters {
    static constexpr int64_t SHORT = 16384;
    const NchwSmallShape& shape;
    const A *const weight, *const bias;
    A* columns;  // of the whole line, or of a part for each worker: scales, then shifts
    const bool whole;
    const int64_t length;

    void widen(const A* parameter, A otherwise, int64_t first, int64_t n, A* to) const {
        int64_t c = first / shape.wide, left = (c + 1) * shape.wide - first;  // columns of this channel
        for (int64_t k = 0; k < n; c++, left = shape.wide) {
            const int64_t end = std::min(n, k + left);
            std::fill(to + k, to + end, parameter ? parameter[c] : otherwise);
            k = end;
        }
        std::fill_n(to + n, length - n, A(0));
    }

  public:
    ColumnParameters(const NchwSmallShape& shape, const A* weight, const A* bias, int workers)
        : shape(shape),
          weight(weight),
          bias(bias),
          whole(shape.columns <= SHORT),
          length(padded_columns(whole ? shape.columns : shape.PART)) {
        columns = temporary<A>(2 * length * (whole ? 1 : workers));
        if (!whole) return;
        widen(weight, 1, 0, shape.columns, columns);
        widen(bias, 0, 0, shape.columns, columns + length);
    }

    // Those of some neighbouring columns; there is room for a whole vector at any of them.
    std::pair<const A*, const A*> at(int worker, int64_t first, int64_t n) const {
        if (whole) return {columns + first, columns + length + first};
        A* part = columns + 2 * length * worker;
        widen(weight, 1, first, n, part);
        widen(bias, 0, first, n, part + length);
        return {part, part + length};
    }
};

template <class T, class Act>
class NchwSmallForward {
    using A = accumulator<T>;
    using L = Lanes<A>;
    const Forward<T>& f;
    const NchwSmallShape shape;
    const Destination<T> to;
    const ColumnParameters<A> parameter;
    A* mean_lo;  // what rounding the mean to its dtype took off

  public:
    NchwSmallForward(const Forward<T>& f)
        : f(f),
          shape(f.p),
          to(f.y, shape.samples * shape.columns),
          parameter(shape, f.weight, f.bias, f.p.threads),
          mean_lo(filled<A>(shape.samples * shape.groups)) {}

    int64_t units() const { return shape.samples; }
    int64_t slices() const { return 1; }
    int64_t block() const { return std::max<int64_t>(ceil_div(shape.samples, 64), SLICE / 8 / shape.size); }
    bool reduces() const { return !f.given; }
    bool applies() const { return f.y; }

    void reduce(int, int64_t sample, int64_t) {
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g, at = i * shape.size;
            const Moments all =
                moments_of_run(f.x + at, f.add ? f.add + at : nullptr, f.add ? f.total + at : nullptr, shape.size);
            f.mean[i] = all.mean;
            f.rstd[i] = inverse_deviation(all, f.eps);
            mean_lo[i] = all.mean - f.mean[i];
        }
    }

    void finish(int, int64_t) {}

    void apply(int worker, int64_t sample, int64_t) {
        const T* x = (f.add ? f.total : f.x) + sample * shape.columns;
        T* y = f.y + sample * shape.columns;
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g;
            const auto m = L::splat(f.mean[i]), r = L::splat(f.rstd[i]), off = L::splat(-mean_lo[i] * f.rstd[i]);
            shape.each_part(g, [&](int64_t j, int64_t n) {
                const auto [weight, bias] = parameter.at(worker, j, n);
                const A *w = weight, *b = bias;  // a lambda cannot capture the names of a pair's parts
                write<L>(y + j, n, to.streams(), [&](int64_t k, int tail) INLINE {
                    auto xhat = L::fma(load_prefetch<L>(x + j + k, tail) - m, r, off);
                    return Act::value(L::fma(xhat, L::load(w + k), L::load(b + k)));
                });
            });
        }
    }
};

// A unit is some samples and some groups of them. How many samples is not a function of the channels, so that more of
// these change no bit; so many that the sums for scale and shift, which each block of samples has for itself, take at
// most half of what the input takes.
template <class T, class Act>
class NchwSmallBackward {
    using A = accumulator<T>;
    using L = Lanes<A>;
    using V = typename L::V;
    const Backward<T>& b;
    const NchwSmallShape shape;
    const int64_t groups_of_unit, unit_row, samples_of_unit, blocks;
    const Destination<T> to;
    const ColumnParameters<A> parameter;
    double* totals;  // [of d, of d xhat] of each channel and block of samples
    A* columns;      // [d, d xhat] of each column of a part, by worker
    struct Factors {
        A xhat, constant;
    };
    Factors* factors;
    struct Sums {
        double g, gx;
    };
    Sums* sums;  // of each sample of a unit, by worker

    double* total(int64_t block, int which) const { return totals + (2 * block + which) * shape.channels; }

    // Adds what the columns of a part have to their channels.
    void fold(const A* a, int64_t first, int64_t n, double* total) const {
        if (shape.wide == 1) return add_scaled<A>(total + first, a, 1, n);
        int64_t c = first / shape.wide, next = (c + 1) * shape.wide - first;
        for (int64_t k = 0; k < n; k++) {
            if (k == next) c++, next += shape.wide;
            total[c] += a[k];
        }
    }

  public:
    NchwSmallBackward(const Backward<T>& b)
        : b(b),
          shape(b.p),
          groups_of_unit(std::clamp<int64_t>(SLICE / 8 / shape.size, 1, shape.groups)),
          unit_row(ceil_div(shape.groups, groups_of_unit)),
          samples_of_unit(std::max(
              {ceil_div(shape.samples, 64), SLICE / 8 / shape.size, ceil_div(32, shape.wide * (int64_t)sizeof(T))})),
          blocks(ceil_div(shape.samples, samples_of_unit)),
          to(b.dx, shape.samples * shape.columns),
          parameter(shape, b.weight, b.bias, b.p.threads),
          totals(filled<double>(2 * blocks * shape.channels)),
          columns(temporary<A>(2 * padded_columns(shape.PART) * b.p.threads)),
          factors(temporary<Factors>(shape.samples * shape.groups)),
          sums(temporary<Sums>(samples_of_unit * b.p.threads)) {}

    int64_t units() const { return blocks * unit_row; }
    int64_t slices() const { return 1; }
    int64_t block() const { return 1; }
    bool reduces() const { return !b.fixed || b.dweight || b.dbias || b.sums; }
    bool applies() const { return b.dx; }

    template <class F>
    void each_group(int64_t unit, F&& f) const {
        const int64_t first = unit % unit_row * groups_of_unit;
        for (int64_t g = first; g < std::min(shape.groups, first + groups_of_unit); g++) f(g);
    }

    template <class F>
    void each_sample(int64_t unit, F&& f) const {
        const int64_t first = unit / unit_row * samples_of_unit;
        for (int64_t n = first; n < std::min(shape.samples, first + samples_of_unit); n++) f(n, n - first);
    }

    void reduce(int worker, int64_t unit, int64_t) {
        const int64_t block = unit / unit_row, length = padded_columns(shape.PART);
        A *d = columns + 2 * length * worker, *dx = d + length;
        Sums* of = sums + samples_of_unit * worker;
        each_group(unit, [&](int64_t g) {
            std::fill_n(of, samples_of_unit, Sums{0, 0});
            shape.each_part(g, [&](int64_t j, int64_t n) {
                const auto [weight, bias] = parameter.at(worker, j, n);
                std::fill_n(d, length, 0);
                std::fill_n(dx, length, 0);
                const A *w = weight, *s = bias;
                each_sample(unit, [&](int64_t sample, int64_t number) {
                    const int64_t i = sample * shape.groups + g, at = sample * shape.columns + j;
                    const V m = L::splat(b.mean[i]), r = L::splat(b.rstd[i]);
                    V sum = L::splat(0), sum_x = L::splat(0);
                    each_column<L::width>(n, [&](int64_t k, int tail) {
                        const V xhat = (load_prefetch<L>(b.x + at + k, tail) - m) * r, scale = load<L>(w + k, tail);
                        const V grad = Act::gradient(L::fma(xhat, scale, load<L>(s + k, tail)),
                                                     load_prefetch<L>(b.dy + at + k, tail));
                        L::store(d + k, L::load(d + k) + grad);
                        L::store(dx + k, L::fma(grad, xhat, L::load(dx + k)));
                        sum = L::fma(grad, scale, sum);
                        sum_x = L::fma(grad * scale, xhat, sum_x);
                    });
                    of[number].g += L::sum(sum);
                    of[number].gx += L::sum(sum_x);
                });
                fold(d, j, n, total(block, 0));
                fold(dx, j, n, total(block, 1));
            });
            each_sample(unit, [&](int64_t sample, int64_t number) {
                const int64_t i = sample * shape.groups + g;
                if (b.sums) {
                    b.sums[i] = of[number].g;
                    b.sums[shape.samples * shape.groups + i] = of[number].gx;
                }
                const double by = -b.rstd[i] / (double)shape.size;
                factors[i] = {(A)(by * of[number].gx), (A)(by * of[number].g)};
            });
        });
    }

    void finish(int, int64_t) {}

    void apply(int worker, int64_t unit, int64_t) {
        each_group(unit, [&](int64_t g) {
            shape.each_part(g, [&](int64_t j, int64_t n) {
                const auto [weight, bias] = parameter.at(worker, j, n);
                const A *w = weight, *s = bias;
                each_sample(unit, [&](int64_t sample, int64_t) {
                    const int64_t i = sample * shape.groups + g, at = sample * shape.columns + j;
                    const Factors by = b.fixed ? Factors{0, 0} : factors[i];
                    const V m = L::splat(b.mean[i]), r = L::splat(b.rstd[i]), kx = L::splat(by.xhat),
                            k0 = L::splat(by.constant);
                    write<L>(b.dx + at, n, to.streams(), [&](int64_t k, int tail) {
                        const V xhat = (load_prefetch<L>(b.x + at + k, tail) - m) * r, scale = L::load(w + k);
                        const V grad =
                            Act::gradient(L::fma(xhat, scale, L::load(s + k)), load_prefetch<L>(b.dy + at + k, tail));
                        return L::fma(grad * scale, r, L::fma(xhat, kx, k0));
                    });
                });
            });
        });
    }

    void parameters() {
        for (int64_t i = 1; i < blocks; i++)
            for (int which : {0, 1}) add_scaled<double>(total(0, which), total(i, which), 1, shape.channels);
        if (b.dbias) std::copy_n(total(0, 0), shape.channels, b.dbias);
        if (b.dweight) std::copy_n(total(0, 1), shape.channels, b.dweight);
    }
};

}  // namespace groupnorm::INSTRUCTION_SET
