// Groups of threads: blocks, tiles of a warp, and the lanes that happen to be active. What a grid or a
// cluster does together is not there.
#pragma once

namespace cooperative_groups {

#define SITE emulator::Site site = emulator::here()

class thread_block {
public:
    static constexpr unsigned rank_of(uint3 at, uint3 dim) {
        return at.x + dim.x * (at.y + dim.y * at.z);
    }
    void sync(SITE) const { emulator::sync_threads(site); }
    static unsigned thread_rank() { return rank_of(threadIdx, blockDim); }
    static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
    static unsigned num_threads() { return size(); }
    static dim3 group_index() { return blockIdx; }
    static dim3 thread_index() { return threadIdx; }
    static dim3 group_dim() { return blockDim; }
    static dim3 dim_threads() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }

// Some lanes of a warp: what tiles and active lanes have in common.
template <class Own>
class lanes_group {
public:
    void sync(SITE) const { emulator::sync_lanes(mask(), site); }
    unsigned num_threads() const { return own().size(); }
    template <class T>
    T shfl(T v, unsigned rank, SITE) const {
        return moved("shfl", v, rank % own().size(), site);
    }
    template <class T>
    T shfl_up(T v, unsigned delta, SITE) const {
        const unsigned rank = own().thread_rank();
        return moved("shfl_up", v, rank < delta ? rank : rank - delta, site);
    }
    template <class T>
    T shfl_down(T v, unsigned delta, SITE) const {
        const unsigned rank = own().thread_rank();
        return moved("shfl_down", v, rank + delta < own().size() ? rank + delta : rank, site);
    }
    template <class T>
    T shfl_xor(T v, unsigned lane_mask, SITE) const {
        const unsigned rank = own().thread_rank() ^ lane_mask;
        return moved("shfl_xor", v, rank < own().size() ? rank : own().thread_rank(), site);
    }
    unsigned ballot(int predicate, SITE) const {
        const unsigned votes = __ballot_sync(mask(), predicate, site);
        unsigned by_rank = 0;
        for (unsigned rank = 0; rank < own().size(); rank++)
            by_rank |= (votes >> own().lane_of(rank) & 1) << rank;
        return by_rank;
    }
    int any(int predicate, SITE) const { return __any_sync(mask(), predicate, site); }
    int all(int predicate, SITE) const { return __all_sync(mask(), predicate, site); }
    unsigned mask() const { return own().lanes(); }

private:
    const Own& own() const { return static_cast<const Own&>(*this); }
    // Of any size, 8 bytes at a time.
    template <class T>
    T moved(const char* what, T value, unsigned rank, emulator::Site site) const {
        uint64_t words[(sizeof(T) + 7) / 8] = {};
        __builtin_memcpy(words, &value, sizeof value);
        for (uint64_t& word : words) {
            const emulator::Lanes lanes = emulator::gather(what, mask(), word, site);
            word = lanes.values[emulator::check_lane(lanes, what, own().lane_of(rank), site)];
        }
        __builtin_memcpy(&value, words, sizeof value);
        return value;
    }
};

// N lanes that follow each other, of a block or a larger tile.
template <unsigned N, class Parent = void>
class thread_block_tile : public lanes_group<thread_block_tile<N, Parent>> {
    static_assert(N > 0 && N <= 32 && (N & (N - 1)) == 0,
                  "an emulated GPU has tiles of 1, 2, 4, 8, 16 and 32 threads");

public:
    thread_block_tile() = default;
    template <class Other>
    thread_block_tile(const thread_block_tile<N, Other>&) {}  // of whatever it is a part
    static constexpr unsigned size() { return N; }
    static constexpr unsigned num_threads() { return N; }
    unsigned thread_rank() const { return emulator::self->lane % N; }
    unsigned meta_group_rank() const { return thread_block::thread_rank() / N; }
    unsigned meta_group_size() const { return (thread_block::size() + N - 1) / N; }
    unsigned lane_of(unsigned rank) const { return emulator::self->lane / N * N + rank; }
    unsigned lanes() const {
        return (N == 32 ? ~0u : (1u << N % 32) - 1) << (emulator::self->lane / N * N);
    }
};
template <unsigned N, class Parent>
thread_block_tile<N, Parent> tiled_partition(const Parent&) {
    return {};
}

class coalesced_group : public lanes_group<coalesced_group> {
public:
    explicit coalesced_group(unsigned lanes) : lanes_(lanes) {}
    unsigned size() const { return unsigned(__popc(lanes_)); }
    unsigned thread_rank() const {
        return unsigned(__popc(lanes_ & ((1u << emulator::self->lane) - 1)));
    }
    unsigned lane_of(unsigned rank) const {
        unsigned left = lanes_;
        while (rank-- > 0) left &= left - 1;
        return left ? unsigned(__builtin_ctz(left)) : 32;
    }
    unsigned lanes() const { return lanes_; }

private:
    unsigned lanes_;
};
inline coalesced_group coalesced_threads(SITE) {
    return coalesced_group(emulator::active_lanes(site));
}

template <class Group>
void sync(const Group& group, SITE) {
    group.sync(site);
}

#undef SITE
}  // namespace cooperative_groups
