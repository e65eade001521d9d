//! Makes a compiled template pay for all that it has the engine do.
//!
//! The engine charges a template's fuel for its steps and for the bytes that they make, but not for
//! what comparing, hashing, dropping or writing a value takes. A list that holds another one twice,
//! which does the same ..., is small in memory and endless to walk; a namespace that holds itself
//! has no end at all; the sum of two lists is a view, and a view of views takes for ever to find an
//! item in.
//!
//! So every instruction that walks values is preceded by one that pays for what it may walk, and
//! every one that makes a value of others is followed by one that bounds how deep it nests and
//! makes lists of views. The instructions themselves are the engine's. What nests is data: no
//! namespace, loop or macro is kept in a value.

use minijinja::machinery::{CompiledTemplate, Instruction, Instructions};
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::python::{self, refused};

/// The deepest value: as the deepest JSON that is read.
const MAX_DEPTH: usize = 128;
/// Bytes that one unit of fuel pays for, and that each part of a value counts for.
pub(super) const BYTES_PER_FUEL: usize = 16;

/// Filters and methods that look at no more than the first level of a value and nest nothing.
const SHALLOW: [&str; 14] = [
    "count",
    "d",
    "default",
    "first",
    "get",
    "items",
    "keys",
    "last",
    "length",
    "list",
    "reject",
    "rejectattr",
    "select",
    "selectattr",
];
/// Tests that compare values. All others look at a value's kind, or at one text.
const COMPARING: [&str; 17] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "eq",
    "equalto",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "le",
    "lessthan",
    "lt",
    "ne",
    "sameas",
];

// Names that no template can write.
const PAY: &str = "$pay";
const PAY_TEXT: &str = "$pay-text";
const BOUND: &str = "$bound";
const KEEP: &str = "$keep";
const KEY: &str = "$key";
const REMAINDER: &str = "$remainder";
const FILTER: &str = "$filter";
const TEST: &str = "$test";
const METHOD: &str = "$method";

/// Filters are looked up by name each time.
const NOT_CACHED: u8 = !0;

/// What the rewritten instructions call.
pub(super) fn add_to(environment: &mut Environment) {
    environment.add_filter(PAY, pay_operands);
    environment.add_filter(PAY_TEXT, pay_written);
    environment.add_filter(BOUND, |state: &mut State, value: ValueOrKwargs| {
        bound(state, value.into_value())
    });
    environment.add_filter(KEEP, keep);
    environment.add_filter(KEY, |state: &mut State, key: Value| walk(state, &key).map(|_| key));
    environment.add_filter(REMAINDER, python::remainder);
    environment.add_filter(FILTER, filter);
    environment.add_filter(TEST, test);
    environment.add_filter(METHOD, method);
}

/// Rewrites all of a template.
pub(super) fn charge(template: &mut CompiledTemplate) {
    let blocks = template.blocks.values_mut();
    for instructions in blocks.chain([&mut template.instructions]) {
        *instructions = charged(instructions);
    }
}

fn charged<'s>(plain: &Instructions<'s>) -> Instructions<'s> {
    let mut charged = Instructions::new(plain.name(), plain.source());
    // Where each instruction has gone, and what comes after the last.
    let mut places = vec![0];
    for at in 0.. {
        let Some(instruction) = plain.get(at) else { break };
        let line = plain.get_line(at).and_then(|line| line.try_into().ok()).unwrap_or(0);
        let mut end = 0;
        rewrite(instruction.clone(), &mut |new| end = charged.add_with_line(new, line) + 1);
        places.push(end);
    }
    for at in 0.. {
        match charged.get_mut(at) {
            Some(
                Instruction::Jump(target)
                | Instruction::JumpIfFalse(target)
                | Instruction::JumpIfFalseOrPop(target)
                | Instruction::JumpIfTrueOrPop(target)
                | Instruction::Iterate(target)
                | Instruction::BuildMacro(_, target, _),
            ) => *target = places[*target as usize],
            Some(_) => {}
            None => break,
        }
    }
    charged
}

