// What NCCL does to the numbers of several ranks, in order of ranks. Types and operations have the
// numbers of nccl.h; 16-bit types are reduced in float and rounded once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace emulator {

enum Type { Int8, Uint8, Int32, Uint32, Int64, Uint64, Float16, Float32, Float64, Bfloat16 };
constexpr size_t kTypeBytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
enum Reduction { Sum, Product, Max, Min, Average };

inline float to_float(uint16_t bits, int type) {
    if (type == Float16) {
        _Float16 half;
        std::memcpy(&half, &bits, 2);
        return float(half);
    }
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t from_float(float value, int type) {
    uint16_t bits;
    if (type == Float16) {
        const _Float16 half = _Float16(value);
        std::memcpy(&bits, &half, 2);
        return bits;
    }
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    if (value != value) return 0x7fff;
    return uint16_t((wide + 0x7fffu + (wide >> 16 & 1)) >> 16);
}

template <class T>
T reduce(T a, T b, int reduction) {
    switch (reduction) {
        case Product:
            return a * b;
        case Max:
            return a < b ? b : a;
        case Min:
            return b < a ? b : a;
        default:
            return a + b;
    }
}

// to[i] = the ranks' values at parts[rank] + i, in order of ranks
template <class T>
void reduce_as(char* to, const std::vector<const char*>& parts, size_t count, int reduction) {
    for (size_t i = 0; i < count; i++) {
        auto at = [&](size_t rank) {
            T value;
            std::memcpy(&value, parts[rank] + i * sizeof(T), sizeof value);
            return value;
        };
        T value = at(0);
        for (size_t rank = 1; rank < parts.size(); rank++)
            value = reduce(value, at(rank), reduction);
        if (reduction == Average) value = T(value / T(parts.size()));
        std::memcpy(to + i * sizeof(T), &value, sizeof value);
    }
}

inline void reduce_half(char* to, const std::vector<const char*>& parts, size_t count,
                        int reduction, int type) {
    for (size_t i = 0; i < count; i++) {
        auto at = [&](size_t rank) {
            uint16_t bits;
            std::memcpy(&bits, parts[rank] + 2 * i, 2);
            return to_float(bits, type);
        };
        float value = at(0);
        for (size_t rank = 1; rank < parts.size(); rank++)
            value = reduce(value, at(rank), reduction);
        if (reduction == Average) value /= float(parts.size());
        const uint16_t bits = from_float(value, type);
        std::memcpy(to + 2 * i, &bits, 2);
    }
}

inline void reduce_all(char* to, const std::vector<const char*>& parts, size_t count, int type,
                       int reduction) {
    switch (type) {
        case Int8:
            return reduce_as<int8_t>(to, parts, count, reduction);
        case Uint8:
            return reduce_as<uint8_t>(to, parts, count, reduction);
        case Int32:
            return reduce_as<int32_t>(to, parts, count, reduction);
        case Uint32:
            return reduce_as<uint32_t>(to, parts, count, reduction);
        case Int64:
            return reduce_as<int64_t>(to, parts, count, reduction);
        case Uint64:
            return reduce_as<uint64_t>(to, parts, count, reduction);
        case Float32:
            return reduce_as<float>(to, parts, count, reduction);
        case Float64:
            return reduce_as<double>(to, parts, count, reduction);
        default:
            return reduce_half(to, parts, count, reduction, type);
    }
}

}  // namespace emulator
