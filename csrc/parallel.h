// Tasks shared among the threads of the OpenMP runtime that PyTorch uses, so that there is one pool in the process.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace groupnorm {

// GOMP_parallel and omp_get_thread_num of that runtime; null where it has none, and threads are started for each call.
using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();
extern Fork fork_threads;
extern Number thread_number;

#ifdef INSTRUCTION_SET
namespace INSTRUCTION_SET {

// Calls task(worker, i) for each i below `tasks`; the worker is below `threads`, and its number is that of the thread.
// Each worker has the tasks that a static division gives it, since the operations before and after, which divide their
// work like this, find and leave their part in the cache of that core. It takes neighbours, half of what is left at a
// time; where its own are done it helps the others. So a result may not depend on who does what. `backwards` begins
// with the last task of each worker.
template <class Task>
void parallel(int threads, int64_t tasks, Task&& task, bool backwards = false) {
    threads = (int)std::min<int64_t>(threads, tasks);
    if (threads <= 1) {
        for (int64_t i = 0; i < tasks; i++) task(0, backwards ? tasks - 1 - i : i);
        return;
    }
    struct alignas(64) Share {  // a cache line, so that claims do not slow the others
        std::atomic<int64_t> next;
        int64_t begin, end;
    };
    std::vector<Share> shares(threads);
    for (int w = 0; w < threads; w++) {
        shares[w].next = shares[w].begin = tasks * w / threads;
        shares[w].end = tasks * (w + 1) / threads;
    }
    auto work = [&](int worker) {
        for (int other = 0; other < threads; other++) {
            Share& share = shares[(worker + other) % threads];
            for (int64_t i = share.next; i < share.end;) {
                const int64_t end = i + std::max<int64_t>(1, (share.end - i) / 2);
                if (!share.next.compare_exchange_weak(i, end)) continue;
                for (; i < end; i++) task(worker, backwards ? share.begin + share.end - 1 - i : i);
                i = share.next;
            }
        }
    };
    if (fork_threads) {
        using Work = decltype(work);
        fork_threads([](void* shared) { (*(Work*)shared)(thread_number()); }, &work, threads, 0);
    } else {
        std::vector<std::jthread> others;
        for (int i = 1; i < threads; i++) others.emplace_back(work, i);
        work(0);
    }
}

}  // namespace INSTRUCTION_SET
#endif

}  // namespace groupnorm
