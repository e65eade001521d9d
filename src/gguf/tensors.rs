//! What a file says of its tensors: where they lie and how they are stored.

use std::collections::HashSet;

use super::reader::Reader;
use crate::json::quote;

/// Of ggml.
const MAX_DIMENSIONS: u32 = 4;

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    pub name: String,
    pub kind: TensorType,
    /// Slowest dimension first: as safetensors have it, not as GGUF.
    pub shape: Vec<usize>,
    /// Of its first byte in the file.
    pub offset: usize,
    pub bytes: usize,
}

/// How a tensor's rows are stored: in blocks of so many columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorType {
    /// ggml's number of it.
    number: u32,
    pub name: &'static str,
    /// Columns of a block, and its bytes.
    pub block: (usize, usize),
}

/// Those of ggml.h (`ggml_type`) that files have; the numbers that are left out were taken away.
#[rustfmt::skip]
const TYPES: [(u32, &str, (usize, usize)); 32] = [
    (0, "F32", (1, 4)), (1, "F16", (1, 2)), (2, "Q4_0", (32, 18)), (3, "Q4_1", (32, 20)),
    (6, "Q5_0", (32, 22)), (7, "Q5_1", (32, 24)), (8, "Q8_0", (32, 34)), (9, "Q8_1", (32, 36)),
    (10, "Q2_K", (256, 84)), (11, "Q3_K", (256, 110)), (12, "Q4_K", (256, 144)),
    (13, "Q5_K", (256, 176)), (14, "Q6_K", (256, 210)), (15, "Q8_K", (256, 292)),
    (16, "IQ2_XXS", (256, 66)), (17, "IQ2_XS", (256, 74)), (18, "IQ3_XXS", (256, 98)),
    (19, "IQ1_S", (256, 50)), (20, "IQ4_NL", (32, 18)), (21, "IQ3_S", (256, 110)),
    (22, "IQ2_S", (256, 82)), (23, "IQ4_XS", (256, 136)), (24, "I8", (1, 1)), (25, "I16", (1, 2)),
    (26, "I32", (1, 4)), (27, "I64", (1, 8)), (28, "F64", (1, 8)), (29, "IQ1_M", (256, 56)),
    (30, "BF16", (1, 2)), (34, "TQ1_0", (256, 54)), (35, "TQ2_0", (256, 66)),
    (39, "MXFP4", (32, 17)),
];

impl TensorType {
    fn of(number: u32) -> Option<Self> {
        let (_, name, block) = TYPES.into_iter().find(|(known, ..)| *known == number)?;
        Some(Self { number, name, block })
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        let (number, ..) = TYPES.into_iter().find(|(_, known, _)| *known == name)?;
        Self::of(number)
    }

    pub(super) fn number(self) -> u32 {
        self.number
    }
}

/// The tensors, which begin at multiples of `alignment` after the reader's place, sorted by it.
pub fn read(
    reader: &mut Reader<'_>,
    count: u64,
    alignment: usize,
) -> Result<Vec<GgufTensor>, String> {
    let (mut tensors, mut names) = (Vec::new(), HashSet::new());
    for number in 0..count {
        let name = reader.text().map_err(|what| format!("tensor {number}: {what}"))?;
        let tensor =
            entry(reader, name).map_err(|what| format!("tensor {} {what}", quote(name)))?;
        if !names.insert(name) {
            return Err(format!("tensor {} is there twice", quote(name)));
        }
        tensors.push(tensor);
    }
    place(&mut tensors, reader.at(), reader.file_bytes(), alignment)?;
    Ok(tensors)
}

/// One tensor, whose offset is still that from the start of the data.
fn entry(reader: &mut Reader<'_>, name: &str) -> Result<GgufTensor, String> {
    let dimensions = reader.u32()?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(format!("has {dimensions} dimensions: 1 to {MAX_DIMENSIONS} are possible"));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.insert(0, reader.u64()?);
    }
    let number = reader.u32()?;
    let kind = TensorType::of(number)
        .ok_or_else(|| format!("has the type {number}, which is not a type of ggml's"))?;
    let columns = shape[shape.len() - 1];
    let (block_columns, block_bytes) = kind.block;
    if shape.contains(&0) || !columns.is_multiple_of(block_columns as u64) {
        return Err(format!(
            "has the shape {shape:?} in {}: rows of whole blocks of {block_columns} are needed",
            kind.name
        ));
    }
    let elements = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
    let bytes = elements
        .and_then(|elements| (elements / block_columns as u64).checked_mul(block_bytes as u64))
        .filter(|bytes| *bytes <= isize::MAX as u64)
        .ok_or_else(|| format!("of the shape {shape:?} is larger than any file"))?;
    let offset = reader.u64()?;
    Ok(GgufTensor {
        name: name.to_owned(),
        kind,
        shape: shape.into_iter().map(|size| size as usize).collect(),
        offset: usize::try_from(offset).map_err(|_| format!("begins at {offset}"))?,
        bytes: bytes as usize,
    })
}

/// Turns the offsets into those in the file, and checks that the tensors cover all of it but for padding.
fn place(
    tensors: &mut [GgufTensor],
    header_bytes: usize,
    file_bytes: usize,
    alignment: usize,
) -> Result<(), String> {
    tensors.sort_by_key(|tensor| tensor.offset);
    let data_start = header_bytes.next_multiple_of(alignment);
    let mut covered = data_start;
    let mut previous = "";
    for tensor in &mut *tensors {
        let wrong = |what: String| format!("tensor {} {what}", quote(&tensor.name));
        if !tensor.offset.is_multiple_of(alignment) {
            let offset = tensor.offset;
            return Err(wrong(format!("begins at {offset}, not at a multiple of {alignment}")));
        }
        let start = tensor.offset.checked_add(data_start);
        let end = start.and_then(|start| start.checked_add(tensor.bytes));
        let Some((start, end)) = start.zip(end).filter(|(_, end)| *end <= file_bytes) else {
            let bytes = tensor.bytes;
            return Err(wrong(format!(
                "has {bytes} bytes, of which not all are there: fetch the file again"
            )));
        };
        if start < covered && covered > data_start {
            return Err(wrong(format!("overlaps tensor {}", quote(previous))));
        }
        if start - covered >= alignment {
            let gap = start - covered;
            return Err(wrong(format!("has {gap} bytes before it that belong to no tensor")));
        }
        (tensor.offset, covered, previous) = (start, end, &tensor.name);
    }
    match file_bytes.saturating_sub(covered) {
        rest if rest >= alignment && !tensors.is_empty() => {
            Err(format!("{rest} bytes follow the last tensor"))
        }
        _ => Ok(()),
    }
}
