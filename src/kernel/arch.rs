//! The GPU architectures that kernels are compiled for, and how much of one a kernel fills.

/// One architecture, and what one of its multiprocessors has (CUDA C++ Programming Guide, technical
/// specifications by compute capability).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arch {
    /// As compilers name it. `a`: with the instructions that no other architecture has.
    pub name: &'static str,
    /// Compute capability.
    pub major: u32,
    pub minor: u32,
    pub threads: u32,
    pub blocks: u32,
    pub shared_bytes: u32,
}

const KIB: u32 = 1024;

/// Oldest first. Whatever is none of them takes the newest PTX that it can.
pub const ARCHS: [Arch; 6] = [
    arch("sm_80", 8, 0, 2048, 32, 164 * KIB),
    arch("sm_86", 8, 6, 1536, 16, 100 * KIB),
    arch("sm_89", 8, 9, 1536, 24, 100 * KIB),
    arch("sm_90a", 9, 0, 2048, 32, 228 * KIB),
    arch("sm_100a", 10, 0, 2048, 32, 228 * KIB),
    arch("sm_120a", 12, 0, 1536, 24, 100 * KIB),
];

const fn arch(
    name: &'static str,
    major: u32,
    minor: u32,
    threads: u32,
    blocks: u32,
    shared_bytes: u32,
) -> Arch {
    Arch { name, major, minor, threads, blocks, shared_bytes }
}

/// The first architecture that lets a kernel begin before the one before has ended, and has it wait.
pub const PROGRAMMATIC: u32 = 90;

/// Those, of the architectures of a build, whose PTX is built in: all that kernels can begin early on, or
/// else the newest.
pub fn ptx_archs(archs: &[&'static Arch]) -> Vec<&'static Arch> {
    let newer = archs.iter().position(|arch| arch.number() >= PROGRAMMATIC);
    archs[newer.unwrap_or(archs.len().saturating_sub(1))..].to_vec()
}

/// 32-bit registers of a multiprocessor.
const REGISTERS: u32 = 65536;
/// A warp gets registers in such pieces, from one of the four parts of a multiprocessor.
const REGISTER_PIECE: u32 = 256;
const PARTS: u32 = 4;
/// A block gets shared memory in such pieces, and the system takes some for itself.
const SHARED_PIECE: u32 = 128;
const SHARED_SYSTEM: u32 = KIB;

impl Arch {
    /// `sm_90a`, or `90a`.
    pub fn find(name: &str) -> Option<&'static Self> {
        ARCHS.iter().find(|arch| arch.name == name || arch.name.strip_prefix("sm_") == Some(name))
    }

    /// As NVRTC numbers it: 90.
    pub fn number(&self) -> u32 {
        10 * self.major + self.minor
    }

    /// The virtual architecture whose PTX newer GPUs can compile for themselves: `compute_90`.
    pub fn virtual_name(&self) -> String {
        format!("compute_{}", self.number())
    }

    /// Whether a GPU of this compute capability runs its code: the same, or without `a` a later one
    /// of the same generation.
    pub fn runs_on(&self, major: u32, minor: u32) -> bool {
        let specific = self.name.ends_with('a');
        self.major == major && (self.minor == minor || !specific && self.minor < minor)
    }

    /// Blocks of `threads` that a multiprocessor holds at once, by what each of them takes (the rules
    /// of NVIDIA's occupancy calculator). `registers`: of a thread; `shared_bytes`: static and
    /// dynamic, of a block.
    pub fn resident_blocks(&self, registers: u32, shared_bytes: u32, threads: u32) -> u32 {
        let warps = threads.div_ceil(32).max(1);
        let warp_registers = (registers.max(1) * 32).next_multiple_of(REGISTER_PIECE);
        let by_registers = REGISTERS / PARTS / warp_registers * PARTS / warps;
        let shared = (shared_bytes + SHARED_SYSTEM).next_multiple_of(SHARED_PIECE);
        let by_shared = self.shared_bytes / shared;
        self.blocks.min(self.threads / (32 * warps)).min(by_registers).min(by_shared)
    }

    /// The part of a multiprocessor's threads that are there at once, from 0 to 1.
    pub fn occupancy(&self, registers: u32, shared_bytes: u32, threads: u32) -> f64 {
        let resident = self.resident_blocks(registers, shared_bytes, threads) * threads;
        f64::from(resident) / f64::from(self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_is_that_of_the_occupancy_calculator() {
        let [a100, a10, .., b100, rtx50] = ARCHS;
        assert_eq!(a100.resident_blocks(32, 0, 256), 8); // threads
        assert_eq!(a100.resident_blocks(64, 0, 256), 4); // registers
        assert_eq!(a100.resident_blocks(65, 0, 256), 3); // 72 registers: 28 warps
        assert_eq!(a100.resident_blocks(228, 48 * KIB, 128), 2);
        assert_eq!(a100.resident_blocks(16, 48 * KIB, 32), 3); // shared memory
        assert_eq!(a10.resident_blocks(16, 0, 32), 16); // blocks
        assert_eq!(a10.resident_blocks(16, 100 * KIB, 32), 0);
        assert_eq!(b100.occupancy(32, 0, 1024), 1.0);
        assert_eq!(rtx50.occupancy(32, 0, 1024), 1024.0 / 1536.0);
    }

    #[test]
    fn ptx_is_for_programmatic_launch_where_it_can() {
        let archs = |names: &[&str]| -> Vec<_> {
            names.iter().map(|name| Arch::find(name).unwrap()).collect()
        };
        let newer = archs(&["sm_90a", "sm_100a"]);
        assert_eq!(ptx_archs(&archs(&["sm_80", "sm_90a", "sm_100a"])), newer);
        assert_eq!(ptx_archs(&archs(&["sm_80", "sm_89"])), archs(&["sm_89"]));
        assert!(ptx_archs(&[]).is_empty());
    }

    #[test]
    fn code_runs_on_its_own_generation_only() {
        let runs = |name: &str, major, minor| Arch::find(name).unwrap().runs_on(major, minor);
        assert!(runs("sm_80", 8, 0) && runs("80", 8, 7) && runs("sm_86", 8, 9));
        assert!(!runs("sm_86", 8, 0) && !runs("sm_80", 9, 0));
        assert!(runs("sm_90a", 9, 0) && runs("sm_100a", 10, 0) && !runs("sm_100a", 10, 3));
        assert_eq!(Arch::find("sm_75"), None);
        assert_eq!(Arch::find("sm_120a").unwrap().virtual_name(), "compute_120");
    }
}
