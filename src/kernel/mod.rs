//! The CUDA kernels as plain data: source, machine code, arguments, launches.
//!
//! `build.rs` reads `kernels/*.cu` and generates [`KERNELS`] and one struct of arguments a kernel, so
//! that a parameter changed in the kernel alone does not compile here:
//!
//! ```
//! use chaski::kernel::Embed;
//! # use chaski::memory::{Slot, Weight};
//! fn arguments(ids: Slot<u32>, table: Weight, x: Slot<f32>) -> Embed {
//!     Embed { ids, table, x, tokens: 1, width: table.cols as u32, first_id: 0, rows: 9 }
//! }
//! ```
//! ```compile_fail,E0063
//! use chaski::kernel::Embed;
//! # use chaski::memory::{Slot, Weight};
//! fn arguments(ids: Slot<u32>, table: Weight, x: Slot<f32>) -> Embed {
//!     Embed { ids, table, x, tokens: 1, first_id: 0, rows: 9 } // missing field `width`
//! }
//! ```
//!
//! Nothing here knows a device: an executor turns [`Pointer`]s into addresses and [`Launch`]es into calls.

mod arch;
mod c_headers;
pub mod compile;
mod cuda_file;
mod launch;
pub mod nvrtc;
mod paths;
mod preprocessed;
pub mod private;
mod replacement;
mod set;
pub mod signature;
mod source;

pub use arch::{ARCHS, Arch, PROGRAMMATIC};
pub use compile::{Resources, resources_of};
pub use cuda_file::{CudaFile, Declared, Parameter};
pub use launch::{Arguments, Launch, Pointer, RegionKind, TensorMap};
pub use paths::Paths;
pub use replacement::{ReplacedExport, Replacement};
pub use set::KernelSet;
pub use source::{KernelSource, find_nvrtc};

use crate::encoding::{self, Encoding, Float};
use crate::memory::{Slot, Weight};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// One file of `kernels/`.
#[derive(Debug)]
pub struct Kernel {
    /// Of the file, and of the op.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// How and why so: the rest of the header comment.
    pub description: &'static str,
    pub source: &'static str,
    /// The headers that it includes, directly or not.
    pub headers: &'static [Header],
    /// Of the source and the headers: what evidence about a kernel refers to.
    pub source_hash: &'static str,
    /// The architectures that it is made for; none: all.
    pub archs: &'static [&'static str],
    /// Name of the struct that is its argument.
    pub arguments: &'static str,
    /// Size of that struct.
    pub argument_bytes: usize,
    pub fields: &'static [Field],
    pub exports: &'static [Export],
    /// Oldest architecture first; none where there was no NVRTC at build time.
    pub builds: &'static [Build],
    /// For GPUs that none of the builds is for. Oldest architecture first.
    pub ptx: &'static [Ptx],
}

/// A header of `kernels/lib`.
#[derive(Debug)]
pub struct Header {
    /// As it is included: `lib/ptx.cuh`.
    pub name: &'static str,
    pub text: &'static str,
}

/// One field of an argument struct.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    /// As the kernel writes it: `const float*`.
    pub c_type: &'static str,
    /// As the generated struct has it: `Slot<f32>`.
    pub rust_type: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Whether the kernel writes what it points at.
    pub written: bool,
    /// Shape first, where it is a pointer.
    pub comment: &'static str,
}

/// One function of a kernel.
#[derive(Debug)]
pub struct Export {
    pub name: &'static str,
    /// The encoding of weights that it is made for; none: any.
    pub weights: Option<Encoding>,
    /// The width of head that it is made for; none: any.
    pub head_dim: Option<usize>,
    /// Threads of a block.
    pub threads: u32,
}

/// What drivers compile for GPUs of one architecture and all that are newer.
#[derive(Debug)]
pub struct Ptx {
    pub arch: &'static Arch,
    pub text: &'static str,
}

/// Machine code for one architecture.
#[derive(Debug)]
pub struct Build {
    pub arch: &'static Arch,
    pub cubin: &'static [u8],
    /// In the order of the exports.
    pub resources: &'static [Resources<&'static str>],
}

impl Kernel {
    /// The kernel of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name)
    }

    /// The function for these weights and this width of head.
    pub fn export(&self, weights: Encoding, head_dim: usize) -> Option<&'static Export> {
        self.exports.iter().find(|export| {
            export.weights.is_none_or(|made_for| made_for == weights)
                && export.head_dim.is_none_or(|made_for| made_for == head_dim)
        })
    }

    /// Whether it is made for GPUs of this compute capability.
    pub fn suits(&self, (major, minor): (u32, u32)) -> bool {
        let runs = |name: &&str| Arch::find(name).is_some_and(|arch| arch.runs_on(major, minor));
        self.archs.is_empty() || self.archs.iter().any(runs)
    }

    /// The architectures of machine code and of PTX that a build for these has of it.
    pub fn forms_of_build(&self, archs: &[&'static Arch]) -> [Vec<&'static Arch>; 2] {
        if self.archs.is_empty() {
            return [archs.to_vec(), arch::ptx_archs(archs)];
        }
        let own = |arch: &&&Arch| self.archs.contains(&arch.name);
        [archs.iter().filter(own).copied().collect(), Vec::new()]
    }

    /// The machine code for a GPU of this compute capability: the latest that it runs.
    pub fn build(&self, major: u32, minor: u32) -> Option<&'static Build> {
        self.builds.iter().rev().find(|build| build.arch.runs_on(major, minor))
    }
}