fn rewrite<'s>(instruction: Instruction<'s>, add: &mut impl FnMut(Instruction<'s>)) {
    use Instruction as I;
    let filter = |name, arguments| I::ApplyFilter(name, Some(arguments), NOT_CACHED);
    match instruction {
        I::Eq | I::Ne | I::Lt | I::Lte | I::Gt | I::Gte | I::In | I::CompareAndPreserve(_) => {
            add(filter(PAY, 2));
            add(I::UnpackList(2));
            add(instruction);
        }
        I::StringConcat => {
            add(filter(PAY_TEXT, 2));
            add(I::UnpackList(2));
            add(instruction);
        }
        I::Rem => add(filter(REMAINDER, 2)),
        I::GetItem => {
            add(filter(KEY, 1));
            add(instruction);
        }
        I::SetAttr(_) => {
            add(filter(KEEP, 2));
            add(I::UnpackList(2));
            add(instruction);
        }
        I::Add
        | I::Mul
        | I::Slice
        | I::BuildList(_)
        | I::BuildTuple(_)
        | I::BuildMap(_)
        | I::CallFunction(..)
        | I::CallObject(_) => {
            add(instruction);
            add(filter(BOUND, 1));
        }
        I::ApplyFilter(name, arguments, _) => call_by_name(FILTER, name, arguments, add),
        I::PerformTest(name, arguments, _) => call_by_name(TEST, name, arguments, add),
        I::CallMethod(name, arguments) => call_by_name(METHOD, name, arguments, add),
        other => add(other),
    }
}

/// Calls `filter` with a name behind the arguments. Where their count is `None`, it lies on top of
/// them.
fn call_by_name<'s>(
    filter: &'static str,
    name: &'s str,
    arguments: Option<u16>,
    add: &mut impl FnMut(Instruction<'s>),
) {
    use Instruction as I;
    if arguments.is_none() {
        add(I::LoadConst(Value::from(1)));
        add(I::Add);
    }
    add(I::LoadConst(Value::from(name)));
    if arguments.is_none() {
        add(I::Swap);
    }
    add(I::ApplyFilter(filter, arguments.map(|count| count + 1), NOT_CACHED));
}

/// The two operands of an operator that walks both, where both are made of parts. They go back as a
/// list, the last one first, since that is how the engine unpacks one.
fn pay_operands(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if has_parts(&left) && has_parts(&right) {
        walk(state, &left)?;
        walk(state, &right)?;
    } else if let Some(items) = right.len().filter(|_| has_parts(&right)) {
        // A scalar is looked for.
        charge_bytes(state, items * BYTES_PER_FUEL)?;
    }
    Ok(Value::from(vec![right, left]))
}

/// As [`pay_operands`], for an operator that writes both out.
fn pay_written(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    for value in [&left, &right] {
        if has_parts(value) {
            walk(state, value)?;
        }
    }
    Ok(Value::from(vec![right, left]))
}

/// What is about to be kept in a namespace, and the namespace.
fn keep(state: &mut State, value: Value, namespace: Value) -> Result<Value, Error> {
    check_data(&value)?;
    Ok(Value::from(vec![namespace, bound(state, value)?]))
}

fn filter(state: &mut State, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let (arguments, name) = called(arguments)?;
    let is_shallow = pay_call(state, &arguments, &name)?;
    let made = state.apply_filter(&name, &arguments)?;
    if is_shallow { flat(state, made) } else { bound(state, made) }
}

fn test(state: &mut State, arguments: Rest<ValueOrKwargs>) -> Result<bool, Error> {
    let (arguments, name) = called(arguments)?;
    if COMPARING.contains(&name.as_str()) {
        arguments.iter().try_for_each(|argument| walk(state, argument).map(drop))?;
    }
    state.perform_test(&name, &arguments)
}

