// Channels-last tensors [N, S, C]: a row of columns for each position, whose columns are the channels.
#pragma once
#include <cmath>
#include <utility>

#include "columns.h"
#include "schedule.h"
#include "workspace.h"

namespace groupnorm::INSTRUCTION_SET {

struct NhwcShape {
    int64_t samples, rows, columns, groups, bytes;  // bytes: of an element

    NhwcShape(const Problem& p, int64_t bytes)
        : samples(p.samples), rows(p.positions), columns(p.channels), groups(p.groups), bytes(bytes) {}

    int64_t size() const { return columns / groups; }
    int64_t span() const { return std::min(rows, std::clamp<int64_t>(SLICE / columns, 16, 256)); }
    int64_t slices() const { return ceil_div(rows, span()); }
    int64_t rows_of(int64_t slice) const { return std::min(span(), rows - slice * span()); }
    int64_t at(int64_t sample, int64_t slice) const { return (sample * rows + slice * span()) * columns; }
    // Samples of a unit. Not a function of the channels, so that more of these change no bit; enough of them that what
    // each block of samples and each worker has for itself takes no more memory than the input.
    int64_t block() const {
        if (slices() > 1) return 1;
        return std::max({ceil_div(samples, 64), SLICE / 8 / (rows * size()), ceil_div(64, rows * bytes)});
    }
    int64_t blocks() const { return ceil_div(samples, block()); }
    int workers(int threads) const { return (int)std::min<int64_t>(threads, blocks() * slices()); }
    int64_t padded() const { return padded_columns(columns); }
};

// Arrays [count, columns] for each worker, with zeros up to whole vectors.
template <class A>
class Scratch {
    const int64_t length, count;
    A* const numbers;

  public:
    Scratch(int64_t columns, int64_t count, int workers)
        : length(padded_columns(columns)), count(count), numbers(temporary<A>(length * count * workers)) {
        for (A* end = numbers + length; end <= numbers + length * count * workers; end += length)
            std::fill(end - (length - columns), end, 0);
    }

    A* array(int worker, int64_t i) const { return &numbers[(worker * count + i) * length]; }
};

// Which sample's numbers the arrays of each worker hold.
class SampleCache {
    static constexpr int64_t APART = 16;  // so that no two workers write to one line of the caches
    int64_t* const samples;

  public:
    SampleCache(int workers) : samples(filled<int64_t>(workers * APART, -1)) {}

    // Whether they held another one; from now on they hold this.
    bool change(int worker, int64_t sample) { return std::exchange(samples[worker * APART], sample) != sample; }
};

template <class T, class Act>
class NhwcForward {
    using A = accumulator<T>;
    const Forward<T>& f;
    const NhwcShape shape;
    const Destination<T> to;
    const A *const weight, *const bias;
    const Scratch<A> scratch;  // mean, scale, shift; about, distances, squares
    SampleCache cached;
    Moments* moments;
    A* mean_lo;  // what rounding the mean to its dtype took off

    Columns<A> columns_of(int worker, int64_t sample) {
        A* shift = scratch.array(worker, 2);
        Columns<A> by{scratch.array(worker, 0), scratch.array(worker, 1), shift};
        if (cached.change(worker, sample)) {
            for (int64_t g = 0; g < shape.groups; g++) {
                const A mean = f.mean[sample * shape.groups + g], rstd = f.rstd[sample * shape.groups + g];
                const A off = mean_lo[sample * shape.groups + g];
                for (int64_t j = g * shape.size(); j < (g + 1) * shape.size(); j++) {
                    by.mean[j] = mean;
                    by.scale[j] = rstd * weight[j];
                    shift[j] = bias[j] - off * by.scale[j];
                }
            }
        }
        return by;
    }

  public:
    NhwcForward(const Forward<T>& f)
        : f(f),
          shape(f.p, sizeof(T)),
          to(f.y, shape.samples * shape.rows * shape.columns),
          weight(padded<A>(f.weight, 1, shape.columns)),
          bias(padded<A>(f.bias, 0, shape.columns)),
          scratch(shape.columns, 6, shape.workers(f.p.threads)),
          cached(f.p.threads),
          moments(f.given ? nullptr : temporary<Moments>(shape.samples * shape.slices() * shape.groups)),
          mean_lo(filled<A>(shape.samples * shape.groups)) {}

