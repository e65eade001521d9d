// Kernels as users write them: FILE:KERNEL:GRID:BLOCK:SHARED:WORDS takes words 0, 1, 2, ... and prints what it
// leaves in as many that were 0. Sizes of several dimensions are written 2x1x2.
#include "cases.h"

#include <sstream>

namespace test {
namespace {

struct Size {
    unsigned x = 1, y = 1, z = 1;
};

Size size_of(const std::string& text) {
    Size size;
    std::sscanf(text.c_str(), "%ux%ux%u", &size.x, &size.y, &size.z);
    return size;
}

}  // namespace

void run_ordinary(const std::string& spec) {
    std::istringstream parts(spec);
    std::string file, kernel, grid_text, block_text, shared, count;
    for (std::string* part : {&file, &kernel, &grid_text, &block_text, &shared, &count})
        std::getline(parts, *part, ':');
    use_device(0);
    Handle found = function(load(file), kernel.c_str()), stream = new_stream();
    std::vector<uint32_t> in(std::stoul(count));
    for (size_t i = 0; i < in.size(); i++) in[i] = uint32_t(i);
    Pointer input = upload(in), output = upload(std::vector<uint32_t>(in.size()));
    void* arguments[] = {&input, &output};
    const Size grid = size_of(grid_text), block = size_of(block_text);
    call("cuLaunchKernel", found, grid.x, grid.y, grid.z, block.x, block.y, block.z,
         unsigned(std::stoul(shared)), stream, (void**)arguments, (void**)nullptr);
    std::string line = kernel + " left";
    for (uint32_t word : download<uint32_t>(output, in.size(), stream)) line += " " + std::to_string(word);
    std::printf("%s\n", line.c_str());
}

}  // namespace test
