//! Which stream work goes to, and what it waits for.
use super::Cuda;
use super::context::{self, Context};
use crate::error::{Result, bail};
use cudarc::driver::sys::CUstream;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

/// `DC_STREAM_SYNC`
const SYNC: *mut c_void = std::ptr::without_provenance_mut(usize::MAX);

impl Cuda {
    /// Work goes to `stream` from here on, after what was queued elsewhere.
    fn move_to(&mut self, context: &Context, stream: CUstream) -> Result<()> {
        // The same handle may be another stream: each thread has a per-thread one, and the driver
        // uses the handles of those that were destroyed again.
        if let Some(fence) = self.fence {
            context.order(stream, fence)?;
        }
        self.stream = stream;
        self.memory.set_stream(stream.cast());
        Ok(())
    }

    pub(super) fn take_up(&mut self, stream: *mut c_void) -> Result<()> {
        let sync = stream == SYNC;
        let named: CUstream = if sync { null_mut() } else { stream.cast() };
        let context = self.context_of(stream, named)?;
        match &self.home {
            Some(home) if !Arc::ptr_eq(home, &context) => bail!(
                Device,
                "stream {stream:p} is of another context, on device {}, than this cache, which works \
                 on device {}",
                context.ordinal(),
                home.ordinal()
            ),
            Some(_) => {}
            None => {
                let _entered = context.enter()?;
                // There is always somewhere to retreat to.
                context.own_stream()?;
                self.memory.set_device(context.clone());
                self.home = Some(context);
            }
        }
        let context = self.enter()?;
        let to = if sync { context.own_stream()? } else { named };
        refuse_capture(&context, to)?;
        self.move_to(&context, to)?;
        (self.named, self.sync, self.open) = (Some(stream), sync, true);
        Ok(())
    }

    /// The context that a stream of the engine's means, which may not be this cache's.
    fn context_of(&self, stream: *mut c_void, named: CUstream) -> Result<Arc<Context>> {
        if let Some(home) = &self.home {
            let is_home = match context::is_of_no_context(named) {
                // With `sync` the work is done here in any case.
                true => stream == SYNC || home.is_implied()?,
                false => self.named == Some(stream),
            };
            if is_home {
                return Ok(home.clone());
            }
        }
        context::context_of(named, self.device)
    }

    /// The engine's stream takes no work, or may be gone: what must be done, above all giving memory
    /// back, is done on the library's own.
    pub(super) fn retreat(&mut self) -> Result<()> {
        if self.home.is_none() {
            return Ok(());
        }
        let home = self.enter()?;
        if std::mem::take(&mut self.dirty) {
            self.raise_fence()?;
        }
        self.named = None;
        self.move_to(&home, home.own_stream()?)?;
        self.open = true;
        Ok(())
    }
}

pub fn refuse_capture(context: &Context, stream: CUstream) -> Result<()> {
    if context.is_capturing(stream)? {
        bail!(Capture, "stream {stream:p} is being captured: a replay would not decide anew");
    }
    Ok(())
}
