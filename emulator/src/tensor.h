// What a tensor core makes of a row of A, [16], columns of B, [16, N], and their sums so far.
#pragma once
#include "modes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

// The power of two that a number begins with; far below all others for zero.
inline int exponent_of(double number) {
    uint64_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return int(bits >> 52 & 0x7ff) - 1023;
}

inline float towards_zero(double number) {
    const float nearest = float(number);
    return std::abs(double(nearest)) > std::abs(number) && std::abs(number) < 0x1p128
               ? std::nextafter(nearest, 0.0f)
               : nearest;
}

// As hardware has been found to add: all seventeen terms are aligned to the largest exponent - of a
// product, the sum of its factors' -, cut off two bits below a float's last, and added exactly; of the
// sum, too, what a float has no room for is cut off. (Fasi, Higham, Mikaitis, Pranesh, "Numerical
// behavior of NVIDIA tensor cores", 2021, and the same of Hopper: Khattak, Mikaitis, 2025.)
inline float add_truncated(double sum, const double (&products)[16], int largest) {
    constexpr int kBits = 23 + 2;
    largest = std::max({largest, exponent_of(sum), -300});
    const double scale = std::ldexp(1.0, kBits - largest);
    int64_t total = int64_t(sum * scale);
    for (double product : products) total += int64_t(product * scale);
    return towards_zero(double(total) / scale);
}

// sums[c] += a b[:, c]. Products of 16-bit numbers are exact in double; unless tensor cores truncate,
// there is one rounding at the end.
template <size_t N>
void add_products(const double (&a)[16], const double (&b)[16][N], unsigned columns, float* sums) {
    double exact[N];
    for (unsigned c = 0; c < columns; c++) exact[c] = sums[c];
    for (unsigned k = 0; k < 16; k++)
        for (unsigned c = 0; c < columns; c++) exact[c] += a[k] * b[k][c];
    const bool truncate = modes().truncate;
    for (unsigned c = 0; c < columns; c++) {
        const double sum = sums[c];
        sums[c] = float(exact[c]);
        if (!truncate || !std::isfinite(exact[c])) continue;
        double products[16];
        int largest = -2000;
        for (unsigned k = 0; k < 16; k++) {
            products[k] = a[k] * b[k][c];
            largest = std::max(largest, exponent_of(a[k]) + exponent_of(b[k][c]));
        }
        sums[c] = add_truncated(sum, products, largest);
    }
}

}  // namespace emulator
