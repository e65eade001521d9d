#include "shell.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

extern char** environ;

namespace emulator {

namespace fs = std::filesystem;

bool file_exists(const std::string& path) { return access(path.c_str(), R_OK) == 0; }

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

bool write_file(const std::string& path, const std::string& content) {
    std::error_code ignored;
    fs::create_directories(fs::path(path).parent_path(), ignored);
    std::ofstream file(path, std::ios::binary);
    file << content;
    return bool(file.flush());
}

std::string hash(const std::string& text) {  // FNV-1a, from two starting points
    uint64_t low = 0xcbf29ce484222325u, high = 0x9ae16a3b2f90404fu;
    for (unsigned char c : text) {
        low = (low ^ c) * 0x100000001b3u;
        high = (high ^ c) * 0x100000001b3u + 1;
    }
    char digits[33];
    std::snprintf(digits, sizeof digits, "%016llx%016llx", (unsigned long long)high,
                  (unsigned long long)low);
    return digits;
}

std::string without(std::string text, const std::string& part) {
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos;)
        text.erase(at, part.size());
    return text;
}

std::string current_directory() {
    std::error_code ignored;
    return fs::current_path(ignored).string();
}

bool is_private(const std::string& path) {
    struct stat found;
    return lstat(path.c_str(), &found) == 0 && !S_ISLNK(found.st_mode) && found.st_uid == geteuid() &&
           (found.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

bool run(const std::vector<std::string>& command, std::string& log) {
    std::vector<char*> arguments, environment;
    for (const std::string& part : command) arguments.push_back(const_cast<char*>(part.c_str()));
    arguments.push_back(nullptr);
    for (char** variable = environ; *variable; variable++)
        if (std::strncmp(*variable, "LD_PRELOAD=", 11) != 0) environment.push_back(*variable);
    environment.push_back(nullptr);

    int channel[2];
    if (pipe2(channel, O_CLOEXEC) != 0) return false;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, channel[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, channel[1], STDERR_FILENO);
    pid_t child;
    int failed =
        posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environment.data());
    posix_spawn_file_actions_destroy(&actions);
    close(channel[1]);
    if (failed) {
        close(channel[0]);
        log += command[0] + ": " + std::strerror(failed) +
               "; the emulator needs a C++ compiler (CHASKI_CXX)\n";
        return false;
    }
    char text[4096];
    for (ssize_t n; (n = read(channel[0], text, sizeof text)) > 0;) log.append(text, size_t(n));
    close(channel[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TemporaryDirectory::TemporaryDirectory(const std::string& parent) {
    std::string name = parent + "/work.XXXXXX";
    if (mkdtemp(name.data())) path = name;
}

TemporaryDirectory::~TemporaryDirectory() {
    std::error_code ignored;
    if (!path.empty()) fs::remove_all(path, ignored);
}

}  // namespace emulator
