// What Hopper's own instructions mean: barriers that count arrivals and bytes, boxes that the copy
// engine brings, products of a warpgroup. All that is done on the side is done as late as it may be
// seen, and its targets are NaN until then.
#include "entry.h"
#include "grid.h"
#include "modes.h"
#include "tensor.h"

#include <algorithm>
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

// A line is a row of a matrix that is multiplied along its rows, or of one that is transposed: of 16
// numbers or of all columns of B, in chunks of eight.
struct Matrix {
    uint32_t start, leading, stride;

    const char* chunk(uint32_t line, uint32_t chunk) const {
        const uint32_t address = start + line / 8 * stride + line % 8 * 128 +
                                 chunk / 8 * leading + chunk % 8 * 16;
        return current().team->block->shared.at(uint32_t(swizzled(address)));
    }
};

// PTX ISA, "Matrix descriptor": what is not in the form that is emulated is an error.
Matrix decode(uint64_t descriptor, uint32_t lines, uint32_t chunks, Site site) {
    const auto bytes = [&](unsigned bit) { return uint32_t(descriptor >> bit & 0x3fff) << 4; };
    const Matrix matrix = {bytes(0), bytes(16), bytes(32)};
    const bool transposed = chunks > 2;
    std::string wrong;
    if (descriptor >> 62 != 1) wrong = "another swizzle than that over 128 bytes";
    if (descriptor >> 49 & 7) wrong = "a base offset";
    if (matrix.start & (transposed ? 0x3f0 : 0x380))
        wrong = "eight rows that do not begin at a multiple of 1024";
    if (matrix.stride != 1024) wrong = "eight rows that do not follow the eight before";
    if (transposed && matrix.leading % 1024) wrong = "64 columns that do not begin at one";
    for (uint32_t line : {0u, lines - 1})
        for (uint32_t chunk : {0u, chunks - 1})
            if (wrong.empty() && !matrix.chunk(line, chunk))
                wrong = "memory that is not the block's";
    if (!wrong.empty()) fail(kLaunchFailed, site, "a matrix descriptor with " + wrong);
    return matrix;
}

// The chunks of an operand in shared memory: of A a warp's own 16 rows, all of B.
struct Chunks {
    Matrix matrix;
    uint32_t first, lines, chunks;

    template <class Each>
    void for_each(Each each) const {
        for (uint32_t line = 0; line < lines; line++)
            for (uint32_t c = 0; c < chunks; c++) each(line, c, matrix.chunk(first + line, c));
    }
};

Chunks operand_a(const Product& product) {
    return {decode(product.a, 64, 2, product.site), current().warp % 4 * 16, 16, 2};
}

Chunks operand_b(const Product& product) {
    const uint32_t lines = product.transposed ? 16 : product.columns;
    const uint32_t chunks = product.transposed ? product.columns / 8 : 2;
    return {decode(product.b, lines, chunks, product.site), 0, lines, chunks};
}

// Calls `each(chunk)` for all that the product reads of shared memory.
template <class Each>
void for_each_chunk(const Product& product, Each each) {
    const auto chunk = [&](uint32_t, uint32_t, const char* bytes) { each(bytes); };
    if (!product.registers) operand_a(product).for_each(chunk);
    operand_b(product).for_each(chunk);
}

uint64_t hash(const Operands& operands) {
    uint64_t hash = 0;
    const auto add = [&](const void* bytes) {
        for (int i = 0; i < 2; i++) {
            uint64_t word;
            std::memcpy(&word, static_cast<const char*>(bytes) + 8 * i, 8);
            hash = (hash ^ word) * 0x9e3779b97f4a7c15;
            hash ^= hash >> 29;
        }
    };
    for_each_chunk(operands.product, add);
    if (operands.product.registers)
        for (const uint32_t* lane : operands.registers) add(lane);
    return hash;
}

void poison(const Sums& sums) {
    for (auto* lane : sums.lanes) std::memset(lane, 0xff, sums.columns / 2 * sizeof(float));
}

