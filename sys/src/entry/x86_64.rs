//! The entry point itself.

use std::arch::{asm, global_asm};
use std::ptr::read_volatile;

use super::{PROCESS_VERBS, RUNTIME_NAMES, RUNTIME_VERB};

// The kernel enters with the stack pointer at the arguments, and with a function to be called at exit in `rdx`, both of which are
// for the C library's `_start`.
global_asm!(
    // Of its own, so that it can be put where other starts are (`cli/code-order.ld`).
    ".pushsection .text.strata_entry, \"ax\", @progbits",
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
    ".popsection",
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

/// Whether these may be the words of a runtime that makes processes.
///
/// # Safety
/// `arguments` are `count` strings, two at least.
unsafe fn makes_processes(arguments: *const *const u8, count: usize) -> bool {
    // SAFETY: only the first `count` are read, each up to its NUL.
    unsafe {
        let name = file_name(*arguments);
        if !is(*arguments.add(1), RUNTIME_VERB) && !RUNTIME_NAMES.iter().any(|known| is(name, known)) {
            return false;
        }
        // Which word is the verb depends on the options before it. A word too many only costs time.
        (1..count).any(|at| PROCESS_VERBS.iter().any(|verb| is(*arguments.add(at), verb)))
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

/// Whether `text` is `word`.
///
/// # Safety
/// `text` ends with NUL.
unsafe fn is(text: *const u8, word: &str) -> bool {
    let mut at = 0;
    // SAFETY: a NUL in `text` is a difference, which ends the loop, as `word` has none; without one, the byte behind the word is
    // still the text's.
    unsafe {
        while at < word.len() && read_volatile(text.add(at)) == read_volatile(word.as_ptr().add(at)) {
            at += 1;
        }
        at == word.len() && read_volatile(text.add(at)) == 0
    }
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
        // Not filled: that may be a call.
        let mut about = std::mem::MaybeUninit::<[usize; STATFS_WORDS]>::uninit();
        let found = call(libc::SYS_fstatfs, [own.cast_unsigned(), about.as_mut_ptr().expose_provenance(), 0, 0, 0]);
        call(libc::SYS_close, [own.cast_unsigned(), 0, 0, 0, 0]);
        if found < 0 || read_volatile(about.as_ptr().cast::<usize>().add(STATFS_FLAGS)) & READ_ONLY != 0 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    #[test]
    fn the_short_way_is_for_a_runtime_that_makes_processes() {
        let short = |line: &str| {
            let words: Vec<CString> = line.split(' ').map(|word| CString::new(word).unwrap()).collect();
            let pointers: Vec<*const u8> = words.iter().map(|word| word.as_ptr().cast()).collect();
            // SAFETY: so many strings with their NUL.
            unsafe { makes_processes(pointers.as_ptr(), pointers.len()) }
        };
        for line in [
            "strata runtime run x",
            "/usr/bin/strata runtime --root /run/x create --bundle b id",
            "runc exec id true",
            "/usr/sbin/runc --log exec.log --log-format json create id",
            "./strata-runtime run",
        ] {
            assert!(short(line), "{line}");
        }
        for line in [
            "strata run busybox",
            "strata runtime state run1",
            "strata runtime delete x",
            "strata runtim run",
            "strata runtimes run",
            "runc/ run",
            "runcs run",
            "runc runs",
            "strata create runtime",
        ] {
            assert!(!short(line), "{line}");
        }
    }
}