    int64_t units() const { return shape.samples; }
    int64_t slices() const { return shape.slices(); }
    int64_t block() const { return shape.block(); }
    bool reduces() const { return !f.given; }
    bool applies() const { return f.y; }

    void reduce(int worker, int64_t sample, int64_t slice) {
        const int64_t from = shape.at(sample, slice), rows = shape.rows_of(slice), size = shape.size();
        const int64_t first = ceil_div(rows, 4);
        const T* x = f.x + from;
        if (f.add) {
            add_run(x, f.add + from, f.total + from, rows * shape.columns);
            x = f.total + from;
        }
        Moments* of = &moments[(sample * shape.slices() + slice) * shape.groups];
        A *about = scratch.array(worker, 3), *sums = scratch.array(worker, 4), *squares = scratch.array(worker, 5);
        std::fill_n(sums, shape.padded(), 0);
        // A quarter of the rows is read twice, to know about where the mean is: what the squares then hold too much,
        // and lose again, is at most three times the result.
        sum_rows(x, first, shape.columns, sums);
        for (int64_t g = 0; g < shape.groups; g++)
            std::fill_n(about + g * size, size, (A)(column_sum(sums + g * size, size) / (double)(first * size)));
        std::fill_n(sums, shape.padded(), 0);
        std::fill_n(squares, shape.padded(), 0);
        sum_distances(x, rows, shape.columns, about, sums, squares);
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t j = g * size;
            of[g] = from_distances((double)rows * size, about[j], column_sum(sums + j, size),
                                   column_sum(squares + j, size));
        }
    }

    void finish(int, int64_t sample) {
        if (f.given) return;
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g;
            Moments all;
            for (int64_t s = 0; s < shape.slices(); s++)
                all.merge(moments[(sample * shape.slices() + s) * shape.groups + g]);
            f.mean[i] = all.mean;
            f.rstd[i] = inverse_deviation(all, f.eps);
            mean_lo[i] = all.mean - f.mean[i];
        }
    }

    void apply(int worker, int64_t sample, int64_t slice) {
        const int64_t from = shape.at(sample, slice);
        const T* x = f.add ? f.total : f.x;
        to.prepare(f.y + from, shape.rows_of(slice) * shape.columns);
        normalize_rows<T, Act>(x + from, f.y + from, shape.rows_of(slice), shape.columns, columns_of(worker, sample),
                               to.streams());
    }
};

template <class T, class Act>
class NhwcBackward {
    using A = accumulator<T>;
    const Backward<T>& b;
    const NhwcShape shape;
    const Destination<T> to;
    const A *const weight, *const bias;
    const Scratch<A> scratch;  // mean, scale, by x, constant
    SampleCache cached;
    Scratch<A> partial;      // [sums of d, of d (x - mean)] of each slice, by worker where a sample is one slice
    Scratch<double> pooled;  // the same of a sample, by worker
    Scratch<double> totals;  // [of d, of d xhat] of each block of samples
    struct Factors {
        A x, constant;
    };
    Factors* factors;

    A* sums(int worker, int64_t sample, int64_t slice, int which) const {
        const int64_t slices = shape.slices();
        return slices == 1 ? partial.array(worker, which) : partial.array(0, (sample * slices + slice) * 2 + which);
    }

    Columns<A> columns_of(int worker, int64_t sample) {
        A *scale = scratch.array(worker, 1), *by_x = scratch.array(worker, 2), *constant = scratch.array(worker, 3);
        Columns<A> by{scratch.array(worker, 0), scale, bias, scale, by_x, constant};
        if (cached.change(worker, sample)) {
            for (int64_t g = 0; g < shape.groups; g++) {
                const A mean = b.mean[sample * shape.groups + g], rstd = b.rstd[sample * shape.groups + g];
                for (int64_t j = g * shape.size(); j < (g + 1) * shape.size(); j++) {
                    by.mean[j] = mean;
                    by.scale[j] = rstd * weight[j];
                }
            }
        }
        return by;
    }

