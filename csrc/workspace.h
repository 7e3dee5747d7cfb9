// Memory of one call. What a thread needed once it keeps, up to a few megabytes: memory that is given back and taken
// again is new to the process each time, and its first touch costs more than a small norm.
#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

namespace groupnorm {

class Workspace {
    static constexpr size_t MOST = size_t(1) << 22;
    std::unique_ptr<std::byte[]> kept;
    std::vector<std::unique_ptr<std::byte[]>> others;  // of this call alone
    size_t size = 0, used = 0;

  public:
    std::byte* take(size_t bytes);
    void clear();  // nothing is in use any more
};

// That of this thread.
Workspace& workspace();

// Gives the memory of a call back when the call ends.
struct Scope {
    ~Scope() { workspace().clear(); }
};

#ifdef INSTRUCTION_SET
namespace INSTRUCTION_SET {

// n elements, uninitialised, until the call of this thread ends.
template <class T>
T* temporary(size_t n) {
    return (T*)workspace().take(n * sizeof(T));
}

template <class T>
T* filled(size_t n, T value = {}) {
    T* numbers = temporary<T>(n);
    std::fill_n(numbers, n, value);
    return numbers;
}

}  // namespace INSTRUCTION_SET
#endif

}  // namespace groupnorm
