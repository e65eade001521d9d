#include "idioms.h"

#include <set>

namespace emulator {
namespace {

using Words = std::vector<std::string>;

// The comma that ends what begins at `at`, or `end`.
size_t comma(const Tokens& tokens, size_t at, size_t end) {
    while (at < end && !tokens.is(at, ",")) at = opens(tokens[at].text) ? past(tokens, at) : at + 1;
    return at;
}

Words words(const Tokens& tokens, size_t begin, size_t end) {
    Words all;
    for (size_t at = begin; at < end; at++) all.push_back(tokens[at].text);
    return all;
}

// What the address [begin, end) is of, as it is loaded: * p of p and of (int*)p, a [ i ] of &a[i].
Words pointee(const Tokens& tokens, size_t begin, size_t end) {
    while (tokens.is(begin, "(") && past(tokens, begin) < end) begin = past(tokens, begin);
    if (tokens.is(begin, "&")) return words(tokens, begin + 1, end);
    Words all = words(tokens, begin, end);
    all.insert(all.begin(), "*");
    return all;
}

bool stands(const Tokens& tokens, size_t at, const Words& what) {
    for (const std::string& word : what)
        if (!tokens.is(at++, word.c_str())) return false;
    return true;
}

constexpr const char* kGuess = "emulator::guess(&(";

// Makes the load of `word` in what is assigned at `at`, if it is one, atomic.
void guess(Tokens& tokens, size_t at, const Words& word) {
    for (; at < tokens.size() && !tokens.is(at, ";") && !tokens.is(at, ","); at++) {
        if (begins(tokens[at].text, "atomic")) return;
        if (!stands(tokens, at, word)) continue;
        if (tokens[at].before.find(kGuess) != std::string::npos) return;
        tokens[at].before += kGuess;
        Token& next = tokens[at + word.size()];
        next.before = "))" + next.before;
        return;
    }
}

// The word before the brackets that end before `at`: for, if, a function's name; 0 where there are none.
size_t before_brackets(const Tokens& tokens, size_t at) {
    if (at == 0 || !tokens.is(at - 1, ")")) return 0;
    int depth = 0;
    do {
        at--;
        depth += tokens.is(at, ")") - tokens.is(at, "(");
    } while (depth > 0 && at > 0);
    return at > 0 ? at - 1 : 0;
}

bool is_loop(const Tokens& tokens, size_t at) { return tokens.is(at, "for") || tokens.is(at, "while"); }

// Whether the brace at `at` opens a function, and not a loop or a branch.
bool opens_function(const Tokens& tokens, size_t at) {
    const size_t word = before_brackets(tokens, at);
    return word > 0 && !is_loop(tokens, word) && !tokens.is(word, "if") && !tokens.is(word, "switch");
}

void take_guess(Tokens& tokens, size_t cas) {
    const size_t end = past(tokens, cas + 1) - 1, first = comma(tokens, cas + 2, end);
    const Words word = pointee(tokens, cas + 2, first);
    // The variables that hold what the word is believed to be: those that the CAS is given, and what it is put into.
    std::set<std::string> believed;
    for (size_t at = first + 1; at < comma(tokens, first + 1, end); at++) believed.insert(tokens[at].text);
    for (size_t at = cas; at > 0 && !tokens.is(at, ";") && !tokens.is(at, "{"); at--)
        if (tokens.is(at, "=")) believed.insert(tokens[at - 1].text);
    int depth = 0;
    size_t body = cas;
    for (; body > 0; body--) {
        depth += tokens.is(body, "}") - tokens.is(body, "{");
        if (depth < 0 && tokens.is(body, "{") && opens_function(tokens, body)) break;
    }
    const size_t last = past(tokens, body);
    for (size_t at = body + 1; at < last; at++)
        if (tokens.is(at, "=") && believed.count(tokens[at - 1].text)) guess(tokens, at + 1, word);
}

// Whether the statement at `at` stores to s[i] what it has loaded from s[j], of a volatile s.
bool reads_across(const Tokens& tokens, size_t at, const std::set<std::string>& volatiles) {
    if (!volatiles.count(tokens[at].text) || !tokens.is(at + 1, "[")) return false;
    const size_t after = past(tokens, at + 1);
    const Words own = words(tokens, at, after);
    bool across = false, stores = false;
    for (size_t i = after; i < tokens.size() && !tokens.is(i, ";") && !tokens.is(i, "{"); i++) {
        stores |= tokens.is(i, "=") && !tokens.is(i + 1, "=");
        across |= stores && tokens[i].text == own[0] && tokens.is(i + 1, "[") && !stands(tokens, i, own);
    }
    return across;
}

bool waits(const std::string& word) {
    return begins(word, "__sync") || begins(word, "__shfl") || word == "sync";
}

// Whether the statement at `at` is repeated by the loop next to it, in which nothing waits.
bool repeats(const Tokens& tokens, size_t at) {
    for (size_t word; (word = before_brackets(tokens, at)) > 0; at = word)
        if (!tokens.is(word, "if")) return is_loop(tokens, word);
    int depth = 1;
    while (at > 0 && depth > 0) {
        at--;
        depth += tokens.is(at, "}") - tokens.is(at, "{");
    }
    if (!is_loop(tokens, before_brackets(tokens, at))) return false;
    for (size_t i = at, end = past(tokens, at); i < end; i++)
        if (waits(tokens[i].text)) return false;
    return true;
}

}  // namespace

void take_guesses(Tokens& tokens) {
    for (size_t at = 0; at < tokens.size(); at++)
        if (begins(tokens[at].text, "atomicCAS") && tokens.is(at + 1, "(")) take_guess(tokens, at);
}

std::vector<size_t> in_step(const Tokens& tokens) {
    std::vector<size_t> found;
    std::set<std::string> volatiles;
    bool before = false;  // one has been stored since the last wait
    for (size_t at = 0; at < tokens.size(); at++) {
        const std::string& text = tokens[at].text;
        if (text == "volatile") {
            size_t name = at + 1;
            while (name < tokens.size() && (tokens[name].is_word || tokens.is(name, "*"))) name++;
            volatiles.insert(tokens[name - 1].text);
        }
        if (waits(text) || (text == "{" && opens_function(tokens, at))) before = false;
        if (at == 0 || !reads_across(tokens, at, volatiles)) continue;
        const std::string& last = tokens[at - 1].text;
        if (last == "+" || last == "(" || last == "=" || last == ",") continue;  // it is what is loaded
        if (before || repeats(tokens, at)) {
            found.push_back(at);
            volatiles.erase(tokens[at].text);  // once is enough
        }
        before = true;
    }
    return found;
}

}  // namespace emulator
