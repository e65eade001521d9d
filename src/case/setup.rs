//! Lays a case out.

use std::fmt::Display;
use std::ops::Range;

use super::{Case, CaseSlot, Content, GUARD_BYTES, Judge, Numbers, SlotElement, SlotType};
use crate::encoding::{Encoding, Float};
use crate::memory::{Activation, Layout, Slot, Weight};
use crate::op::{Op, Placement, Program};
use crate::vector::cores;

/// Lays a case out, place by place.
pub struct Setup {
    numbers: Numbers,
    position: usize,
    layout: Layout,
    places: Vec<CaseSlot>,
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
    pub fn weight(
        &mut self,
        encoding: impl Into<Encoding>,
        rows: usize,
        cols: usize,
        content: Content,
    ) -> Weight {
        const GUARD: Float = Float::F16;
        let guard = |offset| Weight::whole(GUARD.into(), offset, 1, GUARD_BYTES / GUARD.bytes());
        if self.weights.is_empty() {
            self.weights.push(guard(0));
        }
        let after = |last: &Weight| (last.offset + last.bytes()).next_multiple_of(GUARD_BYTES);
        let offset = self.weights.last().map_or(0, after);
        let weight = Weight::whole(encoding.into(), offset, rows, cols);
        self.weights.extend([weight, guard(after(&weight))]);
        self.contents.push((weight, content));
        weight
    }

    /// Read: exactly these values.
    pub fn given<T: SlotType>(&mut self, name: &'static str, values: &[T]) -> Slot<T> {
        let content = Content::Bytes(bytemuck::cast_slice(values).to_vec());
        self.read(name, &[values.len()], content)
    }

    /// Where the op's token stands, the first one of them.
    pub fn placement(&mut self, position: usize, sequence: usize) -> Placement {
        self.position = position;
        Placement {
            positions: self.given("positions", &[position as u32]),
            sequences: self.given("sequences", &[sequence as u32]),
        }
    }

    /// Read and left as it is.
    pub fn read<T: SlotType>(
        &mut self,
        name: &'static str,
        shape: &[usize],
        content: Content,
    ) -> Slot<T> {
        self.place(name, T::ELEMENT, shape, Some((0..len(shape), content)), None).cast()
    }

    /// Written and not read.
    pub fn written<T: SlotType>(
        &mut self,
        name: &'static str,
        shape: &[usize],
        judge: Judge,
    ) -> Slot<T> {
        self.place(name, T::ELEMENT, shape, None, Some((0..len(shape), judge))).cast()
    }

    /// Read and written.
    pub fn changed<T: SlotType>(
        &mut self,
        name: &'static str,
        shape: &[usize],
        content: Content,
        judge: Judge,
    ) -> Slot<T> {
        let before = Some((0..len(shape), content));
        self.place(name, T::ELEMENT, shape, before, Some((0..len(shape), judge))).cast()
    }

    /// Activations, in one term or two, that are read.
    pub fn read_as(
        &mut self,
        name: &'static str,
        (dtype, terms): (Float, usize),
        shape: &[usize],
        content: Content,
    ) -> Activation {
        let shape = [&[terms], shape].concat();
        let before = Some((0..len(&shape), content));
        let bytes = self.place(name, SlotElement::Float(dtype), &shape, before, None);
        Activation { dtype, terms, bytes }
    }

    /// Activations, in one term or two, that are written; their sums are judged.
    pub fn written_as(
        &mut self,
        name: &'static str,
        (dtype, terms): (Float, usize),
        shape: &[usize],
        judge: Judge,
    ) -> Activation {
        let shape = [&[terms], shape].concat();
        let after = Some((0..len(&shape), judge));
        let bytes = self.place(name, SlotElement::Float(dtype), &shape, None, after);
        self.places.last_mut().expect("placed just now").terms = terms;
        Activation { dtype, terms, bytes }
    }

    /// Keys or values in f16, of whose sequence the first `rows` positions are given. `in_boxes`: whatever
    /// lies behind them may be read, too.
    pub fn cached(
        &mut self,
        name: &'static str,
        place: CachePlace,
        (rows, in_boxes): (usize, bool),
        content: Content,
    ) -> Slot<u8> {
        let given = place.elements(0..rows);
        let reach = if in_boxes { len(&place.shape) } else { given.end };
        let before = Some((given, content));
        let slot = self.place(name, SlotElement::Float(Float::F16), &place.shape, before, None);
        self.places.last_mut().expect("placed just now").reach = reach;
        slot
    }

    /// Keys or values in f16, of whose sequence these positions are written.
    pub fn appended(
        &mut self,
        name: &'static str,
        place: CachePlace,
        rows: Range<usize>,
        judge: Judge,
    ) -> Slot<u8> {
        let after = Some((place.elements(rows), judge));
        self.place(name, SlotElement::Float(Float::F16), &place.shape, None, after)
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
        element: SlotElement,
        shape: &[usize],
        before: Option<(Range<usize>, Content)>,
        after: Option<(Range<usize>, Judge)>,
    ) -> Slot<u8> {
        let slot = self.layout.slot(&[len(shape), element.bytes()]);
        self.layout.slot::<u8>(&[GUARD_BYTES]);
        let (shape, reach) = (shape.to_vec(), before.as_ref().map_or(0, |(given, _)| given.end));
        self.places.push(CaseSlot { name, element, shape, slot, terms: 1, before, reach, after });
        slot
    }
}
/// A cache, and whose part of it an op touches.
#[derive(Debug, Clone, Copy)]
pub struct CachePlace {
    /// `[B, S, G, D]`
    pub shape: [usize; 4],
    /// Below B.
    pub sequence: usize,
}

impl CachePlace {
    /// One sequence, or the second of three, as `seed` has it: of `context` positions, each `[G, D]`.
    pub fn of_case(context: usize, [kv_heads, head_dim]: [usize; 2], seed: usize) -> Self {
        let [sequences, sequence] = if seed.is_multiple_of(2) { [1, 0] } else { [3, 1] };
        Self { shape: [sequences, context, kv_heads, head_dim], sequence }
    }

    /// The elements of these positions of the sequence.
    fn elements(&self, positions: Range<usize>) -> Range<usize> {
        let [_, context, kv_heads, head_dim] = self.shape;
        let at = |position| (self.sequence * context + position) * kv_heads * head_dim;
        at(positions.start)..at(positions.end)
    }
}

fn len(shape: &[usize]) -> usize {
    shape.iter().product()
}
