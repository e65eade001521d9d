//! NVIDIA's library of matrix products, loaded when a kernel is compared with it.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cudaDataType};

use super::driver::Context;
use super::emulator;
use super::region::Region;
use super::stream::Stream;
use super::{Cuda, Recorded};
use crate::encoding::{Encoding, Float};
use crate::error::{Error, Result};
use crate::memory::{Activation, Slot, Weight};

/// What NVIDIA says that products on Hopper are best given.
const WORKSPACE_BYTES: usize = 32 << 20;

/// The library on one GPU.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: Region,
}

// SAFETY: any thread may use a handle.
unsafe impl Send for CublasLt {}

/// `y = x weight'`, or `y += x weight'`
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Of the weight's type, `[T, K]`; none where it is f32, which only our kernels take.
    pub x: Option<Activation>,
    /// `[N, K]`
    pub weight: Weight,
    pub residual: bool,
    /// `[T, N]`
    pub y: Slot<f32>,
}

/// `y = x weight'`, or `y += x weight'`, by addresses: all matrices of whole rows.
struct Multiply {
    /// Of `x` and `weight`: BF16 or F16.
    dtype: Float,
    /// `[T, K]`
    x: u64,
    /// `[N, K]`
    weight: u64,
    /// f32 `[T, N]`
    y: u64,
    /// T, N and K.
    sizes: [usize; 3],
    adds: bool,
}

fn checked<R>(result: std::result::Result<R, CublasError>) -> Result<R> {
    result.map_err(|error| Error::failed(format!("cuBLASLt cannot multiply: {error}")))
}

/// That the library can be compared with.
///
/// # Errors
/// Where it is not installed.
pub fn check_cublas() -> Result<()> {
    // On an emulated GPU it would look for a real one.
    let is_emulated = emulator::nvrtc().is_some();
    // SAFETY: loading the library runs its initialisers, which ask nothing of us.
    match !is_emulated && unsafe { sys::is_culib_present() } {
        true => Ok(()),
        false => Err(Error::failed("cuBLASLt (libcublasLt.so) is not on this machine")),
    }
}

impl CublasLt {
    /// Loads the library and gives it memory to work with.
    ///
    /// # Errors
    /// Where it is not installed; no memory.
    fn load(context: &Arc<Context>) -> Result<Self> {
        check_cublas()?;
        let workspace = Region::allocate(context, WORKSPACE_BYTES, "cuBLASLt to work with")?;
        context.bind()?;
        Ok(Self { handle: checked(result::create_handle())?, workspace })
    }

    /// Queues a product, by the algorithm that the library thinks fastest.
    ///
    /// # Safety
    /// The matrices are there, on the stream's GPU, until the stream has come past.
    unsafe fn multiply(&self, stream: &Stream, product: &Multiply) -> Result<()> {
        stream.bind()?;
        let [tokens, rows, width] = product.sizes.map(|size| size as u64);
        let inputs = match product.dtype {
            Float::F16 => cudaDataType::CUDA_R_16F,
            _ => cudaDataType::CUDA_R_16BF,
        };
        // A row of ours is a column of the library's: it multiplies weight' with x' to y'.
        let weight = matrix(inputs, [width, rows])?;
        let x = matrix(inputs, [width, tokens])?;
        let y = matrix(cudaDataType::CUDA_R_32F, [rows, tokens])?;
        let (description, preference) = (description()?, preference()?);
        let (one, beta) = (1f32, if product.adds { 1f32 } else { 0f32 });
        let workspace = self.workspace.address(0..WORKSPACE_BYTES) as *mut c_void;
        // SAFETY: handle, descriptors and layouts live; the library reads the factors before it
        // returns; the matrices are there as the caller says, and the workspace as long as `self`.
        checked(unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                description.handle,
                weight.handle,
                x.handle,
                y.handle,
                y.handle,
                preference.handle,
            )
            .and_then(|chosen| {
                result::matmul(
                    self.handle,
                    description.handle,
                    (&raw const one).cast(),
                    (&raw const beta).cast(),
                    product.weight as *const c_void,
                    weight.handle,
                    product.x as *const c_void,
                    x.handle,
                    product.y as *const c_void,
                    y.handle,
                    product.y as *mut c_void,
                    y.handle,
                    &chosen.algo,
                    workspace,
                    WORKSPACE_BYTES,
                    stream.raw().cast(),
                )
            })
        })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: created in `load`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Cuda {
    /// Makes a graph of what cuBLASLt does for `products`, whose inputs are all of 16 bits.
    ///
    /// # Errors
    /// Where the library is not installed, or does not do it.
    pub fn record_products(&mut self, products: &[Product]) -> Result<Recorded> {
        self.guard(|cuda| {
            cuda.weights.wait(None)?;
            if cuda.cublas.is_none() {
                cuda.cublas = Some(CublasLt::load(&cuda.context)?);
            }
            let cuda = &*cuda;
            let library = cuda.cublas.as_ref().expect("it is loaded");
            let all: Vec<Multiply> =
                products.iter().flat_map(|product| multiplications(cuda, product)).collect();
            // SAFETY: the addresses are of slots and weights inside the regions that `cuda` owns and
            // frees only after its stream has ended.
            let queue = |each: &Multiply| unsafe { library.multiply(&cuda.stream, each) };
            // The library loads its kernels when they are first used, which a graph cannot hold.
            all.iter().try_for_each(queue)?;
            cuda.wait("cuBLASLt failed")?;
            let graph = cuda.stream.capture(|| all.iter().try_for_each(queue))?;
            Ok(Recorded { graph, doing: "of cuBLASLt".to_owned(), options: cuda.options })
        })
    }
}

