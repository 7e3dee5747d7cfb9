// Contiguous tensors [N, C, S]: the S positions of a channel are neighbours, and so are the channels of a group.
#pragma once
#include <cmath>
#include <utility>

#include "runs.h"
#include "schedule.h"
#include "workspace.h"

namespace groupnorm::INSTRUCTION_SET {

// A group in slices: some of its channels whole, or some of the positions of one channel.
struct NchwSlices {
    int64_t size, positions, span, parts, several;

    NchwSlices(const Problem& p)
        : size(p.channels / p.groups),
          positions(p.positions),
          span(std::min(p.positions, SLICE)),
          parts(ceil_div(p.positions, span)),
          several(std::max<int64_t>(1, SLICE / p.positions)) {}

    int64_t count() const { return ceil_div(size, several) * parts; }
    int64_t block() const { return std::max<int64_t>(1, SLICE / (size * positions)); }

    // The slice in memory, where its channels are neighbours: first element, elements.
    std::pair<int64_t, int64_t> range(int64_t group, int64_t slice) const {
        const int64_t first = slice / parts * several, from = slice % parts * span;
        return {(group * size + first) * positions + from,
                std::min(several, size - first) * std::min(span, positions - from)};
    }

    // Calls f(channel within the group, part of its positions, first position, positions).
    template <class F>
    void each_run(int64_t slice, F&& f) const {
        const int64_t first = slice / parts * several, part = slice % parts, from = part * span;
        for (int64_t c = first; c < std::min(size, first + several); c++)
            f(c, part, from, std::min(span, positions - from));
    }
};

template <class T, class Act>
class NchwForward {
    using A = accumulator<T>;
    const Forward<T>& f;
    const NchwSlices cut;
    const Destination<T> to;
    Moments* moments;
    A* mean_lo;  // what rounding the mean to its dtype took off

  public:
    NchwForward(const Forward<T>& f)
        : f(f),
          cut(f.p),
          to(f.y, f.p.samples * f.p.channels * f.p.positions),
          moments(f.given ? nullptr : temporary<Moments>(units() * slices())),
          mean_lo(filled<A>(units())) {}

    int64_t units() const { return f.p.samples * f.p.groups; }
    int64_t slices() const { return cut.count(); }
    int64_t block() const { return cut.block(); }
    bool reduces() const { return !f.given; }
    bool applies() const { return f.y; }

    void reduce(int, int64_t group, int64_t slice) {
        const auto [from, elements] = cut.range(group, slice);
        moments[group * slices() + slice] =
            moments_of_run(f.x + from, f.add ? f.add + from : nullptr, f.add ? f.total + from : nullptr, elements);
    }

    void finish(int, int64_t group) {
        if (f.given) return;
        Moments all;
        for (int64_t s = 0; s < slices(); s++) all.merge(moments[group * slices() + s]);
        f.mean[group] = all.mean;
        f.rstd[group] = inverse_deviation(all, f.eps);
        mean_lo[group] = all.mean - f.mean[group];
    }

    void apply(int, int64_t group, int64_t slice) {
        const auto [begin, elements] = cut.range(group, slice);
        to.prepare(f.y + begin, elements);
        const T* x = f.add ? f.total : f.x;
        const int64_t first = group % f.p.groups * cut.size;
        cut.each_run(slice, [&](int64_t c, int64_t, int64_t s, int64_t n) {
            const int64_t from = (group * cut.size + c) * cut.positions + s;
            const A scale = f.rstd[group] * (f.weight ? f.weight[first + c] : 1);
            const A shift = (f.bias ? f.bias[first + c] : 0) - mean_lo[group] * scale;
            normalize_run<T, Act>(x + from, f.y + from, n, f.mean[group], scale, shift, to.streams());
        });
    }
};

template <class T, class Act>
class NchwBackward {
    using A = accumulator<T>;
    const Backward<T>& b;
    const NchwSlices cut;
    const Destination<T> to;
    GradientSums* sums;  // of each channel and part of its positions
    struct Factors {
        A x, constant;
    };
    Factors* factors;

    A weight(int64_t c) const { return b.weight ? b.weight[c] : 1; }
    A bias(int64_t c) const { return b.bias ? b.bias[c] : 0; }

  public:
    NchwBackward(const Backward<T>& b)
        : b(b),
          cut(b.p),
          to(b.dx, b.p.samples * b.p.channels * b.p.positions),
          sums(temporary<GradientSums>(b.p.samples * b.p.channels * cut.parts)),
          factors(temporary<Factors>(units())) {}

    int64_t units() const { return b.p.samples * b.p.groups; }
    int64_t slices() const { return cut.count(); }
    int64_t block() const { return cut.block(); }
    bool reduces() const { return !b.fixed || b.dweight || b.dbias || b.sums; }
    bool applies() const { return b.dx; }

    void reduce(int, int64_t group, int64_t slice) {
        const int64_t first = group % b.p.groups * cut.size;
        const A mean = b.mean[group], rstd = b.rstd[group];
        cut.each_run(slice, [&](int64_t c, int64_t part, int64_t s, int64_t n) {
            const int64_t channel = group * cut.size + c, from = channel * cut.positions + s;
            sums[channel * cut.parts + part] = gradient_sums_of_run<T, Act>(b.x + from, b.dy + from, n, mean,
                                                                            rstd * weight(first + c), bias(first + c));
        });
    }

    void finish(int, int64_t group) {
        if (!reduces()) return;
        const int64_t first = group % b.p.groups * cut.size;
        const double rstd = b.rstd[group], elements = (double)cut.size * cut.positions;
        double g = 0, gx = 0;
        for (int64_t c = 0; c < cut.size; c++) {
            GradientSums* parts = &sums[(group * cut.size + c) * cut.parts];
            for (int64_t i = 1; i < cut.parts; i++) {
                parts->d += parts[i].d;
                parts->dx += parts[i].dx;
            }
            parts->dx *= rstd;
            g += parts->d * weight(first + c);
            gx += parts->dx * weight(first + c);
        }
        if (b.sums) {
            b.sums[group] = g;
            b.sums[units() + group] = gx;
        }
        factors[group] = {(A)(-rstd * rstd * gx / elements), (A)(-rstd * g / elements)};
    }

    void apply(int, int64_t group, int64_t slice) {
        const int64_t first = group % b.p.groups * cut.size;
        const A mean = b.mean[group], rstd = b.rstd[group];
        const Factors by = b.fixed ? Factors{0, 0} : factors[group];
        const auto [begin, elements] = cut.range(group, slice);
        to.prepare(b.dx + begin, elements);
        cut.each_run(slice, [&](int64_t c, int64_t, int64_t s, int64_t n) {
            const int64_t from = (group * cut.size + c) * cut.positions + s;
            const A scale = rstd * weight(first + c);
            gradient_run<T, Act>(b.x + from, b.dy + from, b.dx + from, n, mean, scale, bias(first + c), scale, by.x,
                                 by.constant, to.streams());
        });
    }

    void parameters() {
        GradientSums* all = filled<GradientSums>(b.p.channels);
        for (int64_t n = 0; n < b.p.samples; n++)
            for (int64_t c = 0; c < b.p.channels; c++) {
                const GradientSums& one = sums[(n * b.p.channels + c) * cut.parts];
                all[c].d += one.d;
                all[c].dx += one.dx;
            }
        for (int64_t c = 0; c < b.p.channels; c++) {
            if (b.dweight) b.dweight[c] = all[c].dx;
            if (b.dbias) b.dbias[c] = all[c].d;
        }
    }
};

}  // namespace groupnorm::INSTRUCTION_SET
