// What element.cpp has for each type of element.
#pragma once
#include "problem.h"

template <class T>
void forward(Forward<T> f);

template <class T>
void backward(Backward<T> b);
