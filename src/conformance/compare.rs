//! Whether what an op left in memory is right.

use std::ops::Range;

use crate::case::{CANARY, Case, CaseSlot, Judge, SlotElement};
use crate::encoding::Float;
use crate::for_float;
use crate::vector::Element as _;

/// What is wrong with the state region `found`, in a line, if anything is; `expected` is what the
/// reference made of `before`.
pub fn wrong(case: &Case, before: &[u8], expected: &[u8], found: &[u8]) -> Option<String> {
    let judged = case.places.iter().find_map(|place| {
        let (range, judge) = place.after.as_ref()?;
        let bytes = bytes_of(place, range);
        let numbers = Numbers { place, first: range.start };
        numbers.wrong(*judge, &expected[bytes.clone()], &found[bytes])
    });
    judged.or_else(|| touched(case, before, found))
}

/// The first difference between two state regions, of which only what is judged counts.
pub fn different(case: &Case, one: &[u8], other: &[u8]) -> Option<String> {
    case.places.iter().find_map(|place| {
        let (range, judge) = place.after.as_ref()?;
        let bytes = bytes_of(place, range);
        let numbers = Numbers { place, first: range.start };
        match judge {
            Judge::Any => None,
            _ => numbers.unequal(&one[bytes.clone()], &other[bytes]),
        }
    })
}

fn bytes_of(place: &CaseSlot, range: &Range<usize>) -> Range<usize> {
    let start = place.slot.offset();
    let size = place.element.bytes();
    start + range.start * size..start + range.end * size
}

/// A byte that no op may touch and that is not what it was.
fn touched(case: &Case, before: &[u8], found: &[u8]) -> Option<String> {
    let mut untouched = 0;
    let written = case
        .places
        .iter()
        .filter_map(|place| place.after.as_ref().map(|(range, _)| bytes_of(place, range)));
    let end = found.len();
    for range in written.chain(std::iter::once(end..end)) {
        let part = untouched..range.start;
        if before[part.clone()] != found[part.clone()] {
            let at = part.into_iter().find(|at| before[*at] != found[*at])?;
            return Some(format!("{} was written to", name_of(case, at)));
        }
        untouched = range.end;
    }
    None
}

/// Which number lies at a byte of the state region, in words.
fn name_of(case: &Case, at: usize) -> String {
    let before = case.places.iter().rev().find(|place| place.slot.offset() <= at);
    let Some(place) = before else { return "memory before the first slot".to_owned() };
    let past = at - place.slot.offset();
    match past.checked_sub(place.slot.len()) {
        None => format!(
            "{}, which is not the op's to write,",
            place.index(past / place.element.bytes())
        ),
        Some(past) => format!("memory {past} bytes past the end of {}", place.name),
    }
}

impl CaseSlot {
    /// `y[3, 17]`
    fn index(&self, mut element: usize) -> String {
        let mut indices = Vec::new();
        for size in self.shape.iter().rev() {
            indices.push((element % size).to_string());
            element /= size;
        }
        indices.reverse();
        format!("{}[{}]", self.name, indices.join(", "))
    }
}

/// The numbers of a place, from element `first` on.
struct Numbers<'c> {
    place: &'c CaseSlot,
    first: usize,
}

