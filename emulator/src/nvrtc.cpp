// The compiler's stand-in: g++ behind the NVRTC interface. A program becomes a shared object,
// cached by what the preprocessor makes of it, and its path is the "cubin" that the driver's
// stand-in loads.
#include "dialect.h"
#include "image.h"
#include "shell.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <algorithm>
#include <cstdlib>
#include <map>
#include <vector>

#define ENTRY extern "C" __attribute__((visibility("default"))) int

namespace {

using namespace emulator;

enum {
    kSuccess = 0,
    kInvalidProgram = 4,
    kInvalidOption = 5,
    kCompilation = 6,
    kInvalidExpression = 10,
    kInternal = 11
};

struct Program {
    std::string source, name, log, image;
    std::map<std::string, std::string> headers;  // by the name they are included with
    std::vector<Expression> expressions;
};

#if defined(EMULATOR_THREAD)
constexpr const char* kSanitizer[] = {"-O1", "-fsanitize=thread", "--param",
                                    "tsan-distinguish-volatile=1"};
#elif defined(EMULATOR_ADDRESS)
constexpr const char* kSanitizer[] = {"-O1", "-fsanitize=address,undefined",
                                      "-fno-sanitize-recover=all"};
#else
constexpr const char* kSanitizer[] = {"-O2"};
#endif

// The folder of this library.
std::string own_directory() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void*>(&own_directory), &info)) return ".";
    std::string path = info.dli_fname;
    size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

// The headers that stand in for CUDA.
std::string include_directory() { return own_directory() + "/include"; }

// What chaski_emulator_configure is given: the C++ compiler, and the folder that objects are kept in.
std::string chosen_compiler, chosen_cache;

std::vector<std::string> compiler() {
    const char* variable = std::getenv("CHASKI_CXX");
    std::vector<std::string> command = {!chosen_compiler.empty() ? chosen_compiler
                                        : variable && *variable  ? variable
                                                                 : "g++"};
    // Two modules may have a kernel of one name: nothing of theirs is unique in the process.
    for (const char* flag : {"-std=c++17", "-g", "-fPIC", "-fno-exceptions", "-fno-gnu-unique",
                             "-ffp-contract=off", "-w", "-Wno-psabi", "-fno-diagnostics-show-caret",
                             "-fno-diagnostics-show-option", "-fno-show-column"})
        command.push_back(flag);
    command.insert(command.end(), std::begin(kSanitizer), std::end(kSanitizer));
    command.push_back("-fdebug-prefix-map=" + current_directory() +
                      "=.");  // the same object wherever it is made
#if defined(__x86_64__)
    // Conversions of f16 and fmaf() are library calls without these.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        command.insert(command.end(), {"-mavx2", "-mfma", "-mf16c"});
#endif
    return command;
}

// Options of the real compiler that mean something here.
bool add_options(std::vector<std::string>& command, std::string& arch, int count,
                 const char* const* options) {
    for (int i = 0; i < count; i++) {
        std::string option = options[i];
        auto value_of = [&](const std::string& prefix) {
            return option.rfind(prefix, 0) == 0 ? option.substr(prefix.size()) : std::string();
        };
        for (const char* prefix : {"--gpu-architecture=", "-arch="})
            if (!value_of(prefix).empty()) arch = value_of(prefix);
        for (const char* prefix : {"--include-path=", "--define-macro=", "-I", "-D"}) {
            std::string value = value_of(prefix);
            if (option == prefix && (option == "-I" || option == "-D")) {
                if (++i == count) return false;
                value = options[i];
            }
            if (value.empty()) continue;
            bool include = std::string(prefix) == "-I" || std::string(prefix) == "--include-path=";
            command.push_back((include ? "-I" : "-D") + value);
            break;
        }
    }
    return true;
}

// Writes the program where the compiler finds it, under the names it was given.
bool write_program(const Program& program, const std::string& directory) {
    std::string text = "#line 1 \"" + program.name + "\"\n" + program.source + "\n";
    if (!write_file(directory + "/program.cu", text)) return false;
    for (const auto& [name, content] : program.headers) {
        if (file_exists(include_directory() + "/" + name))
            continue;  // the stand-in's own comes first
        if (!write_file(directory + "/" + name, "#line 1 \"" + name + "\"\n" + content))
            return false;
    }
    return true;
}

// Without the lines that say in which function the next one is.
std::string without_context(const std::string& log) {
    std::string kept;
    for (size_t at = 0, end; at < log.size(); at = end + 1) {
        end = std::min(log.find('\n', at), log.size());
        const std::string line = log.substr(at, end - at);
        const bool context = line.find(": In ") != std::string::npos ||
                             line.find(": At global scope:") != std::string::npos;
        if (!context || line.find("instantiation") != std::string::npos) kept += line + "\n";
    }
    return kept;
}

