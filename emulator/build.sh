#!/bin/sh
# Builds the stand-ins for the CUDA driver, NVRTC and NCCL: emulator/build.sh none|address|thread OUT
# makes OUT/libcuda.so.1, OUT/libnvrtc.so.13 and OUT/libnccl.so.2, and OUT/include for kernels.
set -eu
umask 077  # what is loaded, nobody else may write
mode=${1:?usage: emulator/build.sh none|address|thread OUT}
out=${2:?usage: emulator/build.sh none|address|thread OUT}
here=$(cd "$(dirname "$0")" && pwd)
cxx=${CHASKI_CXX:-g++}
flags="-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra"
case $mode in
    none) link= ;;
    address) flags="$flags -DEMULATOR_ADDRESS" link="-fsanitize=address" ;;
    thread) flags="$flags -DEMULATOR_THREAD" link="-fsanitize=thread" ;;
    *) echo "emulator/build.sh: no mode $mode: none, address or thread" >&2; exit 2 ;;
esac

mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
# The runtime is not instrumented, only linked with the sanitizer: see src/sanitizer.h.
for source in "$here"/src/*.cpp; do
    printf '%s\0-o\0%s\0' "$source" "$work/$(basename "$source" .cpp).o"
done | xargs -0 -P "$(nproc)" -n 3 "$cxx" $flags -c
o() { for name; do echo "$work/$name.o"; done; }
cuda=$(ls "$work"/*.o | grep -v '/\(nvrtc\|dialect\|idioms\|nccl\|collective\|world\).o')
"$cxx" -shared $link -Wl,-soname,libcuda.so $cuda -o "$out/libcuda.so.1" -ldl -lpthread
"$cxx" -shared -Wl,-soname,libnvrtc.so $(o nvrtc shell dialect idioms) -o "$out/libnvrtc.so.13" -ldl
"$cxx" -shared $link -Wl,-soname,libnccl.so.2 $(o nccl collective world modes) -o "$out/libnccl.so.2"
rm -rf "$out/include"
cp -r "$here/include" "$out/include"
