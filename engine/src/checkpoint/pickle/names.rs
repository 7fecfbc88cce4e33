//! The names of Python that a pickle may refer to: what stands for those that tables of tensors use, and
//! which no checkpoint has a use for.

#![forbid(unsafe_code)]

use crate::checkpoint::dtype::Dtype;
use crate::error::{Error, Result};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    Dictionary,
    DefaultDictionary,
    /// torch's sizes: a tuple.
    Size,
    RebuildTensor,
    RebuildParameter,
    RebuildSubclass,
    /// One of [`STORAGES`].
    Storage(u8),
    /// Something of no use here, by the number of its name.
    Other(u32),
}

/// torch's types of storages, and of the numbers in them.
const STORAGES: [(&str, Dtype); 10] = [
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::Bf16),
    ("DoubleStorage", Dtype::F64),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("ShortStorage", Dtype::I16),
    ("IntStorage", Dtype::I32),
    ("LongStorage", Dtype::I64),
    ("BoolStorage", Dtype::Bool),
];

/// Modules that reach the system. What training leaves in a checkpoint never needs them, what means harm
/// does.
const HARMFUL_MODULES: [&str; 23] = [
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "shutil",
    "socket",
    "runpy",
    "pty",
    "ctypes",
    "importlib",
    "pickle",
    "_pickle",
    "cPickle",
    "code",
    "commands",
    "webbrowser",
    "urllib",
    "http",
    "multiprocessing",
    "signal",
    "pip",
    "asyncio",
];

/// Builtins that are values, types, or functions of values alone, in Python 3's spelling and in Python 2's, which
/// protocol 2 writes; of the others some run code.
const HARMLESS_BUILTINS: [&str; 43] = [
    "set",
    "frozenset",
    "dict",
    "list",
    "tuple",
    "int",
    "long",
    "float",
    "complex",
    "str",
    "unicode",
    "basestring",
    "bytes",
    "bytearray",
    "memoryview",
    "bool",
    "object",
    "type",
    "NoneType",
    "slice",
    "range",
    "xrange",
    "property",
    "staticmethod",
    "classmethod",
    "super",
    "getattr",
    "Ellipsis",
    "ellipsis",
    "NotImplemented",
    "None",
    "True",
    "False",
    "len",
    "min",
    "max",
    "sum",
    "abs",
    "round",
    "sorted",
    "reversed",
    "enumerate",
    "zip",
];

impl Global {
    /// What a name stands for; `Ok(None)`: something that is of no use here.
    ///
    /// # Errors
    /// A name that runs what its arguments say.
    pub(super) fn find(module: &str, name: &str) -> Result<Option<Self>> {
        let harmful = match module {
            "builtins" | "__builtin__" => !HARMLESS_BUILTINS.contains(&name),
            _ => HARMFUL_MODULES.contains(&module.split('.').next().unwrap_or_default()),
        };
        if harmful {
            return Err(Error::unsupported(format!(
                "refers to {module}.{name}, which no table of tensors needs; nothing was executed"
            )));
        }
        Ok(match (module, name) {
            ("collections", "OrderedDict") | ("builtins" | "__builtin__", "dict") => {
                Some(Global::Dictionary)
            }
            ("collections", "defaultdict") => Some(Global::DefaultDictionary),
            ("torch", "Size") => Some(Global::Size),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                Some(Global::RebuildTensor)
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Some(Global::RebuildParameter)
            }
            ("torch._tensor", "_rebuild_from_type_v2") => Some(Global::RebuildSubclass),
            ("torch", _) => {
                let mut storages = STORAGES.iter().zip(0..);
                let found = storages.find(|((storage, _), _)| *storage == name);
                found.map(|(_, index)| Global::Storage(index))
            }
            _ => None,
        })
    }

    /// The type of the numbers in a storage; `None` for what is none.
    pub(super) fn storage_dtype(self) -> Option<Dtype> {
        match self {
            Global::Storage(index) => STORAGES.get(usize::from(index)).map(|(_, dtype)| *dtype),
            _ => None,
        }
    }
}
