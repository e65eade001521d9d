//! Where a rank's numbers live: slots are laid out before anything is allocated.
//!
//! A [`Slot`] is a place in the *state* region (activations, KV cache, positions), a [`Weight`] one in
//! the *weight* region. Neither is a pointer: the same program runs wherever the two regions are. On
//! the CPU the weight region is the mapped checkpoint itself, its files laid end to end.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;
use memmap2::{MmapMut, MmapOptions};

use crate::checkpoint::Checkpoint;
use crate::comm::Communicator;
use crate::encoding::{Encoding, Float};
use crate::error::{Error, Result};

/// Slots start at multiples of this many bytes: four 64-byte cache lines, two 128-byte GPU sectors.
const SLOT_ALIGNMENT: usize = 256;

/// `len` elements of type `T` at a byte offset of the state region.
#[derive(Debug)]
pub struct Slot<T> {
    offset: usize,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T: Pod> Slot<T> {
    /// Number of elements.
    pub fn len(self) -> usize {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    pub fn bytes(self) -> usize {
        self.len * size_of::<T>()
    }

    /// Bytes from the start of the state region.
    pub fn offset(self) -> usize {
        self.offset
    }

    /// The same bytes, as elements of another type.
    pub fn cast<U: Pod>(self) -> Slot<U> {
        assert!(self.bytes().is_multiple_of(size_of::<U>()));
        Slot { offset: self.offset, len: self.bytes() / size_of::<U>(), element: PhantomData }
    }

    /// `len` elements of this slot, from element `start` on.
    pub fn part(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "a part of {start}+{len} of a slot of {}", self.len);
        Self { offset: self.offset + start * size_of::<T>(), len, element: PhantomData }
    }

    fn range(self) -> Range<usize> {
        self.offset..self.offset + self.bytes()
    }
}

/// Activations in a type that the executor chooses: f32 on the CPU, on a GPU the 16-bit one that its
/// matrix units take. Each may be the sum of two terms, of which the second is what rounding took
/// away from the first.
#[derive(Debug, Clone, Copy)]
pub struct Activation {
    pub dtype: Float,
    /// 1 or 2.
    pub terms: usize,
    /// All first terms, then all second ones.
    pub bytes: Slot<u8>,
}

impl Activation {
    /// Number of activations.
    pub fn len(self) -> usize {
        self.bytes.len() / (self.terms * self.dtype.bytes())
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Room for the first `len` activations; their second terms follow them at once.
    pub fn first(self, len: usize) -> Self {
        Self { bytes: self.bytes.part(0, len * self.terms * self.dtype.bytes()), ..self }
    }

    /// The same activations, less precise: without second terms.
    pub fn rounded(self) -> Self {
        Self { bytes: self.bytes.part(0, self.bytes.len() / self.terms), terms: 1, ..self }
    }
}

/// Hands out slots one after the other. Sizes saturate: a plan that overflows is one that does not
/// fit, which whoever compares it with the memory at hand will say.
#[derive(Debug, Default)]
pub struct Layout {
    bytes: usize,
    shared_from: Option<usize>,
    scratch_bytes: usize,
}

impl Layout {
    /// A new slot of `shape`, slowest dimension first.
    pub fn slot<T: Pod>(&mut self, shape: &[usize]) -> Slot<T> {
        let len = shape.iter().fold(1usize, |product, size| product.saturating_mul(*size));
        let offset = self.bytes;
        let end = offset.saturating_add(len.saturating_mul(size_of::<T>()));
        self.bytes = end.saturating_add(SLOT_ALIGNMENT - 1) / SLOT_ALIGNMENT * SLOT_ALIGNMENT;
        Slot { offset, len, element: PhantomData }
    }

    /// A new slot for `shape` activations of `terms` terms of `dtype`.
    pub fn activation(&mut self, dtype: Float, terms: usize, shape: &[usize]) -> Activation {
        let shape = [shape, &[terms, dtype.bytes()]].concat();
        Activation { dtype, terms, bytes: self.slot(&shape) }
    }

    /// All that one side has to itself, gaps included.
    pub fn whole(&self) -> Slot<u8> {
        Slot { offset: 0, len: self.own_bytes(), element: PhantomData }
    }

    /// Slots from here on are seen by the host and the device at once: in pinned host memory
    /// where the region lies on a GPU.
    pub fn begin_shared(&mut self) {
        self.shared_from = Some(self.bytes);
    }

