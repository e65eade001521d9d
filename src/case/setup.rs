//! Lays a case out.

use std::fmt::Display;
use std::ops::Range;

use super::{Case, Content, Element, GUARD_BYTES, Judge, Numbers, Place, Stored};
use crate::encoding::{Encoding, Float};
use crate::memory::{Activation, Layout, Slot, Weight};
use crate::op::{Op, Program};
use crate::vector::cores;

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
        (dtype, terms): (Float, usize),
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
        (dtype, terms): (Float, usize),
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
        let slot = self.place(name, Element::Float(Float::F16), &shape, before, None);
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
        self.place(name, Element::Float(Float::F16), &shape, None, after)
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