/// A multiplication for each term of the input.
fn multiplications(cuda: &Cuda, product: &Product) -> Vec<Multiply> {
    let Product { x, weight, residual, y } = *product;
    let Some(x) = x else { return Vec::new() };
    let Weight { encoding: Encoding::Plain(dtype), rows, cols: width, .. } = weight else {
        unreachable!("cuBLASLt gets plain weights")
    };
    let sizes = [y.len() / rows, rows, width];
    let term_bytes = sizes[0] * width * x.dtype.bytes();
    let state = |slot: Slot<u8>| cuda.state.address(slot.offset()..slot.offset() + slot.len());
    let multiply = |term: usize| Multiply {
        dtype,
        x: state(x.bytes.part(term * term_bytes, term_bytes)),
        weight: cuda.weights.address(weight.offset, weight.bytes()),
        y: state(y.cast()),
        sizes,
        adds: residual || term > 0,
    };
    (0..x.terms).map(multiply).collect()
}

/// One of the library's objects.
struct Owned<H: Copy> {
    handle: H,
    /// # Safety
    /// It destroys the handle, which is of no more use.
    destroy: unsafe fn(H) -> std::result::Result<(), CublasError>,
}

impl<H: Copy> Drop for Owned<H> {
    fn drop(&mut self) {
        // SAFETY: made by one of the functions below, each with what destroys it; done once.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

/// A matrix of whole columns.
fn matrix(
    numbers: cudaDataType,
    [rows, columns]: [u64; 2],
) -> Result<Owned<sys::cublasLtMatrixLayout_t>> {
    let handle = checked(result::create_matrix_layout(numbers, rows, columns, rows as i64))?;
    Ok(Owned { handle, destroy: result::destroy_matrix_layout })
}

/// A product whose first matrix is transposed; sums in f32.
fn description() -> Result<Owned<sys::cublasLtMatmulDesc_t>> {
    use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA as FIRST_TRANSPOSED;
    let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let handle = checked(result::create_matmul_desc(sums, cudaDataType::CUDA_R_32F))?;
    let description = Owned { handle, destroy: result::destroy_matmul_desc };
    let yes = 1i32;
    // SAFETY: the object lives; the library copies a value of this size.
    checked(unsafe {
        let (value, bytes) = ((&raw const yes).cast(), size_of_val(&yes));
        result::set_matmul_desc_attribute(handle, FIRST_TRANSPOSED, value, bytes)
    })?;
    Ok(description)
}

/// What an algorithm may use.
fn preference() -> Result<Owned<sys::cublasLtMatmulPreference_t>> {
    use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as MOST;
    let handle = checked(result::create_matmul_pref())?;
    let preference = Owned { handle, destroy: result::destroy_matmul_pref };
    let most = WORKSPACE_BYTES;
    // SAFETY: the object lives; the library copies a value of this size.
    checked(unsafe {
        let (value, bytes) = ((&raw const most).cast(), size_of_val(&most));
        result::set_matmul_pref_attribute(handle, MOST, value, bytes)
    })?;
    Ok(preference)
}
