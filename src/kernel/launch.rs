//! What a kernel is launched with, before there are addresses.

use bytemuck::Pod;

use super::{Export, Field, KERNELS, Kernel};
use crate::encoding::{Encoding, Float};
use crate::memory::{Activation, Slot, Weight};

/// One launch of a kernel.
#[derive(Debug, Clone)]
pub struct Launch {
    pub export: &'static Export,
    /// Blocks: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block: what the export was compiled for.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    pub arguments: Arguments,
    /// Blocks wait for each other: all of them must run at once.
    pub together: bool,
}

impl Launch {
    /// The kernel whose function it is of.
    pub fn kernel(&self) -> &'static Kernel {
        let has =
            |kernel: &&Kernel| kernel.exports.iter().any(|export| export.name == self.export.name);
        KERNELS.iter().find(has).expect("every export is a kernel's")
    }

    /// The whole numbers among the arguments, with their names.
    pub fn numbers(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        let fields = self.kernel().fields.iter().filter(|field| field.c_type == "uint32_t");
        fields.map(|field| {
            let bytes = &self.arguments.bytes()[field.offset..][..size_of::<u32>()];
            (field.name, bytemuck::pod_read_unaligned(bytes))
        })
    }

    /// Replaces the whole number of this name.
    ///
    /// # Panics
    /// When the kernel takes none of that name.
    pub fn set_number(&mut self, name: &str, value: u32) {
        let is_meant = |field: &&Field| field.name == name && field.c_type == "uint32_t";
        let field = self.kernel().fields.iter().find(is_meant).expect("the kernel takes it");
        self.arguments.scalar(field.offset, value);
    }
}

/// The bytes of a kernel's argument struct as C lays it out, but for the pointers, which are zeros
/// until an executor writes addresses into their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// Whole words, so that the struct is aligned.
    words: Box<[u64]>,
    bytes: usize,
    pointers: Vec<Pointer>,
    maps: Vec<(usize, TensorMap)>,
    trace: Option<usize>,
}

/// A pointer that is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Bytes from the start of the argument struct.
    pub offset: usize,
    pub region: RegionKind,
    /// Bytes from the start of the region.
    pub region_offset: usize,
    /// What the op says is there: those of the slot or the weight.
    pub bytes: usize,
}

/// The two regions of a rank's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    Weights,
    State,
}

/// A matrix of 16-bit numbers whose rows follow each other, as a GPU's TMA takes boxes of
/// it: 64 columns, and as many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap {
    pub dtype: Float,
    pub region: RegionKind,
    /// Bytes from the start of the region.
    pub region_offset: usize,
    pub rows: usize,
    pub cols: usize,
    pub box_rows: u32,
}

impl TensorMap {
    /// Columns of a box: 128 bytes, over which it is swizzled.
    pub const BOX_COLUMNS: u32 = 64;

    /// All rows of a weight.
    pub fn weight(weight: Weight, box_rows: u32) -> Self {
        let Weight { encoding: Encoding::Plain(dtype), offset: region_offset, rows, cols, .. } =
            weight
        else {
            unreachable!("kernels that read by TMA take plain weights")
        };
        Self { dtype, region: RegionKind::Weights, region_offset, rows, cols, box_rows }
    }

    /// Rows of `cols` numbers: all first terms, then all second ones.
    pub fn activation(x: Activation, cols: usize, box_rows: u32) -> Self {
        let (region, region_offset) = (RegionKind::State, x.bytes.offset());
        let rows = x.terms * x.len() / cols;
        Self { dtype: x.dtype, region, region_offset, rows, cols, box_rows }
    }

    /// Keys or values of a cache, `[B S, G D]`.
    pub fn cache(dtype: Float, bytes: Slot<u8>, cols: usize, box_rows: u32) -> Self {
        Self::activation(Activation { dtype, terms: 1, bytes }, cols, box_rows)
    }

    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.bytes()
    }
}

impl Arguments {
    /// Size of the struct, and its fields' values so far: zeros.
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self {
            words: vec![0; bytes.div_ceil(8)].into(),
            bytes,
            pointers: Vec::new(),
            maps: Vec::new(),
            trace: None,
        }
    }

    pub(super) fn weight(&mut self, offset: usize, weight: Weight) {
        let (region_offset, bytes) = (weight.offset, weight.bytes());
        self.pointers.push(Pointer { offset, region: RegionKind::Weights, region_offset, bytes });
    }

    pub(super) fn slot<T: Pod>(&mut self, offset: usize, slot: Slot<T>) {
        let (region_offset, bytes) = (slot.offset(), slot.bytes());
        self.pointers.push(Pointer { offset, region: RegionKind::State, region_offset, bytes });
    }

    pub(super) fn map(&mut self, offset: usize, map: TensorMap) {
        self.maps.push((offset, map));
    }

    pub(super) fn traced(&mut self, offset: usize) {
        self.trace = Some(offset);
    }

    pub(super) fn scalar<T: Pod>(&mut self, offset: usize, value: T) {
        let value = bytemuck::bytes_of(&value);
        self.bytes_mut()[offset..][..value.len()].copy_from_slice(value);
    }

    /// The struct. It begins at a multiple of 8.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    /// Where the pointers are.
    pub fn pointers(&self) -> &[Pointer] {
        &self.pointers
    }

    /// The matrices for TMA, each with its place in bytes from the start of the struct.
    pub fn maps(&self) -> &[(usize, TensorMap)] {
        &self.maps
    }

    /// Where the kernel finds, in bytes from the start of the struct, the address of a word and what to write
    /// there when it has begun.
    pub fn trace(&self) -> Option<usize> {
        self.trace
    }

    /// The struct with addresses in all places: `base` is where a region begins.
    pub fn resolve(mut self, base: impl Fn(RegionKind) -> u64) -> Self {
        for place in std::mem::take(&mut self.pointers) {
            self.scalar(place.offset, base(place.region) + place.region_offset as u64);
        }
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes]
    }
}
