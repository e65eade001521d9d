//! Files of `torch.save`, as Meta publishes its weights: a zip file, of which one member is a pickle that
//! says which tensors there are, and the others are their numbers. Both are read; nothing is executed.
//!
//! <https://docs.pytorch.org/docs/stable/notes/serialization.html>

mod pickle;
mod zip;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::encoding::Float;
use crate::json::quote;
use pickle::Picked;

/// More dimensions than any weight has.
const MAX_RANK: usize = 8;

/// One tensor, whose numbers lie row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchTensor {
    pub name: String,
    pub float: Float,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Of its first byte in the file.
    pub offset: usize,
    pub bytes: usize,
}

impl TorchTensor {
    /// Whether it is the same numbers as another one, not just equal ones.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.offset, self.float, &self.shape) == (other.offset, other.float, &other.shape)
    }
}

/// The tensors of a file, in the order in which they lie. Two may be the same numbers; they do not overlap
/// otherwise.
///
/// # Errors
/// What is wrong, without the name of the file.
pub fn parse(file: &[u8]) -> Result<Vec<TorchTensor>, String> {
    let members = zip::members(file)?;
    let is_pickle = |name: &&str| name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl");
    let mut pickles = members.keys().copied().filter(is_pickle);
    let (Some(pickle), None) = (pickles.next(), pickles.next()) else {
        return Err("not a file of torch.save: it needs one member data.pkl".to_owned());
    };
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = members.get(&*format!("{folder}byteorder"))
        && &file[order.clone()] != b"little"
    {
        return Err("its numbers are not little-endian".to_owned());
    }
    let picked = pickle::read(&file[members[pickle].clone()])
        .map_err(|what| format!("{}: {what}", quote(pickle)))?;
    let mut tensors = Vec::new();
    for (name, picked) in picked {
        tensors.push(
            of(name, &picked, &members, folder)
                .map_err(|what| format!("tensor {} {what}", quote(name)))?,
        );
    }
    tensors.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
    check(&tensors)?;
    Ok(tensors)
}

/// Where a tensor lies that the pickle has.
fn of(
    name: &str,
    picked: &Picked<'_>,
    members: &BTreeMap<&str, Range<usize>>,
    folder: &str,
) -> Result<TorchTensor, String> {
    let Picked { float, member, member_len, first, shape, stride } = picked;
    if shape.len() != stride.len() || shape.len() > MAX_RANK {
        return Err(format!("has {} dimensions and {} strides", shape.len(), stride.len()));
    }
    let mut len = 1i64;
    for (size, stride) in shape.iter().zip(stride).rev() {
        if *size < 1 {
            return Err(format!("is empty: its shape is {shape:?}"));
        }
        if *size > 1 && *stride != len {
            return Err(format!(
                "does not lie row after row: strides {stride} and others of the shape {shape:?}; save it \
                 with contiguous()"
            ));
        }
        len =
            len.checked_mul(*size).ok_or_else(|| format!("of the shape {shape:?} is too large"))?;
    }
    let range = members.get(&*format!("{folder}data/{member}")).ok_or_else(|| {
        format!("has its numbers in member {}, which is not there", quote(member))
    })?;
    let end = first.checked_add(len).filter(|end| *end <= *member_len && *first >= 0);
    if end.is_none() || member_len.checked_mul(float.bytes() as i64) != Some(range.len() as i64) {
        return Err(format!(
            "has {len} numbers from {first} on, of {member_len}, in a member of {} bytes: fetch the file \
             again",
            range.len()
        ));
    }
    let offset = range.start + *first as usize * float.bytes();
    if !offset.is_multiple_of(float.bytes()) {
        return Err(format!("begins at byte {offset}, in the middle of an element"));
    }
    let shape = shape.iter().map(|size| *size as usize).collect();
    let bytes = len as usize * float.bytes();
    Ok(TorchTensor { name: name.to_owned(), float: *float, shape, offset, bytes })
}

/// That no name is there twice, and no tensor has some of another's numbers.
fn check(tensors: &[TorchTensor]) -> Result<(), String> {
    for two in tensors.windows(2) {
        if two[0].offset + two[0].bytes > two[1].offset && !two[0].is_same(&two[1]) {
            return Err(format!("tensor {} overlaps {}", quote(&two[1].name), quote(&two[0].name)));
        }
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(format!("tensor {} is there twice", quote(two[0]))),
        None => Ok(()),
    }
}
