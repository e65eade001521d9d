//! The values of keys.

use std::fmt;
use std::ops::Range;

use super::reader::Reader;
use crate::json::quote;

/// The most items of an array: more tokens than any vocabulary has.
const MAX_ITEMS: u64 = 1 << 24;

/// One key's.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// Items that stay in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    kind: u32,
    pub len: usize,
    /// In the file.
    bytes: Range<usize>,
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of a fixed size.
fn bytes_of(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Value {
    /// A type, then a value of it.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        let kind = reader.u32()?;
        if kind == ARRAY { Array::read(reader).map(Self::Array) } else { Self::of(kind, reader) }
    }

    fn of(kind: u32, reader: &mut Reader<'_>) -> Result<Self, String> {
        if kind == TEXT {
            return reader.text().map(|text| Self::Text(text.to_owned()));
        }
        let bytes = bytes_of(kind).ok_or_else(|| format!("has the unknown type {kind}"))?;
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(reader.take(bytes)?);
        let number = u64::from_le_bytes(number);
        Ok(match kind {
            1 => Self::Signed(i64::from(number as i8)),
            3 => Self::Signed(i64::from(number as i16)),
            5 => Self::Signed(i64::from(number as i32)),
            6 => Self::Float(f64::from(f32::from_bits(number as u32))),
            7 if number > 1 => return Err(format!("a truth value is {number}")),
            7 => Self::Bool(number == 1),
            11 => Self::Signed(number as i64),
            12 => Self::Float(f64::from_bits(number)),
            _ => Self::Unsigned(number),
        })
    }

    /// A number that is whole and not negative, of any type.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A number of any type.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Unsigned(number) => Some(*number as f64),
            Self::Signed(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(truth) = self { Some(*truth) } else { None }
    }

    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(array) = self { Some(array) } else { None }
    }
}

/// For people: one line.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(number) => number.fmt(f),
            Self::Signed(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Bool(truth) => truth.fmt(f),
            Self::Text(text) => f.write_str(&quote(text)),
            Self::Array(array) => write!(f, "a list of {}", array.len),
        }
    }
}

impl Array {
    /// A type, a length, then the items: walked over, not kept.
    fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        let (kind, len) = (reader.u32()?, reader.u64()?);
        if len > MAX_ITEMS {
            return Err(format!("a list of {len} items is over {MAX_ITEMS}"));
        }
        let start = reader.at();
        match bytes_of(kind) {
            Some(bytes) => drop(reader.take(len as usize * bytes)?),
            None if kind == TEXT => {
                for _ in 0..len {
                    reader.text()?;
                }
            }
            None if kind == ARRAY => return Err("a list of lists is not supported".to_owned()),
            None => return Err(format!("a list of the unknown type {kind}")),
        }
        Ok(Self { kind, len: len as usize, bytes: start..reader.at() })
    }

    /// The items, from the `file` that the array was read from.
    pub fn values<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = Value> + use<'a> {
        let (kind, mut reader) = (self.kind, Reader::new(&file[self.bytes.clone()]));
        (0..self.len).map(move |_| Value::of(kind, &mut reader).expect("it has been read before"))
    }

    /// The items, where they are texts.
    pub fn texts<'a>(&self, file: &'a [u8]) -> Option<impl Iterator<Item = &'a str> + use<'a>> {
        let mut reader = Reader::new(&file[self.bytes.clone()]);
        let mut next = move || reader.text().expect("it has been read before");
        (self.kind == TEXT).then(|| (0..self.len).map(move |_| next()))
    }
}
