//! Reads the pickled table of a torch file: names, and where their tensors lie.
//!
//! Used by `torch.rs`. Pickle is a small language whose programs can call anything in Python; this
//! knows its instructions, and stands for what they would build by plain values: tables of tensors
//! by what is needed of them, all else, such as the optimizers and counters of training, by no more
//! than what it is. Nothing is ever executed, and a name that reaches the system is an error.
//!
//! Values refer to each other by index, so no input nests deeply. There are at most [`VALUES_MAX`] of
//! each kind, and no instruction copies or hashes more than some hundred bytes of what others made
//! ([`TEXT_BYTES_MAX`]), so time is linear in the length of the input and memory is bounded.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::dtype::Dtype;
use crate::error::{Error, Result};
use crate::math::push;
use names::Global;

mod calls;
mod names;
mod table;

/// Of values on the stack, remembered ones, texts, items of tuples and entries of dictionaries, each.
/// Training checkpoints of the largest models have some ten thousand.
const VALUES_MAX: usize = 1 << 19;

/// Of tensors, and of storages. The largest models have some thousand, and an optimizer twice as many.
const TENSORS_MAX: usize = 1 << 16;

/// Names of Python that are of no use here: training needs some ten.
const NAMES_MAX: usize = 1 << 12;

/// Longer texts are no names of anything, and are not kept.
const TEXT_BYTES_MAX: usize = 256;

/// A tensor of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickledTensor {
    pub(super) storage: Storage,
    /// Elements of the storage before the tensor's first.
    pub(super) first: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// What a tensor's numbers are kept in; several tensors may share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    /// Name of its record in the archive. Shared, since any number of tensors may refer to it.
    pub(super) key: Arc<str>,
    pub(super) dtype: Dtype,
    /// Number of elements.
    pub(super) len: u64,
}

/// The tensors of a state dict, in its order, alone or among what else training saves.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, PickledTensor)>> {
    let mut machine = Interpreter {
        input: bytes,
        ..Interpreter::default()
    };
    let top = machine
        .run()
        .map_err(|e| e.at(format!("pickle, byte {}", machine.at)))?;
    machine.into_table(top)
}

/// A Python value, or what stands for one. Those with an index are kept in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(u32),
    Tuple(u32),
    Dict(u32),
    Global(Global),
    Storage(u32),
    Tensor(u32),
    Opaque(Opaque),
}

/// A value of which nothing is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opaque {
    /// A number, bytes, a set.
    Value,
    /// A text of more than [`TEXT_BYTES_MAX`].
    LongText,
    /// An integer of more than 64 bits.
    LongInt,
    List,
    /// Of a class or made by a function, by the number of its name.
    Object(u32),
}

#[derive(Default)]
struct Interpreter<'a> {
    input: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    n_remembered: u32,
    texts: Vec<&'a str>,
    /// Of tuples, one after the other.
    items: Vec<Value>,
    tuples: Vec<Range<u32>>,
    dicts: Vec<Vec<(Value, Value)>>,
    n_entries: usize,
    storages: Vec<Storage>,
    storage_of_key: HashMap<&'a str, u32>,
    tensors: Vec<PickledTensor>,
    /// Names of Python that are of no use here.
    names: Vec<String>,
    name_numbers: HashMap<String, u32>,
}

