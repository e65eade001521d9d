// What Hopper's own instructions mean: barriers that count arrivals and bytes, boxes that the copy
// engine brings, products of a warpgroup. All that is done on the side is done as late as it may be
// seen, and its targets are NaN until then.
#include "entry.h"
#include "grid.h"
#include "modes.h"

#include <cstring>

namespace emulator {
namespace {

constexpr int kLaunchFailed = 719, kMisaligned = 716;

// 16-byte chunks change places by bits 7-9 of the address.
uintptr_t swizzled(uintptr_t address) { return address ^ (address >> 3 & 0x70); }

void need_hopper(Site site) {
    if (modes().capability_major != 9 || modes().capability_minor != 0)
        fail(kLaunchFailed, site, "an instruction that only compute capability 9.0 has");
}

Mbarrier& mbarrier(void* barrier, Site site) {
    need_hopper(site);
    auto& all = current().team->block->mbarriers;
    auto found = all.find(barrier);
    if (found == all.end()) fail(kLaunchFailed, site, "an mbarrier before mbarrier_init");
    sanitizer::read(barrier, sizeof(uint64_t));
    return found->second;
}

void end_phase_if_complete(Mbarrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.pending = barrier.count;
    barrier.phase ^= 1;
    barrier.brought.insert(barrier.brought.end(), barrier.under_way.begin(),
                           barrier.under_way.end());
    barrier.under_way.clear();
    progress++;
    current().team->block->resume(State::AtMbarrier);
}

// Calls `row(to, from, bytes)` for what of a box's rows lies in the matrix; from null: it does not.
template <class Row>
void for_each_row(const BoxCopy& copy, Row row) {
    const TensorMap& map = copy.map;
    for (uint32_t r = 0; r < map.box_rows; r++) {
        const uint64_t at = uint64_t(copy.row) + r;
        const uint64_t left = copy.column < map.columns ? map.columns - copy.column : 0;
        const uint64_t columns = at < map.rows ? std::min<uint64_t>(left, map.box_columns) : 0;
        const uintptr_t from =
            map.address + at * map.row_bytes + uint64_t(copy.column) * map.element_bytes;
        row(copy.to + r * 128, columns ? reinterpret_cast<const char*>(from) : nullptr,
            size_t(columns * map.element_bytes));
    }
}

struct Matrix {
    uint32_t start, stride;

