//! How requests come from the kernel and answers get back.

mod device;
mod fuser;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use super::operations::Operations;
pub(crate) use device::Device;
pub(crate) use fuser::Fuser;

/// A way to the kernel, after the handshake.
pub(crate) trait Transport: Debug + Send {
    /// Serves until the mount is gone.
    fn serve(self: Box<Self>, operations: &Arc<Operations>) -> io::Result<()>;
}
