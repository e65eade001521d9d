//! What stands before the tensors of a file that is written.

use super::tensors::TensorType;
use super::{ALIGNMENT_BYTES, MAGIC};

/// The version that is written.
const VERSION: u32 = 3;

/// The value of a key that is written.
#[derive(Debug, Clone, PartialEq)]
pub enum NewValue {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

impl NewValue {
    /// Its type's number, then itself.
    fn write(&self, file: &mut Vec<u8>) {
        let list = |file: &mut Vec<u8>, kind: u32, len: usize| {
            file.extend([9u32, kind].iter().flat_map(|number| number.to_le_bytes()));
            file.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(number) => {
                file.extend(4u32.to_le_bytes());
                file.extend(number.to_le_bytes());
            }
            Self::F32(number) => {
                file.extend(6u32.to_le_bytes());
                file.extend(number.to_le_bytes());
            }
            Self::Bool(truth) => {
                file.extend(7u32.to_le_bytes());
                file.push(u8::from(*truth));
            }
            Self::Text(text) => {
                file.extend(8u32.to_le_bytes());
                write_text(file, text);
            }
            Self::Texts(texts) => {
                list(file, 8, texts.len());
                texts.iter().for_each(|text| write_text(file, text));
            }
            Self::I32s(numbers) => {
                list(file, 5, numbers.len());
                numbers.iter().for_each(|number| file.extend(number.to_le_bytes()));
            }
            Self::F32s(numbers) => {
                list(file, 6, numbers.len());
                numbers.iter().for_each(|number| file.extend(number.to_le_bytes()));
            }
        }
    }
}

/// A tensor that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    pub name: String,
    /// ggml's name of it.
    pub kind: &'static str,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub bytes: usize,
}

impl NewTensor {
    /// With what follows up to where the next one may begin.
    pub fn padded_bytes(&self) -> usize {
        self.bytes.next_multiple_of(ALIGNMENT_BYTES)
    }
}

fn write_text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

/// The beginning of a file with these keys, whose tensors then follow in this order, each padded with zeros
/// to [`NewTensor::padded_bytes`].
///
/// # Panics
/// When a kind is no name of ggml's.
pub fn header(keys: &[(String, NewValue)], tensors: &[NewTensor]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    file.extend(VERSION.to_le_bytes());
    file.extend([tensors.len(), keys.len()].iter().flat_map(|n| (*n as u64).to_le_bytes()));
    for (key, value) in keys {
        write_text(&mut file, key);
        value.write(&mut file);
    }
    let mut offset = 0;
    for tensor in tensors {
        write_text(&mut file, &tensor.name);
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| file.extend((*size as u64).to_le_bytes()));
        let kind = TensorType::named(tensor.kind).expect("a type of ggml's");
        file.extend(kind.number().to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset += tensor.padded_bytes();
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT_BYTES), 0);
    file
}

#[cfg(test)]
mod tests {
    use super::super::{Gguf, Value};
    use super::*;

    #[test]
    fn what_is_written_reads_the_same() {
        let keys = [
            ("number", NewValue::U32(7)),
            ("part", NewValue::F32(0.5)),
            ("truth", NewValue::Bool(true)),
            ("text", NewValue::Text("quipu ñ".to_owned())),
            ("texts", NewValue::Texts(vec!["a".to_owned(), String::new()])),
            ("signed", NewValue::I32s(vec![1, -3])),
            ("parts", NewValue::F32s(vec![1.5, -2.0, 0.0])),
        ];
        let keys = keys.map(|(key, value)| (key.to_owned(), value));
        let tensor = |name: &str, kind, shape: &[usize], bytes| NewTensor {
            name: name.to_owned(),
            kind,
            shape: shape.to_vec(),
            bytes,
        };
        let tensors = [tensor("a", "Q8_0", &[3, 64], 204), tensor("b", "F32", &[5], 20)];
        let mut file = header(&keys, &tensors);
        let start = file.len();
        file.resize(start + 224 + 32, 0);
        let gguf = Gguf::parse(&file).unwrap();
        assert_eq!(gguf.get("number"), Some(&Value::Unsigned(7)));
        assert_eq!(gguf.get("part"), Some(&Value::Float(0.5)));
        assert_eq!(gguf.get("truth"), Some(&Value::Bool(true)));
        assert_eq!(gguf.get("text"), Some(&Value::Text("quipu ñ".to_owned())));
        let list = |key| gguf.get(key).unwrap().as_array().unwrap().clone();
        assert_eq!(list("texts").texts(&file).unwrap().collect::<Vec<_>>(), ["a", ""]);
        let numbers =
            |key| list(key).values(&file).map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
        assert_eq!((numbers("signed"), numbers("parts")), (vec![1.0, -3.0], vec![1.5, -2.0, 0.0]));
        let found: Vec<_> =
            gguf.tensors.iter().map(|t| (t.kind.name, &t.shape[..], t.offset)).collect();
        assert_eq!(found, [("Q8_0", &[3, 64][..], start), ("F32", &[5], start + 224)]);
    }
}
