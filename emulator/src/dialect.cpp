#include "dialect.h"

#include "idioms.h"
#include "tokens.h"

#include <map>
#include <set>

namespace emulator {
namespace {

// What no emulated GPU does, and what to write instead.
const std::map<std::string, const char*> kRefused = {
    {"asm", "PTX is for GPUs alone: write CUDA's function for it, or one of lib/ptx.cuh"},
    {"__asm__", "PTX is for GPUs alone: write CUDA's function for it, or one of lib/ptx.cuh"},
    {"__managed__", "host and device share no variable here: write __device__"},
    {"__cluster_dims__", "there are no clusters: a grid of blocks alone"},
    {"this_cluster", "there are no clusters: this_thread_block()"},
    {"this_grid", "a grid has no barrier here: launch a second kernel, or count blocks by an atomic"},
    {"this_multi_grid", "there are no grids of several devices: launch one kernel for each"},
    {"memcpy_async", "copy by the group's threads and sync(), or see cp_async16 of lib/ptx.cuh"},
    {"__brkpt", "there is no debugger: write printf or assert"},
};

// Names of the host's side, by how they begin.
constexpr const char* kHost = "is the host's: keep kernels in a file of their own, which `kernels run` "
                              "launches and gives its arguments";

const char* why_refused(const Tokens& tokens, size_t at) {
    const std::string& word = tokens[at].text;
    const auto known = kRefused.find(word);
    if (known != kRefused.end()) return known->second;
    const bool called = tokens.is(at + 1, "(");
    if (word == "<" && tokens.is(at + 1, "<") && tokens.is(at + 2, "<")) return kHost;
    if (word == "main" && called) return kHost;
    if (called && word.size() > 4 && begins(word, "cuda") && std::isupper(word[4])) return kHost;
    for (const char* texture : {"tex1D", "tex2D", "tex3D", "surf1D", "surf2D", "surf3D"})
        if (begins(word, texture)) return "there are no textures: read global memory";
    const bool vector = word.size() > 4 && begins(word, "__v") && std::isalpha(word[3]) &&
                        (word.back() == '2' || word.back() == '4');
    if (called && vector) return "bytes and halves of a word are taken one by one: write the loop";
    return nullptr;
}

enum class Scope { Namespace, External, Class, Function };

struct Exported {
    std::string bounds;  // of __launch_bounds__, as they are written
    bool is_external, is_template;
};

// One variable of a declaration.
struct Declarator {
    std::string name;
    size_t at;  // of the name
};

class Translator {
public:
    explicit Translator(Tokens& tokens) : tokens_(tokens) {}

    std::string refused;
    std::map<std::string, Exported> kernels;

    void run() {
        take_guesses(tokens_);
        for (size_t at : in_step(tokens_))
            refuse(at, "lanes of a warp run in step no more: write __syncwarp() between what one stores and "
                       "another loads, or __shfl_down_sync");
        for (size_t at = 0; at < tokens_.size(); at++) {
            if (const char* why = why_refused(tokens_, at)) refuse(at, why);
            step(at);
        }
        for (size_t at = 0; at < tokens_.size(); at++) {
            Token& token = tokens_[at];
            const bool member = at > 0 && (tokens_.is(at - 1, ".") || tokens_.is(at - 1, "->"));
            if (token.is_word && !member && of_file_.count(token.text))
                token.text = "emulator_G_" + token.text + "()";
        }
    }

private:
    void refuse(size_t at, const std::string& why) {
        const std::string& word = tokens_[at].text;
        const std::string name = word == "<" ? "<<<" : word;
        refused += tokens_.place(at) + ": error: " + name + ": " + why + "\n";
    }

    // Follows scopes and statements, and translates what begins with a CUDA word.
    void step(size_t& at) {
        const std::string& text = tokens_[at].text;
        if (text == "(" || text == "[") {
            brackets_++;
        } else if (text == ")" || text == "]") {
            brackets_--;
        } else if (text == "{") {
            scopes_.push_back(scope_of(at));
            begin_ = at + 1;
        } else if (text == "}") {
            if (!scopes_.empty()) scopes_.pop_back();
            begin_ = at + 1;
        } else if (text == ";" && brackets_ == 0) {
            begin_ = at + 1;
        } else if (text == "__shared__") {
            shared(at);
        } else if (text == "__global__") {
            kernel(at);
        } else if (text == "__constant__" || text == "__device__") {
            variable(at);
        }
    }

    Scope scope() const { return scopes_.empty() ? Scope::Namespace : scopes_.back(); }
    bool of_file() const { return scope() == Scope::Namespace || scope() == Scope::External; }

