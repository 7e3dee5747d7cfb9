// The functions of the library, as groupnorm.ops.cpu calls them.
#include "kernels.h"

#include <type_traits>

#include "parallel.h"

namespace {

// Calls f with a null pointer to the type of the elements.
template <class F>
void with_dtype(int which, F&& f) {
    switch (which) {
        case 1:
            return f((bfloat16*)nullptr);
        case 2:
            return f((float16*)nullptr);
        case 3:
            return f((double*)nullptr);
        default:
            return f((float*)nullptr);
    }
}

}  // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED void groupnorm_use_threads(Fork fork, Number number) {
    fork_threads = fork;
    thread_number = number;
}

EXPORTED void groupnorm_forward(const Problem* p, const void* x, const void* add, void* total, const void* weight,
                                const void* bias, void* mean, void* rstd, void* y, double eps, int given) {
    with_dtype(p->dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        using A = accumulator<T>;
        forward(Forward<T>{*p, (const T*)x, (const T*)add, (T*)total, (const A*)weight, (const A*)bias, (A*)mean,
                           (A*)rstd, (T*)y, eps, given != 0});
    });
}

EXPORTED void groupnorm_backward(const Problem* p, const void* dy, const void* x, const void* weight, const void* bias,
                                 const void* mean, const void* rstd, void* dx, void* dweight, void* dbias, void* sums,
                                 int fixed) {
    with_dtype(p->dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        using A = accumulator<T>;
        backward(Backward<T>{*p, (const T*)dy, (const T*)x, (const A*)weight, (const A*)bias, (const A*)mean,
                             (const A*)rstd, (T*)dx, (A*)dweight, (A*)dbias, (A*)sums, fixed != 0});
    });
}
}
