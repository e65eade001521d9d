#include "modes.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace emulator {
namespace {

struct NotUnderstood {
    std::string what;
};

[[noreturn]] void refuse(const char* variable, const std::string& value) {
    throw NotUnderstood{variable + ("=" + value) + ": not understood; see docs/environment.md"};
}

// What stands in for the environment, once it is given.
std::unique_ptr<std::map<std::string, std::string>> given;

std::string value_of(const char* variable) {
    if (given) {
        const auto found = given->find(variable);
        if (found == given->end()) return "";
        const std::string value = found->second;
        given->erase(found);  // what is left is nothing that there is
        return value;
    }
    const char* value = std::getenv(variable);
    return value ? value : "";
}

uint64_t number(const char* variable, const std::string& text) {
    char* end = nullptr;
    uint64_t value = std::strtoull(text.c_str(), &end, 10);
    if (text.empty() || text[0] == '-') refuse(variable, text);
    switch (*end) {
        case 'K':
            value <<= 10, end++;
            break;
        case 'M':
            value <<= 20, end++;
            break;
        case 'G':
            value <<= 30, end++;
            break;
    }
    if (*end) refuse(variable, text);
    return value;
}

template <class T>
void read_number(const char* variable, T& into) {
    std::string text = value_of(variable);
    if (!text.empty()) into = T(number(variable, text));
}

void read_switch(const char* variable, const char* on, const char* off, bool& into) {
    std::string text = value_of(variable);
    if (text == on)
        into = true;
    else if (text == off)
        into = false;
    else if (!text.empty())
        refuse(variable, text);
}

uint64_t random_state;

void set_order(Modes& modes, const char* variable, const std::string& text) {
    if (text == "ascending")
        modes.order = Order::Ascending;
    else if (text == "descending")
        modes.order = Order::Descending;
    else if (text.rfind("shuffled:", 0) == 0) {
        modes.order = Order::Shuffled;
        random_state = number(variable, text.substr(9));
    } else
        refuse(variable, text);
}

void read_order(Modes& modes) {
    const char* variable = "CHASKI_EMULATE_ORDER";
    std::string text = value_of(variable);
    if (!text.empty()) set_order(modes, variable, text);
}

std::vector<std::string> items_of(const std::string& text) {
    std::vector<std::string> items;
    for (size_t at = 0, end; at < text.size(); at = end + 1) {
        end = std::min(text.find(',', at), text.size());
        items.push_back(text.substr(at, end - at));
    }
    return items;
}

void read_faults(Modes& modes) {
    const char* variable = "CHASKI_EMULATE_FAULT";
    std::string text = value_of(variable);
    for (const std::string& item : items_of(text)) {
        size_t first = item.find(':'), second = item.rfind(':');
        if (first == std::string::npos || first == second) refuse(variable, item);
        std::string function = item.substr(0, first), result = item.substr(second + 1);
        bool stalls = result == "stalls";
        if (stalls && function.substr(0, function.find('@')) != "kernel") refuse(variable, item);
        modes.faults.push_back(
            {function, unsigned(number(variable, item.substr(first + 1, second - first - 1))),
             stalls             ? kStalls
             : result == "lost" ? kDeviceLost
                                : int(number(variable, result)),
             0});
    }
}

void read_memory(Modes& modes) {
    const char* variable = "CHASKI_EMULATE_MEMORY";
    std::vector<size_t> bytes;
    for (const std::string& item : items_of(value_of(variable)))
        bytes.push_back(size_t(number(variable, item)));
    if (!bytes.empty()) modes.memory_bytes = bytes;
}

void read_peers(Modes& modes) {
    const char* variable = "CHASKI_EMULATE_PEERS";
    const std::string text = value_of(variable), broken = ":broken";
    if (text.empty() || text == "on") return;
    modes.reach = text == "broken" ? Reach::Broken : Reach::None;
    if (text == "off" || text == "broken") return;
    for (std::string item : items_of(text)) {
        const bool is_broken = item.size() > broken.size() &&
                               item.compare(item.size() - broken.size(), broken.size(), broken) == 0;
        if (is_broken) item.resize(item.size() - broken.size());
        const size_t dash = item.find('-');
        if (dash == std::string::npos) refuse(variable, item);
        const int a = int(number(variable, item.substr(0, dash)));
        const int b = int(number(variable, item.substr(dash + 1)));
        modes.pairs[std::minmax(a, b)] = is_broken ? Reach::Broken : Reach::Works;
    }
}

void read_rank_fault(Modes& modes) {
    const char* variable = "CHASKI_EMULATE_RANK_FAULT";
    std::string text = value_of(variable);
    if (text.empty()) return;
    size_t first = text.find(':'), second = text.find(':', first + 1);
    if (first == std::string::npos) refuse(variable, text);
    modes.faulty_rank = int(number(variable, text.substr(0, first)));
    std::string what = text.substr(first + 1, second - first - 1);
    modes.rank_fault = what == "absent"   ? RankFault::Absent
                       : what == "dies"   ? RankFault::Dies
                       : what == "stalls" ? RankFault::Stalls
                       : what == "slow"   ? RankFault::Slow
                                          : RankFault::None;
    if (modes.rank_fault == RankFault::None ||
        (second == std::string::npos) != (modes.rank_fault == RankFault::Absent))
        refuse(variable, text);
    if (second != std::string::npos)
        modes.rank_fault_at = unsigned(number(variable, text.substr(second + 1)));
}

Modes read() {
    Modes modes;
    read_number("CHASKI_EMULATE", modes.devices);
    read_number("CHASKI_EMULATE_BLOCKS", modes.resident_blocks);
    read_number("CHASKI_EMULATE_PATIENCE_MS", modes.patience_ms);
    read_number("CHASKI_EMULATE_LIMIT_MS", modes.limit_ms);
    read_number("CHASKI_EMULATE_DRIVER", modes.driver_version);
    read_switch("CHASKI_EMULATE_STREAMS", "lazy", "eager", modes.lazy);
    read_switch("CHASKI_EMULATE_STORES", "late", "prompt", modes.late_stores);
    read_switch("CHASKI_EMULATE_PDL", "early", "late", modes.early_dependents);
    read_switch("CHASKI_EMULATE_PRODUCTS", "truncated", "rounded", modes.truncate);
    read_switch("CHASKI_EMULATE_FILL", "on", "off", modes.fill);
    read_switch("CHASKI_EMULATE_HOLD", "on", "off", modes.hold);
    read_order(modes);
    read_memory(modes);
    read_peers(modes);
    read_faults(modes);
    read_rank_fault(modes);
    std::string capability = value_of("CHASKI_EMULATE_CAPABILITY");
    if (!capability.empty() && std::sscanf(capability.c_str(), "%d.%d", &modes.capability_major,
                                           &modes.capability_minor) != 2)
        refuse("CHASKI_EMULATE_CAPABILITY", capability);
    if (modes.resident_blocks == 0) refuse("CHASKI_EMULATE_BLOCKS", "0");
    return modes;
}

}  // namespace

