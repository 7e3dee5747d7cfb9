// In which order the parts of a kernel run.
#pragma once
#include <concepts>

#include "parallel.h"
#include "problem.h"

namespace groupnorm::INSTRUCTION_SET {

// A kernel normalises units (groups, or samples), each cut into slices: `reduce` every slice, `finish` the unit,
// `apply` to every slice. Where whole units keep the threads busy, each is one thread's from end to end, and its slices
// are gone through backwards the second time, so that the last read are still in the cache. Otherwise the threads share
// each step, each its own part. The numbers are the same.
template <class K>
concept Kernel = requires(K kernel, int worker, int64_t unit, int64_t slice) {
    { kernel.units() } -> std::same_as<int64_t>;
    { kernel.slices() } -> std::same_as<int64_t>;
    { kernel.block() } -> std::same_as<int64_t>;  // units that one task takes
    { kernel.reduces() } -> std::convertible_to<bool>;
    { kernel.applies() } -> std::convertible_to<bool>;
    kernel.reduce(worker, unit, slice);
    kernel.finish(worker, unit);
    kernel.apply(worker, unit, slice);
};

template <Kernel K>
void schedule(K& kernel, int threads) {
    const int64_t units = kernel.units(), slices = kernel.slices(), block = kernel.block();
    const int64_t blocks = ceil_div(units, block), rounds = ceil_div(blocks, threads);
    const bool busy = threads == 1 || blocks * 5 >= rounds * threads * 4;  // four fifths of the time
    if (slices == 1 || busy) {
        parallel(threads, blocks, [&](int worker, int64_t i) {
            for (int64_t unit = i * block; unit < std::min(units, (i + 1) * block); unit++) {
                if (kernel.reduces())
                    for (int64_t s = 0; s < slices; s++) kernel.reduce(worker, unit, s);
                kernel.finish(worker, unit);
                if (kernel.applies())
                    for (int64_t s = slices; s-- > 0;) kernel.apply(worker, unit, s);
            }
        });
        return;
    }
    const int64_t tasks = units * slices;
    if (kernel.reduces())
        parallel(threads, tasks, [&](int worker, int64_t i) { kernel.reduce(worker, i / slices, i % slices); });
    parallel(threads, units, [&](int worker, int64_t unit) { kernel.finish(worker, unit); });
    if (kernel.applies())
        parallel(threads, tasks, [&](int worker, int64_t i) { kernel.apply(worker, i / slices, i % slices); }, true);
}

}  // namespace groupnorm::INSTRUCTION_SET
