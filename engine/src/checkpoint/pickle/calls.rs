//! What stands for the calls of a pickle: tensors, dictionaries and parameters are made, anything else
//! becomes a value that says only what it is.

#![forbid(unsafe_code)]

use super::names::Global;
use super::{Interpreter, Opaque, PickledTensor, Storage, Value, NAMES_MAX, TENSORS_MAX};
use crate::error::{Error, Result};
use crate::math::push;

/// Of a tensor; RWKV-4 has at most 3.
const DIMENSIONS_MAX: usize = 8;

/// Of the calls that tables of tensors make.
const ARGUMENTS_MAX: usize = 7;

impl Interpreter<'_> {
    /// Looks a name up.
    pub(super) fn find(&mut self, module: &str, name: &str) -> Result<Global> {
        if let Some(found) = Global::find(module, name)? {
            return Ok(found);
        }
        let full = format!("{module}.{name}");
        if let Some(known) = self.name_numbers.get(&full) {
            return Ok(Global::Other(*known));
        }
        if self.names.len() == NAMES_MAX {
            let text = format!("refers to more than {NAMES_MAX} names of Python");
            return Err(Error::format(text));
        }
        let number = self.names.len() as u32;
        self.name_numbers.insert(full.clone(), number);
        self.names.push(full);
        Ok(Global::Other(number))
    }

    /// The reference to a storage: ('storage', type, key, device, number of elements).
    pub(super) fn persistent(&mut self) -> Result<()> {
        let refuse = || Error::format("refers to an object outside that is no storage");
        let Value::Tuple(id) = self.pop()? else {
            return Err(refuse());
        };
        let &[Value::Text(kind), Value::Global(class), Value::Text(key), _, Value::Int(len), ..] =
            self.tuple(id)
        else {
            return Err(refuse());
        };
        let (kind, key) = (self.text_at(kind), self.text_at(key));
        if kind != "storage" {
            return Err(refuse());
        }
        let len = u64::try_from(len).map_err(|_| refuse())?;
        let Some(dtype) = class.storage_dtype() else {
            return self.push(Value::Opaque(opaque(class)));
        };
        if let Some(&index) = self.storage_of_key.get(key) {
            return match self.storages.get(index as usize) {
                Some(known) if known.dtype == dtype && known.len == len => {
                    self.push(Value::Storage(index))
                }
                Some(known) => Err(Error::format(format!(
                    "storage {key}: {len} elements of {dtype}, but before {} of {}",
                    known.len, known.dtype
                ))),
                None => Err(refuse()),
            };
        }
        let index = self.storages.len() as u32;
        if self.storages.len() == TENSORS_MAX {
            return Err(Error::format(format!("more than {TENSORS_MAX} storages")));
        }
        self.storage_of_key.insert(key, index);
        let key = key.into();
        push(&mut self.storages, Storage { key, dtype, len }, "storages")?;
        self.push(Value::Storage(index))
    }

    /// Stands for a call of a function with a tuple of arguments.
    pub(super) fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let value = match (function, arguments) {
            (Value::Global(function), Value::Tuple(arguments)) => self.call(function, arguments)?,
            // What getattr() and its like would give is not known, and what it would give neither.
            (Value::Opaque(of), Value::Tuple(_)) => Value::Opaque(of),
            _ => return Err(not_like_that()),
        };
        self.push(value)
    }

    /// Makes an object of a class, as `__new__` would.
    pub(super) fn new_object(&mut self, class: Value) -> Result<()> {
        let value = match class {
            Value::Global(Global::Dictionary) => self.new_dict()?,
            Value::Global(class) => Value::Opaque(opaque(class)),
            Value::Opaque(of) => Value::Opaque(of),
            _ => return Err(not_like_that()),
        };
        self.push(value)
    }

    fn call(&mut self, function: Global, arguments: u32) -> Result<Value> {
        use Value::{Int, Storage, Tuple};
        // Copied, but never more than a call can need: a tuple may be used any number of times.
        let mut few = [Value::None; ARGUMENTS_MAX];
        let all = self.tuple(arguments);
        let n = all.len();
        if let Some(few) = few.get_mut(..n) {
            few.copy_from_slice(all);
        }
        let arguments = few.get(..n).unwrap_or_default();
        match (function, arguments) {
            (Global::Other(_) | Global::Storage(_), _) => Ok(Value::Opaque(opaque(function))),
            (Global::Dictionary, []) if n == 0 => self.new_dict(),
            (Global::DefaultDictionary, [] | [_]) if n < 2 => self.new_dict(),
            (Global::Dictionary | Global::DefaultDictionary, _) => {
                Ok(Value::Opaque(opaque(function)))
            }
            (Global::Size, &[Tuple(sizes)]) => Ok(Tuple(sizes)),
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => Ok(tensor),
            (Global::RebuildParameter, &[Value::Opaque(of), ..]) => Ok(Value::Opaque(of)),
            // One level: a subclass is rebuilt of a plain tensor.
            (Global::RebuildSubclass, &[Value::Global(rebuild), _, Tuple(arguments), _])
                if rebuild != Global::RebuildSubclass =>
            {
                self.call(rebuild, arguments)
            }
            (
                Global::RebuildTensor,
                &[Storage(storage), Int(first), Tuple(shape), Tuple(strides), ..],
            ) => {
                let storage = self.storages.get(storage as usize).cloned();
                let tensor = PickledTensor {
                    storage: storage.ok_or_else(not_like_that)?,
                    first: u64::try_from(first)
                        .map_err(|_| Error::format(format!("tensor at element {first}")))?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                };
                if self.tensors.len() == TENSORS_MAX {
                    return Err(Error::format(format!("more than {TENSORS_MAX} tensors")));
                }
                push(&mut self.tensors, tensor, "tensors")?;
                Ok(Value::Tensor(self.tensors.len() as u32 - 1))
            }
            (Global::RebuildTensor, &[Value::Opaque(of), ..]) => Ok(Value::Opaque(of)),
            _ => Err(not_like_that()),
        }
    }

    /// Sets attributes of an object. Those of a state dict, or a tensor, say nothing about its numbers.
    pub(super) fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match (self.stack.last(), state) {
            (Some(Value::Opaque(_)), _)
            | (Some(Value::Dict(_) | Value::Tensor(_)), Value::Dict(_)) => Ok(()),
            _ => Err(Error::unsupported(
                "sets the attributes of something else than an object",
            )),
        }
    }

    fn sizes(&self, tuple: u32) -> Result<Vec<usize>> {
        let items = self.tuple(tuple);
        if items.len() > DIMENSIONS_MAX {
            let message = format!("a tensor of {} dimensions", items.len());
            return Err(Error::unsupported(message));
        }
        let size = |item: &Value| match *item {
            Value::Int(size) => usize::try_from(size)
                .map_err(|_| Error::format(format!("a size or stride of {size}"))),
            Value::Opaque(Opaque::LongInt) => {
                Err(Error::format("a size or stride of more than 63 bits"))
            }
            _ => Err(Error::format("a size or stride that is no integer")),
        };
        items.iter().map(size).collect()
    }
}

fn opaque(of: Global) -> Opaque {
    match of {
        Global::Other(name) => Opaque::Object(name),
        _ => Opaque::Value,
    }
}

fn not_like_that() -> Error {
    Error::unsupported("calls a function in a way that no table of tensors needs")
}
