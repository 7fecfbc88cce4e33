//! A device with its compiled kernels, opened once a process.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use crate::driver::{self, Context, Kernel, Module};
use crate::error::{Failure, Result};

/// The compiled kernels of one kind of device, for f16 and for int8.
struct Compiled {
    /// As [`MODULE_VARIABLE`] calls it.
    name: &'static str,
    capability: (u32, u32),
    f16: &'static str,
    int8: &'static str,
}

macro_rules! compiled {
    ($name:literal, $capability:expr) => {
        Compiled {
            name: $name,
            capability: $capability,
            f16: concat!(
                include_str!(concat!("../kernels/rwkv4_sm", $name, "_f16.ptx")),
                "\0"
            ),
            int8: concat!(
                include_str!(concat!("../kernels/rwkv4_sm", $name, "_int8.ptx")),
                "\0"
            ),
        }
    };
}

/// The last that a device understands is taken.
static COMPILED: [Compiled; 3] = [
    compiled!("61", (6, 1)),
    compiled!("80", (8, 0)),
    compiled!("90", (9, 0)),
];
/// Set to 61, 80 or 90: which of them to use, for tests.
const MODULE_VARIABLE: &str = "RWKV_EDGE_CUDA_MODULE";

static OPEN: Mutex<BTreeMap<u32, Arc<Device>>> = Mutex::new(BTreeMap::new());

pub(crate) struct Device {
    pub(crate) context: Arc<Context>,
    pub(crate) multiprocessors: u32,
    /// Bytes of shared memory that a block may have at most.
    pub(crate) shared_max: u32,
    /// Whether products of many rows are the tensor cores'.
    pub(crate) tensor_cores: bool,
    /// Whether a kernel may begin before the one in front of it ends.
    pub(crate) overlaps: bool,
    /// Whether all blocks of a launch can be made to run at once, and there is a kernel that needs it.
    pub(crate) together: bool,
    compiled: &'static Compiled,
    /// For f16 and for int8, compiled when first needed.
    modules: Mutex<[Option<Arc<Module>>; 2]>,
}

/// What can be said of a device without compiling kernels for it.
pub(crate) fn capability(context: &Context) -> Result<(u32, u32)> {
    let major = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok((major, minor))
}

/// Refuses devices that none of the modules are for.
pub(crate) fn check_capability(context: &Context) -> Result<()> {
    let (major, minor) = capability(context)?;
    if (major, minor) >= (6, 1) {
        return Ok(());
    }
    Err(Failure::unsupported(format!(
        "{}: compute capability {major}.{minor}, expected 6.1 or later",
        context.name()?
    )))
}

/// Bytes of shared memory that a block may have at most.
pub(crate) fn shared_max(context: &Context) -> Result<u32> {
    context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
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
        check_capability(&context)?;
        let fits = |compiled: &&Compiled| compiled.capability <= capability;
        let wanted = std::env::var(MODULE_VARIABLE).ok();
        let compiled = match &wanted {
            None => COMPILED.iter().rfind(fits),
            Some(name) => COMPILED.iter().find(|c| c.name == name && fits(c)),
        };
        let compiled = compiled.ok_or_else(|| {
            Failure::argument(format!(
                "{MODULE_VARIABLE} is {}, expected 61, 80 or 90, and not more than the device's {}{}",
                wanted.unwrap_or_default(),
                capability.0,
                capability.1
            ))
        })?;
        let multiprocessors = Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let together = Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH;
        Ok(Device {
            multiprocessors: context.attribute(multiprocessors)?,
            shared_max: shared_max(&context)?,
            tensor_cores: compiled.capability >= (8, 0),
            overlaps: compiled.capability >= (9, 0),
            together: compiled.capability >= (9, 0) && context.attribute(together)? != 0,
            compiled,
            modules: Mutex::new([None, None]),
            context,
        })
    }

    /// A kernel of the module for one quantisation.
    pub(crate) fn kernel(&self, name: &str, int8: bool) -> Result<Kernel> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut modules[usize::from(int8)];
        if let Some(module) = slot {
            return module.kernel(name);
        }
        let text = match int8 {
            true => self.compiled.int8,
            false => self.compiled.f16,
        };
        let text = CStr::from_bytes_with_nul(text.as_bytes())
            .map_err(|_| Failure::unsupported("the kernels contain a NUL"))?;
        let module = Arc::new(Module::compile(&self.context, text)?);
        slot.insert(module).kernel(name)
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
