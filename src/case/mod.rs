//! What an op is tested and measured with: its sizes, what its memory holds before it runs, and how
//! what it leaves there is judged.
//!
//! Every op's file lists its cases (`ops::CASES`). A list costs nothing: contents are made
//! when they are asked for. Before and after each slot and each weight lies a canary, and whatever is
//! not given holds it too: a NaN in every type of float, and no index of anything.

mod content;
mod setup;

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use crate::encoding::{Encoding, Float};
use crate::memory::{Layout, Slot, Weight};
use crate::op::{Cost, Op, Program};
use content::write;
pub use content::{Content, NUMBERS, Numbers};
pub use setup::{CachePlace, Setup};

/// The types of plain weights that there are kernels for, and of the activations that these multiply.
pub const HALF: [Float; 2] = [Float::Bf16, Float::F16];

/// Two bytes of memory that nothing may be read from or written to.
pub const CANARY: u16 = 0x7fa5;

/// Bytes of canary on either side of a slot or a weight.
const GUARD_BYTES: usize = 1024;

/// When what the op left in a place is right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judge {
    /// Bit for bit what the reference left; one NaN is as good as another.
    Exact,
    /// Squared errors add up to no more than `nmse` of the squared results, no number is off by
    /// much more than the others, and what is NaN or infinite is so in both.
    Close { nmse: f64 },
    /// It does not matter.
    Any,
}

/// Limits of [`Judge::Close`]: arithmetic in f32, stored as f32.
pub const F32_NMSE: f64 = 1e-9;
/// Arithmetic in f32, stored in 16 bits: few of the roundings differ.
pub const HALF_NMSE: f64 = 1e-6;
/// Factors rounded to 16 bits on the way.
pub const MATRIX_NMSE: f64 = 1e-5;

/// The type of a place's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotElement {
    Float(Float),
    U32,
    U64,
}

impl SlotElement {
    pub fn bytes(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.bytes(),
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }
}

/// The types of typed slots.
pub trait SlotType: Pod {
    const ELEMENT: SlotElement;
}

impl SlotType for f32 {
    const ELEMENT: SlotElement = SlotElement::Float(Float::F32);
}

impl SlotType for u32 {
    const ELEMENT: SlotElement = SlotElement::U32;
}

impl SlotType for u64 {
    const ELEMENT: SlotElement = SlotElement::U64;
}

/// A slot of a case.
pub struct CaseSlot {
    /// As the op's field is called.
    pub name: &'static str,
    pub element: SlotElement,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub slot: Slot<u8>,
    /// So many numbers, each in a part of its own, are to be judged by their sum.
    pub terms: usize,
    /// The elements that are given, and what they hold; the others are canaries.
    before: Option<(Range<usize>, Content)>,
    reach: usize, // where what may be read ends, canaries too
    /// The elements that the op may write, and how they are judged.
    pub after: Option<(Range<usize>, Judge)>,
}

impl CaseSlot {
    /// What the op may read or write.
    pub fn used(&self) -> Slot<u8> {
        let read = self.before.as_ref().map(|(given, _)| given.start..self.reach);
        let written = self.after.as_ref().map(|(range, _)| range.clone());
        let range = read.or(written).unwrap_or_default();
        let size = self.element.bytes();
        self.slot.part(range.start * size, range.len() * size)
    }
}

/// An op with everything that it names.
pub struct Case {
    /// Types and sizes, in words.
    pub name: String,
    /// Where the op's first token stands.
    pub position: usize,
    /// The op alone.
    pub program: Program,
    pub layout: Layout,
    pub places: Vec<CaseSlot>,
    /// The weight region in order: with the canaries between them.
    pub weights: Vec<Weight>,
    contents: Vec<(Weight, Content)>,
}

impl Case {
    pub fn op(&self) -> &dyn Op {
        &*self.program.ops[0]
    }

    /// What the op must at least move and compute.
    pub fn cost(&self) -> Cost {
        self.op().cost(self.position)
    }

    /// What lies between the places' [`CaseSlot::used`] parts: the op may not touch it.
    pub fn gaps(&self) -> impl Iterator<Item = Slot<u8>> {
        let whole = self.layout.whole();
        let used: Vec<_> = self.places.iter().map(CaseSlot::used).collect();
        let ends = used.clone().into_iter().map(|used| used.offset() + used.len());
        let starts = used.into_iter().map(|used| used.offset()).chain([whole.len()]);
        let gaps = std::iter::once(0).chain(ends).zip(starts);
        gaps.map(move |(end, start)| whole.part(end, start - end))
    }

    /// The canaries between the weights.
    pub fn weight_gaps(&self) -> impl Iterator<Item = Weight> {
        self.weights.iter().copied().step_by(2)
    }

    /// That of the weights; any, where there are none.
    pub fn encoding(&self) -> Encoding {
        self.contents.first().map_or(Float::F16.into(), |(weight, _)| weight.encoding)
    }

    /// The weight region.
    pub fn weight_region(&self) -> Arc<[u64]> {
        let bytes = self.weights.last().map_or(0, |last| last.offset + last.bytes());
        let mut region: Arc<[u64]> = canaries(bytes).into();
        let words = Arc::get_mut(&mut region).expect("nobody else has it yet");
        let stored: &mut [u8] = bytemuck::cast_slice_mut(words);
        for (seed, (weight, content)) in self.contents.iter().enumerate() {
            let stored = &mut stored[weight.offset..][..weight.bytes()];
            match weight.encoding {
                Encoding::Plain(float) => {
                    write(SlotElement::Float(float), content, seed as u64 + 1, stored);
                }
                Encoding::Blocks(_) | Encoding::E4m3 => unreachable!("cases have plain weights"),
            }
        }
        region
    }

    /// The state region before the op has run.
    pub fn state(&self) -> Vec<u64> {
        let mut words = canaries(self.layout.bytes());
        let region: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        for (seed, place) in self.places.iter().enumerate() {
            let Some((given, content)) = &place.before else { continue };
            let size = place.element.bytes();
            let stored = &mut region[place.slot.offset()..][given.start * size..given.end * size];
            write(place.element, content, !(seed as u64), stored);
        }
        words
    }
}

fn canaries(bytes: usize) -> Vec<u64> {
    vec![u64::from(CANARY) * 0x0001_0001_0001_0001; bytes.div_ceil(8)]
}
