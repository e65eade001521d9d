// Files, hashes and running the compiler.
#pragma once
#include <string>
#include <vector>

namespace emulator {

bool file_exists(const std::string& path);
std::string read_file(const std::string& path);
bool write_file(const std::string& path,
                const std::string& content);  // makes directories as needed
std::string hash(const std::string& text);    // 32 hex digits
std::string without(std::string text, const std::string& part);
std::string current_directory();
bool is_private(const std::string& path);  // this user's, writable by nobody else, and no link

// Runs a command without LD_PRELOAD (a sanitizer's runtime is nothing for a compiler) and adds what
// it says to `log`.
bool run(const std::vector<std::string>& command, std::string& log);

struct TemporaryDirectory {
    explicit TemporaryDirectory(const std::string& parent);
    ~TemporaryDirectory();
    std::string path;  // empty: could not be made
};

}  // namespace emulator
