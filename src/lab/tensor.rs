//! Arrays of numbers as files have them, and how two of them compare.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::error::{Error, Result};

/// An array, its last dimension contiguous, in the machine's byte order, which is little-endian.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorData {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// By name.
pub type Tensors = BTreeMap<String, TensorData>;

/// Types by the names that arguments have for them.
pub const DTYPES: [(&str, Dtype); 13] = [
    ("f64", Dtype::F64),
    ("f32", Dtype::F32),
    ("f16", Dtype::F16),
    ("bf16", Dtype::BF16),
    ("i64", Dtype::I64),
    ("i32", Dtype::I32),
    ("i16", Dtype::I16),
    ("i8", Dtype::I8),
    ("u64", Dtype::U64),
    ("u32", Dtype::U32),
    ("u16", Dtype::U16),
    ("u8", Dtype::U8),
    ("bool", Dtype::BOOL),
];

pub fn dtype_name(dtype: Dtype) -> &'static str {
    DTYPES.iter().find(|(_, known)| *known == dtype).map_or("?", |(name, _)| name)
}

/// Bytes of one number.
pub fn size_of_dtype(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The number as this type has it: rounded to nearest, whole numbers to the range.
pub fn bytes_of(dtype: Dtype, value: f64) -> Vec<u8> {
    match dtype {
        Dtype::F64 => value.to_le_bytes().to_vec(),
        Dtype::F32 => (value as f32).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::I64 => (value as i64).to_le_bytes().to_vec(),
        Dtype::I32 => (value as i32).to_le_bytes().to_vec(),
        Dtype::I16 => (value as i16).to_le_bytes().to_vec(),
        Dtype::I8 => (value as i8).to_le_bytes().to_vec(),
        Dtype::U64 => (value as u64).to_le_bytes().to_vec(),
        Dtype::U32 => (value as u32).to_le_bytes().to_vec(),
        Dtype::U16 => (value as u16).to_le_bytes().to_vec(),
        Dtype::BOOL => vec![u8::from(value != 0.0)],
        _ => vec![value as u8],
    }
}

impl TensorData {
    /// How many numbers.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number at `index`, of all in their order.
    ///
    /// # Panics
    /// Past the last one.
    pub fn value(&self, index: usize) -> f64 {
        let size = size_of_dtype(self.dtype);
        let bytes = &self.bytes[index * size..][..size];
        macro_rules! number {
            ($t:ty) => {
                <$t>::from_le_bytes(bytes.try_into().expect("it has that size"))
            };
        }
        match self.dtype {
            Dtype::F64 => number!(f64),
            Dtype::F32 => number!(f32).into(),
            Dtype::F16 => number!(f16).into(),
            Dtype::BF16 => number!(bf16).into(),
            Dtype::I64 => number!(i64) as f64,
            Dtype::I32 => number!(i32).into(),
            Dtype::I16 => number!(i16).into(),
            Dtype::I8 => number!(i8).into(),
            Dtype::U64 => number!(u64) as f64,
            Dtype::U32 => number!(u32).into(),
            Dtype::U16 => number!(u16).into(),
            _ => bytes[0].into(),
        }
    }

    /// `[3, 5]` of the number at `index`.
    pub fn place(&self, mut index: usize) -> String {
        let mut place: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|size| {
                let at = index % size;
                index /= size;
                at
            })
            .collect();
        place.reverse();
        format!("{place:?}")
    }

    /// `f32[64, 64]`
    pub fn kind(&self) -> String {
        format!("{}{:?}", dtype_name(self.dtype), self.shape)
    }

    /// What is in it, in a few words.
    pub fn summary(&self) -> String {
        let numbers = (0..self.count()).map(|i| self.value(i));
        let (mut least, mut most, mut sum, mut nan) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0);
        for v in numbers {
            if v.is_nan() {
                nan += 1;
            } else {
                (least, most, sum) = (least.min(v), most.max(v), sum + v);
            }
        }
        let counted = self.count() - nan;
        let nans = if nan > 0 { format!(", {nan} NaN") } else { String::new() };
        match counted {
            0 => format!("{} numbers, all NaN", self.count()),
            _ => format!("{least} to {most}, mean {:.6}{nans}", sum / counted as f64),
        }
    }
}

