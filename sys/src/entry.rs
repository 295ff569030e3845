//! Where the static release binary for x86-64 begins, before the C library does.
//!
//! `strata runtime` executes itself a second time whenever it makes processes, from a mount that nobody can write to
//! (`sandbox/src/runtime/own_program.rs`). All that the first of the two programs does is to find that out, and it would take
//! 0.8 ms of CPU time to get there: half of it is the C library's look at the processor, instruction by instruction caught by
//! the hypervisor of a virtual machine. From here it takes a quarter of that.
//!
//! The linker is told to begin here (`.cargo/config.toml`); a binary that begins elsewhere takes the long way to the same
//! end, and so does this one whenever anything fails. Nothing is set up yet: no thread-local storage, so no `errno`, and none
//! of the functions that the C library chooses by the processor, so neither `memcpy` nor `strlen`. So there are raw system calls
//! here, and bytes are read one by one in a way that the compiler does not make calls of.

use std::arch::{asm, global_asm};
use std::ptr::read_volatile;

// The kernel enters with the stack pointer at the arguments, and with a function to be called at exit in `rdx`, both of which are
// for the C library's `_start`.
global_asm!(
    ".globl strata_entry",
    ".type strata_entry, @function",
    "strata_entry:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "push rdx",
    "and rsp, -16",
    "mov rbx, rdi",
    "call {before}",
    "mov rsp, rbx",
    "mov rdx, [rsp - 8]",
    "jmp _start",
    before = sym before,
);

/// Looks at the arguments, and executes this program from a read-only mount if that is what it would do later.
///
/// `stack` is as the kernel leaves it: a count, so many arguments, null, the environment, null.
extern "C" fn before(stack: *const usize) {
    // SAFETY: that is the layout of the System V ABI, and the kernel has written it just now. Each argument is a string that
    // ends with NUL.
    unsafe {
        let count = *stack;
        let arguments = stack.add(1).cast::<*const u8>();
        if count < 2 || !makes_processes(arguments, count) {
            return;
        }
        execute_protected(arguments, arguments.add(count + 1));
    }
}

/// Whether these may be the words of `strata runtime run`, or of another verb that makes processes.
///
/// # Safety
/// `arguments` are `count` strings, two at least.
unsafe fn makes_processes(arguments: *const *const u8, count: usize) -> bool {
    // SAFETY: only the first `count` are read, each up to its NUL.
    unsafe {
        let name = file_name(*arguments);
        let is_runtime = is(*arguments.add(1), b"runtime\0") || is(name, b"runc\0") || is(name, b"strata-runtime\0");
        if !is_runtime {
            return false;
        }
        // Which word is the verb depends on the options before it. A word too many only costs time.
        let mut at = 1;
        while at < count {
            let word = *arguments.add(at);
            if is(word, b"run\0") || is(word, b"create\0") || is(word, b"exec\0") {
                return true;
            }
            at += 1;
        }
        false
    }
}

/// What follows the last slash.
///
/// # Safety
/// `path` ends with NUL.
unsafe fn file_name(path: *const u8) -> *const u8 {
    let (mut name, mut at) = (path, path);
    // SAFETY: nothing behind the NUL is read.
    unsafe {
        while read_volatile(at) != 0 {
            if read_volatile(at) == b'/' {
                name = at.add(1);
            }
            at = at.add(1);
        }
    }
    name
}

/// Whether `text` is `word`; both end with NUL.
///
/// # Safety
/// They do.
unsafe fn is(text: *const u8, word: &[u8]) -> bool {
    let mut at = 0;
    // SAFETY: the first difference, at the latest that of a NUL, ends the loop.
    while at < word.len() && unsafe { read_volatile(text.add(at)) == read_volatile(word.as_ptr().add(at)) } {
        at += 1;
    }
    at == word.len()
}

/// Returns when the program is where it should be, or if anything stands against that.
///
/// # Safety
/// Both are lists of strings that end with null.
unsafe fn execute_protected(arguments: *const *const u8, environment: *const *const u8) {
    const OWN: &[u8] = b"/proc/self/exe\0";
    const EMPTY: &[u8] = b"\0";
    // SAFETY: all pointers lead to what lives until the calls are over: strings with their NUL, and two structures of the sizes
    // that the kernel is told or knows. It writes into the first alone.
    unsafe {
        let own = call(libc::SYS_openat, [HERE, address(OWN), PATH_CLOEXEC, 0, 0]);
        if own < 0 {
            return;
        }
        let mut about = [0_usize; STATFS_WORDS];
        let found = call(libc::SYS_fstatfs, [own.cast_unsigned(), about.as_mut_ptr().expose_provenance(), 0, 0, 0]);
        call(libc::SYS_close, [own.cast_unsigned(), 0, 0, 0, 0]);
        if found < 0 || read_volatile(&raw const about[STATFS_FLAGS]) & READ_ONLY != 0 {
            return;
        }
        let mount = call(libc::SYS_open_tree, [HERE, address(OWN), TREE_CLONE_CLOEXEC, 0, 0]);
        if mount < 0 {
            return;
        }
        let attributes =
            libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
        let mount = mount.cast_unsigned();
        let at = (&raw const attributes).expose_provenance();
        let size = size_of::<libc::mount_attr>();
        if call(libc::SYS_mount_setattr, [mount, address(EMPTY), EMPTY_PATH, at, size]) == 0 {
            let lists = [arguments.expose_provenance(), environment.expose_provenance()];
            call(libc::SYS_execveat, [mount, address(EMPTY), lists[0], lists[1], EMPTY_PATH]);
        }
        call(libc::SYS_close, [mount, 0, 0, 0, 0]);
    }
}

fn address(text: &[u8]) -> usize {
    text.as_ptr().expose_provenance()
}

/// # Safety
/// As the system call wants it.
unsafe fn call(number: libc::c_long, arguments: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the caller's; the kernel changes these registers and no others.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The kernel's `struct statfs` (`asm-generic/statfs.h`) in words, and the place of its `f_flags`.
const STATFS_WORDS: usize = 15;
const STATFS_FLAGS: usize = 10;
/// `ST_RDONLY`.
const READ_ONLY: usize = 1;
const HERE: usize = libc::AT_FDCWD as isize as usize;
const PATH_CLOEXEC: usize = (libc::O_PATH | libc::O_CLOEXEC) as usize;
const TREE_CLONE_CLOEXEC: usize = (libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC) as usize;
const EMPTY_PATH: usize = libc::AT_EMPTY_PATH as usize;
