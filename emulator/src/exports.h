// The exported kernels of a source: their names and launch bounds, found in the text. Their
// arguments are left to the C++ compiler (Trampoline in include/device.h).
#pragma once
#include <regex>
#include <string>
#include <vector>

namespace emulator {

struct Export {
    std::string name, bounds;
};

inline std::string without_comments(const std::string& source) {
    std::string text;
    for (size_t i = 0; i < source.size();) {
        if (source.compare(i, 2, "//") == 0) {
            i = std::min(source.find('\n', i), source.size());
        } else if (source.compare(i, 2, "/*") == 0) {
            size_t end = source.find("*/", i + 2);
            i = end == std::string::npos ? source.size() : end + 2;
            text += ' ';
        } else {
            text += source[i++];
        }
    }
    return text;
}

inline std::vector<Export> find_exports(const std::string& source) {
    static const std::regex pattern(
        "extern\\s+\"C\"\\s+__global__\\s+(?:__launch_bounds__\\s*\\(([^()]*)\\)\\s*)?void\\s+"
        "(?:__launch_bounds__\\s*\\(([^()]*)\\)\\s*)?(\\w+)\\s*\\(");
    std::vector<Export> exports;
    const std::string text = without_comments(source);
    for (std::sregex_iterator match(text.begin(), text.end(), pattern), end; match != end; ++match)
        exports.push_back({(*match)[3], (*match)[1].str() + (*match)[2].str()});
    return exports;
}

}  // namespace emulator
