// The functions of the library, as groupnorm.ops.cpu calls them. Compiled once for each instruction set.
#include <type_traits>

#include "activation.h"
#include "lines.h"
#include "planes.h"
#include "rows.h"

namespace {

constexpr int64_t FEW_POSITIONS = 32;  // fewer than this leave vectors half empty, and a sample becomes one line

// Calls f with an activation of elements of T.
template <class T, class F>
void with_activation(int which, F&& f) {
    switch (which) {
        case 1:
            return f(Relu<T>{});
        case 2:
            return f(Silu<T>{});
        case 3:
            return f(Gelu<T>{});
        case 4:
            return f(GeluTanh<T>{});
        default:
            return f(Identity<T>{});
    }
}

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

template <class Kernel, class Arguments>
void run(const Arguments& arguments) {
    Kernel kernel(arguments);
    schedule(kernel, arguments.p.threads);
    if constexpr (requires { kernel.parameters(); })
        if (arguments.dweight || arguments.dbias) kernel.parameters();
    workspace.clear();
}

}  // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED void groupnorm_use_threads_of(Fork fork) { fork_threads = fork; }

EXPORTED void groupnorm_forward(const Problem* p, const void* x, const void* add, void* total, const void* weight,
                                const void* bias, void* mean, void* rstd, void* y, double eps, int given) {
    with_dtype(p->dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        using A = accumulator<T>;
        Forward<T> f{*p,       (const T*)x, (const T*)add, (T*)total, (const A*)weight, (const A*)bias,
                     (A*)mean, (A*)rstd,    (T*)y,         eps,       given != 0};
        if (!mean) {  // nobody wants to know
            f.mean = temporary<A>(p->samples * p->groups);
            f.rstd = temporary<A>(p->samples * p->groups);
        }
        with_activation<T>(p->activation, [&](auto act) {
            using Act = decltype(act);
            if (p->channels_last)
                run<RowsForward<T, Act>>(f);
            else if (p->positions < FEW_POSITIONS)
                run<LinesForward<T, Act>>(f);
            else
                run<PlanesForward<T, Act>>(f);
        });
    });
}

EXPORTED void groupnorm_backward(const Problem* p, const void* dy, const void* x, const void* weight, const void* bias,
                                 const void* mean, const void* rstd, void* dx, void* dweight, void* dbias, void* sums,
                                 int fixed) {
    with_dtype(p->dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        using A = accumulator<T>;
        Backward<T> b{
            *p,     (const T*)dy, (const T*)x, (const A*)weight, (const A*)bias, (const A*)mean, (const A*)rstd,
            (T*)dx, (A*)dweight,  (A*)dbias,   (A*)sums,         fixed != 0};
        with_activation<T>(p->activation, [&](auto act) {
            using Act = decltype(act);
            if (p->channels_last)
                run<RowsBackward<T, Act>>(b);
            else if (p->positions < FEW_POSITIONS)
                run<LinesBackward<T, Act>>(b);
            else
                run<PlanesBackward<T, Act>>(b);
        });
    });
}
}
