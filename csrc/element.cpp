// The kernels for one type of element, ELEMENT. Compiled for each, and for each instruction set that matters to it.
#include "activation.h"
#include "kernels.h"
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

template <class Kernel, class Arguments>
void run(const Arguments& arguments) {
    Kernel kernel(arguments);
    schedule(kernel, arguments.p.threads);
    if constexpr (requires { kernel.parameters(); })
        if (arguments.dweight || arguments.dbias) kernel.parameters();
}

}  // namespace

template <class T>
void forward(Forward<T> f) {
    if (!f.mean) {  // nobody wants to know
        f.mean = temporary<accumulator<T>>(f.p.samples * f.p.groups);
        f.rstd = temporary<accumulator<T>>(f.p.samples * f.p.groups);
    }
    with_activation<T>(f.p.activation, [&](auto act) {
        using Act = decltype(act);
        if (f.p.channels_last)
            run<RowsForward<T, Act>>(f);
        else if (f.p.positions < FEW_POSITIONS)
            run<LinesForward<T, Act>>(f);
        else
            run<PlanesForward<T, Act>>(f);
    });
}

template <class T>
void backward(Backward<T> b) {
    with_activation<T>(b.p.activation, [&](auto act) {
        using Act = decltype(act);
        if (b.p.channels_last)
            run<RowsBackward<T, Act>>(b);
        else if (b.p.positions < FEW_POSITIONS)
            run<LinesBackward<T, Act>>(b);
        else
            run<PlanesBackward<T, Act>>(b);
    });
}

template void forward(Forward<ELEMENT>);
template void backward(Backward<ELEMENT>);
