// The ranks of one communicator, wherever they run on this machine: a file in memory, in which each
// leaves what the others take. It has no name, and goes with the last process that has it.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

// What a rank takes part in: all must mean the same.
struct Round {
    int kind, type, reduction, root;
    uint64_t count;
    bool operator==(const Round& other) const {
        return kind == other.kind && type == other.type && reduction == other.reduction &&
               root == other.root && count == other.count;
    }
};

struct alignas(64) RankState {
    std::atomic<int> process;         // 0 until it has come
    std::atomic<int> device;          // of its process's, from 1 on; 0 until it has come
    std::atomic<uint64_t> published;  // rounds to which it has contributed
    std::atomic<uint64_t> consumed;   // rounds of which it has taken the others' part
    Round round;                      // the last one published
};

// One way from one rank to another, a message at a time.
struct alignas(64) Channel {
    static constexpr size_t kBytes = 16 << 10;
    std::atomic<uint64_t> sent, received;
    uint64_t bytes;
    char data[kBytes];
};

class World {
public:
    static constexpr size_t kChunk = 1 << 20;  // bytes that a rank contributes at a time
    static constexpr int kMaxRanks = 64;

    // Makes one for others to join by the name returned, while this process lives; empty if it cannot.
    static std::string create();
    // Joins as `rank`; null and a reason if that cannot be. The others need not be there yet.
    static World* join(const std::string& name, int ranks, int rank, int device,
                       std::string& reason);
    bool complete() const;  // all have come
    // Two ranks on one device, in words; empty: none. All have come.
    std::string duplicate() const;
    void leave();           // tells the others that nothing more will come
    bool broken() const;    // somebody has left, or its process is no more
    RankState& state(int rank) const;
    char* buffer(int rank) const { return data_ + size_t(rank) * kChunk; }
    Channel& channel(int from, int to) const { return channels_[from * ranks_ + to]; }
    int ranks() const { return ranks_; }

private:
    struct Header;
    Header* header_ = nullptr;
    Channel* channels_ = nullptr;
    char* data_ = nullptr;
    int ranks_ = 0;
};

}  // namespace emulator
