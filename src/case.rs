//! What an op is tested and measured with: its sizes, what its memory holds before it runs, and how
//! what it leaves there is judged.
//!
//! Every op's file lists its cases (`ops::CASES`). A list costs nothing: contents are made
//! when they are asked for. Before and after each slot and each weight lies a canary, and whatever is
//! not given holds it too: a NaN in every type of float, and no index of anything.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use crate::checkpoint::Dtype;
use crate::for_dtype;
use crate::memory::{Activation, Layout, Slot, Weight};
use crate::op::{Cost, Op, Program};
use crate::vector::{Element as _, cores};

/// The types of weights that there are kernels for.
pub const HALF: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// Two bytes of memory that nothing may be read from or written to.
pub const CANARY: u16 = 0x7fa5;

/// Bytes of canary on either side of a slot or a weight.
const GUARD_BYTES: usize = 1024;

/// What kind of numbers an op gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Integers, and such that no result of any step has to be rounded: whatever the order of the
    /// sums, results are equal to the bit.
    Whole,
    /// Results differ as far as roundings do.
    Real,
}

pub const NUMBERS: [Numbers; 2] = [Numbers::Whole, Numbers::Real];

impl Numbers {
    /// One of two, for whole numbers and for real ones.
    pub fn pick<T>(self, whole: T, real: T) -> T {
        match self {
            Self::Whole => whole,
            Self::Real => real,
        }
    }

    /// Integers from `-most` to `most`, or real numbers as large.
    pub fn upto(self, most: u32) -> Content {
        let most = most as f32;
        self.pick(Content::Whole(-most, most), Content::Real(most))
    }

    /// A residual stream and the epsilon of its norm: numbers of the same magnitude have a root mean
    /// square without a rounding.
    pub fn to_norm(self) -> (Content, f32) {
        let twos = |i: usize| if i.wrapping_mul(0x9e37_79b9) >> 11 & 1 == 0 { 2.0 } else { -2.0 };
        self.pick((Content::each(twos), 0.0), (Content::Real(5.0), 1e-5))
    }

    /// Rotary frequencies for heads of `head_dim`: those of Llama 3, or none, so that rotations change
    /// nothing. `[D/2]`
    pub fn frequencies(self, head_dim: usize) -> Vec<f32> {
        let exponent = |i: usize| -2.0 * i as f32 / head_dim as f32;
        let real = (0..head_dim / 2).map(|i| 500_000f32.powf(exponent(i)));
        self.pick(vec![0.0; head_dim / 2], real.collect())
    }

    /// How results are judged that real numbers make inexact.
    pub fn judge(self, nmse: f64) -> Judge {
        self.pick(Judge::Exact, Judge::Close { nmse })
    }
}

/// What a slot or a weight holds before the op runs.
pub enum Content {
    /// Integers from one to the other, evenly distributed.
    Whole(f32, f32),
    /// Real numbers between minus this and this, evenly distributed.
    Real(f32),
    /// The number at each index.
    Each(Box<dyn Fn(usize) -> f32 + Send + Sync>),
    Bytes(Vec<u8>),
}

impl Content {
    pub fn each(number: impl Fn(usize) -> f32 + Send + Sync + 'static) -> Self {
        Self::Each(Box::new(number))
    }
}

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
pub enum Element {
    Float(Dtype),
    U32,
    U64,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.bytes(),
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }
}

/// The types of typed slots.
pub trait Stored: Pod {
    const ELEMENT: Element;
}

impl Stored for f32 {
    const ELEMENT: Element = Element::Float(Dtype::F32);
}

impl Stored for u32 {
    const ELEMENT: Element = Element::U32;
}

impl Stored for u64 {
    const ELEMENT: Element = Element::U64;
}

/// A slot of a case.
pub struct Place {
    /// As the op's field is called.
    pub name: &'static str,
    pub element: Element,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub slot: Slot<u8>,
    /// So many numbers, each in a part of its own, are to be judged by their sum.
    pub terms: usize,
    /// The number of leading elements that are given, and what they hold; the others are canaries.
    before: Option<(usize, Content)>,
    reach: usize, // how many may be read, canaries too
    /// The elements that the op may write, and how they are judged.
    pub after: Option<(Range<usize>, Judge)>,
}