    // A row of 16 numbers as two chunks.
    void row(uint32_t number, const char* (&chunks)[2]) const {
        const SharedMemory& shared = current().team->block->shared;
        for (uint32_t c = 0; c < 2; c++) {
            const uint32_t address = start + number / 8 * stride + number % 8 * 128 + c * 16;
            chunks[c] = shared.at(uint32_t(swizzled(address)));
        }
    }
};

// PTX ISA, "Matrix descriptor": what is not in the form that is emulated is an error.
Matrix decode(uint64_t descriptor, uint32_t rows, Site site) {
    const Matrix matrix = {uint32_t(descriptor & 0x3fff) << 4,
                           uint32_t(descriptor >> 32 & 0x3fff) << 4};
    std::string wrong;
    if (descriptor >> 62 != 1) wrong = "another swizzle than that over 128 bytes";
    if (descriptor >> 49 & 7) wrong = "a base offset";
    if (matrix.start & 0x380) wrong = "eight rows that do not begin at a multiple of 1024";
    if (matrix.stride != 1024) wrong = "eight rows that do not follow the eight before";
    if (wrong.empty())
        for (uint32_t row : {0u, rows - 1}) {
            const char* chunks[2];
            matrix.row(row, chunks);
            if (!chunks[0] || !chunks[1]) wrong = "memory that is not the block's";
        }
    if (!wrong.empty()) fail(kLaunchFailed, site, "a matrix descriptor with " + wrong);
    return matrix;
}

// The part of an instruction that is a warp's own: 16 rows of A, all 256 of B.
template <class Row>
void for_each_operand_row(const Matrix& a, const Matrix& b, unsigned warp, Row row) {
    for (uint32_t r = 0; r < 16 + 256; r++) {
        const char* chunks[2];
        r < 16 ? a.row(warp % 4 * 16 + r, chunks) : b.row(r - 16, chunks);
        row(r, chunks);
    }
}

uint64_t hash(const Matrix& a, const Matrix& b, unsigned warp) {
    uint64_t hash = 0;
    for_each_operand_row(a, b, warp, [&](uint32_t, const char* const* chunks) {
        for (int i = 0; i < 4; i++) {
            uint64_t word;
            std::memcpy(&word, chunks[i / 2] + i % 2 * 8, 8);
            hash = (hash ^ word) * 0x9e3779b97f4a7c15;
            hash ^= hash >> 29;
        }
    });
    return hash;
}

void poison(const Sums& sums) {
    for (auto* lane : sums.lanes) std::memset(lane, 0xff, sizeof(float[32][4]));
}

// Calls `each(lane's sum, row, column)` for all of a warp's sums.
template <class S, class Each>
void for_each_sum(S& sums, Each each) {
    for (unsigned lane = 0; lane < kLanes; lane++)
        for (unsigned j = 0; j < 32; j++)
            for (unsigned i = 0; i < 4; i++)
                each(sums.lanes[lane][j][i], lane / 4 + i / 2 * 8, 8 * j + lane % 4 * 2 + i % 2);
}

// Where these sums are kept until they are waited for; begun with what the lanes have.
Sums& kept(Warp& warp, const Payload* all) {
    for (Sums& sums : warp.sums)
        if (sums.lanes[0] == all[0].row) return sums;
    Sums& sums = warp.sums.emplace_back();
    for (unsigned lane = 0; lane < kLanes; lane++)
        sums.lanes[lane] = static_cast<float(*)[4]>(const_cast<void*>(all[lane].row));
    for_each_sum(sums, [&](float& sum, unsigned r, unsigned c) { sums.values[r][c] = sum; });
    return sums;
}

// Rounds after every 16 products, as mma does here.
void multiply(float (&sums)[16][256], const Matrix& a, const Matrix& b, unsigned warp,
              bool accumulate, float (*to_float)(uint16_t)) {
    static double left[16][16], right[16][256];
    for_each_operand_row(a, b, warp, [&](uint32_t r, const char* const* chunks) {
        for (int k = 0; k < 16; k++) {
            uint16_t bits;
            std::memcpy(&bits, chunks[k / 8] + k % 8 * 2, 2);
            (r < 16 ? left[r][k] : right[k][r - 16]) = to_float(bits);
        }
    });
    for (int r = 0; r < 16; r++) {
        double row[256];
        for (int c = 0; c < 256; c++) row[c] = accumulate ? sums[r][c] : 0.0;
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < 256; c++) row[c] += left[r][k] * right[k][c];
        for (int c = 0; c < 256; c++) sums[r][c] = float(row[c]);
    }
}

uint64_t wide(const uint32_t* words) { return words[0] | uint64_t(words[1]) << 32; }

// Words 0-1: A, 2-3: B, 4: whether to accumulate, 5: the type, 6: the line, 7-8: the caller.
void begin_product(Payload* all) {
    Warp& warp = *current().team;
    const Site site = {current().site.file, int(all[0].words[6])};
    const Operands operands = {wide(all[0].words), wide(all[0].words + 2), 0, warp.committed + 1};
    const Matrix a = decode(operands.a, 64, site), b = decode(operands.b, 256, site);
    const unsigned number = current().warp;
    if (sanitizer::thread) {
        if (!warp.engine) warp.engine = sanitizer::create();
        sanitizer::as(warp.engine, reinterpret_cast<void*>(wide(all[0].words + 7)), [&] {
            sanitizer::acquire(&warp.asked);
            for_each_operand_row(a, b, number, [&](uint32_t, const char* const* chunks) {
                for (int c = 0; c < 2; c++) sanitizer::read(chunks[c], 16);
            });
            sanitizer::release(&warp.done[operands.group % 4]);
        });
    }
    Sums& sums = kept(warp, all);
    multiply(sums.values, a, b, number, all[0].words[4],
             Half(all[0].words[5]) == Half::F16 ? half_to_float : bf16_to_float);
    sums.group = operands.group;
    poison(sums);
    warp.operands.push_back(operands);
    warp.operands.back().hash = hash(a, b, number);
}

// Words 0: groups that may be left, 1: the line.
void end_products(Payload* all) {
    Warp& warp = *current().team;
    const Site site = {current().site.file, int(all[0].words[1])};
    const int last = int(warp.committed) - int(all[0].words[0]);
    std::vector<Operands> left;
    for (const Operands& each : warp.operands) {
        if (int(each.group) > last) {
            left.push_back(each);
        } else if (hash(decode(each.a, 64, site), decode(each.b, 256, site), current().warp) !=
                   each.hash) {
            fail(kLaunchFailed, site, "what a product reads was written before wgmma_wait");
        }
    }
    warp.operands.swap(left);
    for (auto sums = warp.sums.begin(); sums != warp.sums.end();) {
        if (int(sums->group) > last) {
            ++sums;
            continue;
        }
        for_each_sum(*sums, [&](float& sum, unsigned r, unsigned c) { sum = sums->values[r][c]; });
        sums = warp.sums.erase(sums);
    }
    warp.fenced = false;
}

}  // namespace