Reach Modes::between(int device, int other) const {
    const auto pair = pairs.find(std::minmax(device, other));
    return device == other ? Reach::None : pair == pairs.end() ? reach : pair->second;
}

size_t Modes::shared_bytes() const {
    switch (10 * capability_major + capability_minor) {
        case 75:
            return 65 << 10;
        case 80:
        case 87:
            return 164 << 10;
        case 86:
        case 89:
        case 120:
            return 100 << 10;
        default:
            return 228 << 10;
    }
}

namespace {

Modes read_or_end() {
    try {
        return read();
    } catch (const NotUnderstood& refused) {
        std::fprintf(stderr, "emulator: %s\n", refused.what.c_str());
        std::exit(2);
    }
}

Modes* configured;  // instead of what the environment says

}  // namespace

Modes& modes() {
    // Outlives everything, as the machine does.
    static Modes& modes = configured ? *configured : *new Modes(read_or_end());
    return modes;
}

int planned_fault(const char* function, int device) {
    if (modes().faults.empty()) return 0;
    const std::string there = std::string(function) + "@" + std::to_string(device);
    int result = 0;
    for (PlannedFault& fault : modes().faults)  // each counts all calls
        if ((fault.function == function || fault.function == there) && ++fault.seen == fault.call)
            result = fault.result;
    return result;
}

uint64_t next_random() {  // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

}  // namespace emulator

// The emulator's own: the order of warps from now on, as CHASKI_EMULATE_ORDER has it.
extern "C" __attribute__((visibility("default"))) int chaski_emulator_order(const char* text) try {
    emulator::set_order(emulator::modes(), "the warp schedule", text);
    return 1;
} catch (const emulator::NotUnderstood&) {
    return 0;
}

// Modes, NAME=VALUE each, up to a null pointer, in place of the environment's; before any other call. What
// is wrong with them, or nothing.
extern "C" __attribute__((visibility("default"))) const char* chaski_emulator_configure(
    const char* const* settings) {
    using namespace emulator;
    static std::string wrong;
    given = std::make_unique<std::map<std::string, std::string>>();
    for (; *settings; settings++) {
        const std::string setting = *settings;
        const size_t equals = std::min(setting.find('='), setting.size());
        (*given)[setting.substr(0, equals)] = setting.substr(std::min(equals + 1, setting.size()));
    }
    try {
        configured = new Modes(read());
        for (const auto& [name, value] : *given) refuse(name.c_str(), value);
    } catch (const NotUnderstood& refused) {
        wrong = refused.what;
        return wrong.c_str();
    }
    return nullptr;
}
