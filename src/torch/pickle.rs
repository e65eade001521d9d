//! The pickle in a file of `torch.save`, read as data: the machine below knows how to make dictionaries,
//! tuples and tensors, and nothing else. Whatever a pickle would have Python call is refused by name.
//!
//! Python's `pickletools` has the opcodes. Every one makes a value at most, of which all parts are shared:
//! the memory that a pickle takes is bounded by its length, however it refers to what it has made.

use std::collections::HashMap;
use std::rc::Rc;

use crate::encoding::Float;
use crate::json::quote;

/// Llama 3.1 405B's have a tenth of this.
const MAX_BYTES: usize = 2 << 20;

/// Tuples in tuples, at most: a tensor's has its shape in it.
const MAX_DEPTH: usize = 4;

/// A tensor as a pickle says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picked<'a> {
    pub float: Float,
    /// The member that has its numbers, among others perhaps.
    pub member: &'a str,
    /// Numbers of that member.
    pub member_len: i64,
    /// Of its first number among them.
    pub first: i64,
    pub shape: Vec<i64>,
    /// Numbers from one of each dimension to the next.
    pub stride: Vec<i64>,
}

/// What can be on the machine's stack.
#[derive(Debug, Clone)]
enum Value<'a> {
    /// Of which nothing depends.
    None,
    Number(i64),
    Text(&'a str),
    Tuple(Rc<Tuple<'a>>),
    /// By its number.
    Dict(usize),
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch.BFloat16Storage`: the class.
    StorageType(Float),
    Storage(Rc<Storage<'a>>),
    Tensor(Rc<Picked<'a>>),
}

#[derive(Debug)]
struct Tuple<'a> {
    items: Vec<Value<'a>>,
    /// 1, if no item is a tuple.
    depth: usize,
}

#[derive(Debug)]
struct Storage<'a> {
    float: Float,
    member: &'a str,
    len: i64,
}

/// What an unpickler of this name makes.
fn global<'a>(module: &str, name: &str) -> Result<Value<'a>, String> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Value::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Value::RebuildTensor,
        ("torch", "BFloat16Storage") => Value::StorageType(Float::Bf16),
        ("torch", "HalfStorage") => Value::StorageType(Float::F16),
        ("torch", "FloatStorage") => Value::StorageType(Float::F32),
        _ => {
            return Err(format!(
                "asks for {}: nothing but tensors of BFloat16, Half and Float is read, and nothing is \
                 run",
                quote(&format!("{module}.{name}"))
            ));
        }
    })
}

/// The tensors of a pickled dictionary, by name.
///
/// # Errors
/// Anything else, by name; a pickle that is cut off or makes no sense.
pub fn read(pickle: &[u8]) -> Result<Vec<(&str, Picked<'_>)>, String> {
    if pickle.len() > MAX_BYTES {
        let bytes = pickle.len();
        return Err(format!("{bytes} bytes of names and shapes are over {} MiB", MAX_BYTES >> 20));
    }
    let mut machine = Machine { rest: pickle, ..Machine::default() };
    while !machine.step()? {}
    let top = machine.stack.pop();
    if !(machine.stack.is_empty() && machine.marks.is_empty() && machine.rest.is_empty()) {
        return Err("something is left over at its end".to_owned());
    }
    let Some(Value::Dict(top)) = top else {
        return Err("it is no dictionary of tensors".to_owned());
    };
    let mut tensors = Vec::new();
    for (name, value) in &machine.dicts[top] {
        match (name, value) {
            (Value::Text(name), Value::Tensor(tensor)) => {
                tensors.push((*name, tensor.as_ref().clone()));
            }
            (Value::Text(name), _) => return Err(format!("{} is no tensor", quote(name))),
            _ => return Err("its dictionary has keys that are no texts".to_owned()),
        }
    }
    Ok(tensors)
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
}

impl<'a> Machine<'a> {
    /// Takes an opcode; whether it was the last one.
    fn step(&mut self) -> Result<bool, String> {
        let opcode = self.take(1)?[0];
        let value = match opcode {
            0x80 => match self.take(1)?[0] {
                2 => return Ok(false),
                other => return Err(format!("protocol {other}: torch.save writes protocol 2")),
            },
            b'.' => return Ok(true),
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(false);
            }
            b'q' | b'r' => {
                let key = self.number(if opcode == b'q' { 1 } else { 4 })?;
                let value = self.stack.last().ok_or(EMPTY)?.clone();
                self.memo.insert(key as u32, value);
                return Ok(false);
            }
            b's' | b'u' | b'b' => {
                self.set_items(opcode)?;
                return Ok(false);
            }
            b'h' | b'j' => {
                let key = self.number(if opcode == b'h' { 1 } else { 4 })?;
                let value = self.memo.get(&(key as u32));
                value.ok_or_else(|| format!("takes value {key}, which there is not"))?.clone()
            }
            b'N' | 0x88 | 0x89 => Value::None,
            b'K' => Value::Number(self.number(1)? as i64),
            b'M' => Value::Number(self.number(2)? as i64),
            b'J' => Value::Number(i64::from(self.number(4)? as u32 as i32)),
            0x8a => self.long()?,
            b'X' => {
                let bytes = self.number(4)? as usize;
                Value::Text(text(self.take(bytes)?)?)
            }
            b'}' => self.dict(),
            b')' => tuple(Vec::new())?,
            0x85..=0x87 => {
                let at = self.stack.len().checked_sub(usize::from(opcode - 0x84));
                tuple(self.above(at.ok_or(EMPTY)?)?)?
            }
            b't' => {
                let at = self.marks.pop().ok_or(EMPTY)?;
                tuple(self.above(at)?)?
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                global(module, name)?
            }
            b'Q' => storage(&self.pop()?)?,
            b'R' => self.call()?,
            other => return Err(format!("opcode {other:#04x} is not of a dictionary of tensors")),
        };
        self.stack.push(value);
        Ok(false)
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or("it is cut off")?;
        self.rest = rest;
        Ok(taken)
    }

    /// Little-endian, without a sign.
    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        let bytes = self.take(bytes)?.iter().rev();
        Ok(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A number of as many bytes as a byte says, the last of which has the sign.
    fn long(&mut self) -> Result<Value<'a>, String> {
        let bytes = self.number(1)? as usize;
        if bytes > 8 {
            return Err(format!("a number of {bytes} bytes is no size"));
        }
        let unused = 64 - 8 * bytes as u32;
        let number = self.number(bytes)?;
        Ok(Value::Number(number.checked_shl(unused).map_or(0, |high| high as i64 >> unused)))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or("it is cut off")?;
        let line = self.take(end + 1)?;
        text(&line[..end])
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        // What a mark is for stays.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(EMPTY.to_owned());
        }
        self.stack.pop().ok_or_else(|| EMPTY.to_owned())
    }

    /// What is on the stack from this height on.
    fn above(&mut self, at: usize) -> Result<Vec<Value<'a>>, String> {
        if at < self.marks.last().copied().unwrap_or(0) {
            return Err(EMPTY.to_owned());
        }
        Ok(self.stack.split_off(at))
    }

    fn dict(&mut self) -> Value<'a> {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    /// SETITEM, SETITEMS and BUILD, which gives a dictionary attributes: those are of no use.
    fn set_items(&mut self, opcode: u8) -> Result<(), String> {
        let items = match opcode {
            b'u' => {
                let at = self.marks.pop().ok_or(EMPTY)?;
                self.above(at)?
            }
            b's' => self.above(self.stack.len().checked_sub(2).ok_or(EMPTY)?)?,
            _ => self.pop().map(|_| Vec::new())?,
        };
        let (pairs, []) = items.as_chunks() else { return Err(EMPTY.to_owned()) };
        let Some(Value::Dict(number)) = self.stack.last() else {
            return Err("sets what is no dictionary".to_owned());
        };
        self.dicts[*number].extend(pairs.iter().map(|[key, value]| (key.clone(), value.clone())));
        Ok(())
    }

    /// REDUCE: what a function makes of a tuple.
    fn call(&mut self) -> Result<Value<'a>, String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Tuple(arguments) = &arguments else {
            return Err("calls without arguments".to_owned());
        };
        match (function, &arguments.items[..]) {
            (Value::OrderedDict, []) => Ok(self.dict()),
            (
                Value::RebuildTensor,
                [
                    Value::Storage(of),
                    Value::Number(first),
                    Value::Tuple(shape),
                    Value::Tuple(stride),
                    ..,
                ],
            ) => Ok(Value::Tensor(Rc::new(Picked {
                float: of.float,
                member: of.member,
                member_len: of.len,
                first: *first,
                shape: numbers(shape)?,
                stride: numbers(stride)?,
            }))),
            _ => Err("calls something otherwise than a tensor or dictionary is made".to_owned()),
        }
    }
}

const EMPTY: &str = "takes more values than there are";

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned())
}

fn tuple(items: Vec<Value<'_>>) -> Result<Value<'_>, String> {
    let depth = |item: &Value| if let Value::Tuple(tuple) = item { tuple.depth } else { 0 };
    let depth = 1 + items.iter().map(depth).max().unwrap_or(0);
    if depth > MAX_DEPTH {
        return Err(format!("tuples are in each other {depth} deep: no tensor's are"));
    }
    Ok(Value::Tuple(Rc::new(Tuple { items, depth })))
}

fn numbers(tuple: &Tuple<'_>) -> Result<Vec<i64>, String> {
    let number = |item: &Value| if let Value::Number(number) = item { Some(*number) } else { None };
    let numbers: Option<Vec<i64>> = tuple.items.iter().map(number).collect();
    numbers.ok_or_else(|| "a shape has something else than numbers".to_owned())
}

/// What a persistent id means: `("storage", type, member, device, numbers)`.
fn storage<'a>(id: &Value<'a>) -> Result<Value<'a>, String> {
    if let Value::Tuple(tuple) = id
        && let [
            Value::Text("storage"),
            Value::StorageType(float),
            Value::Text(member),
            Value::Text(_),
            Value::Number(len),
        ] = tuple.items[..]
    {
        return Ok(Value::Storage(Rc::new(Storage { float, member, len })));
    }
    Err("a persistent id is no storage's".to_owned())
}
