// Checks the vectors of one instruction set against scalar arithmetic; prints what differs, and returns how much does.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "functions.h"

using namespace groupnorm;
using namespace groupnorm::INSTRUCTION_SET;

namespace {

int failures = 0;

void check(bool right, const char* what, double at) {
    if (right) return;
    failures++;
    std::printf("%s at %.9g\n", what, at);
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

bool near(double a, double b, double relative) { return same(a, b) || std::fabs(a - b) <= relative * std::fabs(b); }

// Values that are typical, tiny, huge, equal in magnitude, and no numbers.
template <class A>
std::vector<A> values() {
    const A inf = std::numeric_limits<A>::infinity(), nan = std::numeric_limits<A>::quiet_NaN();
    std::vector<A> found = {0, -0.0f, 1, -1, 0.5f, -0.5f, 3, -7.25f, 1e-30f, -1e-30f, 1e30f, -1e30f, inf, -inf, nan};
    std::srand(0);
    for (int i = 0; i < 1000; i++) found.push_back((std::rand() / (A)RAND_MAX - A(0.5)) * 40);
    while (found.size() % 64) found.push_back(1);
    return found;
}

template <class A>
void arithmetic() {
    using L = Lanes<A>;
    constexpr int W = L::width;
    const std::vector<A> x = values<A>();
    A a[W], b[W], out[W];
    for (size_t i = 0; i + W <= x.size(); i += W) {
        for (int k = 0; k < W; k++) a[k] = x[i + k], b[k] = x[x.size() - 1 - i - k];
        auto va = L::load(a), vb = L::load(b);
        L::store(out, L::max(va, vb));
        for (int k = 0; k < W; k++) check(same(out[k], a[k] > b[k] ? a[k] : b[k]), "max", a[k]);
        L::store(out, L::min(va, vb));
        for (int k = 0; k < W; k++) check(same(out[k], a[k] < b[k] ? a[k] : b[k]), "min", a[k]);
        L::store(out, L::fma(va, vb, L::splat(2)));
        for (int k = 0; k < W; k++) check(same(out[k], std::fma(a[k], b[k], A(2))), "fma", a[k]);
        L::store(out, L::where_positive(va, vb));
        for (int k = 0; k < W; k++) check(same(out[k], a[k] <= 0 ? 0 : b[k]), "where_positive", a[k]);
        for (int n = 1; n < W; n++) {
            L::store(out, L::load(a, n));
            for (int k = 0; k < W; k++) check(same(out[k], k < n ? a[k] : 0), "load of a tail", a[k]);
            std::fill(out, out + W, A(77));
            L::store(out, va, n);
            for (int k = 0; k < W; k++) check(same(out[k], k < n ? a[k] : 77), "store of a tail", a[k]);
            L::store(out, L::keep(L::splat(3), n));
            for (int k = 0; k < W; k++) check(out[k] == (k < n ? 3 : 0), "keep", n);
        }
    }
    for (int k = 0; k < W; k++) a[k] = k + 1;
    check(L::sum(L::load(a)) == W * (W + 1) / 2, "sum", W);
}

void functions() {
    using L = Lanes<float>;
    constexpr int W = L::width;
    float a[W], out[W], density[W];
    for (double from = -30; from < 30; from += 0.01 * W) {
        for (int k = 0; k < W; k++) a[k] = (float)(from + 0.01 * k);
        L::store(out, L::abs(L::load(a)));
        for (int k = 0; k < W; k++) check(out[k] == std::fabs(a[k]), "abs", a[k]);
        L::store(out, power_of_two(L::load(a)));
        for (int k = 0; k < W; k++) check(near(out[k], std::exp2((double)a[k]), 4e-7), "power_of_two", a[k]);
        L::store(out, about_power_of_two(L::load(a)));
        for (int k = 0; k < W; k++)
            check(near(out[k], std::exp2((double)a[k]), 1.0 / 8192), "about_power_of_two", a[k]);
        L::store(out, logistic<float>(L::load(a)));
        for (int k = 0; k < W; k++) check(near(out[k], 1 / (1 + std::exp(-(double)a[k])), 4e-6), "logistic", a[k]);
        const auto normal_at = normal(L::load(a));
        L::store(out, normal_at.below);
        L::store(density, normal_at.density);
        for (int k = 0; k < W; k++) {
            const double below = 0.5 * std::erfc(-(double)a[k] * M_SQRT1_2);
            check(std::fabs(out[k] - below) <= 1e-6 * below + 1e-7 && out[k] >= 0, "normal", a[k]);
            check(std::fabs(density[k] - 0.3989422804 * std::exp(-0.5 * (double)a[k] * a[k])) <= 1e-6, "density", a[k]);
        }
    }
}

// Each bfloat16 is read as it is, and each float is stored as the nearest one, halves to the even one.
void bfloat16s() {
    using L = Lanes<float>;
    constexpr int W = L::width;
    bfloat16 half[W];
    float wide[W];
    for (uint32_t first = 0; first < 65536; first += W) {
        for (int k = 0; k < W; k++) half[k].bits = (uint16_t)(first + k);
        L::store(wide, L::load(half));
        for (int k = 0; k < W; k++) {
            const uint32_t bits = (first + k) << 16;
            float expected;
            std::memcpy(&expected, &bits, 4);
            check(same(wide[k], expected), "load of bfloat16", expected);
            const bool normal =
                std::isnormal(expected) || expected == 0;  // the processor's own instruction drops others
            if (!normal) continue;
            for (uint32_t below : {0u, 0x7fffu, 0x8000u, 0x8001u}) {
                const uint32_t near_bits = bits | below;
                float value[W];
                for (int i = 0; i < W; i++) std::memcpy(&value[i], &near_bits, 4);
                if (!std::isnormal(value[0]) && value[0] != 0) continue;
                bfloat16 stored[W];
                L::store(stored, L::load(value));
                const uint32_t up = below > 0x8000u || (below == 0x8000u && ((bits >> 16) & 1));
                check(stored[0].bits == (uint16_t)((bits >> 16) + up), "store of bfloat16", value[0]);
            }
        }
    }
}

}  // namespace

int main() {
    arithmetic<float>();
    arithmetic<double>();
    functions();
    bfloat16s();
    return failures > 255 ? 255 : failures;
}
