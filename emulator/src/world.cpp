#include "world.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

namespace emulator {

// New files are zero: so are all counters.
struct World::Header {
    std::atomic<int> ranks;
    std::atomic<int> left;
    RankState states[kMaxRanks];
};

// Whether a process runs: one that has ended stays in the list until its parent has asked for it.
static bool runs(int process) {
    std::ifstream file("/proc/" + std::to_string(process) + "/stat");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const size_t name_end = text.rfind(") ");
    return name_end != std::string::npos && text[name_end + 2] != 'Z' && text[name_end + 2] != 'X';
}

std::string World::create() {
    const int file = memfd_create("chaski-nccl", MFD_CLOEXEC);
    return file < 0 ? "" : std::to_string(getpid()) + "-" + std::to_string(file);
}

World* World::join(const std::string& name, int ranks, int rank, int device,
                   std::string& reason) {
    auto refuse = [&](const std::string& why) { return reason = why, nullptr; };
    if (ranks < 1 || ranks > kMaxRanks || rank < 0 || rank >= ranks)
        return refuse("rank " + std::to_string(rank) + " of " + std::to_string(ranks));
    const size_t dash = name.find('-');
    if (name.find_first_not_of("0123456789-") != std::string::npos || dash == std::string::npos)
        return refuse("that is no id of ncclGetUniqueId");
    const std::string path = "/proc/" + name.substr(0, dash) + "/fd/" + name.substr(dash + 1);
    const size_t count = size_t(ranks);
    const size_t bytes = sizeof(Header) + count * count * sizeof(Channel) + count * kChunk;
    int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0) return refuse("cannot open " + path + ": " + std::strerror(errno));
    // Never smaller: others may have mapped it already, for more ranks.
    int failed = posix_fallocate(file, 0, off_t(bytes));
    void* memory =
        failed ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED)
        return refuse("cannot map " + path + ": " + std::strerror(failed ? failed : errno));

    auto* world = new World;
    world->header_ = static_cast<Header*>(memory);
    world->channels_ = reinterpret_cast<Channel*>(world->header_ + 1);
    world->data_ = reinterpret_cast<char*>(world->channels_ + count * count);
    world->ranks_ = ranks;
    int known = 0, nobody = 0;
    std::string why;
    if (!world->header_->ranks.compare_exchange_strong(known, ranks) && known != ranks)
        why = "rank " + std::to_string(rank) + " expects " + std::to_string(ranks) +
              " ranks, others expect " + std::to_string(known);
    else if (!world->state(rank).process.compare_exchange_strong(nobody, getpid()))
        why = "two ranks call themselves " + std::to_string(rank);
    if (!why.empty()) {
        munmap(memory, bytes);
        delete world;
        return refuse(why);
    }
    world->state(rank).device = device + 1;
    return world;
}

RankState& World::state(int rank) const { return header_->states[rank]; }

bool World::complete() const {
    for (int rank = 0; rank < ranks_; rank++)
        if (!state(rank).device) return false;
    return true;
}

std::string World::duplicate() const {
    for (int rank = 0; rank < ranks_; rank++)
        for (int other = 0; other < rank; other++) {
            const RankState &a = state(rank), &b = state(other);
            if (a.process != b.process || a.device != b.device) continue;
            return "Duplicate GPU detected : rank " + std::to_string(rank) + " and rank " +
                   std::to_string(other) + " both on CUDA device " + std::to_string(a.device - 1);
        }
    return "";
}

void World::leave() { header_->left = 1; }

bool World::broken() const {
    if (header_->left) return true;
    for (int rank = 0; rank < ranks_; rank++) {
        const int process = state(rank).process;
        if (process && !runs(process)) return true;
    }
    return false;
}

}  // namespace emulator
