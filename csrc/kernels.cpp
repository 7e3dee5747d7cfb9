// The functions of the library, as groupnorm.ops.cpu calls them.
#include "kernels.h"

#include <new>
#include <type_traits>

#include "parallel.h"
#include "workspace.h"

namespace groupnorm {

Fork fork_threads = nullptr;
Number thread_number = nullptr;

Workspace& workspace() {
    thread_local Workspace own;
    return own;
}

std::byte* Workspace::take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    used += bytes;
    if (used <= size) return kept.get() + (used - bytes);
    others.emplace_back(new std::byte[bytes]);
    return others.back().get();
}

void Workspace::clear() {
    if (used > size && used <= MOST) {
        kept.reset(new (std::nothrow) std::byte[used]);
        size = kept ? used : 0;
    }
    others.clear();
    used = 0;
}

namespace {

// Calls f with a null pointer to the type of the elements. 0, or 1 where memory or threads ran out: an exception must
// not leave a function that C calls.
template <class F>
int with_dtype(Dtype dtype, F&& f) noexcept {
    const Scope scope;
    try {
        switch (dtype) {
            case Dtype::bfloat16:
                f((bfloat16*)nullptr);
                break;
            case Dtype::float16:
                f((float16*)nullptr);
                break;
            case Dtype::float64:
                f((double*)nullptr);
                break;
            case Dtype::float32:
                f((float*)nullptr);
        }
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

}  // namespace
}  // namespace groupnorm

using namespace groupnorm;

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED int groupnorm_use_threads(Fork fork, Number number) {
    fork_threads = fork;
    thread_number = number;
    return 0;
}

EXPORTED int groupnorm_forward(const Problem* p, const void* x, const void* add, void* total, const void* weight,
                               const void* bias, void* mean, void* rstd, void* y, double eps, int given) {
    return with_dtype(p->dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        using A = accumulator<T>;
        forward(Forward<T>{*p, (const T*)x, (const T*)add, (T*)total, (const A*)weight, (const A*)bias, (A*)mean,
                           (A*)rstd, (T*)y, eps, given != 0});
    });
}

EXPORTED int groupnorm_backward(const Problem* p, const void* dy, const void* x, const void* weight, const void* bias,
                                const void* mean, const void* rstd, void* dx, void* dweight, void* dbias, void* sums,
                                int fixed) {
    return with_dtype(p->dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        using A = accumulator<T>;
        backward(Backward<T>{*p, (const T*)dy, (const T*)x, (const A*)weight, (const A*)bias, (const A*)mean,
                             (const A*)rstd, (T*)dx, (A*)dweight, (A*)dbias, (A*)sums, fixed != 0});
    });
}
}
