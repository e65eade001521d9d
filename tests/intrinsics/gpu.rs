//! The GPU, real or emulated, with the kernels of `tests/kernels/intrinsics.cu`.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use chaski::executor::cuda::{self, Emulation, emulator};
use chaski::kernel::nvrtc::{CodeFormat, Nvrtc, Search};
use chaski::kernel::{ARCHS, KERNELS};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;

pub const SOURCE: &str = concat!(
    include_str!("../kernels/intrinsics.cu"),
    include_str!("../kernels/intrinsics_hopper.cu")
);

struct Gpu {
    context: Arc<CudaContext>,
    module: Arc<CudaModule>,
}

fn search() -> Search {
    Search::from_variables(&|name| std::env::var_os(name))
}

pub fn headers() -> Vec<(&'static str, &'static str)> {
    let all = KERNELS.iter().flat_map(|kernel| kernel.headers);
    all.map(|header| (header.name, header.text)).collect::<BTreeMap<_, _>>().into_iter().collect()
}

pub fn compile(nvrtc: &Nvrtc, arch: &str) -> Vec<u8> {
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
    nvrtc.compile("intrinsics.cu", SOURCE, &headers(), &options, CodeFormat::Cubin).unwrap().0
}

/// The GPU with the kernels of intrinsics.cu.
fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let is_real = std::env::var_os("CHASKI_TEST_GPU").is_some();
        if !is_real {
            let emulation = Emulation::from_variables(1, std::env::vars_os()).unwrap();
            cuda::emulate(&emulation, &|_| ()).unwrap();
        }
        let (major, minor) = cuda::Gpu::open(0).unwrap().capability;
        let arch = ARCHS.iter().rev().find(|arch| arch.runs_on(major, minor)).unwrap();
        let nvrtc = match emulator::nvrtc() {
            Some(stand_in) => Nvrtc::load(stand_in).unwrap(),
            None => Nvrtc::find(&search(), None).unwrap().expect("NVRTC, to compile intrinsics.cu"),
        };
        let context = CudaContext::new(0).unwrap();
        let image = Ptx::from_binary(compile(&nvrtc, arch.name));
        Gpu { module: context.load_module(image).unwrap(), context }
    })
}

pub fn function(name: &str) -> (Arc<CudaStream>, CudaFunction) {
    let stream = gpu().context.new_stream().unwrap();
    (stream, gpu().module.load_function(name).unwrap())
}

/// Runs a kernel and returns the first `words` of what it wrote; memory is 0 before.
pub fn run_on(name: &str, blocks: u32, threads: u32, input: &[u32], words: usize) -> Vec<u32> {
    let (stream, function) = function(name);
    let input = stream.clone_htod(input).unwrap();
    let mut output = stream.alloc_zeros::<u32>(words).unwrap();
    let launch =
        LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
    let mut builder = stream.launch_builder(&function);
    builder.arg(&input).arg(&mut output);
    // SAFETY: the kernel takes two pointers, and reads and writes as many words as intrinsics.cu says,
    // which are those that the tests give it.
    unsafe { builder.launch(launch) }.unwrap();
    stream.clone_dtoh(&output).unwrap()
}

/// Whether Hopper's own instructions are there.
pub fn is_hopper() -> bool {
    let _ = gpu();
    cuda::Gpu::open(0).unwrap().capability == (9, 0)
}

/// What TMA loads of a matrix of 16-bit numbers, `[rows, columns]`: a box of 16 rows of 64
/// from (row, column) on, as it lies in shared memory.
pub fn box_of(matrix: &[u16], columns: u64, row: u32, column: u32) -> Vec<u16> {
    #[repr(C, align(128))]
    struct Box {
        map: sys::CUtensorMap,
        out: u64,
        row: u32,
        column: u32,
    }
    let (stream, function) = function("boxes");
    let matrix = stream.clone_htod(matrix).unwrap();
    let output = stream.alloc_zeros::<u16>(16 * 64).unwrap();
    let address = matrix.device_ptr(&stream).0;
    let out = output.device_ptr(&stream).0;
    let mut args = Box { map: sys::CUtensorMap { opaque: [0; 16] }, out, row, column };
    let mut arguments = [(&raw mut args).cast()];
    // SAFETY: the map is of the matrix that was allocated, the kernel takes one such struct by value, and
    // both allocations live until the copy below has waited for the stream.
    unsafe {
        let encoded = sys::cuTensorMapEncodeTiled(
            &mut args.map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            2,
            address as *mut _,
            [columns, matrix.len() as u64 / columns].as_ptr(),
            &(2 * columns),
            [64, 16].as_ptr(),
            [1, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        );
        encoded.result().unwrap();
        let (function, stream) = (function.cu_function(), stream.cu_stream());
        let arguments = arguments.as_mut_ptr();
        let none = std::ptr::null_mut();
        let launched = sys::cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, arguments, none);
        launched.result().unwrap();
    }
    stream.clone_dtoh(&output).unwrap()
}

/// On one warp.
pub fn run(name: &str, input: &[u32], words: usize) -> Vec<u32> {
    run_on(name, 1, 32, input, words)
}

/// A word a thread, of as many words as there are.
pub fn each(name: &str, input: &[u32], words_of_a_thread: usize) -> Vec<u32> {
    let count = input.len() / words_of_a_thread;
    let threads = count.min(128);
    assert_eq!(count % threads, 0);
    run_on(name, (count / threads) as u32, threads as u32, input, count)
}
