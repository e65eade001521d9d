//! The arithmetic under every CPU op: products, attention and exponentials over numbers of any type, with
//! f32 accumulation.
//!
//! **Same bits everywhere.** A dot product keeps [`LANES`] partial sums, each advanced by fused
//! multiply-adds in index order, and adds them up in a fixed tree, slice by slice ([`sums`]). Neither the
//! number of threads, nor how many rows or tokens are computed together, nor the vector width of the
//! machine changes a bit of it. Attention cuts the cache at fixed positions ([`attention`]). `pulp` picks the
//! widest instruction set at run time; the tests hold each one to plain loops (`oracle`).

mod attention;
mod blocks;
mod e4m3;
mod element;
mod exp;
#[cfg(test)]
mod oracle;
mod pairs;
mod peak;
mod product;
mod steps;
mod sums;
#[cfg(test)]
mod tests;

use std::sync::{LazyLock, OnceLock};

pub use attention::{Attention, attention_scratch};
pub use blocks::dequantise;
pub use e4m3::scale_e4m3;
pub use element::{Element, fill, wide_scratch, widened, widened_in};
pub use exp::exp;
pub use peak::multiply_adds;
pub use product::{Inputs, Rows, add, matmul, matmul_scratch, set};
pub use pulp::{Arch, Simd, WithSimd};
pub use sums::dot;

use crate::error::{Error, Result};

/// Partial sums of one dot product: one AVX-512 register, two of AVX2, four of NEON.
pub const LANES: usize = 16;

/// All of them.
pub type Lanes = [f32; LANES];

/// An instruction set of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set {
    arch: Arch,
    /// For products of pairs, where it is there.
    native: Option<pairs::Native>,
}

static CHOSEN: OnceLock<Set> = OnceLock::new();
static SET: LazyLock<Set> = LazyLock::new(|| {
    let widest = || sets().next().expect("the baseline at least");
    CHOSEN.get().copied().unwrap_or_else(widest)
});

/// For tests: has this process use a lesser instruction set, before it has used any.
///
/// # Errors
/// One that this machine does not have.
pub fn choose_instruction_set(name: &str) -> Result<()> {
    let set = sets().find(|set| set.name() == name);
    let set =
        set.ok_or_else(|| Error::usage(format!("no instruction set {name} on this machine")))?;
    // It is the same for all of the process: the first choice stands.
    let _ = CHOSEN.set(set);
    Ok(())
}

/// The instruction sets that this machine can run, the widest first.
fn sets() -> impl Iterator<Item = Set> {
    let best = Arch::new();
    let native = pairs::Native::try_new().map(|native| Set { arch: best, native: Some(native) });
    let others = [
        Some(best),
        #[cfg(target_arch = "x86_64")]
        pulp::x86::V3::try_new().map(Arch::V3),
        Some(Arch::Scalar),
    ];
    native.into_iter().chain(others.into_iter().flatten().map(|arch| Set { arch, native: None }))
}

impl Set {
    fn name(self) -> &'static str {
        match self.arch {
            #[cfg(target_arch = "x86_64")]
            Arch::V4(_) if self.native.is_some() => "AVX-512 BF16",
            #[cfg(target_arch = "x86_64")]
            Arch::V4(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Arch::V3(_) => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Arch::Neon(_) => "NEON",
            _ => "baseline",
        }
    }

    fn dispatch_pairs<W: pairs::WithPairs>(self, work: W) -> W::Output {
        pairs::dispatch(self.arch, self.native, work)
    }
}

/// Runs `work` compiled for the widest instruction set of this machine. Its `with_simd` and all that
/// it calls must be `#[inline(always)]`, or they are compiled for the baseline.
pub fn simd<Work: WithSimd>(work: Work) -> Work::Output {
    SET.arch.dispatch(work)
}

/// The name of that instruction set.
pub fn instruction_set() -> &'static str {
    SET.name()
}

/// The threads that this machine runs at once.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The instruction set `T`, if it is what this is compiled for.
#[inline(always)]
fn token<S: Simd, T: Copy + 'static>(simd: S) -> Option<T> {
    (&simd as &dyn std::any::Any).downcast_ref().copied()
}
