// What the compiler's stand-in hands out as a "cubin", and the driver's takes: a mark and the path
// of a shared object.
#pragma once
#include <cstring>
#include <string>

namespace emulator {

inline constexpr char kImageMark[] = "CHASKI EMULATED KERNELS\n";

inline std::string image_of(const std::string& path) { return kImageMark + path + '\0'; }

inline const char* path_in_image(const void* image) {
    const size_t length = sizeof kImageMark - 1;
    const char* text = static_cast<const char*>(image);
    return image && std::strncmp(text, kImageMark, length) == 0 ? text + length : nullptr;
}

}  // namespace emulator
