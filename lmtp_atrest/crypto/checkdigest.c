/* The check digest's chain: 2,048 times SHA-256 of digest and counter (see checkdigest.py).

   By the SHA instructions of x86 processors (FIPS 180-4 without tables or branches on data); for
   others Python's hashlib is no slower than C would be. Each message has 36 bytes, so one block:
   8 words that are the digest before it, the counter, the padding's first bit, and the length of
   288 bits. Words stay words from one call to the next; bytes are swapped at both ends only. */

#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define ROUNDS 2048

static const uint32_t K[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
static const uint32_t H[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                              0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static int has_sha(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1))
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & 1u << 29;
}

/* The instructions keep the state as ABEF and CDGH, and do four rounds from four words. */
__attribute__((target("sha,sse4.1"))) static void sha256_block(uint32_t out[8],
                                                               const uint32_t block[16])
{
    const __m128i abef = _mm_set_epi32(H[0], H[1], H[4], H[5]);
    const __m128i cdgh = _mm_set_epi32(H[2], H[3], H[6], H[7]);
    __m128i s0 = abef, s1 = cdgh, w[4];
    memcpy(w, block, 64);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        __m128i *now = &w[i % 4];
        if (i >= 4) {
            __m128i last = w[(i + 3) % 4], seventh = _mm_alignr_epi8(last, w[(i + 2) % 4], 4);
            __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(*now, w[(i + 1) % 4]), seventh);
            *now = _mm_sha256msg2_epu32(sum, last);
        }
        __m128i k = _mm_add_epi32(*now, _mm_load_si128((const __m128i *)K + i));
        s1 = _mm_sha256rnds2_epu32(s1, s0, k);
        s0 = _mm_sha256rnds2_epu32(s0, s1, _mm_shuffle_epi32(k, 0x0e));
    }
    uint32_t feba[4], hgdc[4];
    _mm_storeu_si128((__m128i *)feba, _mm_add_epi32(s0, abef));
    _mm_storeu_si128((__m128i *)hgdc, _mm_add_epi32(s1, cdgh));
    uint32_t words[8] = {feba[3], feba[2], hgdc[3], hgdc[2], feba[1], feba[0], hgdc[1], hgdc[0]};
    memcpy(out, words, 32);
}

/* Replaces the digest by the chain's last one; 0 where this processor cannot. */
int lmtp_atrest_chain(unsigned char digest[32])
{
    uint32_t block[16] = {[9] = 0x80000000, [15] = 288};
    if (!has_sha())
        return 0;
    for (int i = 0; i < 8; i++)
        block[i] = (uint32_t)digest[4 * i] << 24 | (uint32_t)digest[4 * i + 1] << 16 |
                   (uint32_t)digest[4 * i + 2] << 8 | digest[4 * i + 3];
    for (uint32_t counter = 1; counter <= ROUNDS; counter++) {
        block[8] = counter;
        sha256_block(block, block);
    }
    for (int i = 0; i < 32; i++)
        digest[i] = block[i / 4] >> (24 - 8 * (i % 4));
    return 1;
}
