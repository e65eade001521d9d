//! Which kernels a GPU runs, where several mean the same.

use std::ops::BitAnd;

use super::{KERNELS, Kernel};

/// Kernels for all architectures, and some of those that are made for a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelSet {
    /// A bit for each of [`KERNELS`]; of those for all architectures it means nothing.
    special: u64,
}

impl KernelSet {
    /// Those for all architectures alone.
    pub const PORTABLE: Self = Self { special: 0 };
    pub const ALL: Self = Self { special: u64::MAX };

    /// All that a GPU of this compute capability runs.
    pub fn of(capability: (u32, u32)) -> Self {
        let others = KERNELS.iter().filter(|kernel| !kernel.suits(capability));
        others.fold(Self::ALL, |set, kernel| set.without(kernel))
    }

    pub fn contains(self, kernel: &Kernel) -> bool {
        kernel.archs.is_empty() || self.special & bit(kernel) != 0
    }

    /// The others; the portable ones stay.
    pub fn without(self, kernel: &Kernel) -> Self {
        Self { special: self.special & !bit(kernel) }
    }
}

impl BitAnd for KernelSet {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self { special: self.special & other.special }
    }
}

fn bit(kernel: &Kernel) -> u64 {
    let place = KERNELS.iter().position(|known| known.name == kernel.name);
    1 << place.expect("it is one of them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Matmul, MatmulHopper};

    #[test]
    fn portable_kernels_are_in_every_set() {
        let (portable, special) = (Matmul::KERNEL, MatmulHopper::KERNEL);
        let (hopper, ampere) = (KernelSet::of((9, 0)), KernelSet::of((8, 0)));
        for set in [KernelSet::PORTABLE, ampere, hopper, hopper.without(portable)] {
            assert!(set.contains(portable));
        }
        assert!(hopper.contains(special) && !ampere.contains(special));
        assert!(!hopper.without(special).contains(special));
        assert!(!(hopper & ampere).contains(special) && (hopper & hopper).contains(special));
        assert!(!KernelSet::PORTABLE.contains(special));
        assert!(KERNELS.len() <= 64);
    }
}