int compile(Program& program, int count, const char* const* options) {
    const std::string cache = chosen_cache.empty() ? own_directory() + "/kernels" : chosen_cache;
    mkdir(cache.c_str(), 0700);  // unless it is there
    TemporaryDirectory work(cache);
    if (work.path.empty() || !write_program(program, work.path)) {
        program.log = "cannot write below " + cache + "\n";
        return kInternal;
    }
    std::vector<std::string> command = compiler();
    std::vector<std::string> preprocess = command;
    for (std::string part : {std::string("-x"), std::string("c++"), std::string("-E"),
                             std::string("-include"), include_directory() + "/device.h",
                             std::string("-iquote"), include_directory(), std::string("-iquote"),
                             work.path, std::string("-isystem"), include_directory() + "/cuda"})
        preprocess.push_back(part);
    std::string arch;
    if (!add_options(preprocess, arch, count, options)) return kInvalidOption;
    const int number = Image{"", arch}.number();
    preprocess.push_back("-D__CUDA_ARCH__=" + std::to_string(10 * (number ? number : 90)));
    const std::string source = work.path + "/program.ii";
    preprocess.insert(preprocess.end(), {work.path + "/program.cu", "-o", source});
    if (!run(preprocess, program.log)) return kCompilation;
    std::string key, text = without(read_file(source), work.path);
    // Debuggers shall know the file by the name that it was given.
    const std::string own = "\"/program.cu\"";
    for (size_t at = 0; (at = text.find(own, at)) != std::string::npos;)
        text.replace(at, own.size(), "\"" + program.name + "\"");
    if (!translate(text, program.expressions, program.log)) return kCompilation;
    if (!write_file(source, text)) return kInternal;
    for (const std::string& part : compiler()) key += without(part, current_directory()) + "\n";
    const std::string object = cache + "/" + hash(key + text) + ".so";

    // What others can have written is made anew.
    if (!is_private(cache) || !is_private(object)) {
        std::vector<std::string> build = command;
        const std::string output = work.path + "/program.so";
        build.insert(build.end(), {"-shared", "-x", "c++-cpp-output", source, "-o", output});
        if (!run(build, program.log)) {
            program.log = without_context(program.log);
            return kCompilation;
        }
        if (chmod(output.c_str(), 0700) != 0 || std::rename(output.c_str(), object.c_str()) != 0 ||
            !is_private(cache)) {
            program.log = "cannot write " + object + ", or others can, too\n";
            return kInternal;
        }
    }
    program.image = bytes_of({object, arch});
    return kSuccess;
}

}  // namespace

ENTRY nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, kSuccess; }

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int result) {
    switch (result) {
        case kSuccess:
            return "NVRTC_SUCCESS";
        case kInvalidProgram:
            return "NVRTC_ERROR_INVALID_PROGRAM";
        case kInvalidOption:
            return "NVRTC_ERROR_INVALID_OPTION";
        case kCompilation:
            return "NVRTC_ERROR_COMPILATION";
        default:
            return "NVRTC_ERROR_INTERNAL_ERROR";
    }
}

ENTRY nvrtcGetNumSupportedArchs(int* count) { return *count = 1, kSuccess; }
ENTRY nvrtcGetSupportedArchs(int* archs) { return *archs = 80, kSuccess; }

ENTRY nvrtcCreateProgram(Program** program, const char* source, const char* name, int count,
                         const char* const* headers, const char* const* names) {
    *program = new Program{source, name && *name ? name : "program.cu", "", "", {}, {}};
    for (int i = 0; i < count; i++) (*program)->headers[names[i]] = headers[i];
    return kSuccess;
}

ENTRY nvrtcDestroyProgram(Program** program) {
    if (!*program) return kInvalidProgram;
    delete *program;
    *program = nullptr;
    return kSuccess;
}

ENTRY nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    return compile(*program, count, options);
}

ENTRY nvrtcGetCUBINSize(Program* program, size_t* size) {
    return *size = program->image.size(), kSuccess;
}

ENTRY nvrtcGetCUBIN(Program* program, char* image) {
    program->image.copy(image, program->image.size());
    return program->image.empty() ? kInvalidProgram : kSuccess;
}

ENTRY nvrtcGetPTXSize(Program* program, size_t* size) { return nvrtcGetCUBINSize(program, size); }
ENTRY nvrtcGetPTX(Program* program, char* image) { return nvrtcGetCUBIN(program, image); }

ENTRY nvrtcGetProgramLogSize(Program* program, size_t* size) {
    return *size = program->log.size() + 1, kSuccess;
}

ENTRY nvrtcGetProgramLog(Program* program, char* log) {
    program->log.copy(log, program->log.size());
    log[program->log.size()] = '\0';
    return kSuccess;
}

// The emulator's own: the C++ compiler and the folder to keep objects in, which nobody else can write.
extern "C" __attribute__((visibility("default"))) const char* chaski_emulator_configure(
    const char* const* settings) {
    chosen_compiler = settings[0];
    chosen_cache = settings[1];
    return nullptr;
}

ENTRY nvrtcAddNameExpression(Program* program, const char* expression) {
    auto& all = program->expressions;
    all.push_back({"expression_" + std::to_string(all.size()), expression});
    return kSuccess;
}

ENTRY nvrtcGetLoweredName(Program* program, const char* expression, const char** name) {
    auto& all = program->expressions;
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const Expression& each) { return each.text == expression; });
    if (found == all.end()) return kInvalidExpression;
    return *name = found->symbol.c_str(), kSuccess;
}
