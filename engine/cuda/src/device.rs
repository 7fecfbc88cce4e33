//! A device with its compiled kernels, opened once a process.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use crate::driver::{self, Context, Kernel, Module};
use crate::error::{Failure, Result};

const PTX_61: &str = concat!(include_str!("../kernels/rwkv4_sm61.ptx"), "\0");
const PTX_80: &str = concat!(include_str!("../kernels/rwkv4_sm80.ptx"), "\0");
/// Set to 61 or 80: which of the two modules to use, for tests.
const MODULE_VARIABLE: &str = "RWKV_EDGE_CUDA_MODULE";

static OPEN: Mutex<BTreeMap<u32, Arc<Device>>> = Mutex::new(BTreeMap::new());

pub(crate) struct Device {
    pub(crate) context: Arc<Context>,
    pub(crate) multiprocessors: u32,
    /// Bytes of shared memory that a block may have at most.
    pub(crate) shared_max: u32,
    /// Whether the module of the tensor cores is in use.
    pub(crate) tensor_cores: bool,
    module: Module,
}

/// What can be said of a device without compiling kernels for it.
pub(crate) fn capability(context: &Context) -> Result<(u32, u32)> {
    let major = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok((major, minor))
}

impl Device {
    /// The device, compiled for at the first call.
    pub(crate) fn open(ordinal: u32) -> Result<Arc<Self>> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&ordinal) {
            return Ok(device.clone());
        }
        let device = Arc::new(Self::new(ordinal)?);
        open.insert(ordinal, device.clone());
        Ok(device)
    }

    fn new(ordinal: u32) -> Result<Self> {
        let context = Context::new(ordinal)?;
        let capability = capability(&context)?;
        if capability < (6, 1) {
            let (major, minor) = capability;
            return Err(Failure::unsupported(format!(
                "{}: compute capability {major}.{minor}, expected 6.1 or later",
                context.name()?
            )));
        }
        let tensor_cores = match std::env::var(MODULE_VARIABLE).as_deref() {
            Ok("61") => false,
            Ok("80") | Err(_) => capability >= (8, 0),
            Ok(other) => {
                return Err(Failure::argument(format!(
                    "{MODULE_VARIABLE} is {other:?}, expected 61 or 80"
                )))
            }
        };
        let ptx = if tensor_cores { PTX_80 } else { PTX_61 };
        let ptx = CStr::from_bytes_with_nul(ptx.as_bytes())
            .map_err(|_| Failure::unsupported("the kernels contain a NUL"))?;
        let module = Module::compile(&context, ptx)?;
        let shared = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let multiprocessors = Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(Device {
            multiprocessors: context.attribute(multiprocessors)?,
            shared_max: context.attribute(shared)?,
            tensor_cores,
            module,
            context,
        })
    }

    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel> {
        self.module.kernel(name)
    }
}

/// "compute capability 9.0, driver 13.0".
pub(crate) fn detail(context: &Context) -> Result<String> {
    let (major, minor) = capability(context)?;
    let version = driver::driver_version()?;
    Ok(format!(
        "compute capability {major}.{minor}, CUDA driver {}.{}",
        version / 1000,
        version % 1000 / 10
    ))
}
