//! Docker's default profile, compiled beforehand, so that an ordinary start compiles nothing.
//!
//! The programs are kept in the repository, where a change of the profile or of the compiler shows; a test makes them
//! anew and compares. An instruction is one number: operation, the two jumps, operand.

use std::borrow::Cow;

use strata_sys::seccomp::Instruction;

use super::{Architecture, Profile, Program};
use crate::capabilities::{CapabilitySet, SYS_CHROOT};

impl Profile {
    /// Returns [`docker_default`](Self::docker_default), compiled for this machine and a process with the bounding set
    /// `capabilities`.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn docker_default_program(capabilities: CapabilitySet) -> Result<Program, super::ProfileError> {
        let found = Architecture::native()
            .filter(|_| super::kernel_version() >= OLDEST_KERNEL)
            .and_then(|native| find(native, capabilities));
        match found {
            Some(instructions) => Ok(Program { instructions: Cow::Borrowed(instructions), flags: 0 }),
            None => Self::docker_default().compile(capabilities),
        }
    }
}

/// The capabilities that make a difference to the default profile, of those for which it is kept here.
fn find(native: Architecture, capabilities: CapabilitySet) -> Option<&'static [Instruction]> {
    let deciding = capabilities.intersection(Profile::docker_default().deciding_capabilities());
    let chroot = CapabilitySet::from_bits(1 << SYS_CHROOT);
    let with_chroot = match deciding {
        set if set == chroot => true,
        CapabilitySet::EMPTY => false,
        _ => return None,
    };
    Some(match (native, with_chroot) {
        (Architecture::X86_64, true) => &X86_64,
        (Architecture::X86_64, false) => &X86_64_NO_CHROOT,
        (Architecture::Aarch64, true) => &AARCH64,
        (Architecture::Aarch64, false) => &AARCH64_NO_CHROOT,
        (Architecture::Riscv64, true) => &RISCV64,
        (Architecture::Riscv64, false) => &RISCV64_NO_CHROOT,
        _ => return None,
    })
}

/// From here on every rule of the profile counts.
const OLDEST_KERNEL: (u32, u32) = (4, 8);

static X86_64: [Instruction; LENGTHS[0]] = unpack(&include!("precompiled/x86_64.in"));
static X86_64_NO_CHROOT: [Instruction; LENGTHS[1]] = unpack(&include!("precompiled/x86_64-no-chroot.in"));
static AARCH64: [Instruction; LENGTHS[2]] = unpack(&include!("precompiled/aarch64.in"));
static AARCH64_NO_CHROOT: [Instruction; LENGTHS[3]] = unpack(&include!("precompiled/aarch64-no-chroot.in"));
static RISCV64: [Instruction; LENGTHS[4]] = unpack(&include!("precompiled/riscv64.in"));
static RISCV64_NO_CHROOT: [Instruction; LENGTHS[5]] = unpack(&include!("precompiled/riscv64-no-chroot.in"));
const LENGTHS: [usize; 6] = include!("precompiled/lengths.in");

const fn unpack<const N: usize>(packed: &[u64; N]) -> [Instruction; N] {
    let mut program = [Instruction { code: 0, jump_true: 0, jump_false: 0, k: 0 }; N];
    let mut at = 0;
    while at < N {
        let word = packed[at];
        program[at] = Instruction {
            code: (word >> 48) as u16,
            jump_true: (word >> 40 & 0xff) as u8,
            jump_false: (word >> 32 & 0xff) as u8,
            k: (word & 0xffff_ffff) as u32,
        };
        at += 1;
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVES: [(Architecture, &str); 3] =
        [(Architecture::X86_64, "x86_64"), (Architecture::Aarch64, "aarch64"), (Architecture::Riscv64, "riscv64")];

    fn compile(native: Architecture, capabilities: CapabilitySet) -> Vec<Instruction> {
        let architectures = std::iter::once(native).chain(native.companions().iter().copied()).collect();
        let profile = Profile { architectures, ..Profile::docker_default().clone() };
        profile.compile_for(native, capabilities, OLDEST_KERNEL).unwrap().instructions.into_owned()
    }

    fn written(program: &[Instruction]) -> String {
        let words = program.iter().map(|at| {
            let fields = [u64::from(at.code) << 48, u64::from(at.jump_true) << 40, u64::from(at.jump_false) << 32];
            format!("{:#x}, ", fields.iter().sum::<u64>() | u64::from(at.k))
        });
        let words: Vec<String> = words.collect();
        let lines: Vec<String> = words.chunks(6).map(|line| line.concat().trim_end().to_owned()).collect();
        format!("[\n{}\n]\n", lines.join("\n"))
    }

    /// With `STRATA_BLESS=1` it writes them.
    #[test]
    fn the_kept_programs_are_what_the_compiler_makes() {
        let mut lengths = Vec::new();
        let mut stale = Vec::new();
        for (native, name) in NATIVES {
            for (capabilities, suffix) in [(CapabilitySet::DOCKER, ""), (CapabilitySet::EMPTY, "-no-chroot")] {
                let program = compile(native, capabilities);
                lengths.push(program.len());
                if std::env::var_os("STRATA_BLESS").is_some() {
                    let path = format!("{}/src/seccomp/precompiled/{name}{suffix}.in", env!("CARGO_MANIFEST_DIR"));
                    std::fs::write(path, written(&program)).unwrap();
                } else if find(native, capabilities) != Some(program.as_slice()) {
                    stale.push(format!("{name}{suffix}"));
                }
            }
        }
        if std::env::var_os("STRATA_BLESS").is_some() {
            let path = format!("{}/src/seccomp/precompiled/lengths.in", env!("CARGO_MANIFEST_DIR"));
            std::fs::write(path, format!("{lengths:?}\n")).unwrap();
        }
        assert!(stale.is_empty(), "run this test with STRATA_BLESS=1: {stale:?}");
    }

    #[test]
    fn capabilities_that_decide_nothing_change_nothing() {
        let native = Architecture::X86_64;
        let add = |name: &str| {
            CapabilitySet::from_bits(CapabilitySet::DOCKER.bits() | CapabilitySet::parse(name).unwrap().bits())
        };
        assert!(find(native, CapabilitySet::DOCKER).is_some());
        assert_eq!(find(native, add("NET_ADMIN")), find(native, CapabilitySet::DOCKER));
        assert_eq!(find(native, add("SYS_ADMIN")), None);
        assert_ne!(find(native, CapabilitySet::EMPTY), find(native, CapabilitySet::DOCKER));
    }
}
