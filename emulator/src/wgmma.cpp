// Products of a warpgroup (wgmma), done as late as they may be seen; the sums are NaN until then.
#include "hopper.h"
#include "tensor.h"

#include <cstring>

namespace emulator {
namespace {

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

}  // namespace emulator