/// The tensors of a safetensors file.
///
/// # Errors
/// A file that cannot be read, or is none; a type that no argument has.
pub fn read_tensors(path: &Path) -> Result<Tensors> {
    let failed = |why: &dyn std::fmt::Display| {
        Error::failed(format!("cannot read {}: {why}", path.display()))
    };
    let bytes = std::fs::read(path).map_err(|error| failed(&error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| failed(&error))?;
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        if !DTYPES.iter().any(|(_, known)| *known == dtype) {
            return Err(failed(&format!("{name} is of type {dtype:?}")));
        }
        Ok((name, TensorData { dtype, shape, bytes: view.data().to_vec() }))
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// A safetensors file of these tensors.
///
/// # Errors
/// When they are no tensors.
pub fn file_of_tensors(tensors: &Tensors) -> Result<Vec<u8>> {
    let failed = |error: safetensors::SafeTensorError| {
        Error::failed(format!("cannot write tensors: {error}"))
    };
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        view.map(|view| (name, view)).map_err(failed)
    });
    safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None).map_err(failed)
}

/// How far a type's numbers may be off, of the larger of the number expected and the root of the mean
/// square of all: some roundings of a sum. Whole numbers are equal.
pub fn usual_tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => 1e-10,
        Dtype::F32 => 1e-4,
        Dtype::F16 => 4e-3,
        Dtype::BF16 => 3e-2,
        _ => 0.0,
    }
}

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub enum Compared {
    /// Off by so much at most, as the tolerance counts it.
    Close(f64),
    /// What is wrong, in a line.
    Wrong(String),
}

/// Compares what was found with what was expected, of any type of number and of as many; `whose` names the
/// latter.
pub fn compare(
    name: &str,
    found: &TensorData,
    expected: &TensorData,
    tolerance: Option<f64>,
    whose: &str,
) -> Compared {
    if found.count() != expected.count() {
        let (ours, theirs) = (found.kind(), expected.kind());
        return Compared::Wrong(format!("{name} is {ours}, and {whose} has {theirs}"));
    }
    let tolerance = tolerance.unwrap_or_else(|| usual_tolerance(found.dtype));
    let numbers = (0..expected.count()).map(|i| expected.value(i)).filter(|v| v.is_finite());
    let square: f64 = numbers.map(|v| v * v).sum();
    let scale = (square / expected.count().max(1) as f64).sqrt();
    let (mut worst, mut wrong, mut first) = (0.0_f64, 0, None);
    for i in 0..found.count() {
        let (ours, theirs) = (found.value(i), expected.value(i));
        let same = ours == theirs || ours.is_nan() && theirs.is_nan();
        let off = match same {
            true => 0.0,
            false => (ours - theirs).abs() / theirs.abs().max(scale).max(f64::MIN_POSITIVE),
        };
        if off <= tolerance {
            worst = worst.max(off);
        } else {
            wrong += 1;
            first = first.or(Some(i));
        }
    }
    let Some(at) = first else { return Compared::Close(worst) };
    let (ours, theirs) = (found.value(at), expected.value(at));
    let of = match wrong {
        1 => "1 number is".to_owned(),
        _ => format!("{wrong} of {} numbers are", found.count()),
    };
    Compared::Wrong(format!(
        "{name}{} is {ours}, and {whose} has {theirs}; {of} off by more than {tolerance}",
        found.place(at)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> TensorData {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorData { dtype: Dtype::F32, shape: vec![2, values.len() / 2], bytes }
    }

    #[test]
    fn numbers_are_as_close_as_they_should_be() {
        let ours = floats(&[1.0, 2.0, 3.0, f32::NAN]);
        let close = |theirs: &[f32]| compare("y", &ours, &floats(theirs), None, "the reference");
        assert_eq!(close(&[1.0, 2.0, 3.0, f32::NAN]), Compared::Close(0.0));
        assert!(matches!(close(&[1.0, 2.0001, 3.0, f32::NAN]), Compared::Close(off) if off > 0.0));
        let wrong =
            "y[1, 0] is 3, and the reference has 3.5; 2 of 4 numbers are off by more than 0.0001";
        assert_eq!(close(&[1.0, 2.0, 3.5, 0.0]), Compared::Wrong(wrong.into()));
        let short = compare("y", &ours, &floats(&[1.0, 2.0]), None, "the reference");
        assert_eq!(
            short,
            Compared::Wrong("y is f32[2, 2], and the reference has f32[2, 1]".into())
        );
    }

    #[test]
    fn tensors_survive_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.safetensors");
        let all = DTYPES.map(|(name, dtype)| {
            let bytes = [bytes_of(dtype, 1.0), bytes_of(dtype, 0.0)].concat();
            (name.to_owned(), TensorData { dtype, shape: vec![2], bytes })
        });
        let all: Tensors = all.into_iter().collect();
        std::fs::write(&path, file_of_tensors(&all).unwrap()).unwrap();
        assert_eq!(read_tensors(&path).unwrap(), all);
        assert!(all.values().all(|tensor| tensor.value(0) == 1.0 && tensor.value(1) == 0.0));
    }
}
