// The kernels for one type of element, ELEMENT. Compiled for each, and for each instruction set that matters to it.
#include "activation.h"
#include "kernels.h"
#include "nchw.h"
#include "nchw_small.h"
#include "nhwc.h"

namespace groupnorm {
namespace INSTRUCTION_SET {
namespace {

constexpr int64_t FEW_POSITIONS = 32;  // fewer than this leave vectors half empty, and a sample becomes one line

// Calls f with an activation of elements of T.
template <class T, class F>
void with_activation(Activation activation, F&& f) {
    switch (activation) {
        case Activation::relu:
            return f(Relu<T>{});
        case Activation::silu:
            return f(Silu<T>{});
        case Activation::gelu:
            return f(Gelu<T>{});
        case Activation::gelu_tanh:
            return f(GeluTanh<T>{});
        case Activation::none:
            return f(Identity<T>{});
    }
}

template <Kernel K, class Arguments>
void run(const Arguments& arguments) {
    K kernel(arguments);
    schedule(kernel, arguments.p.threads);
    if constexpr (requires { kernel.parameters(); })
        if (arguments.dweight || arguments.dbias) kernel.parameters();
}

}  // namespace
}  // namespace INSTRUCTION_SET

using namespace INSTRUCTION_SET;

template <class T>
void forward(Forward<T> f) {
    if (!f.mean) {  // nobody wants to know
        f.mean = temporary<accumulator<T>>(f.p.samples * f.p.groups);
        f.rstd = temporary<accumulator<T>>(f.p.samples * f.p.groups);
    }
    with_activation<T>(f.p.activation, [&](auto act) {
        using Act = decltype(act);
        if (f.p.channels_last)
            run<NhwcForward<T, Act>>(f);
        else if (f.p.positions < FEW_POSITIONS)
            run<NchwSmallForward<T, Act>>(f);
        else
            run<NchwForward<T, Act>>(f);
    });
}

template <class T>
void backward(Backward<T> b) {
    with_activation<T>(b.p.activation, [&](auto act) {
        using Act = decltype(act);
        if (b.p.channels_last)
            run<NhwcBackward<T, Act>>(b);
        else if (b.p.positions < FEW_POSITIONS)
            run<NchwSmallBackward<T, Act>>(b);
        else
            run<NchwBackward<T, Act>>(b);
    });
}

template void forward(Forward<ELEMENT>);
template void backward(Backward<ELEMENT>);

}  // namespace groupnorm