impl Place {
    /// What the op may read or write.
    pub fn used(&self) -> Slot<u8> {
        let read = self.before.as_ref().map(|_| 0..self.reach);
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
    pub places: Vec<Place>,
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

    /// What lies between the places' [`Place::used`] parts: the op may not touch it.
    pub fn gaps(&self) -> impl Iterator<Item = Slot<u8>> {
        let whole = self.layout.whole();
        let used: Vec<_> = self.places.iter().map(Place::used).collect();
        let ends = used.clone().into_iter().map(|used| used.offset() + used.len());
        let starts = used.into_iter().map(|used| used.offset()).chain([whole.len()]);
        let gaps = std::iter::once(0).chain(ends).zip(starts);
        gaps.map(move |(end, start)| whole.part(end, start - end))
    }

    /// The canaries between the weights.
    pub fn weight_gaps(&self) -> impl Iterator<Item = Weight> {
        self.weights.iter().copied().step_by(2)
    }

    /// The type of the weights; any, where there are none.
    pub fn dtype(&self) -> Dtype {
        self.weights.first().map_or(Dtype::F16, |weight| weight.dtype)
    }

    /// The weight region.
    pub fn weight_region(&self) -> Arc<[u64]> {
        let bytes = self.weights.last().map_or(0, |last| last.offset + last.bytes());
        let mut region: Arc<[u64]> = canaries(bytes).into();
        let words = Arc::get_mut(&mut region).expect("nobody else has it yet");
        let stored: &mut [u8] = bytemuck::cast_slice_mut(words);
        for (seed, (weight, content)) in self.contents.iter().enumerate() {
            let stored = &mut stored[weight.offset..][..weight.bytes()];
            write(Element::Float(weight.dtype), content, seed as u64 + 1, stored);
        }
        region
    }

    /// The state region before the op has run.
    pub fn state(&self) -> Vec<u64> {
        let mut words = canaries(self.layout.bytes());
        let region: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        for (seed, place) in self.places.iter().enumerate() {
            let Some((count, content)) = &place.before else { continue };
            let stored = &mut region[place.slot.offset()..][..count * place.element.bytes()];
            write(place.element, content, !(seed as u64), stored);
        }
        words
    }
}

fn canaries(bytes: usize) -> Vec<u64> {
    vec![u64::from(CANARY) * 0x0001_0001_0001_0001; bytes.div_ceil(8)]
}

/// Lays a case out, place by place.
pub struct Setup {
    numbers: Numbers,
    position: usize,
    layout: Layout,
    places: Vec<Place>,
    weights: Vec<Weight>,
    contents: Vec<(Weight, Content)>,
}

impl Setup {
    pub fn new(numbers: Numbers) -> Self {
        let mut layout = Layout::default();
        layout.slot::<u8>(&[GUARD_BYTES]);
        let (places, weights, contents) = (Vec::new(), Vec::new(), Vec::new());
        Self { numbers, position: 0, layout, places, weights, contents }
    }

    /// A weight `[rows, cols]`; a vector has one row.
    pub fn weight(&mut self, dtype: Dtype, rows: usize, cols: usize, content: Content) -> Weight {
        let guard = |offset| Weight::whole(dtype, offset, 1, GUARD_BYTES / dtype.bytes());
        if self.weights.is_empty() {
            self.weights.push(guard(0));
        }
        let after = |last: &Weight| (last.offset + last.bytes()).next_multiple_of(GUARD_BYTES);
        let offset = self.weights.last().map_or(0, after);
        let weight = Weight::whole(dtype, offset, rows, cols);
        self.weights.extend([weight, guard(after(&weight))]);
        self.contents.push((weight, content));
        weight
    }

    /// Read: exactly these values.
    pub fn given<T: Stored>(&mut self, name: &'static str, values: &[T]) -> Slot<T> {
        let content = Content::Bytes(bytemuck::cast_slice(values).to_vec());
        self.read(name, &[values.len()], content)
    }

    /// The position of the op's first token.
    pub fn cursor(&mut self, position: usize) -> Slot<u32> {
        self.position = position;
        self.given("cursor", &[position as u32])
    }

    /// Read and left as it is.
    pub fn read<T: Stored>(
        &mut self,
        name: &'static str,
        shape: &[usize],
        content: Content,
    ) -> Slot<T> {
        self.place(name, T::ELEMENT, shape, Some((len(shape), content)), None).cast()
    }

    /// Written and not read.
    pub fn written<T: Stored>(
        &mut self,
        name: &'static str,
        shape: &[usize],
        judge: Judge,
    ) -> Slot<T> {
        self.place(name, T::ELEMENT, shape, None, Some((0..len(shape), judge))).cast()
    }

