#include "collective.h"

#include "sanitizer.h"

#include <algorithm>
#include <cstdio>

namespace emulator {
namespace {

thread_local std::string last_error;

void copy(void* to, const void* from, size_t bytes) {
    sanitizer::read(from, bytes);
    sanitizer::write(to, bytes);
    std::memcpy(to, from, bytes);
}

}  // namespace

int refuse(int result, const std::string& why) {
    last_error = why;
    std::fprintf(stderr, "emulator: nccl: %s\n", why.c_str());
    return result;
}

const char* last_refusal() { return last_error.c_str(); }

// Elements that travel at a time.
size_t Member::piece() const {
    const size_t room = is_collective() ? World::kChunk : Channel::kBytes;
    const size_t parts = kind == ReduceScatter ? size_t(communicator->world->ranks()) : 1;
    return std::min(count - done, room / parts / kTypeBytes[type]);
}

void Member::contribute(size_t elements) {
    World& world = *communicator->world;
    char* mine = world.buffer(communicator->rank);
    if (kind == Broadcast && communicator->rank != peer) return;
    if (kind != ReduceScatter) return copy(mine, from + bytes(done), bytes(elements));
    for (int rank = 0; rank < world.ranks(); rank++)
        copy(mine + size_t(rank) * bytes(elements), from + bytes(size_t(rank) * count + done),
             bytes(elements));
}

void Member::take(size_t elements) {
    World& world = *communicator->world;
    std::vector<const char*> parts;
    for (int rank = 0; rank < world.ranks(); rank++) parts.push_back(world.buffer(rank));
    char* here = to + bytes(done);
    switch (kind) {
        case Reduce:
            if (communicator->rank != peer) return;
            [[fallthrough]];
        case AllReduce:
            sanitizer::write(here, bytes(elements));
            return reduce_all(here, parts, elements, type, reduction);
        case ReduceScatter:
            for (auto& part : parts) part += size_t(communicator->rank) * bytes(elements);
            sanitizer::write(here, bytes(elements));
            return reduce_all(here, parts, elements, type, reduction);
        case Broadcast:
            return copy(here, parts[size_t(peer)], bytes(elements));
        default:
            for (size_t rank = 0; rank < parts.size(); rank++)
                copy(to + bytes(rank * count + done), parts[rank], bytes(elements));
    }
}

bool Member::step_collective() {
    World& world = *communicator->world;
    RankState& mine = world.state(communicator->rank);
    while (done < count) {
        const size_t elements = piece();
        const uint64_t round = communicator->rounds + 1;
        if (!published) {
            for (int rank = 0; rank < world.ranks(); rank++)
                if (world.state(rank).consumed + 1 < round) return false;
            contribute(elements);
            mine.round = {kind, type, reduction, peer, count};
            mine.published = round;
            published = true;
        }
        for (int rank = 0; rank < world.ranks(); rank++)
            if (world.state(rank).published < round) return false;
        for (int rank = 0; rank < world.ranks(); rank++) {
            if (world.state(rank).round == mine.round) continue;
            communicator->error =
                refuse(kInvalidUsage, std::string("rank ") + std::to_string(communicator->rank) +
                                          " is in " + kNames[kind] + " of " +
                                          std::to_string(count) + ", rank " + std::to_string(rank) +
                                          " in " + kNames[world.state(rank).round.kind] + " of " +
                                          std::to_string(world.state(rank).round.count));
            return false;
        }
        take(elements);
        mine.consumed = round;
        communicator->rounds = round;
        published = false;
        done += elements;
    }
    return true;
}

bool Member::step_message() {
    World& world = *communicator->world;
    Channel& way = kind == Send ? world.channel(communicator->rank, peer)
                                : world.channel(peer, communicator->rank);
    while (done < count) {
        const bool full = way.sent != way.received;
        if (full == (kind == Send)) return false;
        const size_t elements = piece();
        if (kind == Send) {
            copy(way.data, from + bytes(done), bytes(elements));
            way.bytes = bytes(elements);
            way.sent = way.sent + 1;
        } else {
            if (way.bytes != bytes(elements)) {
                communicator->error =
                    refuse(kInvalidUsage, "rank " + std::to_string(peer) + " sends " +
                                              std::to_string(way.bytes) + " bytes, rank " +
                                              std::to_string(communicator->rank) + " expects " +
                                              std::to_string(bytes(elements)));
                return false;
            }
            copy(to + bytes(done), way.data, bytes(elements));
            way.received = way.received + 1;
        }
        done += elements;
    }
    return true;
}

bool Member::step() {
    if (!ended) ended = communicator->aborted;
    if (!ended && !communicator->error)
        ended = is_collective() ? step_collective() : step_message();
    return ended;
}

}  // namespace emulator
