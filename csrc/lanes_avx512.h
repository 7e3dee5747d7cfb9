// Vectors of AVX-512: 16 floats or 8 doubles. Half precisions are widened on load and rounded to nearest even on store.
#pragma once
#include <immintrin.h>

#include "numbers.h"

namespace groupnorm::INSTRUCTION_SET {

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
    using V = __m512;
    static constexpr int width = 16;

    static V splat(float a) { return _mm512_set1_ps(a); }

    static V load(const float* p) { return _mm512_loadu_ps(p); }
    static V load(const bfloat16* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
    static V load(const float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }

    // The first n < width elements; zeros beyond.
    static V load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
    static V load(const bfloat16* p, int n) { return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
    static V load(const float16* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }

    static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
    static void store(bfloat16* p, V v) { _mm256_storeu_si256((__m256i*)p, narrow_bf16(v)); }
    static void store(float16* p, V v) { _mm256_storeu_si256((__m256i*)p, narrow_f16(v)); }

    static void store(float* p, V v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
    static void store(bfloat16* p, V v, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow_bf16(v)); }
    static void store(float16* p, V v, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow_f16(v)); }

    // Two vectors past the caches; p is aligned to 64 bytes.
    static void stream(float* p, V a, V b) {
        _mm512_stream_ps(p, a);
        _mm512_stream_ps(p + width, b);
    }
    static void stream(bfloat16* p, V a, V b) { stream_pair(p, narrow_bf16(a), narrow_bf16(b)); }
    static void stream(float16* p, V a, V b) { stream_pair(p, narrow_f16(a), narrow_f16(b)); }

    static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
    static V keep(V v, int n) { return _mm512_maskz_mov_ps(first(n), v); }
    static V where_positive(V z, V v) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(z, splat(0), _CMP_NLE_UQ), v); }
    static V choose_negative(V z, V then, V otherwise) {
        return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(z)), otherwise, then);
    }
    static V abs(V v) { return _mm512_abs_ps(v); }
    // Of two numbers the larger or smaller; NaN where the second is NaN.
    static V max(V a, V b) { return _mm512_max_ps(a, b); }
    static V min(V a, V b) { return _mm512_min_ps(a, b); }
    // v - floor(v), and v * 2^floor(n)
    static V fraction(V v) { return _mm512_reduce_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
    static V times_power_of_two(V v, V n) { return _mm512_scalef_ps(v, n); }
    // 1 / v to about an ulp, for v and 1 / v finite
    static V reciprocal(V v) {
        V r = _mm512_rcp14_ps(v);
        return fma(r, _mm512_fnmadd_ps(v, r, splat(1)), r);
    }
    // The same to 2^-14.
    static V about_reciprocal(V v) { return _mm512_rcp14_ps(v); }
    static float sum(V v) {
        __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        q = _mm_add_ps(q, _mm_movehl_ps(q, q));
        return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
    }

  private:
    static void stream_pair(void* p, __m256i a, __m256i b) {
        _mm512_stream_si512((__m512i*)p, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
    }
    static uint16_t first(int n) { return (uint16_t)((1u << n) - 1); }
    static V widen_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
    static __m256i narrow_f16(V v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static __m256i narrow_bf16(V v) {
#ifdef __AVX512BF16__  // the same, but for numbers below 2^-126, which become 0
        return (__m256i)_mm512_cvtneps_pbh(v);
#else
        __m512i bits = _mm512_castps_si512(v);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);  // rounding up could make a NaN another number
        bits = _mm512_mask_add_epi32(bits, number, bits, half);
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
#endif
    }
};

template <>
struct Lanes<double> {
    using V = __m512d;
    static constexpr int width = 8;

    static V splat(double a) { return _mm512_set1_pd(a); }
    static V load(const double* p) { return _mm512_loadu_pd(p); }
    static V load(const double* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
    static void store(double* p, V v) { _mm512_storeu_pd(p, v); }
    static void store(double* p, V v, int n) { _mm512_mask_storeu_pd(p, first(n), v); }
    static void stream(double* p, V a, V b) {
        _mm512_stream_pd(p, a);
        _mm512_stream_pd(p + width, b);
    }
    static V reciprocal(V v) { return splat(1) / v; }
    static V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
    static V keep(V v, int n) { return _mm512_maskz_mov_pd(first(n), v); }
    static V where_positive(V z, V v) { return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(z, splat(0), _CMP_NLE_UQ), v); }
    static V max(V a, V b) { return _mm512_max_pd(a, b); }
    static V min(V a, V b) { return _mm512_min_pd(a, b); }
    static double sum(V v) {
        __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
        __m128d q = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
        return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
    }

  private:
    static __mmask8 first(int n) { return (__mmask8)((1u << n) - 1); }
};

}  // namespace groupnorm::INSTRUCTION_SET
