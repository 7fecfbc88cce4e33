//! Reads the pickled table of a torch file: names, and where their tensors lie.
//!
//! Used by `torch.rs`. Pickle is a small language whose programs can call anything in Python; this
//! knows the few instructions that a state dict consists of, and stands for what they would build
//! by plain values. Nothing is ever executed: any other instruction or name is an error that says
//! which. Values refer to each other by index, so no input nests deeply, and each is paid for by at
//! least one byte of input, so none takes more memory than some fixed multiple of its length.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::dtype::Dtype;
use crate::error::{Error, Result};

/// Of a tensor; RWKV-4 has at most 3.
const DIMENSIONS_MAX: usize = 8;

/// Of the calls that tables of tensors make.
const ARGUMENTS_MAX: usize = 6;

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

/// The tensors of a state dict, in its order.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, PickledTensor)>> {
    let mut machine = Interpreter {
        input: bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        texts: Vec::new(),
        tuples: Vec::new(),
        dicts: Vec::new(),
        storages: Vec::new(),
        storage_of_key: HashMap::new(),
        tensors: Vec::new(),
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
    Text(usize),
    Tuple(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// The names that a state dict may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageOf(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self> {
        let dtype = match (module, name) {
            ("collections", "OrderedDict") => return Ok(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => return Ok(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => return Ok(Global::RebuildParameter),
            ("torch", "FloatStorage") => Dtype::F32,
            ("torch", "HalfStorage") => Dtype::F16,
            ("torch", "BFloat16Storage") => Dtype::Bf16,
            ("torch", "DoubleStorage") => Dtype::F64,
            ("torch", "CharStorage") => Dtype::I8,
            ("torch", "ByteStorage") => Dtype::U8,
            ("torch", "ShortStorage") => Dtype::I16,
            ("torch", "IntStorage") => Dtype::I32,
            ("torch", "LongStorage") => Dtype::I64,
            ("torch", "BoolStorage") => Dtype::Bool,
            _ => {
                return Err(Error::unsupported(format!(
                "refers to {module}.{name}, which no table of tensors needs; nothing was executed"
            )))
            }
        };
        Ok(Global::StorageOf(dtype))
    }
}

struct Interpreter<'a> {
    input: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    texts: Vec<&'a str>,
    tuples: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    storage_of_key: HashMap<&'a str, usize>,
    tensors: Vec<PickledTensor>,
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
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a => self.integer(opcode),
            b'X' | 0x8c => self.text(opcode),
            b')' => self.push_tuple(Vec::new()),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push_tuple(items)
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_tuple(items)
            }
            b'}' => self.push_dict(),
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(&pair)
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)
            }
            b'q' | b'r' | 0x94 => self.memoize(opcode),
            b'h' | b'j' => self.recall(opcode),
            b'c' => self.global(),
            0x93 => self.stack_global(),
            b'Q' => self.persistent(),
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
            None => Err(Error::format("truncated")),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?
            .try_into()
            .map_err(|_| Error::format("truncated"))
    }

    /// Up to the next line break, which is not part of it.
    fn line(&mut self) -> Result<&'a str> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(Error::format("truncated"));
        };
        let line = self.take(length)?;
        self.take(1)?;
        utf8(line)
    }

    fn push(&mut self, value: Value) -> Result<()> {
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor {
            if let Some(value) = self.stack.pop() {
                return Ok(value);
            }
        }
        Err(Error::format("takes a value that is not there"))
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Value>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n) {
            Some(from) if from >= floor => Ok(self.stack.split_off(from)),
            _ => Err(Error::format("takes a value that is not there")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err(Error::format("takes a value that is not there")),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            2..=5 => Ok(()),
            other => Err(Error::unsupported(format!(
                "protocol {other}, expected 2 to 5"
            ))),
        }
    }

    fn integer(&mut self, opcode: u8) -> Result<()> {
        let number = match opcode {
            b'K' => i64::from(self.byte()?),
            b'M' => i64::from(u16::from_le_bytes(self.array()?)),
            b'J' => i64::from(i32::from_le_bytes(self.array()?)),
            _ => {
                let length = usize::from(self.byte()?);
                let digits = self.take(length)?;
                long(digits)?
            }
        };
        self.push(Value::Int(number))
    }

    fn text(&mut self, opcode: u8) -> Result<()> {
        let length = match opcode {
            b'X' => u32::from_le_bytes(self.array()?),
            _ => u32::from(self.byte()?),
        };
        let length = usize::try_from(length).map_err(|_| Error::format("truncated"))?;
        let text = utf8(self.take(length)?)?;
        self.texts.push(text);
        self.push(Value::Text(self.texts.len() - 1))
    }

    fn push_tuple(&mut self, items: Vec<Value>) -> Result<()> {
        self.tuples.push(items);
        self.push(Value::Tuple(self.tuples.len() - 1))
    }

    fn push_dict(&mut self) -> Result<()> {
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    fn set_items(&mut self, items: &[Value]) -> Result<()> {
        let Some(Value::Dict(dict)) = self.stack.last().copied() else {
            return Err(Error::format("sets an entry of what is no dictionary"));
        };
        if items.len() % 2 != 0 {
            return Err(Error::format("sets an entry without a value"));
        }
        if let Some(entries) = self.dicts.get_mut(dict) {
            for pair in items.chunks_exact(2) {
                if let [key, value] = *pair {
                    entries.push((key, value));
                }
            }
        }
        Ok(())
    }

    fn memoize(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            b'q' => u32::from(self.byte()?),
            b'r' => u32::from_le_bytes(self.array()?),
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        let Some(top) = self.stack.last().copied() else {
            return Err(Error::format("remembers a value that is not there"));
        };
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            b'h' => u32::from(self.byte()?),
            _ => u32::from_le_bytes(self.array()?),
        };
        match self.memo.get(&index).copied() {
            Some(value) => self.push(value),
            None => Err(Error::format(format!(
                "recalls value {index}, which was not remembered"
            ))),
        }
    }

    fn global(&mut self) -> Result<()> {
        let module = self.line()?;
        let name = self.line()?;
        self.push(Value::Global(Global::find(module, name)?))
    }

    fn stack_global(&mut self) -> Result<()> {
        match self.pop_many(2)?[..] {
            [Value::Text(module), Value::Text(name)] => {
                let global = Global::find(self.text_at(module), self.text_at(name))?;
                self.push(Value::Global(global))
            }
            _ => Err(Error::format("refers to a name that is no text")),
        }
    }

    /// The reference to a storage: ('storage', type, key, device, number of elements).
    fn persistent(&mut self) -> Result<()> {
        let refuse = || Error::format("refers to an object outside that is no storage");
        let Value::Tuple(id) = self.pop()? else {
            return Err(refuse());
        };
        let items = self.tuples.get(id).ok_or_else(refuse)?;
        let &[Value::Text(kind), storage_type, Value::Text(key), _, Value::Int(len)] = &items[..]
        else {
            return Err(refuse());
        };
        let Value::Global(Global::StorageOf(dtype)) = storage_type else {
            return Err(refuse());
        };
        let key = self.text_at(key);
        let len = u64::try_from(len).map_err(|_| refuse())?;
        if self.text_at(kind) != "storage" {
            return Err(refuse());
        }
        let next = self.storages.len();
        let index = *self.storage_of_key.entry(key).or_insert(next);
        let storage = Storage {
            key: key.into(),
            dtype,
            len,
        };
        match self.storages.get(index) {
            None => self.storages.push(storage),
            Some(known) if *known == storage => {}
            Some(known) => {
                return Err(Error::format(format!(
                    "storage {key}: {len} elements of {dtype}, but before {} of {}",
                    known.len, known.dtype
                )))
            }
        }
        self.push(Value::Storage(index))
    }

    /// Stands for a call: of the three functions that tables of tensors use.
    fn reduce(&mut self) -> Result<()> {
        use Value::{Int, Storage, Tuple};
        let refuse =
            || Error::unsupported("calls a function in a way that no table of tensors needs");
        let (function, arguments) = match self.pop_many(2)?[..] {
            [Value::Global(function), Value::Tuple(arguments)] => (function, arguments),
            _ => return Err(refuse()),
        };
        // Copied, but never more than a call can need: a tuple may be used any number of times.
        let arguments = self
            .tuples
            .get(arguments)
            .filter(|all| all.len() <= ARGUMENTS_MAX);
        let arguments = arguments.cloned().ok_or_else(refuse)?;
        match (function, &arguments[..]) {
            (Global::OrderedDict, []) => self.push_dict(),
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), _, _]) => self.push(tensor),
            (
                Global::RebuildTensor,
                &[Storage(storage), Int(first), Tuple(shape), Tuple(strides), _, _],
            ) => {
                let tensor = PickledTensor {
                    storage: self.storages.get(storage).cloned().ok_or_else(refuse)?,
                    first: u64::try_from(first)
                        .map_err(|_| Error::format(format!("tensor at element {first}")))?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                };
                self.tensors.push(tensor);
                self.push(Value::Tensor(self.tensors.len() - 1))
            }
            _ => Err(refuse()),
        }
    }

    /// Sets attributes of an object. Those of a state dict say nothing about its tensors.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match (self.stack.last(), state) {
            (Some(Value::Dict(_)), Value::Dict(_)) => Ok(()),
            _ => Err(Error::unsupported(
                "sets the attributes of something else than a dictionary",
            )),
        }
    }

    fn sizes(&self, tuple: usize) -> Result<Vec<usize>> {
        let items = self
            .tuples
            .get(tuple)
            .map(Vec::as_slice)
            .unwrap_or_default();
        if items.len() > DIMENSIONS_MAX {
            let message = format!("a tensor of {} dimensions", items.len());
            return Err(Error::unsupported(message));
        }
        let size = |item: &Value| match *item {
            Value::Int(size) => usize::try_from(size)
                .map_err(|_| Error::format(format!("a size or stride of {size}"))),
            _ => Err(Error::format("a size or stride that is no integer")),
        };
        items.iter().map(size).collect()
    }

    fn text_at(&self, index: usize) -> &'a str {
        self.texts.get(index).copied().unwrap_or_default()
    }

    fn into_table(mut self, top: Value) -> Result<Vec<(String, PickledTensor)>> {
        let Value::Dict(dict) = top else {
            return Err(Error::format(
                "holds no dictionary, expected one of tensors",
            ));
        };
        let entries = self
            .dicts
            .get_mut(dict)
            .map(std::mem::take)
            .unwrap_or_default();
        let mut seen = HashSet::new();
        let mut table = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let Value::Text(key) = key else {
                return Err(Error::format(
                    "a key that is no text, expected names of tensors",
                ));
            };
            let name = self.text_at(key);
            if !seen.insert(name) {
                return Err(Error::format(format!("tensor {name}: occurs twice")));
            }
            match value {
                Value::Tensor(index) => {
                    let tensor = self.tensors.get(index).cloned();
                    table.extend(tensor.map(|tensor| (name.to_owned(), tensor)));
                }
                Value::Dict(_) => {
                    return Err(Error::unsupported(format!(
                    "a dictionary under {name:?}, expected a tensor; load the file in Python and \
                         save that dictionary alone"
                )))
                }
                _ => {
                    let message = format!("entry {name:?} is no tensor");
                    return Err(Error::unsupported(message));
                }
            }
        }
        Ok(table)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Error::format("a text that is not UTF-8"))
}

/// Little-endian two's complement of any length: element counts beyond 2^31 are written so.
fn long(digits: &[u8]) -> Result<i64> {
    if digits.len() > 8 {
        let message = format!("an integer of {} bytes, expected at most 8", digits.len());
        return Err(Error::format(message));
    }
    let negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    for (to, from) in wide.iter_mut().zip(digits) {
        *to = *from;
    }
    Ok(i64::from_le_bytes(wide))
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
            assert_eq!(long(digits).ok(), Some(number), "{digits:?}");
        }
        assert!(long(&[1; 9]).is_err());
    }
}