impl<'a> Interpreter<'a> {
    /// Runs to the end of the program and gives what it built.
    fn run(&mut self) -> Result<Value> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                break;
            }
            self.step(opcode)?;
        }
        if self.at != self.input.len() {
            let rest = self.input.len() - self.at;
            return Err(Error::format(format!("{rest} bytes after the end")));
        }
        self.pop()
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.protocol(),
            0x95 => self.take(8).map(drop), // FRAME: how far to read ahead
            b'(' => {
                let height = self.stack.len();
                put(&mut self.marks, height)
            }
            b'0' => self.discard(),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let value = self.pop()?;
                self.push(value)?;
                self.push(value)
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a | 0x8b => self.integer(opcode),
            b'I' | b'L' => self.decimal(),
            b'F' => self.line().and_then(|_| self.push(OTHER)),
            b'G' => self.take(8).and_then(|_| self.push(OTHER)),
            b'X' | 0x8c | 0x8d => {
                let bytes = self.counted(opcode)?;
                self.push_text(utf8(bytes)?)
            }
            b'S' | b'V' => self.quoted(opcode),
            // Bytes, which Python 2 uses for texts as well.
            b'T' | b'U' | b'B' | b'C' | 0x8e | 0x96 => {
                let bytes = self.counted(opcode)?;
                match std::str::from_utf8(bytes) {
                    Ok(text) if matches!(opcode, b'T' | b'U') => self.push_text(text),
                    _ => self.push(OTHER),
                }
            }
            b']' => self.push(LIST),
            b'l' => self.pop_to_mark().and_then(|_| self.push(LIST)),
            b'a' => self.pop().and_then(|_| self.require_opaque()),
            b'e' | 0x90 => self.pop_to_mark().and_then(|_| self.require_opaque()),
            0x8f => self.push(OTHER),
            0x91 => self.pop_to_mark().and_then(|_| self.push(OTHER)),
            b')' => self.push_tuple(self.stack.len()),
            0x85..=0x87 => {
                let from = self.start_of(usize::from(opcode - 0x84))?;
                self.push_tuple(from)
            }
            b't' => {
                let from = self.pop_mark()?;
                self.push_tuple(from)
            }
            b'}' => {
                let dict = self.new_dict()?;
                self.push(dict)
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                let dict = self.new_dict()?;
                self.push(dict)?;
                self.set_items(&items)
            }
            b's' => {
                let from = self.start_of(2)?;
                let pair = self.stack.split_off(from);
                self.set_items(&pair)
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)
            }
            b'p' | b'q' | b'r' | 0x94 => self.memoize(opcode),
            b'g' | b'h' | b'j' => self.recall(opcode),
            b'c' => {
                let global = self.global()?;
                self.push(Value::Global(global))
            }
            0x93 => self.stack_global(),
            b'i' => {
                let class = self.global()?;
                self.pop_to_mark()?;
                self.new_object(Value::Global(class))
            }
            b'o' => {
                let all = self.pop_to_mark()?;
                let class = all.first().copied().ok_or_else(not_there)?;
                self.new_object(class)
            }
            0x81 | 0x92 => {
                let from = self.start_of(usize::from(opcode == 0x92) + 2)?;
                let class = self.stack.get(from).copied().ok_or_else(not_there)?;
                self.stack.truncate(from);
                self.new_object(class)
            }
            b'Q' => self.persistent(),
            b'P' => Err(Error::unsupported(
                "names a storage as protocol 0 does, which torch.load does not read either; expected \
                 protocol 1 to 5",
            )),
            b'R' => self.reduce(),
            b'b' => self.build(),
            _ => Err(Error::unsupported(format!(
                "instruction 0x{opcode:02x}, which no table of tensors needs; nothing was executed"
            ))),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n);
        match end.and_then(|end| self.input.get(self.at..end)) {
            Some(bytes) => {
                self.at += n;
                Ok(bytes)
            }
            None => Err(truncated()),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| truncated())
    }

    /// As many bytes as stand in front of them, in as many bytes as the instruction says.
    fn counted(&mut self, opcode: u8) -> Result<&'a [u8]> {
        let n = match opcode {
            b'U' | b'C' | 0x8c => u64::from(self.byte()?),
            b'T' | b'B' | b'X' => u64::from(u32::from_le_bytes(self.array()?)),
            _ => u64::from_le_bytes(self.array()?),
        };
        self.take(usize::try_from(n).map_err(|_| truncated())?)
    }

    /// Up to the next line break, which is not part of it.
    fn line(&mut self) -> Result<&'a [u8]> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(length.ok_or_else(truncated)?)?;
        self.take(1)?;
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn push(&mut self, value: Value) -> Result<()> {
        put(&mut self.stack, value)
    }

    fn pop(&mut self) -> Result<Value> {
        self.start_of(1)?;
        self.stack.pop().ok_or_else(not_there)
    }

    /// Where the last `n` values of the stack begin.
    fn start_of(&self, n: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(n);
        from.filter(|&from| from >= floor).ok_or_else(not_there)
    }

    fn pop_mark(&mut self) -> Result<usize> {
        let mark = self.marks.pop();
        mark.filter(|&mark| mark <= self.stack.len())
            .ok_or_else(not_there)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>> {
        let from = self.pop_mark()?;
        Ok(self.stack.split_off(from))
    }

    /// Drops the last value, or the mark that is in its place.
    fn discard(&mut self) -> Result<()> {
        match self.pop() {
            Err(_) => self.pop_mark().map(drop),
            Ok(_) => Ok(()),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            0..=5 => Ok(()),
            other => Err(Error::unsupported(format!(
                "protocol {other}, expected at most 5"
            ))),
        }
    }

    fn integer(&mut self, opcode: u8) -> Result<()> {
        let number = match opcode {
            b'K' => Some(i64::from(self.byte()?)),
            b'M' => Some(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => Some(i64::from(i32::from_le_bytes(self.array()?))),
            _ => {
                let length = match opcode {
                    0x8a => u32::from(self.byte()?),
                    _ => u32::from_le_bytes(self.array()?),
                };
                long(self.take(usize::try_from(length).map_err(|_| truncated())?)?)
            }
        };
        self.push(number.map_or(LONG_INT, Value::Int))
    }

    /// A number in digits, or a truth value.
    fn decimal(&mut self) -> Result<()> {
        let digits = match self.line()? {
            b"00" => return self.push(Value::Bool(false)),
            b"01" => return self.push(Value::Bool(true)),
            digits => digits.strip_suffix(b"L").unwrap_or(digits),
        };
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        let is_number = digits
            .trim_start_matches('-')
            .bytes()
            .all(|b| b.is_ascii_digit());
        if digits.is_empty() || !is_number {
            return Err(Error::format("a number without digits"));
        }
        self.push(digits.parse().map_or(LONG_INT, Value::Int))
    }

    fn push_text(&mut self, text: &'a str) -> Result<()> {
        if text.len() > TEXT_BYTES_MAX {
            return self.push(Value::Opaque(Opaque::LongText));
        }
        put(&mut self.texts, text)?;
        self.push(Value::Text(self.texts.len() as u32 - 1))
    }

    /// A text as protocol 0 writes it, to the end of the line. One with escapes is no name of a tensor.
    fn quoted(&mut self, opcode: u8) -> Result<()> {
        let mut line = self.line()?;
        if opcode == b'S' {
            let quote = |quote: &[u8]| line.strip_prefix(quote)?.strip_suffix(quote);
            line = quote(b"'").or_else(|| quote(b"\"")).unwrap_or(b"\\");
        }
        match std::str::from_utf8(line) {
            Ok(text) if !text.contains('\\') => self.push_text(text),
            _ => self.push(OTHER),
        }
    }

    /// Makes a tuple of what is on the stack from there on.
    fn push_tuple(&mut self, from: usize) -> Result<()> {
        let start = self.items.len();
        for at in from..self.stack.len() {
            let item = self.stack.get(at).copied().ok_or_else(not_there)?;
            put(&mut self.items, item)?;
        }
        self.stack.truncate(from);
        // All tuples of nothing are one.
        if self.tuples.is_empty() {
            put(&mut self.tuples, 0..0)?;
        }
        if start == self.items.len() {
            return self.push(Value::Tuple(0));
        }
        put(&mut self.tuples, start as u32..self.items.len() as u32)?;
        self.push(Value::Tuple(self.tuples.len() as u32 - 1))
    }

    fn new_dict(&mut self) -> Result<Value> {
        put(&mut self.dicts, Vec::new())?;
        Ok(Value::Dict(self.dicts.len() as u32 - 1))
    }

    fn set_items(&mut self, items: &[Value]) -> Result<()> {
        if items.len() % 2 != 0 {
            return Err(Error::format("sets an entry without a value"));
        }
        let dict = match self.stack.last() {
            Some(Value::Dict(dict)) => *dict as usize,
            Some(Value::Opaque(_)) => return Ok(()),
            _ => return Err(Error::format("sets an entry of what is no dictionary")),
        };
        self.n_entries += items.len() / 2;
        check_count(self.n_entries)?;
        if let Some(entries) = self.dicts.get_mut(dict) {
            for pair in items.chunks_exact(2) {
                if let [key, value] = *pair {
                    push(entries, (key, value), VALUES)?;
                }
            }
        }
        Ok(())
    }

    /// Items are added to lists, sets and objects, which are not looked into.
    fn require_opaque(&self) -> Result<()> {
        match self.stack.last() {
            Some(Value::Opaque(_)) => Ok(()),
            _ => Err(Error::format("adds an item to what is no list")),
        }
    }

    /// The place of a remembered value.
    fn memo_index(&mut self, opcode: u8) -> Result<usize> {
        let index = match opcode {
            b'q' | b'h' => u32::from(self.byte()?),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            _ => {
                let digits = std::str::from_utf8(self.line()?).ok();
                let index = digits.and_then(|digits| digits.parse().ok());
                index.ok_or_else(|| Error::format("the number of a value without digits"))?
            }
        };
        Ok(index as usize)
    }

    fn memoize(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            0x94 => self.n_remembered as usize,
            _ => self.memo_index(opcode)?,
        };
        let Some(top) = self.stack.last().copied() else {
            return Err(Error::format("remembers a value that is not there"));
        };
        check_count(index)?;
        while self.memo.len() <= index {
            push(&mut self.memo, None, VALUES)?;
        }
        if let Some(slot) = self.memo.get_mut(index) {
            self.n_remembered += u32::from(slot.is_none());
            *slot = Some(top);
        }
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<()> {
        let index = self.memo_index(opcode)?;
        match self.memo.get(index).copied().flatten() {
            Some(value) => self.push(value),
            None => Err(Error::format(format!(
                "recalls value {index}, which was not remembered"
            ))),
        }
    }

    fn global(&mut self) -> Result<Global> {
        let module = self.line()?;
        let name = self.line()?;
        if module.len().max(name.len()) > TEXT_BYTES_MAX {
            let text = format!("refers to a name of more than {TEXT_BYTES_MAX} bytes");
            return Err(Error::format(text));
        }
        self.find(utf8(module)?, utf8(name)?)
    }

    fn stack_global(&mut self) -> Result<()> {
        let name = self.pop()?;
        let module = self.pop()?;
        let (Value::Text(module), Value::Text(name)) = (module, name) else {
            return Err(Error::format("refers to a name that is no text"));
        };
        let global = self.find(self.text_at(module), self.text_at(name))?;
        self.push(Value::Global(global))
    }

    fn text_at(&self, index: u32) -> &'a str {
        self.texts.get(index as usize).copied().unwrap_or_default()
    }

    fn tuple(&self, index: u32) -> &[Value] {
        let range = self.tuples.get(index as usize).cloned().unwrap_or(0..0);
        let items = self.items.get(range.start as usize..range.end as usize);
        items.unwrap_or_default()
    }

    fn dict(&self, index: u32) -> &[(Value, Value)] {
        let entries = self.dicts.get(index as usize);
        entries.map(Vec::as_slice).unwrap_or_default()
    }
}

