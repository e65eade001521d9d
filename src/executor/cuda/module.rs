//! Machine code on the device, and its functions.

use std::ffi::CString;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Context, check, destroy};
use super::images::Image;
use super::libcuda;
use super::settings::Carveout;
use super::stream::Geometry;
use crate::error::{Error, Result};
use crate::kernel::{Field, Launch, PROGRAMMATIC};

/// Machine code on the device.
#[derive(Debug)]
pub struct Module {
    context: Arc<Context>,
    handle: sys::CUmodule,
    is_programmatic: bool,
}

// SAFETY: the driver's modules may be used from any thread.
unsafe impl Send for Module {}

/// A function of a module; it is gone with the module.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    pub(super) handle: sys::CUfunction,
    /// Whether its code waits, where it must, for the kernel before it: what was made for an older
    /// architecture does not.
    pub is_programmatic: bool,
    /// Threads of a block, where its author has said it, and not the op.
    pub threads: Option<u32>,
    /// What it takes one by one of an argument struct; none: the struct.
    pub apart: Option<&'static [Field]>,
}

// SAFETY: the driver's functions may be used from any thread.
unsafe impl Send for Function {}

impl Module {
    /// Loads a cubin, or PTX, which ends in a 0. The inner error: the driver takes no such image.
    ///
    /// # Errors
    /// What has failed, whatever the image.
    pub fn load(context: &Arc<Context>, image: &Image, doing: &str) -> Result<Result<Self>> {
        context.bind()?;
        let (bytes, mut handle) = (&image.bytes, ptr::null_mut());
        // What is embedded in the program lies at any address; the driver may read whole words.
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: an image says itself where it ends; the driver copies it and writes one handle.
        let result = unsafe { libcuda::cuModuleLoadData(&mut handle, words.as_ptr().cast()) };
        if libcuda::REFUSES_IMAGE.contains(&result) {
            return Ok(Err(check(doing, result).expect_err("it is no success")));
        }
        check(doing, result)?;
        let is_programmatic = image.arch >= PROGRAMMATIC;
        Ok(Ok(Self { context: context.clone(), handle, is_programmatic }))
    }

    /// The function called `name`, on the device when this returns: the driver may otherwise wait with that
    /// for its first launch, which then waits for whatever runs.
    pub fn function(&self, name: &str) -> Result<Function> {
        let doing = format!("kernel {name} cannot be loaded");
        let text = CString::new(name).map_err(|_| Error::failed(format!("{doing}: its name")))?;
        self.context.bind()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the module lives, the name ends in a 0, and the driver writes one handle.
        check(&doing, unsafe {
            libcuda::cuModuleGetFunction(&mut handle, self.handle, text.as_ptr())
        })?;
        // SAFETY: the function is of the module, which lives.
        check(&doing, unsafe { libcuda::cuFuncLoad(handle) })?;
        let is_programmatic = self.is_programmatic;
        Ok(Function { handle, is_programmatic, threads: None, apart: None })
    }
}

impl Module {
    /// A variable that it has, `__device__` or `__constant__`: its address and bytes; none of this name.
    pub fn variable(&self, name: &str) -> Result<Option<(u64, usize)>> {
        let Ok(text) = CString::new(name) else { return Ok(None) };
        self.context.bind()?;
        let (mut address, mut bytes) = (0, 0);
        // SAFETY: the module lives, the name ends in a 0, and the driver writes an address and a size.
        let result = unsafe {
            libcuda::cuModuleGetGlobal_v2(&mut address, &mut bytes, self.handle, text.as_ptr())
        };
        match result {
            libcuda::NOT_FOUND => Ok(None),
            _ => check(&format!("cannot find {name}"), result).map(|()| Some((address, bytes))),
        }
    }
}

impl Function {
    /// Its parameters' bytes in an argument struct: from where each begins.
    pub fn arguments<'a>(&self, fields: &'a [u8]) -> Vec<&'a [u8]> {
        match self.apart {
            Some(apart) => apart.iter().map(|field| &fields[field.offset..]).collect(),
            None => vec![fields],
        }
    }

    /// What it is launched with for an op.
    pub fn geometry(&self, launch: &Launch) -> Geometry {
        let Launch { grid, block, shared_bytes, .. } = *launch;
        Geometry { grid, block: [self.threads.unwrap_or(block), 1, 1], shared_bytes }
    }

    /// Bytes of its parameters; none where the driver does not say.
    pub fn parameter_bytes(&self) -> Option<Vec<usize>> {
        let mut all = Vec::new();
        loop {
            let (mut offset, mut bytes) = (0, 0);
            // SAFETY: whoever has the function keeps its module; the driver writes two sizes.
            match unsafe {
                libcuda::cuFuncGetParamInfo(self.handle, all.len(), &mut offset, &mut bytes)
            } {
                libcuda::SUCCESS => all.push(bytes),
                libcuda::NOT_FOUND => return None,
                _ => return Some(all),
            }
        }
    }

    /// Allows launches with this much dynamic shared memory. Without, 48 KiB would be allowed, less what
    /// the function has of its own.
    pub fn allow_shared(&self, bytes: u32, name: &str) -> Result<()> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as which;
        let doing = format!("kernel {name} cannot have {bytes} bytes of shared memory");
        self.set(which, bytes as i32, &doing)
    }

    /// Asks for so much shared memory in a multiprocessor. A kernel finds room beside one that ends only
    /// where both ask for the same: the split of the L1 cache and shared memory is changed when nothing runs
    /// there.
    pub fn split_off(&self, carveout: Carveout, name: &str) -> Result<()> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as which;
        let share = match carveout {
            Carveout::Most => sys::CUshared_carveout::CU_SHAREDMEM_CARVEOUT_MAX_SHARED,
            Carveout::Driver => sys::CUshared_carveout::CU_SHAREDMEM_CARVEOUT_DEFAULT,
            Carveout::Least => sys::CUshared_carveout::CU_SHAREDMEM_CARVEOUT_MAX_L1,
        };
        self.set(which, share as i32, &format!("kernel {name} cannot ask for shared memory"))
    }

    /// Blocks of this size that a multiprocessor runs at once (resident blocks).
    pub fn blocks_at_once(&self, threads: u32, shared_bytes: u32, name: &str) -> Result<u32> {
        let (threads, shared_bytes) = (threads as i32, shared_bytes as usize);
        let mut blocks = 0;
        // SAFETY: whoever has the function keeps its module; the driver writes one number.
        let result = unsafe {
            libcuda::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.handle,
                threads,
                shared_bytes,
            )
        };
        check(&format!("cannot ask how many blocks of kernel {name} run at once"), result)?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    fn set(&self, which: sys::CUfunction_attribute, value: i32, doing: &str) -> Result<()> {
        // SAFETY: whoever has the function keeps its module.
        check(doing, unsafe { libcuda::cuFuncSetAttribute(self.handle, which, value) })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded in `load`, unloaded once, with its functions' only user.
        destroy(&self.context, || unsafe { libcuda::cuModuleUnload(self.handle) });
    }
}
