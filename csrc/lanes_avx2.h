// Vectors of AVX2: 8 floats or 4 doubles. Half precisions are widened on load and rounded to nearest even on store.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "numbers.h"

namespace groupnorm::INSTRUCTION_SET {

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
    using V = __m256;
    static constexpr int width = 8;

    static V splat(float a) { return _mm256_set1_ps(a); }

    static V load(const float* p) { return _mm256_loadu_ps(p); }
    static V load(const bfloat16* p) { return widen_bf16(_mm_loadu_si128((const __m128i*)p)); }
    static V load(const float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }

    // The first n < width elements; zeros beyond.
    template <class T>
    static V load(const T* p, int n) {
        T part[width] = {};
        std::memcpy(part, p, n * sizeof(T));
        return load(part);
    }

    static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
    static void store(bfloat16* p, V v) { _mm_storeu_si128((__m128i*)p, narrow_bf16(v)); }
    static void store(float16* p, V v) { _mm_storeu_si128((__m128i*)p, narrow_f16(v)); }

    template <class T>
    static void store(T* p, V v, int n) {
        T part[width];
        store(part, v);
        std::memcpy(p, part, n * sizeof(T));
    }

    // Two vectors past the caches; p is aligned to 64 bytes.
    static void stream(float* p, V a, V b) {
        _mm256_stream_ps(p, a);
        _mm256_stream_ps(p + width, b);
    }
    static void stream(bfloat16* p, V a, V b) { stream_pair(p, narrow_bf16(a), narrow_bf16(b)); }
    static void stream(float16* p, V a, V b) { stream_pair(p, narrow_f16(a), narrow_f16(b)); }

    static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static V keep(V v, int n) { return _mm256_and_ps(v, _mm256_castsi256_ps(first(n))); }
    static V where_positive(V z, V v) { return _mm256_and_ps(v, _mm256_cmp_ps(z, splat(0), _CMP_NLE_UQ)); }
    static V choose_negative(V z, V then, V otherwise) { return _mm256_blendv_ps(otherwise, then, z); }
    static V abs(V v) { return _mm256_andnot_ps(splat(-0.0f), v); }
    // Of two numbers the larger or smaller; NaN where the second is NaN.
    static V max(V a, V b) { return _mm256_max_ps(a, b); }
    static V min(V a, V b) { return _mm256_min_ps(a, b); }
    // v - floor(v), and v * 2^floor(n) for n up to 127; what is below -126 counts as that
    static V fraction(V v) {
        v = max(splat(-126), v);
        return v - _mm256_floor_ps(v);
    }
    static V times_power_of_two(V v, V n) {
        __m256i exponent = _mm256_cvtps_epi32(_mm256_floor_ps(max(splat(-126), n)));
        return v * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    }
    static V reciprocal(V v) { return splat(1) / v; }
    static V about_reciprocal(V v) { return reciprocal(v); }
    static float sum(V v) {
        __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        q = _mm_add_ps(q, _mm_movehl_ps(q, q));
        return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
    }

  private:
    static void stream_pair(void* p, __m128i a, __m128i b) { _mm256_stream_si256((__m256i*)p, _mm256_set_m128i(b, a)); }
    static __m256i first(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static V widen_bf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
    static __m128i narrow_f16(V v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static __m128i narrow_bf16(V v) {
        __m256i bits = _mm256_castps_si256(v);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        __m256i number = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_ORD_Q));
        half = _mm256_and_si256(half, number);  // rounding up could make a NaN another number
        bits = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
        return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    }
};

template <>
struct Lanes<double> {
    using V = __m256d;
    static constexpr int width = 4;

    static V splat(double a) { return _mm256_set1_pd(a); }
    static V load(const double* p) { return _mm256_loadu_pd(p); }
    static V load(const double* p, int n) { return _mm256_maskload_pd(p, first(n)); }
    static void store(double* p, V v) { _mm256_storeu_pd(p, v); }
    static void store(double* p, V v, int n) { _mm256_maskstore_pd(p, first(n), v); }
    static void stream(double* p, V a, V b) {
        _mm256_stream_pd(p, a);
        _mm256_stream_pd(p + width, b);
    }
    static V reciprocal(V v) { return splat(1) / v; }
    static V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
    static V keep(V v, int n) { return _mm256_and_pd(v, _mm256_castsi256_pd(first(n))); }
    static V where_positive(V z, V v) { return _mm256_and_pd(v, _mm256_cmp_pd(z, splat(0), _CMP_NLE_UQ)); }
    static V max(V a, V b) { return _mm256_max_pd(a, b); }
    static V min(V a, V b) { return _mm256_min_pd(a, b); }
    static double sum(V v) {
        __m128d q = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
        return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
    }

  private:
    static __m256i first(int n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
};

}  // namespace groupnorm::INSTRUCTION_SET