const OTHER: Value = Value::Opaque(Opaque::Value);
const LONG_INT: Value = Value::Opaque(Opaque::LongInt);
const LIST: Value = Value::Opaque(Opaque::List);

/// What errors call the memory of values.
const VALUES: &str = "the values of a pickle";

/// Adds one more value to those of its kind.
fn put<T>(all: &mut Vec<T>, value: T) -> Result<()> {
    check_count(all.len())?;
    push(all, value, VALUES)
}

fn check_count(n: usize) -> Result<()> {
    match n < VALUES_MAX {
        true => Ok(()),
        false => Err(Error::format(format!("more than {VALUES_MAX} values"))),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Error::format("a text that is not UTF-8"))
}

fn truncated() -> Error {
    Error::format("truncated")
}

fn not_there() -> Error {
    Error::format("takes a value that is not there")
}

/// Little-endian two's complement of any length: element counts beyond 2^31 are written so. `None`: more
/// than 64 bits, as states of random generators have.
fn long(digits: &[u8]) -> Option<i64> {
    let negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide.get_mut(..digits.len())?.copy_from_slice(digits);
    Some(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_integers() {
        let cases: [(&[u8], i64); 7] = [
            (&[], 0),
            (&[5], 5),
            (&[0xff], -1),
            (&[0xff, 0], 255),
            (&[0, 0, 0, 0x80, 0], 1 << 31),
            (&[0, 0, 0, 0, 1], 1 << 32),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], i64::MAX),
        ];
        for (digits, number) in cases {
            assert_eq!(long(digits), Some(number), "{digits:?}");
        }
        assert!(long(&[1; 9]).is_none());
    }
}