    // Of what the brace at `at` opens.
    Scope scope_of(size_t at) const {
        if (scope() == Scope::Function || brackets_ > 0) return Scope::Function;
        bool is_class = false;
        for (size_t i = begin_; i < at; i++) {
            const std::string& word = tokens_[i].text;
            if (word == "namespace") return Scope::Namespace;
            is_class |= word == "struct" || word == "class" || word == "union" || word == "enum";
        }
        if (at >= 2 && tokens_.is(at - 2, "extern")) return Scope::External;
        const bool after_parameters = at > 0 && (tokens_.is(at - 1, ")") ||
                                                 tokens_.is(at - 1, "const") ||
                                                 tokens_.is(at - 1, "noexcept"));
        return is_class && !after_parameters ? Scope::Class : Scope::Function;
    }

    // The variables that the declaration [begin, end) is of; none if it is not understood.
    std::vector<Declarator> declarators(size_t begin, size_t end) const {
        std::vector<Declarator> found;
        size_t name = end;
        int angles = 0;
        for (size_t at = begin; at < end;) {
            const Token& token = tokens_[at];
            if (token.text == "<" && found.empty() && name < end) angles++;
            if (token.text == ">" && angles > 0) angles--;
            if (angles > 0) {
                at++;
                continue;
            }
            if (token.text == "(") return {};
            if (token.text == "=" || token.text == ",") {
                add(found, name, end);
                while (at < end && !tokens_.is(at, ",")) at = past(tokens_, at);
                at++;
                name = end;
            } else if (opens(token.text)) {
                const bool of_type = token.text == "{" && (name == end || defines_type(begin, name));
                if (!of_type) add(found, name, end);
                at = past(tokens_, at);
            } else {
                if (token.is_word) name = at;
                at++;
            }
        }
        add(found, name, end);
        return found;
    }

    // Whether the brace after `name` is that of struct { ... } or struct Name { ... }.
    bool defines_type(size_t begin, size_t name) const {
        const auto is_key = [&](size_t at) {
            return tokens_.is(at, "struct") || tokens_.is(at, "union") || tokens_.is(at, "class");
        };
        return is_key(name) || (name > begin && is_key(name - 1));
    }

    void add(std::vector<Declarator>& found, size_t name, size_t end) const {
        if (name < end && (found.empty() || found.back().at != name))
            found.push_back({tokens_[name].text, name});
    }

    size_t end_of_statement(size_t at) const {
        while (at < tokens_.size() && !tokens_.is(at, ";"))
            at = opens(tokens_[at].text) ? past(tokens_, at) : at + 1;
        return at;
    }

    // Takes the words out of [begin, end), and alignas(...) and attributes, which it returns.
    std::string take_out(size_t begin, size_t end, const std::set<std::string>& words) {
        std::string alignment;
        for (size_t at = begin; at < end;) {
            const bool aligns = tokens_.is(at, "alignas") || tokens_.is(at, "__attribute__");
            const size_t last = aligns ? past(tokens_, at + 1) : at + 1;
            const bool out = aligns || words.count(tokens_[at].text);
            for (; at < last; at++) {
                if (aligns) alignment += " " + tokens_[at].text;
                if (out) drop(at);
            }
        }
        return alignment;
    }

    // __shared__ T x[N], y;   becomes   typedef T emulator_S_x[N], emulator_S_y; and references to the
    // block's memory of these types.
    void shared(size_t& at) {
        if (brackets_ > 0) return refuse(at, "no parameter is in shared memory: write a pointer");
        const size_t begin = begin_, end = end_of_statement(at);
        if (scope() == Scope::Class) return refuse(at, "a member has no memory of its own: declare it in the kernel");
        for (size_t i = at; i < end; i++)
            if (tokens_.is(i, "=")) return refuse(at, "has no initial value: let a thread store one");
        bool is_extern = false;
        for (size_t i = begin; i < end; i++) is_extern |= tokens_.is(i, "extern");
        const std::string alignment =
            take_out(begin, end, {"__shared__", "extern", "static", "__device__"});
        const auto variables = declarators(begin, end);
        if (variables.empty())
            return refuse(end, "this declaration of __shared__ is not understood: name its type by a typedef");
        std::string after;
        for (const Declarator& each : variables) {
            const std::string type = "emulator_S_" + each.name;
            tokens_[each.at].text = type;
            const std::string aligned = "emulator_A_" + each.name;
            after += " struct" + alignment + " " + aligned + " {};";
            const std::string memory =
                is_extern ? "emulator::dynamic_shared<" + type + ">()"
                          : "emulator::shared<" + type +
                                ">([] { static char key; return &key; }(), alignof(" + aligned + "))";
            if (scope() == Scope::Function) {
                after += " " + type + "& " + each.name + " = " + memory + ";";
            } else {
                after += " static inline " + type + "& emulator_G_" + each.name + "() { return " +
                         memory + "; }";
                of_file_.insert(each.name);
            }
        }
        tokens_[begin].text = "typedef " + tokens_[begin].text;
        tokens_[end].text += after;
        at = end;
        begin_ = end + 1;
    }

