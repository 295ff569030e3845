//! Where the static release binary for x86-64 begins, before the C library does; and which command lines that is for.
//!
//! `strata runtime` executes itself a second time whenever it makes processes, from a mount that nobody can write to
//! (`sandbox/src/runtime/own_program.rs`). All that the first of the two programs does is to find that out, and it would take
//! 0.8 ms of CPU time to get there: half of it is the C library's look at the processor, instruction by instruction caught by
//! the hypervisor of a virtual machine. From here it takes a quarter of that.
//!
//! The linker is told to begin here (`.cargo/config.toml`); a binary that begins elsewhere takes the long way to the same
//! end, and so does this one whenever anything fails. Nothing is set up yet: no thread-local storage, so no `errno`, and none
//! of the functions that the C library chooses by the processor, so neither `memcpy` nor `strlen`. So there are raw system calls
//! here, and bytes are read one by one in a way that the compiler does not make calls of. Nor has the program moved its
//! pointers yet, if it is to run at another address than that it was linked to: such a binary must not begin here.

/// The names under which this program is nothing but a runtime.
pub const RUNTIME_NAMES: [&str; 2] = ["runc", "strata-runtime"];
/// The first word that makes it one under any other name.
pub const RUNTIME_VERB: &str = "runtime";
/// The runtime's verbs that make processes in containers.
pub const PROCESS_VERBS: [&str; 3] = ["create", "run", "exec"];

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
mod x86_64;