    /// Read and written.
    pub fn changed<T: Stored>(
        &mut self,
        name: &'static str,
        shape: &[usize],
        content: Content,
        judge: Judge,
    ) -> Slot<T> {
        let before = Some((len(shape), content));
        self.place(name, T::ELEMENT, shape, before, Some((0..len(shape), judge))).cast()
    }

    /// Activations, in one term or two, that are read.
    pub fn read_as(
        &mut self,
        name: &'static str,
        (dtype, terms): (Dtype, usize),
        shape: &[usize],
        content: Content,
    ) -> Activation {
        let shape = [&[terms], shape].concat();
        let before = Some((len(&shape), content));
        let bytes = self.place(name, Element::Float(dtype), &shape, before, None);
        Activation { dtype, terms, bytes }
    }

    /// Activations, in one term or two, that are written; their sums are judged.
    pub fn written_as(
        &mut self,
        name: &'static str,
        (dtype, terms): (Dtype, usize),
        shape: &[usize],
        judge: Judge,
    ) -> Activation {
        let shape = [&[terms], shape].concat();
        let after = Some((0..len(&shape), judge));
        let bytes = self.place(name, Element::Float(dtype), &shape, None, after);
        self.places.last_mut().expect("placed just now").terms = terms;
        Activation { dtype, terms, bytes }
    }

    /// Keys or values `[S, G, D]` in f16: the rows that are given, and those that may be read.
    pub fn cached(
        &mut self,
        name: &'static str,
        shape: [usize; 3],
        [rows, reach]: [usize; 2],
        content: Content,
    ) -> Slot<u8> {
        let row = shape[1] * shape[2];
        let before = Some((rows * row, content));
        let slot = self.place(name, Element::Float(Dtype::F16), &shape, before, None);
        self.places.last_mut().expect("placed just now").reach = reach * row;
        slot
    }

    /// Keys or values `[S, G, D]` in f16, of which these rows are written.
    pub fn appended(
        &mut self,
        name: &'static str,
        shape: [usize; 3],
        rows: Range<usize>,
        judge: Judge,
    ) -> Slot<u8> {
        let row = shape[1] * shape[2];
        let after = Some((rows.start * row..rows.end * row, judge));
        self.place(name, Element::Float(Dtype::F16), &shape, None, after)
    }

    /// The case, of which `sizes` tells the types and sizes.
    pub fn case(self, sizes: impl Display, op: impl Op + 'static) -> Case {
        let mut program = Program::default();
        program.push(op);
        let numbers = self.numbers.pick("whole numbers", "real numbers");
        let name = format!("{sizes}, {numbers}");
        let Self { position, mut layout, places, weights, contents, .. } = self;
        layout.scratch(program.ops[0].scratch(cores()));
        Case { name, position, program, layout, places, weights, contents }
    }

    fn place(
        &mut self,
        name: &'static str,
        element: Element,
        shape: &[usize],
        before: Option<(usize, Content)>,
        after: Option<(Range<usize>, Judge)>,
    ) -> Slot<u8> {
        let slot = self.layout.slot(&[len(shape), element.bytes()]);
        self.layout.slot::<u8>(&[GUARD_BYTES]);
        let (shape, reach) = (shape.to_vec(), before.as_ref().map_or(0, |(count, _)| *count));
        self.places.push(Place { name, element, shape, slot, terms: 1, before, reach, after });
        slot
    }
}

fn len(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Writes `content` into `stored`, which is all of it. Random numbers are those of `seed`.
fn write(element: Element, content: &Content, seed: u64, stored: &mut [u8]) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    match content {
        Content::Bytes(bytes) => stored.copy_from_slice(bytes),
        Content::Whole(from, to) => {
            let count = (to - from) as u64 + 1;
            fill(element, stored, |_| from + (random.next() % count) as f32);
        }
        Content::Real(most) => {
            let unit = 2.0 / (1u64 << 24) as f32;
            fill(element, stored, |_| ((random.next() >> 40) as f32 * unit - 1.0) * most);
        }
        Content::Each(number) => fill(element, stored, number),
    }
}

fn fill(element: Element, stored: &mut [u8], mut number: impl FnMut(usize) -> f32) {
    let Element::Float(dtype) = element else { panic!("integers are given as bytes") };
    for_dtype!(dtype, E => {
        let stored: &mut [E] = bytemuck::cast_slice_mut(stored);
        stored.iter_mut().enumerate().for_each(|(i, stored)| *stored = E::narrow(number(i)));
    });
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