void barrier_init(void* barrier, uint32_t arrivals, Site site) {
    need_hopper(site);
    check_aligned(barrier, 8, site);
    if (arrivals == 0) fail(kLaunchFailed, site, "an mbarrier for no arrivals");
    sanitizer::write(barrier, sizeof(uint64_t));
    Mbarrier& made = current().team->block->mbarriers[barrier];
    made.count = made.pending = arrivals;
}

void barrier_arrive(void* barrier, uint32_t expected_bytes, Site site) {
    Mbarrier& all = mbarrier(barrier, site);
    sanitizer::release(&all.token[all.phase]);
    all.bytes += expected_bytes;
    all.pending--;
    end_phase_if_complete(all);
}

void barrier_wait(void* barrier, uint32_t parity, Site site) {
    Mbarrier& all = mbarrier(barrier, site);
    while (all.phase == parity) wait(State::AtMbarrier, "mbarrier_wait", site);
    sanitizer::acquire(&all.token[parity]);
    for (const BoxCopy& copy : all.brought) copy.land();
    all.brought.clear();
}

void BoxCopy::land() const {
    for_each_row(*this, [](char* to, const char* from, size_t bytes) {
        char row[128] = {};
        if (from) std::memcpy(row, from, bytes);
        for (size_t chunk = 0; chunk < 128; chunk += 16)
            std::memcpy(reinterpret_cast<char*>(swizzled(reinterpret_cast<uintptr_t>(to + chunk))),
                        row + chunk, 16);
    });
}

void copy_box(void* to, const void* map, uint32_t row, uint32_t column, void* barrier,
              Site site) {
    Thread& me = current();
    me.site = site;  // for a fault in here
    Mbarrier& all = mbarrier(barrier, site);
    check_aligned(to, 128, site);
    BoxCopy copy = {static_cast<char*>(to), {}, row, column};
    std::memcpy(&copy.map, map, sizeof copy.map);
    if (copy.map.magic != kTensorMap)
        fail(kLaunchFailed, site, "a TensorMap that cuTensorMapEncodeTiled did not make");
    const uint32_t bytes = copy.map.box_rows * 128;
    const auto touch = [&] {
        for_each_row(copy, [](char*, const char* from, size_t bytes) {
            if (!from) return;
            sanitizer::read(from, bytes);
            (void)*static_cast<const volatile char*>(from);
            (void)*static_cast<const volatile char*>(from + bytes - 1);
        });
        sanitizer::write(to, bytes);
    };
    if (sanitizer::thread) {
        if (!me.copier) me.copier = sanitizer::create();
        sanitizer::release(&me.copier_token);
        sanitizer::as(me.copier, __builtin_return_address(0), [&] {
            sanitizer::acquire(&me.copier_token);
            touch();
            sanitizer::release(&all.token[all.phase]);
        });
    } else {
        touch();
    }
    std::memset(to, 0xff, bytes);
    all.under_way.push_back(copy);
    all.bytes -= bytes;
    end_phase_if_complete(all);
}

