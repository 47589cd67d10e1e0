//! Modules and functions: PTX text, checked against what the driver and the device can take, and its
//! kernels by name.

use crate::{
    driver::Driver,
    settings::Settings,
    status::{Outcome, Status},
    work::Kernel,
};
use std::{collections::HashMap, ffi::c_int, sync::Arc};

/// Shared memory of a block, static and dynamic, that needs no asking for. Bytes.
pub const SHARED_BY_DEFAULT: usize = 48 << 10;

struct Module {
    context: usize,
    image: Arc<softcuda_ptx::Module>,
    /// Handles by name: asking twice gives the same.
    functions: HashMap<String, usize>,
}

pub struct Function {
    pub context: usize,
    pub image: Arc<softcuda_ptx::Module>,
    pub name: String,
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`, if it has been set.
    pub dynamic_shared_limit: Option<usize>,
    module: usize,
}

#[derive(Default)]
pub struct Modules {
    modules: HashMap<usize, Module>,
    functions: HashMap<usize, Function>,
}

/// What a launch asks for, besides parameters.
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: usize,
}

impl Settings {
    /// The text as a module, as this device's assembler sees it; else why not.
    fn assemble(&self, text: &str) -> Result<softcuda_ptx::Module, (Status, String)> {
        let module =
            softcuda_ptx::Module::parse(text).map_err(|error| (Status::INVALID_PTX, error))?;
        let ((major, minor), known) = (module.version(), self.ptx_version());
        if (major, minor) > known {
            let (known_major, known_minor) = known;
            let what = format!(
                "PTX .version {major}.{minor} is newer than this driver's {known_major}.{known_minor}"
            );
            return Err((Status::UNSUPPORTED_PTX_VERSION, what));
        }
        if module.target() > self.capability {
            let what = format!(
                "PTX .target sm_{} is above this device's sm_{}",
                module.target(),
                self.capability
            );
            return Err((Status::INVALID_PTX, what));
        }
        Ok(module)
    }

    /// Shared memory of a block that a kernel can ask for. Bytes.
    pub fn shared_on_request(&self) -> usize {
        match self.capability {
            75 => 64 << 10,
            80 => 163 << 10,
            86 | 89 | 120.. => 99 << 10,
            _ => 227 << 10,
        }
    }
}

impl Modules {
    pub fn count(&self) -> u64 {
        self.modules.len() as u64
    }

    pub fn forget_context(&mut self, context: usize) {
        self.modules.retain(|_, module| module.context != context);
        self.functions.retain(|_, function| function.context != context);
    }

    pub fn unload(&mut self, module: usize) -> Outcome {
        self.modules.remove(&module).ok_or(Status::INVALID_HANDLE)?;
        self.functions.retain(|_, function| function.module != module);
        Ok(())
    }

    pub fn function(&self, handle: usize) -> Outcome<&Function> {
        self.functions.get(&handle).ok_or(Status::INVALID_HANDLE)
    }
}

impl Function {
    pub fn kernel(&self) -> &softcuda_ptx::Function {
        self.image.function(&self.name).expect("looked up when the handle was made")
    }

    pub fn max_threads(&self) -> u32 {
        match self.kernel().max_threads() {
            0 => 1024,
            most => most.min(1024),
        }
    }

    /// Bytes of dynamic shared memory a launch may ask for.
    pub fn dynamic_shared_limit(&self) -> usize {
        self.dynamic_shared_limit
            .unwrap_or(SHARED_BY_DEFAULT.saturating_sub(self.kernel().static_shared()))
    }

    pub fn check(&self, shape: &Shape) -> Outcome {
        let within = |sizes: [u32; 3], most: [u32; 3]| {
            sizes.iter().zip(most).all(|(&size, most)| (1..=most).contains(&size))
        };
        let fits = within(shape.grid, [i32::MAX as u32, 65535, 65535])
            && within(shape.block, [1024, 1024, 64]);
        let [x, y, z] = shape.block.map(u64::from);
        if !fits || x * y * z > 1024 || shape.dynamic_shared > self.dynamic_shared_limit() {
            return Err(Status::INVALID_VALUE);
        }
        if x * y * z > self.max_threads().into() {
            return Err(Status::LAUNCH_OUT_OF_RESOURCES);
        }
        Ok(())
    }

    pub fn params_size(&self) -> usize {
        self.kernel().params().last().map_or(0, |(offset, size)| offset + size)
    }

    pub fn launch(&self, shape: Shape, params: Vec<u8>) -> Kernel {
        let Shape { grid, block, dynamic_shared } = shape;
        Kernel {
            image: self.image.clone(),
            name: self.name.clone(),
            grid,
            block,
            dynamic_shared,
            params,
        }
    }
}

impl Driver {
    /// Loads PTX into the current context. On failure the assembler's complaint comes with the code.
    pub fn load_module(&mut self, text: &str) -> Result<usize, (Status, String)> {
        let bare = |status| (status, String::new());
        let context = self.current().map_err(bare)?;
        self.refuse_unsafe_in_capture().map_err(bare)?;
        if !text.contains(".version") {
            return Err((Status::INVALID_IMAGE, "the image is not PTX text".into()));
        }
        let image = self.settings.assemble(text).inspect_err(|(_, what)| self.tell(what))?;
        let handle = self.new_handle();
        self.modules
            .modules
            .insert(handle, Module { context, image: Arc::new(image), functions: HashMap::new() });
        Ok(handle)
    }

    pub fn module_function(&mut self, module: usize, name: &str) -> Outcome<usize> {
        let handle = self.new_handle();
        let owner = self.modules.modules.get_mut(&module).ok_or(Status::INVALID_HANDLE)?;
        owner.image.function(name).ok_or(Status::NOT_FOUND)?;
        if let Some(&known) = owner.functions.get(name) {
            return Ok(known);
        }
        owner.functions.insert(name.to_string(), handle);
        let (context, image) = (owner.context, owner.image.clone());
        let function =
            Function { context, image, name: name.to_string(), dynamic_shared_limit: None, module };
        self.modules.functions.insert(handle, function);
        Ok(handle)
    }

    pub fn set_dynamic_shared_limit(&mut self, function: usize, bytes: c_int) -> Outcome {
        let most = self.settings.shared_on_request();
        let function = self.modules.functions.get_mut(&function).ok_or(Status::INVALID_HANDLE)?;
        let room = most.saturating_sub(function.kernel().static_shared());
        let bytes = usize::try_from(bytes)
            .ok()
            .filter(|&bytes| bytes <= room)
            .ok_or(Status::INVALID_VALUE)?;
        function.dynamic_shared_limit = Some(bytes);
        Ok(())
    }
}
