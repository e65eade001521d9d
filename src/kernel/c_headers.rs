//! The C headers that CUDA files include, for NVRTC, which has none: what device code may use of them and
//! the compiler does not bring itself.

/// Of whole numbers, as NVIDIA's own headers define them for NVRTC: either may come first.
const INTEGERS: &str = "#pragma once
typedef signed char int8_t;
typedef signed short int16_t;
typedef signed int int32_t;
typedef signed long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef int64_t intptr_t;
typedef uint64_t uintptr_t;
";

const LIMITS: &str = "#pragma once
#ifndef INT_MAX
#define SCHAR_MAX 127
#define SCHAR_MIN (-128)
#define UCHAR_MAX 255
#define SHRT_MAX 32767
#define SHRT_MIN (-32768)
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295U
#define LLONG_MAX 9223372036854775807LL
#define LLONG_MIN (-LLONG_MAX - 1LL)
#define ULLONG_MAX 18446744073709551615ULL
#endif
#ifndef INT32_MAX
#define INT8_MAX SCHAR_MAX
#define INT8_MIN SCHAR_MIN
#define INT16_MAX SHRT_MAX
#define INT16_MIN SHRT_MIN
#define INT32_MAX INT_MAX
#define INT32_MIN INT_MIN
#define INT64_MAX LLONG_MAX
#define INT64_MIN LLONG_MIN
#define UINT8_MAX UCHAR_MAX
#define UINT16_MAX USHRT_MAX
#define UINT32_MAX UINT_MAX
#define UINT64_MAX ULLONG_MAX
#endif
";

const FLOATS: &str = "#pragma once
#ifndef FLT_MAX
#define FLT_MAX 3.402823466e+38F
#define FLT_MIN 1.175494351e-38F
#define FLT_EPSILON 1.192092896e-07F
#define DBL_MAX 1.7976931348623158e+308
#define DBL_MIN 2.2250738585072014e-308
#define DBL_EPSILON 2.2204460492503131e-016
#endif
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define M_PI 3.14159265358979323846
#define M_SQRT1_2 0.70710678118654752440
#endif
";

/// The compiler has it all.
const NOTHING: &str = "#pragma once\n";

/// Name and text of each.
pub const C_HEADERS: &[(&str, &str)] = &[
    ("assert.h", NOTHING),
    ("cassert", NOTHING),
    ("cfloat", FLOATS),
    ("climits", LIMITS),
    ("cmath", FLOATS),
    ("cstddef", NOTHING),
    ("cstdint", "#pragma once\n#include <chaski_integers.h>\n#include <chaski_limits.h>\n"),
    ("cstdio", NOTHING),
    ("cuda.h", NOTHING),
    ("cuda_runtime.h", NOTHING),
    ("device_launch_parameters.h", NOTHING),
    ("float.h", FLOATS),
    ("limits.h", LIMITS),
    ("math.h", FLOATS),
    ("stddef.h", NOTHING),
    ("stdint.h", "#pragma once\n#include <chaski_integers.h>\n#include <chaski_limits.h>\n"),
    ("stdio.h", NOTHING),
    ("chaski_integers.h", INTEGERS),
    ("chaski_limits.h", LIMITS),
];
