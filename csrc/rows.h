// Channels-last tensors [N, S, C], as rows of columns. Contiguous tensors with few positions are one row a sample,
// whose columns are all their elements: each channel is S columns wide.
#pragma once
#include <cmath>
#include <numeric>

#include "columns.h"
#include "schedule.h"
#include "workspace.h"

struct RowsShape {
    int64_t samples, rows, columns, groups, wide;  // wide: columns of a channel

    RowsShape(const Problem& p)
        : samples(p.samples),
          rows(p.channels_last ? p.positions : 1),
          columns(p.channels_last ? p.channels : p.channels * p.positions),
          groups(p.groups),
          wide(columns / p.channels) {}

    int64_t size() const { return columns / groups; }
    int64_t span() const { return std::min(rows, std::clamp<int64_t>(SLICE / columns, 16, 256)); }
    int64_t slices() const { return divide_up(rows, span()); }
    int64_t rows_of(int64_t slice) const { return std::min(span(), rows - slice * span()); }
    int64_t at(int64_t sample, int64_t slice) const { return (sample * rows + slice * span()) * columns; }
    // Samples whose gradients are summed as one; not a function of the channels, so that more of these change no bit.
    int64_t block() const { return slices() > 1 ? 1 : std::max(divide_up(samples, 64), SLICE / 8 / (rows * size())); }
    int64_t blocks() const { return divide_up(samples, block()); }
    int64_t padded() const { return divide_up(columns, 16) * 16; }
};

// Arrays [count, columns] for each worker, with zeros up to whole vectors.
template <class A>
class Scratch {
    const int64_t length, count;
    A* const numbers;

  public:
    Scratch(const RowsShape& shape, int64_t count, int workers)
        : length(shape.padded()), count(count), numbers(temporary<A>(length * count * workers)) {
        for (A* end = numbers + length; end <= numbers + length * count * workers; end += length)
            std::fill(end - (length - shape.columns), end, 0);
    }

    A* array(int worker, int64_t i) const { return &numbers[(worker * count + i) * length]; }
};

template <class A>
const A* widened(const RowsShape& shape, const A* parameter, A otherwise) {
    A* wide = filled<A>(shape.padded());
    if (!parameter)
        std::fill_n(wide, shape.columns, otherwise);
    else if (shape.wide == 1)
        std::copy_n(parameter, shape.columns, wide);
    else
        for (int64_t c = 0; c < shape.columns / shape.wide; c++)
            std::fill_n(wide + c * shape.wide, shape.wide, parameter[c]);
    return wide;
}

template <class T, class Act>
class RowsForward {
    using A = accumulator<T>;
    const Forward<T>& f;
    const RowsShape shape;
    const bool stream;
    const A *const weight, *const bias;
    const Scratch<A> scratch;  // mean, scale, shift; about, distances, squares
    int64_t* holds;            // the sample whose columns a worker has
    Moments* moments;
    A* low;  // what rounding the mean to its dtype took off

