// Memory of one call. What a thread needed once it keeps, up to a few megabytes: memory that is given back and taken
// again is new to the process each time, and its first touch costs more than a small norm.
#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

class Workspace {
    static constexpr size_t MOST = size_t(1) << 22;
    std::unique_ptr<std::byte[]> kept;
    std::vector<std::unique_ptr<std::byte[]>> others;  // of this call alone
    size_t size = 0, used = 0;

  public:
    std::byte* take(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        used += bytes;
        if (used <= size) return kept.get() + (used - bytes);
        others.emplace_back(new std::byte[bytes]);
        return others.back().get();
    }

    // Nothing is in use any more.
    void clear() {
        if (used > size && used <= MOST) {
            kept.reset(new (std::nothrow) std::byte[used]);
            size = kept ? used : 0;
        }
        others.clear();
        used = 0;
    }
};

inline thread_local Workspace workspace;

// n elements, uninitialised, until the call of this thread ends.
template <class T>
T* temporary(size_t n) {
    return (T*)workspace.take(n * sizeof(T));
}

template <class T>
T* filled(size_t n, T value = {}) {
    T* numbers = temporary<T>(n);
    std::fill_n(numbers, n, value);
    return numbers;
}
