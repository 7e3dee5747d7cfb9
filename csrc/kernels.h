// What element.cpp has for each type of element.
#pragma once
#include "problem.h"

namespace groupnorm {

template <class T>
void forward(Forward<T> f);

template <class T>
void backward(Backward<T> b);

}  // namespace groupnorm