    Columns<A> columns_of(int worker, int64_t sample) {
        A* shift = scratch.array(worker, 2);
        Columns<A> by{scratch.array(worker, 0), scratch.array(worker, 1), shift};
        if (holds[worker] != sample) {
            holds[worker] = sample;
            for (int64_t g = 0; g < shape.groups; g++) {
                const A mean = f.mean[sample * shape.groups + g], rstd = f.rstd[sample * shape.groups + g];
                const A off = low[sample * shape.groups + g];
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
    RowsForward(const Forward<T>& f)
        : f(f),
          shape(f.p),
          stream(shape.samples * shape.rows * shape.columns * (int64_t)sizeof(T) >= STREAM_BYTES),
          weight(widened<A>(shape, f.weight, 1)),
          bias(widened<A>(shape, f.bias, 0)),
          scratch(shape, 6, f.p.threads),
          holds(filled<int64_t>(f.p.threads, -1)),
          moments(f.given ? nullptr : temporary<Moments>(shape.samples * shape.slices() * shape.groups)),
          low(filled<A>(shape.samples * shape.groups)) {}

    int64_t units() const { return shape.samples; }
    int64_t slices() const { return shape.slices(); }
    int64_t block() const { return shape.block(); }
    bool reduces() const { return !f.given; }
    bool applies() const { return f.y; }

    void reduce(int worker, int64_t sample, int64_t slice) {
        const int64_t from = shape.at(sample, slice), rows = shape.rows_of(slice), size = shape.size();
        const double n = (double)rows * size;
        const T* x = f.x + from;
        if (f.add) {
            add_run(x, f.add + from, f.total + from, rows * shape.columns);
            x = f.total + from;
        }
        Moments* of = &moments[(sample * shape.slices() + slice) * shape.groups];
        if (rows == 1) {
            for (int64_t g = 0; g < shape.groups; g++) of[g] = moments_of_run<T>(x + g * size, nullptr, nullptr, size);
            return;
        }
        A *about = scratch.array(worker, 3), *sums = scratch.array(worker, 4), *squares = scratch.array(worker, 5);
        std::fill_n(sums, shape.padded(), 0);
        sum_rows(x, rows, shape.columns, sums);
        for (int64_t g = 0; g < shape.groups; g++) {
            double sum = 0;
            for (int64_t j = g * size; j < (g + 1) * size; j++) sum += sums[j];
            std::fill_n(about + g * size, size, (A)(sum / n));
        }
        std::fill_n(sums, shape.padded(), 0);
        std::fill_n(squares, shape.padded(), 0);
        sum_distances(x, rows, shape.columns, about, sums, squares);
        for (int64_t g = 0; g < shape.groups; g++) {
            double sum = 0, square = 0;
            for (int64_t j = g * size; j < (g + 1) * size; j++) {
                sum += sums[j];
                square += squares[j];
            }
            of[g] = from_distances(n, about[g * size], sum, square);
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
            f.rstd[i] = 1 / std::sqrt(all.squares / all.count + f.eps);
            low[i] = all.mean - f.mean[i];
        }
    }

    void apply(int worker, int64_t sample, int64_t slice) {
        const int64_t from = shape.at(sample, slice);
        const T* x = f.add ? f.total : f.x;
        normalize_rows<T, Act>(x + from, f.y + from, shape.rows_of(slice), shape.columns, columns_of(worker, sample),
                               stream);
    }
};

template <class T, class Act>
class RowsBackward {
    using A = accumulator<T>;
    const Backward<T>& b;
    const RowsShape shape;
    const bool stream;
    const A *const weight, *const bias;
    const Scratch<A> scratch;  // mean, scale, by x, constant
    int64_t* holds;
    Scratch<A> partial;      // [sums of d, of d (x - mean)] of each slice, by worker where a sample is one slice
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
        if (holds[worker] != sample) {
            holds[worker] = sample;
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
    RowsBackward(const Backward<T>& b)
        : b(b),
          shape(b.p),
          stream(shape.samples * shape.rows * shape.columns * (int64_t)sizeof(T) >= STREAM_BYTES),
          weight(widened<A>(shape, b.weight, 1)),
          bias(widened<A>(shape, b.bias, 0)),
          scratch(shape, 4, b.p.threads),
          holds(filled<int64_t>(b.p.threads, -1)),
          partial(shape, shape.slices() == 1 ? 2 : 2 * shape.samples * shape.slices(),
                  shape.slices() == 1 ? b.p.threads : 1),
          totals(shape, 2 * shape.blocks(), 1),
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
        double* total_d = totals.array(0, sample / block() * 2);
        double* total_dx = totals.array(0, sample / block() * 2 + 1);
        for (int64_t g = 0; g < shape.groups; g++) {
            const int64_t i = sample * shape.groups + g, j = g * size;
            const A rstd = b.rstd[i];
            double sum = 0, sum_x = 0;
            for (int64_t s = 0; s < shape.slices(); s++) {
                const A *d = sums(worker, sample, s, 0) + j, *dx = sums(worker, sample, s, 1) + j;
                add_scaled<A>(total_d + j, d, 1, size);
                add_scaled<A>(total_dx + j, dx, rstd, size);
                sum += product_sum(d, &weight[j], size);
                sum_x += product_sum(dx, &weight[j], size) * rstd;
            }
            if (b.sums) {
                b.sums[i] = sum;
                b.sums[shape.samples * shape.groups + i] = sum_x;
            }
            factors[i] = {(A)(-(double)rstd * rstd * sum_x / elements), (A)(-rstd * sum / elements)};
        }
    }

    void apply(int worker, int64_t sample, int64_t slice) {
        const int64_t from = shape.at(sample, slice);
        Columns<A> by = columns_of(worker, sample);
        for (int64_t g = 0; g < shape.groups; g++) {
            const Factors k = b.fixed ? Factors{0, 0} : factors[sample * shape.groups + g];
            std::fill_n(by.by_x + g * shape.size(), shape.size(), k.x);
            std::fill_n(by.constant + g * shape.size(), shape.size(), k.constant);
        }
        gradient_rows<T, Act>(b.x + from, b.dy + from, b.dx + from, shape.rows_of(slice), shape.columns, by, stream);
    }

    void parameters() {
        double *d = totals.array(0, 0), *dx = totals.array(0, 1);
        for (int64_t i = 1; i < shape.blocks(); i++) {
            add_scaled<double>(d, totals.array(0, 2 * i), 1, shape.columns);
            add_scaled<double>(dx, totals.array(0, 2 * i + 1), 1, shape.columns);
        }
        for (int64_t c = 0; c < b.p.channels; c++) {
            if (b.dweight) b.dweight[c] = std::accumulate(dx + c * shape.wide, dx + (c + 1) * shape.wide, 0.0);
            if (b.dbias) b.dbias[c] = std::accumulate(d + c * shape.wide, d + (c + 1) * shape.wide, 0.0);
        }
    }
};
