// A preprocessed source in pieces, each with what stands before it: put together again they are the
// source, line for line.
#pragma once
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace emulator {

struct Token {
    std::string before, text;
    bool is_word;  // a name or a keyword
    int line;
    unsigned file;
};

class Tokens {
public:
    // Of system headers there are none: they are part of what stands before.
    explicit Tokens(const std::string& source) : source_(source) {
        while (at_ < source_.size()) next();
    }

    size_t size() const { return tokens_.size(); }
    Token& operator[](size_t at) { return tokens_[at]; }
    const Token& operator[](size_t at) const { return tokens_[at]; }
    bool is(size_t at, const char* text) const {
        return at < tokens_.size() && tokens_[at].text == text;
    }
    std::string place(size_t at) const {
        return files_[tokens_[at].file] + ":" + std::to_string(tokens_[at].line);
    }
    std::string text() const {
        std::string all;
        for (const Token& token : tokens_) all += token.before + token.text;
        return all + gap_;
    }

private:
    static bool in_word(char c) { return std::isalnum((unsigned char)c) || c == '_'; }

    void next() {
        const char c = source_[at_];
        if (c == '#' && (at_ == 0 || source_[at_ - 1] == '\n')) return marker();
        if (c == '\n') line_++;
        if (is_system_ || std::isspace((unsigned char)c)) {
            gap_ += c;
            at_++;
            return;
        }
        const size_t begin = at_;
        const bool is_word = in_word(c) && !std::isdigit((unsigned char)c);
        if (in_word(c))
            while (at_ < source_.size() && (in_word(source_[at_]) || is_in_number(begin))) at_++;
        else if (c != '"' && c != '\'')
            at_ += source_.compare(at_, 2, "->") == 0 ? 2 : 1;
        const bool quoted = at_ < source_.size() && (source_[at_] == '"' || source_[at_] == '\'');
        if (quoted && (is_word || at_ == begin)) string(begin);
        add(begin, is_word);
    }

    bool is_in_number(size_t begin) const {
        return std::isdigit((unsigned char)source_[begin]) &&
               (source_[at_] == '.' || source_[at_] == '\'');
    }

    // What is quoted, with the prefix that begins there: R"x(...)x", u8"...".
    void string(size_t begin) {
        const char quote = source_[at_];
        if (at_ > begin && source_[at_ - 1] == 'R') {
            const size_t open = source_.find('(', at_);
            const std::string end = ")" + source_.substr(at_ + 1, open - at_ - 1) + "\"";
            const size_t close = source_.find(end, open);
            at_ = close == std::string::npos ? source_.size() : close + end.size();
            return;
        }
        if (at_ > begin && at_ - begin > 2) return;  // a word, then a string
        for (at_++; at_ < source_.size() && source_[at_] != quote; at_++)
            if (source_[at_] == '\\') at_++;
        at_ = std::min(at_ + 1, source_.size());
    }

    void add(size_t begin, bool is_word) {
        const std::string text = source_.substr(begin, at_ - begin);
        tokens_.push_back({gap_, text, is_word && text.find('"') == std::string::npos, line_,
                           unsigned(files_.size() - 1)});
        gap_.clear();
        for (char c : text) line_ += c == '\n';
    }

    // # LINE "FILE" FLAGS, where 3 is a system header; or some other directive.
    void marker() {
        const size_t end = std::min(source_.find('\n', at_), source_.size());
        const std::string text = source_.substr(at_, end - at_);
        gap_ += text;
        at_ = end;
        const size_t open = text.find('"'), close = text.rfind('"');
        if (text.compare(0, 2, "# ") != 0 || !std::isdigit((unsigned char)text[2]) || open == close)
            return;
        line_ = std::atoi(text.c_str() + 2) - 1;  // the end of this line counts
        const std::string file = text.substr(open + 1, close - open - 1);
        if (file != files_.back()) files_.push_back(file);
        is_system_ = text.find(" 3", close) != std::string::npos;
    }

    const std::string& source_;
    size_t at_ = 0;
    int line_ = 1;
    bool is_system_ = false;
    std::vector<std::string> files_ = {""};
    std::string gap_;
    std::vector<Token> tokens_;
};

inline bool begins(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }
inline bool opens(const std::string& text) { return text == "(" || text == "[" || text == "{"; }
inline bool closes(const std::string& text) { return text == ")" || text == "]" || text == "}"; }

// The token after what is bracketed from `at` on.
inline size_t past(const Tokens& tokens, size_t at) {
    int depth = 0;
    do {
        depth += opens(tokens[at].text) - closes(tokens[at].text);
        at++;
    } while (depth > 0 && at < tokens.size());
    return at;
}

}  // namespace emulator