  public:
    NhwcBackward(const Backward<T>& b)
        : b(b),
          shape(b.p, sizeof(T)),
          to(b.dx, shape.samples * shape.rows * shape.columns),
          weight(padded<A>(b.weight, 1, shape.columns)),
          bias(padded<A>(b.bias, 0, shape.columns)),
          scratch(shape.columns, 4, shape.workers(b.p.threads)),
          cached(b.p.threads),
          partial(shape.columns, shape.slices() == 1 ? 2 : 2 * shape.samples * shape.slices(),
                  shape.slices() == 1 ? shape.workers(b.p.threads) : 1),
          pooled(shape.columns, 2, shape.workers(b.p.threads)),
          totals(shape.columns, 2 * shape.blocks(), 1),
          factors(temporary<Factors>(shape.samples * shape.groups)) {
        std::fill_n(totals.array(0, 0), shape.padded() * 2 * shape.blocks(), 0.0);
    }

    int64_t units() const { return shape.samples; }
    int64_t slices() const { return shape.slices(); }
    int64_t block() const { return shape.block(); }
    bool reduces() const { return !b.fixed || b.dweight || b.dbias || b.sums; }
    bool applies() const { return b.dx; }

    void reduce(int worker, int64_t sample, int64_t slice) {
        const int64_t from = shape.at(sample, slice);
        A *d = sums(worker, sample, slice, 0), *dx = sums(worker, sample, slice, 1);
        std::fill_n(d, shape.padded(), 0);
        std::fill_n(dx, shape.padded(), 0);
        gradient_sums_of_rows<T, Act>(b.x + from, b.dy + from, shape.rows_of(slice), shape.columns,
                                      columns_of(worker, sample), d, dx);
    }

    void finish(int worker, int64_t sample) {
        if (!reduces()) return;
        const int64_t size = shape.size();
        const double elements = (double)shape.rows * size;
        double *d = pooled.array(worker, 0), *dx = pooled.array(worker, 1);
        std::fill_n(d, shape.columns, 0);
        std::fill_n(dx, shape.columns, 0);
        for (int64_t s = 0; s < shape.slices(); s++) {
            add_scaled<A>(d, sums(worker, sample, s, 0), 1, shape.columns);
            add_scaled<A>(dx, sums(worker, sample, s, 1), 1, shape.columns);
        }
        double* total_d = totals.array(0, sample / block() * 2);
        double* total_dx = totals.array(0, sample / block() * 2 + 1);
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g;
            const double rstd = b.rstd[i];
            double sum = 0, sum_x = 0;
            for (int64_t j = g * size; j < (g + 1) * size; j++) {
                dx[j] *= rstd;
                sum += d[j] * weight[j];
                sum_x += dx[j] * weight[j];
            }
            if (b.sums) {
                b.sums[i] = sum;
                b.sums[shape.samples * shape.groups + i] = sum_x;
            }
            factors[i] = {(A)(-rstd * rstd * sum_x / elements), (A)(-rstd * sum / elements)};
        }
        add_scaled<double>(total_d, d, 1, shape.columns);
        add_scaled<double>(total_dx, dx, 1, shape.columns);
    }

    void apply(int worker, int64_t sample, int64_t slice) {
        const int64_t from = shape.at(sample, slice);
        Columns<A> by = columns_of(worker, sample);
        for (int64_t g = 0; g < shape.groups; g++) {
            const Factors k = b.fixed ? Factors{0, 0} : factors[sample * shape.groups + g];
            std::fill_n(by.by_x + g * shape.size(), shape.size(), k.x);
            std::fill_n(by.constant + g * shape.size(), shape.size(), k.constant);
        }
        to.prepare(b.dx + from, shape.rows_of(slice) * shape.columns);
        gradient_rows<T, Act>(b.x + from, b.dy + from, b.dx + from, shape.rows_of(slice), shape.columns, by,
                              to.streams());
    }

    void parameters() {
        double *d = totals.array(0, 0), *dx = totals.array(0, 1);
        for (int64_t i = 1; i < shape.blocks(); i++) {
            add_scaled<double>(d, totals.array(0, 2 * i), 1, shape.columns);
            add_scaled<double>(dx, totals.array(0, 2 * i + 1), 1, shape.columns);
        }
        if (b.dweight) std::copy_n(dx, shape.columns, b.dweight);
        if (b.dbias) std::copy_n(d, shape.columns, b.dbias);
    }
};

}  // namespace groupnorm::INSTRUCTION_SET