impl Numbers<'_> {
    fn wrong(&self, judge: Judge, expected: &[u8], found: &[u8]) -> Option<String> {
        match judge {
            Judge::Any => None,
            Judge::Exact => self.unequal(expected, found),
            Judge::Close { nmse } => self.far(nmse, expected, found),
        }
    }

    fn unequal(&self, expected: &[u8], found: &[u8]) -> Option<String> {
        if expected == found {
            return None;
        }
        let size = self.place.element.bytes();
        let pairs = expected.chunks_exact(size).zip(found.chunks_exact(size));
        let is_nan = |bytes: &[u8]| number(self.place.element, bytes).is_nan();
        let mut different = pairs.enumerate().filter(|(_, (expected, found))| {
            expected != found && !(is_nan(expected) && is_nan(found))
        });
        let (at, (right, wrong)) = different.next()?;
        let others = different.count();
        let count = expected.len() / size;
        Some(self.message(
            at,
            text(self.place.element, wrong),
            text(self.place.element, right),
            1 + others,
            count,
        ))
    }

    fn far(&self, nmse: f64, expected: &[u8], found: &[u8]) -> Option<String> {
        let (expected, found) = (self.sums(expected), self.sums(found));
        let finite = || expected.iter().filter(|number| number.is_finite());
        let square: f64 = finite().map(|number| number * number).sum();
        let count = finite().count().max(1);
        let rms = (square / count as f64).sqrt();
        let ulp = match (self.place.element, self.place.terms) {
            (SlotElement::Float(Float::Bf16), 1) => 1.0 / 128.0,
            (SlotElement::Float(Float::F16), 1) => 1.0 / 1024.0,
            _ => 0.0,
        };
        // A number may be off by a rounding, or by many times the mean error that is allowed.
        let is_right = |expected: f64, found: f64| {
            let error = (expected - found).abs();
            let bound = 30.0 * nmse.sqrt() * rms + ulp * expected.abs();
            expected == found || (expected.is_nan() && found.is_nan()) || error <= bound
        };
        let pairs = || expected.iter().copied().zip(found.iter().copied());
        let wrong = pairs().filter(|(expected, found)| !is_right(*expected, *found)).count();
        if let Some(at) = pairs().position(|(expected, found)| !is_right(expected, found)) {
            let numbers = (format!("{:e}", found[at]), format!("{:e}", expected[at]));
            return Some(self.message(at, numbers.0, numbers.1, wrong, expected.len()));
        }
        let errors = pairs().filter(|(expected, _)| expected.is_finite());
        let error: f64 = errors.map(|(expected, found)| (expected - found).powi(2)).sum();
        (error > nmse * square).then(|| {
            let name = self.place.name;
            format!(
                "{name} has a normalised squared error of {:.1e}, over {nmse:.1e}",
                error / square
            )
        })
    }

    /// The numbers, whose terms are added up.
    fn sums(&self, bytes: &[u8]) -> Vec<f64> {
        let SlotElement::Float(dtype) = self.place.element else { panic!("integers are exact") };
        let stored: Vec<f64> = for_float!(dtype, E => {
            let number = |bytes: &[u8]| f64::from(bytemuck::pod_read_unaligned::<E>(bytes).widen());
            bytes.chunks_exact(size_of::<E>()).map(number).collect()
        });
        let count = stored.len() / self.place.terms;
        (0..count).map(|i| stored.iter().skip(i).step_by(count).sum()).collect()
    }

    fn message(
        &self,
        at: usize,
        found: String,
        right: String,
        wrong: usize,
        count: usize,
    ) -> String {
        let name = self.place.index(self.first + at);
        let others = match wrong {
            1 => String::new(),
            _ => format!("; {wrong} of {count} numbers are wrong"),
        };
        format!("{name} is {found} where {right} is right{others}")
    }
}

fn number(element: SlotElement, bytes: &[u8]) -> f32 {
    match element {
        SlotElement::Float(dtype) => {
            for_float!(dtype, E => bytemuck::pod_read_unaligned::<E>(bytes).widen())
        }
        SlotElement::U32 | SlotElement::U64 => 0.0,
    }
}

fn text(element: SlotElement, bytes: &[u8]) -> String {
    let canary = CANARY.to_ne_bytes();
    if bytes.chunks_exact(2).all(|pair| pair == canary) {
        return "not written".to_owned();
    }
    match element {
        SlotElement::Float(_) => number(element, bytes).to_string(),
        SlotElement::U32 => bytemuck::pod_read_unaligned::<u32>(bytes).to_string(),
        SlotElement::U64 => format!("{:#x}", bytemuck::pod_read_unaligned::<u64>(bytes)),
    }
}