// Calls `each(lane's sum, row, column)` for all of a warp's sums.
template <class S, class Each>
void for_each_sum(S& sums, Each each) {
    for (unsigned lane = 0; lane < kLanes; lane++)
        for (unsigned j = 0; j < sums.columns / 8; j++)
            for (unsigned i = 0; i < 4; i++)
                each(sums.lanes[lane][j][i], lane / 4 + i / 2 * 8, 8 * j + lane % 4 * 2 + i % 2);
}

const Product& of(const Payload& lane) { return *static_cast<const Product*>(lane.row); }

// Where these sums are kept until they are waited for; begun with what the lanes have.
Sums& kept(Warp& warp, const Payload* all) {
    for (Sums& sums : warp.sums)
        if (sums.lanes[0] == of(all[0]).sums) return sums;
    Sums& sums = warp.sums.emplace_back();
    sums.columns = of(all[0]).columns;
    for (unsigned lane = 0; lane < kLanes; lane++) sums.lanes[lane] = of(all[lane]).sums;
    for_each_sum(sums, [&](float& sum, unsigned r, unsigned c) { sums.values[r][c] = sum; });
    return sums;
}

void multiply(Sums& sums, const Operands& operands) {
    static double left[16][16], right[16][256];
    const Product& product = operands.product;
    const auto number = [&](const void* at) {
        uint16_t bits;
        std::memcpy(&bits, at, 2);
        return double(product.type == Half::F16 ? half_to_float(bits) : bf16_to_float(bits));
    };
    if (product.registers) {  // as mma_m16n8k16 has them
        for (unsigned lane = 0; lane < kLanes; lane++)
            for (unsigned r = 0; r < 4; r++)
                for (unsigned i = 0; i < 2; i++)
                    left[lane / 4 + r % 2 * 8][lane % 4 * 2 + r / 2 * 8 + i] =
                        number(reinterpret_cast<const uint16_t*>(operands.registers[lane] + r) + i);
    } else {
        operand_a(product).for_each([&](uint32_t row, uint32_t c, const char* bytes) {
            for (uint32_t i = 0; i < 8; i++) left[row][8 * c + i] = number(bytes + 2 * i);
        });
    }
    operand_b(product).for_each([&](uint32_t line, uint32_t c, const char* bytes) {
        for (uint32_t i = 0; i < 8; i++)
            (product.transposed ? right[line][8 * c + i] : right[8 * c + i][line]) =
                number(bytes + 2 * i);
    });
    for (unsigned r = 0; r < 16; r++) {
        if (!product.accumulate) std::fill_n(sums.values[r], product.columns, 0.0f);
        add_products(left[r], right, product.columns, sums.values[r]);
    }
}

void begin_product(Payload* all) {
    Warp& warp = *current().team;
    const Product& product = of(all[0]);
    Operands operands = {product, {}, 0, warp.committed + 1};
    for (unsigned lane = 0; lane < kLanes; lane++) operands.registers[lane] = of(all[lane]).registers;
    if (sanitizer::thread) {
        // Twice: what is read must have been written before the product was begun, and, unless the
        // TMA wrote it, before a fence between the proxies.
        if (!warp.engine) warp.engine = sanitizer::create(), warp.proxy = sanitizer::create();
        const auto read = [&] {
            for_each_chunk(product, [](const char* bytes) { sanitizer::read(bytes, 16); });
            sanitizer::release(&warp.done[operands.group % 4]);
        };
        sanitizer::as(warp.engine, product.caller, [&] {
            sanitizer::acquire(&warp.asked);
            read();
        });
        sanitizer::as(warp.proxy, product.caller, [&] {
            sanitizer::acquire(warp.block->shared.use_before());
            sanitizer::acquire(&warp.block->told);
            read();
        });
    }
    Sums& sums = kept(warp, all);
    multiply(sums, operands);
    sums.group = operands.group;
    poison(sums);
    operands.hash = hash(operands);
    warp.operands.push_back(operands);
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
        } else if (hash(each) != each.hash) {
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
    made.maker = &current();
}