    /// Sees to it that an op on the CPU has at least `bytes` to work in. One op runs at a time, and leaves
    /// nothing there for others.
    pub fn scratch(&mut self, bytes: usize) {
        self.scratch_bytes = self.scratch_bytes.max(bytes);
    }

    /// Beside the region, on the CPU alone.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_bytes
    }

    /// Bytes of the region so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that one side has to itself; what follows up to [`Self::bytes`] is shared.
    pub fn own_bytes(&self) -> usize {
        self.shared_from.unwrap_or(self.bytes)
    }
}

/// A weight tensor `[rows, cols]` in the weight region; a vector has one row. It may be a part of the
/// tensor in the checkpoint: some of its rows, or some columns of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    pub encoding: Encoding,
    /// Bytes from the start of the weight region.
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    /// Columns from the start of a row to that of the next: `cols`, or more where others lie between.
    pub stride: usize,
}

impl Weight {
    /// A tensor whose rows follow each other.
    pub fn whole(encoding: Encoding, offset: usize, rows: usize, cols: usize) -> Self {
        Self { encoding, offset, rows, cols, stride: cols }
    }

    /// Bytes of its elements.
    pub fn bytes(self) -> usize {
        self.rows * self.encoding.row_bytes(self.cols)
    }

    /// Bytes from the start of a row to that of the next.
    pub fn stride_bytes(self) -> usize {
        self.encoding.row_bytes(self.stride)
    }

    /// Bytes from its first element to its last, with what lies between its rows.
    pub fn span_bytes(self) -> usize {
        match self.rows {
            0 => 0,
            rows => (rows - 1) * self.stride_bytes() + self.encoding.row_bytes(self.cols),
        }
    }

    /// Where it lies in the weight region, from its first element to its last.
    pub fn span(self, region: &Checkpoint) -> &[u8] {
        region.bytes(self.offset, self.span_bytes())
    }
}

/// The two regions as an op's reference sees them, and the way to other ranks'.
pub struct Memory<'a> {
    pub weights: &'a Checkpoint,
    pub state: &'a mut StateRegion,
    pub comm: &'a dyn Communicator,
}

impl<'a> Memory<'a> {
    /// The views of several slots at once, each as a mutable slice.
    ///
    /// # Panics
    /// When two of the slots overlap: an op never reads what it writes through another name.
    pub fn slots<S: Slots>(&mut self, slots: S) -> S::Views<'_> {
        slots.views(self.state.as_bytes_mut())
    }

    /// The state region, and what the op's reference has to work in (the `scratch` of `Op`).
    pub fn region_and_scratch(&mut self) -> (StateView<'_>, Scratch<'_>) {
        let StateRegion { bytes, scratch } = &mut *self.state;
        (StateView(bytes), Scratch { bytes: scratch })
    }
}

/// The state region alone.
pub struct StateView<'a>(&'a mut [u8]);

impl StateView<'_> {
    /// As [`Memory::slots`].
    ///
    /// # Panics
    /// When two of the slots overlap.
    pub fn slots<S: Slots>(&mut self, slots: S) -> S::Views<'_> {
        slots.views(self.0)
    }
}

/// Memory that an op takes for itself, piece by piece. It holds what others have left there.
pub struct Scratch<'a> {
    bytes: &'a mut [u8],
}

impl<'a> Scratch<'a> {
    /// Bytes that [`Self::take`] uses up for `len` elements: whole cache lines.
    pub const fn bytes_of<T>(len: usize) -> usize {
        const LINE: usize = 64;
        len.saturating_mul(size_of::<T>()).saturating_add(LINE - 1) / LINE * LINE
    }

    /// # Panics
    /// When the op has planned for less.
    pub fn take<T: Pod>(&mut self, len: usize) -> &'a mut [T] {
        let bytes = std::mem::take(&mut self.bytes);
        assert!(
            Self::bytes_of::<T>(len) <= bytes.len(),
            "an op takes more than it has planned for"
        );
        let (taken, rest) = bytes.split_at_mut(Self::bytes_of::<T>(len));
        self.bytes = rest;
        bytemuck::cast_slice_mut(&mut taken[..len * size_of::<T>()])
    }

    /// The same memory for one of several parts of the op's work, which follow each other.
    pub fn lend(&mut self) -> Scratch<'_> {
        Scratch { bytes: self.bytes }
    }

    /// Bytes that are left.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Slots that can be borrowed together.
pub trait Slots {
    type Views<'m>;
    fn views(self, state: &mut [u8]) -> Self::Views<'_>;
}