    // __constant__ T x[N];   becomes   static T x[N]; and a note of it for cuModuleGetGlobal.
    void variable(size_t& at) {
        const size_t begin = begin_;
        if (brackets_ > 0) return drop(at);
        bool known_elsewhere = false, has_storage = false;
        size_t end = at;
        for (size_t i = begin; i < tokens_.size(); i++) {
            const std::string& text = tokens_[i].text;
            known_elsewhere |= text == "constexpr" || text == "template" || text == "extern";
            has_storage |= text == "static" || text == "inline" || text == "constexpr";
            if (text == "alignas" || text == "__attribute__") i = past(tokens_, i + 1) - 1;
            if (text == "operator" || text == "(") return drop(at);
            if (text == ";" || text == "=" || text == "[" || text == "{" || text == "__shared__") {
                end = i;
                break;
            }
        }
        if (tokens_.is(end, "__shared__")) return drop(at);
        drop(at);
        for (size_t i = begin; i < end; i++)
            if (tokens_.is(i, "__device__") || tokens_.is(i, "__constant__")) drop(i);
        if (!of_file() || known_elsewhere) return;
        end = end_of_statement(end);
        std::string after;
        for (const Declarator& each : declarators(begin, end))
            after += " static const emulator::Registration emulator_V_" + each.name + "{\"" +
                     each.name + "\", &" + each.name + ", sizeof " + each.name + "};";
        if (!has_storage) tokens_[begin].text = "static " + tokens_[begin].text;
        tokens_[end].text += after;
        at = end;
        begin_ = end + 1;
    }

    // Notes its name and bounds, and takes out what C++ does not know.
    void kernel(size_t at) {
        Exported found = {"", scope() == Scope::External, false};
        for (size_t i = begin_; i < at; i++) {
            found.is_external |= tokens_.is(i, "extern");
            found.is_template |= tokens_.is(i, "template");
        }
        drop(at);
        std::string name;
        for (; at < tokens_.size() && !tokens_.is(at, "("); at++) {
            const std::string word = tokens_[at].text;
            if (word == "__attribute__") at = past(tokens_, at + 1) - 1;
            if (word != "__launch_bounds__" && word != "__maxnreg__") {
                if (tokens_[at].is_word) name = word;
                continue;
            }
            const size_t last = past(tokens_, at + 1);
            for (size_t i = at + 2; i + 1 < last; i++)
                if (word == "__launch_bounds__") found.bounds += tokens_[i].text + " ";
            for (size_t i = at; i < last; i++) drop(i);
            at = last - 1;
        }
        kernels[name] = found;
    }

    void drop(size_t at) {
        tokens_[at].text.clear();
        tokens_[at].is_word = false;
    }

    Tokens& tokens_;
    std::vector<Scope> scopes_;
    int brackets_ = 0;
    size_t begin_ = 0;  // of the statement
    std::set<std::string> of_file_;  // __shared__ outside of functions
};

std::string trampoline(const std::string& symbol, const std::string& name, const Exported& kernel) {
    const std::string object = "const emulator::Kernel emulator_kernel_" + symbol;
    // Bounds may depend on a template's parameters, which have no values here.
    const bool known = !kernel.bounds.empty() && !kernel.is_template;
    return "extern \"C\" { extern " + object + "; " + object + " = emulator::Trampoline<&" + name +
           ">::describe(\"" + name + "\", emulator::first(" + (known ? kernel.bounds : "1024") +
           ")); }\n";
}

// ns::reduce<float, 256> to reduce.
std::string name_of(const std::string& expression) {
    const std::string path = expression.substr(0, expression.find('<'));
    const size_t colon = path.rfind(':');
    return colon == std::string::npos ? path : path.substr(colon + 1);
}

}  // namespace

bool translate(std::string& text, const std::vector<Expression>& expressions, std::string& refused) {
    Tokens tokens(text);
    Translator translator(tokens);
    translator.run();
    refused = translator.refused;
    text = tokens.text() + "\n# 1 \"trampolines\"\n";
    for (const auto& [name, kernel] : translator.kernels)
        if (kernel.is_external) text += trampoline(name, name, kernel);
    for (const Expression& each : expressions)
        text += trampoline(each.symbol, each.text, translator.kernels[name_of(each.text)]);
    return refused.empty();
}

}  // namespace emulator
