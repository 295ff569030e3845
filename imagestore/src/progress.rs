//! Telling the caller how far an operation has come.

/// Something that happened to a layer. Layers are named by their diff_id where it is known beforehand, else by the
/// archive member they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The layer is being read.
    Started {
        /// The layer.
        layer: &'a str,
        /// How many bytes will be read, if that is known.
        bytes: Option<u64>,
    },
    /// More of the layer has been read.
    Advanced {
        /// The layer.
        layer: &'a str,
        /// How many bytes have been read in all.
        bytes: u64,
    },
    /// The layer has been read completely.
    Finished {
        /// The layer.
        layer: &'a str,
    },
    /// The layer is in the store already and is not read.
    Present {
        /// The layer.
        layer: &'a str,
    },
}

/// Receives events, possibly from several threads at once.
pub trait Progress: Sync {
    /// Takes note of an event. Called about once per MiB and layer; must not block for long.
    fn report(&self, event: Event<'_>);
}

/// Takes note of nothing.
impl Progress for () {
    fn report(&self, _: Event<'_>) {}
}