void tell_of_barriers() {
    for (auto& [address, barrier] : current().team->block->mbarriers)
        if (barrier.maker == &current()) barrier.maker = nullptr;
}

void tell_of_writes() { sanitizer::release(&current().team->block->told); }

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
    if (all.maker) fail(kLaunchFailed, site, "an mbarrier without fence_mbarrier_init");
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
            sanitizer::release(&me.team->block->told);
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

void multiply(Product product) {
    Thread& me = current();
    Warp& warp = *me.team;
    const Site site = me.site = product.site;
    need_hopper(site);
    if (warp.block->size % 128) fail(kLaunchFailed, site, "wgmma in an incomplete warpgroup");
    if (!warp.fenced) fail(kLaunchFailed, site, "wgmma without wgmma_fence since wgmma_wait");
    product.caller = __builtin_return_address(0);
    Payload mine = {};
    mine.row = &product;
    sanitizer::release(&warp.asked);
    meet("wgmma", site, mine, begin_product);
}

NamedBarrier& named_barrier(uint32_t number, uint32_t threads, Site site) {
    auto& all = current().team->block->named;
    if (number == 0 || number >= std::size(all) || threads == 0 || threads % kLanes)
        fail(kLaunchFailed, site, "a barrier of number " + std::to_string(number) + " for " +
                                      std::to_string(threads) + " threads");
    return all[number];
}

// Returns the phase that the thread has come to. Who comes twice to a phase has not been waited for.
unsigned come(NamedBarrier& barrier, uint32_t threads, Site site) {
    const Thread& me = current();
    if (barrier.come.empty()) barrier.come.resize(me.team->block->size), barrier.threads = threads;
    if (barrier.threads != threads)
        fail(kLaunchFailed, site, "a barrier that others have come to as one for " +
                                      std::to_string(barrier.threads) + " threads");
    const unsigned thread = me.warp * kLanes + me.lane;
    if (barrier.come[thread])
        fail(kLaunchFailed, site, "a barrier that the same thread has come to before, and nobody "
                                  "has waited for");
    barrier.come[thread] = true;
    const unsigned phase = barrier.phase;
    sanitizer::release(&barrier.token[phase % 2]);
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        barrier.come.clear();
        barrier.phase++;
        progress++;
        current().team->block->resume(State::AtMbarrier);
    }
    return phase;
}

void named_sync(uint32_t number, uint32_t threads, Site site) {
    NamedBarrier& barrier = named_barrier(number, threads, site);
    const unsigned phase = come(barrier, threads, site);
    while (barrier.phase == phase) wait(State::AtMbarrier, "named_barrier_sync", site);
    sanitizer::acquire(&barrier.token[phase % 2]);
}

void named_arrive(uint32_t number, uint32_t threads, Site site) {
    come(named_barrier(number, threads, site), threads, site);
}

void change_registers(unsigned registers, bool more, Site site) {
    need_hopper(site);
    Warp& warp = *current().team;
    const Block& block = *warp.block;
    const std::string wish = "setmaxnreg of " + std::to_string(registers) + " registers";
    if (registers % 8 || registers < 24 || registers > 256) fail(kLaunchFailed, site, wish);
    meet("setmaxnreg", site, {});
    // At first all threads have an equal share; what nobody gives up is waited for for ever.
    const unsigned share = std::min(65536 / block.size, 255u) / 8 * 8;
    if (!warp.registers && (more ? registers < share : registers > share))
        fail(kLaunchFailed, site, wish + " where each thread has " + std::to_string(share));
    warp.registers = registers;
    size_t all = 0;
    for (const Warp* each : block.warps) all += each->registers;
    const bool settled = std::none_of(block.warps.begin(), block.warps.end(),
                                      [](const Warp* each) { return each->registers == 0; });
    if (settled && all > share * block.warps.size())
        fail(kLaunchFailed, site, wish + ", which others have not given up");
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