uint32_t shared_address(const void* shared, Site site) {
    const int64_t address = current().team->block->shared.address(shared);
    if (address < 0) fail(kLaunchFailed, site, "an address outside of shared memory");
    return uint32_t(address);
}

void products_fence(Site site) {
    need_hopper(site);
    meet("wgmma_fence", site, {}, [](Payload*) { current().team->fenced = true; });
}

void products_commit(Site site) {
    meet("wgmma_commit", site, {}, [](Payload*) { current().team->committed++; });
}

void products_wait(unsigned groups_left, Site site) {
    Thread& me = current();
    Warp& warp = *me.team;
    me.site = site;
    Payload mine = {};
    mine.words[0] = groups_left;
    mine.words[1] = uint32_t(site.line);
    const unsigned committed = warp.committed;
    meet("wgmma_wait", site, mine, end_products);
    if (committed > groups_left) sanitizer::acquire(&warp.done[(committed - groups_left) % 4]);
}

void multiply_64x256x16(float (&d)[32][4], uint64_t a, uint64_t b, bool accumulate, Half type,
                        Site site) {
    Thread& me = current();
    Warp& warp = *me.team;
    me.site = site;
    need_hopper(site);
    if (warp.block->size % 128) fail(kLaunchFailed, site, "wgmma in an incomplete warpgroup");
    if (!warp.fenced) fail(kLaunchFailed, site, "wgmma without wgmma_fence since wgmma_wait");
    Payload mine = {};
    mine.row = d;
    for (int half = 0; half < 2; half++) {
        mine.words[half] = uint32_t(a >> 32 * half);
        mine.words[2 + half] = uint32_t(b >> 32 * half);
    }
    mine.words[4] = accumulate;
    mine.words[5] = uint32_t(type);
    mine.words[6] = uint32_t(site.line);
    const auto caller = reinterpret_cast<uint64_t>(__builtin_return_address(0));
    std::memcpy(mine.words + 7, &caller, sizeof caller);
    sanitizer::release(&warp.asked);
    meet("wgmma", site, mine, begin_product);
}

void change_registers(unsigned registers, Site site) {
    need_hopper(site);
    if (registers % 8 || registers < 24 || registers > 256)
        fail(kLaunchFailed, site, "setmaxnreg of " + std::to_string(registers) + " registers");
    meet("setmaxnreg", site, {});
}

}  // namespace emulator

using namespace emulator;

// Two dimensions of 16-bit numbers, boxes with rows of 128 bytes, swizzled over these: what else the
// driver can do is not there.
ENTRY cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address,
                             const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                             const uint32_t* element_strides, int interleave, int swizzle, int,
                             int fill) {
    return enter("cuTensorMapEncodeTiled", Needs::Nothing, [&](Lock&) {
        if (!map || reinterpret_cast<uintptr_t>(map) % 64 || !address ||
            reinterpret_cast<uintptr_t>(address) % 16)
            throw Failure{kInvalidValue};
        const bool half = type == 6 || type == 9;  // FLOAT16, BFLOAT16
        if (!half || rank != 2 || interleave || swizzle != 3 || fill) throw Failure{kNotSupported};
        for (uint32_t d = 0; d < 2; d++)
            if (!sizes[d] || sizes[d] > uint64_t(1) << 32 || !box[d] || box[d] > 256 ||
                element_strides[d] != 1)
                throw Failure{kInvalidValue};
        if (strides[0] % 16 || strides[0] >= uint64_t(1) << 40 || box[0] * 2 > 128)
            throw Failure{kInvalidValue};
        if (box[0] * 2 != 128) throw Failure{kNotSupported};
        const TensorMap made = {kTensorMap, reinterpret_cast<uintptr_t>(address), sizes[0], sizes[1],
                                strides[0], box[0], box[1], 2};
        std::memset(map, 0, 128);
        std::memcpy(map, &made, sizeof made);
    });
}
