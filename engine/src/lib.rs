//! Images, containers, mounts: what the command line and the API call.
//!
//! [`Engine`] is a root folder with a store of images and a folder of containers. It joins the three crates below it,
//! which do not know each other: an image becomes layers, layers become a mount, a mount becomes the root of a process.
//! No daemon is needed: the state is in files, and the two kinds of process that outlive a call or a mount find their
//! way by them.
//!
//! # Lock order
//!
//! ```text
//! containers/names                 (exclusive: choosing ids for a user namespace; until the record is there)
//! containers/<id>                  (exclusive: whoever writes the container's record or removes it; short)
//! └── containers/<id>/config.json  (exclusive: its files are written; shared: they are only read; kept by the fs process)
//!     └── the locks of the store   (see strata_imagestore; never held across a call of ours)
//! ```
//!
//! All are `flock`s on folders, so the kernel drops them with the process that holds them.

#![forbid(unsafe_code)]

mod archive;
mod bench;
mod channel;
mod commit;
mod container;
mod creation;
mod device_nodes;
mod disk_usage;
mod disk_use;
mod durable;
mod engine;
mod error_text;
mod fetcher;
mod filesystem;
mod filesystem_features;
mod info;
mod inspect;
mod launch;
mod lifecycle;
mod log;
mod monitor;
mod mount;
mod namespaces;
mod network_files;
mod own_accounts;
mod own_file;
mod process;
mod recover;
pub mod signal;
mod size;
mod spec;
mod timestamp;
mod user_namespace;

pub use archive::{
    ArchiveError, ContainerFiles, CopyPlan, CopySource, FilesUse, Found, Owner, Tree, Unpacked, enter_rootless_of,
    plan_copy,
};
pub use bench::{BenchError, LookupReport, Machine, Measure};
pub use commit::{ChangesError, CommitError, ContainerCommit};
pub use container::{
    Bind, Config, Container, ContainerId, ContainerName, Containers, CreateError, Device, DeviceRule, End, Ended,
    Event, ExtraHost, FindError, InvalidContainerId, InvalidDevice, InvalidExtraHost, InvalidName,
    InvalidRestartPolicy, InvalidUserNamespace, Limits, LogConfig, LogDriver, Mount, NameResolution, Namespace,
    Namespaces, OwnIds, RecordError, Refused, RemoveError, RestartPolicy, Rlimit, SeccompChoice, Security,
    StartFailure, State, Tmpfs, UserNamespace,
};
pub use creation::{Creation, InvalidCreation};
pub use device_nodes::DeviceError;
pub use disk_usage::{Usage, UsageError};
pub use disk_use::ContainerSize;
pub use engine::{Engine, EngineError, RemoveImageError};
pub use error_text::error_chain;
pub use fetcher::{CompleteError, FetchProcessError, fetch, set_fetch_deadline, start_fetching};
pub use filesystem::{
    FilesystemError, FilesystemProcess, ServeError, VERB as FILESYSTEM_VERB, expect_mount, expect_no_mount,
    serve as serve_filesystem,
};
pub use info::{Choice, Feature, Info};
pub use inspect::InspectError;
pub use lifecycle::{LifecycleError, Processes, RemoveContainerError, RunError, StartOptions, Statistics, StopOptions};
pub use log::{LogError, LogOptions, LogReader, LogRecord, LogStream};
pub use monitor::{
    AskError, Attach, Execution, Monitor, MonitorError, Refusal, Session, SessionEvent, Update, UpdateConflict,
    VERB as MONITOR_VERB, watch as watch_container,
};
pub use mount::{
    InvalidOption, MountError, MountMade, MountOptions, MountSource, UnmountError, Writable, mount_folders, remount,
    unmount,
};
pub use namespaces::{JoinError, ShareError, enter_rootless_to_start};
pub use process::Process;
pub use size::parse_size;
pub use spec::SpecError;
pub use spec::check_policy;
pub use strata_imagestore::{
    Change, CommitOptions, CompressionFormat, Depth, DiskError, Event as ProgressEvent, EventMessage, EventReader,
    EventsFrom, Finding, FsckOptions, FsckReport, HistoryLine, ImageError, ImageId, ImageRef, ImageSummary, Input,
    LazyProgress, Leftovers, LoadOptions, Login, Mend, Outcome, Platform, Progress, Proxies, Pruned, PullOptions,
    Pulled, PushOptions, Pushed, RegistryClient, RegistryError, RegistrySettings, Removed, Secret, Start, Stored,
    Timestamp, Unused, Upload as ProgressUpload, clean_path,
};
pub use strata_sandbox::cgroup::CgroupManager;
pub use strata_sandbox::policy::PolicyError;
pub use strata_sandbox::runtime as oci;
pub use strata_sandbox::userns::{Rootless, UserNamespaceError, enter_rootless};
pub use strata_unionfs::{
    Aspect, Change as FileChange, ChangeKind, Difference, Force, Kind as FileKind, RemountError, Side, Upper,
};
pub use user_namespace::ChooseError;
