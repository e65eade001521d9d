// What the compiler's stand-in hands out as a cubin or PTX, and the driver's takes: a mark, the
// architecture that it is for as the compiler was told - sm_90a, compute_80, or nothing -, and the path of
// a shared object.
#pragma once
#include <cstdlib>
#include <cstring>
#include <string>

namespace emulator {

inline constexpr char kImageMark[] = "CHASKI EMULATED KERNELS\n";

struct Image {
    std::string path, arch;

    // 80, or 0 where the compiler was told nothing.
    int number() const {
        const size_t digits = arch.find('_');
        return digits == std::string::npos ? 0 : std::atoi(arch.c_str() + digits + 1);
    }
    // As the real driver has it: machine code runs on what is of the same major version and not older;
    // PTX is compiled for what is not older; neither for another one, if it is for that one alone.
    bool runs_on(int major, int minor) const {
        const int here = 10 * major + minor, made_for = number();
        if (made_for == 0) return true;
        if (arch.back() == 'a') return here == made_for;
        return here >= made_for && (arch.rfind("sm_", 0) != 0 || made_for / 10 == major);
    }
    // Before it there was no griddepcontrol.
    bool can_wait_for_dependency() const { return number() == 0 || number() >= 90; }
};

inline std::string bytes_of(const Image& image) {
    return kImageMark + image.arch + "\n" + image.path + '\0';
}

// Without a path if it is none.
inline Image read_image(const void* bytes) {
    const size_t length = sizeof kImageMark - 1;
    const char* text = static_cast<const char*>(bytes);
    if (!text || std::strncmp(text, kImageMark, length) != 0) return {};
    const char* end = std::strchr(text + length, '\n');
    return {end + 1, {text + length, end}};
}

}  // namespace emulator
