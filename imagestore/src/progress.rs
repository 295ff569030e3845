//! Telling the caller how far an operation has come.

use std::time::Duration;

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
    /// An image has been found in a registry.
    Pulling {
        /// Its tag or digest.
        tag: &'a str,
        /// Its repository.
        repository: &'a str,
    },
    /// The layer will be read.
    Waiting {
        /// The layer.
        layer: &'a str,
    },
    /// Something failed and is tried again after a while.
    Retrying {
        /// The layer or document.
        layer: &'a str,
        /// What failed.
        reason: &'a str,
        /// How long until then.
        delay: Duration,
    },
    /// The registry has the layer.
    Uploaded {
        /// The layer.
        layer: &'a str,
        /// How it came there.
        how: Upload<'a>,
    },
    /// The layer can be used before it is here: what is in it is known.
    Early {
        /// The layer.
        layer: &'a str,
    },
    /// The layer has a table of contents that is of no use.
    NotEarly {
        /// The layer.
        layer: &'a str,
        /// What is wrong with it.
        reason: &'a str,
    },
    /// The layer is in the store already and is not read.
    Present {
        /// The layer.
        layer: &'a str,
    },
}

/// How a registry came to have a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload<'a> {
    /// It was sent.
    Sent,
    /// It was there.
    Present,
    /// It was in another repository.
    Mounted {
        /// Which.
        repository: &'a str,
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