fn method(state: &mut State, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let (arguments, name) = called(arguments)?;
    let Some((value, rest)) = arguments.split_first() else {
        return Err(refused("a method of nothing"));
    };
    if name == "cycle" && rest.is_empty() {
        return Err(refused("cycle: no items"));
    }
    rest.iter().try_for_each(check_data)?;
    let is_shallow = pay_call(state, &arguments, &name)?;
    let made = value.call_method(state, &name, rest)?;
    if is_shallow { flat(state, made) } else { bound(state, made) }
}

/// The arguments of a call, and the name behind them.
fn called(arguments: Rest<ValueOrKwargs>) -> Result<(Vec<Value>, String), Error> {
    let mut arguments = arguments.into_values();
    let name = arguments.pop().and_then(|name| name.as_str().map(str::to_owned));
    Ok((arguments, name.ok_or_else(|| refused("a call without a name"))?))
}

/// Pays for a call: for all of its first argument, unless it is shallow, and for the others once
/// for each item of the first.
fn pay_call(state: &mut State, arguments: &[Value], name: &str) -> Result<bool, Error> {
    let is_shallow = SHALLOW.contains(&name);
    let Some((value, rest)) = arguments.split_first() else { return Ok(is_shallow) };
    let items = value.len().filter(|_| has_parts(value)).unwrap_or(0);
    if is_shallow {
        charge_bytes(state, items * BYTES_PER_FUEL)?;
    } else {
        let bytes = walk(state, value)?;
        // Sums of texts or lists are made anew with each item.
        charge_bytes(
            state,
            if name == "sum" && !rest.is_empty() { bytes.saturating_mul(items) } else { 0 },
        )?;
    }
    for argument in rest {
        let bytes = walk(state, argument)?;
        charge_bytes(state, bytes.saturating_mul(items))?;
    }
    Ok(is_shallow)
}

/// A value that has been made of others, if it nests no deeper than it may.
fn bound(state: &mut State, value: Value) -> Result<Value, Error> {
    let value = flat(state, value)?;
    match value.kind() {
        ValueKind::Seq => value.try_iter()?.try_for_each(|item| check_data(&item))?,
        ValueKind::Map if !is_engines(&value) => {
            value.try_iter()?.try_for_each(|key| check_data(&value.get_item(&key)?))?;
        }
        _ => return Ok(value),
    }
    walk(state, &value)?;
    Ok(value)
}

/// A list in place of a view.
fn flat(state: &mut State, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        charge_bytes(state, BYTES_PER_FUEL)?;
        items.push(item);
    }
    Ok(Value::from(items))
}

/// Refuses what is no data.
fn check_data(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Plain => Err(refused("a function is no value to keep")),
        ValueKind::Map if is_engines(value) => {
            Err(refused("a namespace, a loop or a macro is no value to keep"))
        }
        _ => Ok(()),
    }
}

/// Whether a map is one of the engine's own objects, which change and may hold each other.
fn is_engines(map: &Value) -> bool {
    let name = map.as_object().map_or("", |object| object.type_name());
    ["::Namespace", "::Loop", "::Macro"].iter().any(|object| name.ends_with(object))
}

fn has_parts(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

/// Charges for every part of a value, and the parts of the parts. Returns for how many bytes.
pub(super) fn walk(state: &State, value: &Value) -> Result<usize, Error> {
    fn visit(state: &State, value: &Value, depth: usize) -> Result<usize, Error> {
        if depth > MAX_DEPTH {
            return Err(refused("a value is nested too deeply"));
        }
        let mut bytes = BYTES_PER_FUEL + value.as_str().map_or(0, str::len);
        charge_bytes(state, bytes)?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    bytes = bytes.saturating_add(visit(state, &item, depth + 1)?);
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()? {
                    bytes = bytes.saturating_add(visit(state, &key, depth + 1)?);
                    bytes = bytes.saturating_add(visit(state, &value.get_item(&key)?, depth + 1)?);
                }
            }
            _ => {}
        }
        Ok(bytes)
    }
    visit(state, value, 0)
}

pub(super) fn charge_bytes(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}