macro_rules! impl_slots {
    ($($slot:ident $element:ident),+) => {
        impl<$($element: Pod),+> Slots for ($(Slot<$element>,)+) {
            type Views<'m> = ($(&'m mut [$element],)+);

            fn views(self, state: &mut [u8]) -> Self::Views<'_> {
                let ($($slot,)+) = self;
                let [$($slot),+] = disjoint(state, [$($slot.range()),+]);
                ($(bytemuck::cast_slice_mut($slot),)+)
            }
        }
    };
}

impl<T: Pod, const N: usize> Slots for [Slot<T>; N] {
    type Views<'m> = [&'m mut [T]; N];

    fn views(self, state: &mut [u8]) -> Self::Views<'_> {
        disjoint(state, self.map(Slot::range)).map(bytemuck::cast_slice_mut)
    }
}

fn disjoint<const N: usize>(state: &mut [u8], ranges: [Range<usize>; N]) -> [&mut [u8]; N] {
    state.get_disjoint_mut(ranges).expect("the slots of one op are disjoint and inside the region")
}

impl_slots!(a A);
impl_slots!(a A, b B);
impl_slots!(a A, b B, c C);
impl_slots!(a A, b B, c C, d D);
impl_slots!(a A, b B, c C, d D, e E);
impl_slots!(a A, b B, c C, d D, e E, f F);
impl_slots!(a A, b B, c C, d D, e E, f F, g G);
impl_slots!(a A, b B, c C, d D, e E, f F, g G, h H);
impl_slots!(a A, b B, c C, d D, e E, f F, g G, h H, i I);

/// The state region in host memory, zeroed, and what ops on the CPU work in: pages of the system's, so
/// aligned for every element type and vector load.
pub struct StateRegion {
    bytes: MmapMut,
    scratch: MmapMut,
}

impl StateRegion {
    /// Maps what `layout` asks for. A page that is never touched costs nothing.
    ///
    /// # Errors
    /// When the system refuses that much memory.
    pub fn allocate(layout: &Layout) -> Result<Self> {
        let map = |bytes: usize| {
            MmapOptions::new().len(bytes.max(1)).map_anon().map_err(|error| {
                Error::failed(format!(
                    "cannot allocate {bytes} bytes for the KV cache and activations ({error}); try a \
                     smaller `context`"
                ))
            })
        };
        Ok(Self { bytes: map(layout.bytes())?, scratch: map(layout.scratch_bytes())? })
    }

    /// The elements of `slot`.
    pub fn read<T: Pod>(&self, slot: Slot<T>) -> &[T] {
        bytemuck::cast_slice(&self.bytes[slot.range()])
    }

    /// The elements of `slot`, to be changed in place.
    pub fn read_mut<T: Pod>(&mut self, slot: Slot<T>) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.as_bytes_mut()[slot.range()])
    }

    /// Replaces the first elements of `slot`.
    pub fn write<T: Pod>(&mut self, slot: Slot<T>, values: &[T]) {
        self.read_mut(slot.part(0, values.len())).copy_from_slice(values);
    }

    fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_disjoint_and_typed() {
        let mut layout = Layout::default();
        let ids = layout.slot::<u32>(&[3]);
        let x = layout.slot::<f32>(&[2, 5]);
        assert_eq!((x.len(), x.bytes(), x.offset % SLOT_ALIGNMENT), (10, 40, 0));
        assert_eq!(layout.bytes(), 2 * SLOT_ALIGNMENT);
        let mut state = StateRegion::allocate(&layout).unwrap();
        state.write(ids, &[7, 8]);
        state.write(x.part(5, 5), &[1.5; 5]);
        assert_eq!(state.read(ids), [7, 8, 0]);
        assert_eq!(state.read(x)[4..6], [0.0, 1.5]);
    }

    #[test]
    fn a_plan_that_overflows_saturates() {
        let mut layout = Layout::default();
        layout.slot::<f32>(&[usize::MAX, 4]);
        layout.slot::<f32>(&[1]);
        assert!(layout.bytes() > usize::MAX - SLOT_ALIGNMENT);
        assert!(StateRegion::allocate(&layout).is_err());
    }

    #[test]
    #[should_panic(expected = "disjoint")]
    fn overlapping_slots_cannot_be_borrowed_together() {
        let mut layout = Layout::default();
        let x = layout.slot::<f32>(&[8]);
        let mut state = StateRegion::allocate(&layout).unwrap();
        (x.part(0, 5), x.part(4, 4)).views(state.as_bytes_mut());
    }
}
