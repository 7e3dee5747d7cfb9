// Tasks shared among the threads of the OpenMP runtime that PyTorch uses, so that there is one pool in the process.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// GOMP_parallel of that runtime; null where it has none, and threads are started for each call.
using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);
inline Fork fork_threads = nullptr;

// Calls task(worker, i) for each i below `tasks`; the worker is below `threads`. A worker takes neighbours, since what
// it reads ahead is then its own: half of its share of what is left, so that all end together. Which worker takes which
// task is left to chance, and a result may not depend on it.
template <class Task>
void parallel(int threads, int64_t tasks, Task&& task) {
    threads = (int)std::min<int64_t>(threads, tasks);
    if (threads <= 1) {
        for (int64_t i = 0; i < tasks; i++) task(0, i);
        return;
    }
    struct Team {
        Task& task;
        int64_t tasks, threads;
        std::atomic<int64_t> next{0};
        std::atomic<int> workers{0};
    } team{task, tasks, threads};
    auto work = [](void* shared) {
        Team& team = *(Team*)shared;
        int worker = team.workers++;
        for (int64_t i = team.next; i < team.tasks;) {
            const int64_t end = i + std::max<int64_t>(1, (team.tasks - i) / (2 * team.threads));
            if (!team.next.compare_exchange_weak(i, end)) continue;
            for (; i < end; i++) team.task(worker, i);
            i = team.next;
        }
    };
    if (fork_threads) {
        fork_threads(work, &team, threads, 0);
    } else {
        std::vector<std::thread> others;
        for (int i = 1; i < threads; i++) others.emplace_back(work, &team);
        work(&team);
        for (std::thread& other : others) other.join();
    }
}
