//! Architectures and their system call numbers.

use std::sync::OnceLock;

use super::{Comparison, Condition};

/// An architecture whose calls a filter can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit x86 with 32-bit pointers: shares its audit number with `X86_64`, told apart by bit 30 of the number.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
    /// 64-bit IBM Z.
    S390x,
    /// 64-bit little-endian POWER.
    Ppc64le,
    /// 64-bit LoongArch.
    Loongarch64,
}

impl Architecture {
    /// Every architecture, in the column order of the table.
    pub const ALL: [Self; 9] = [
        Self::X86_64,
        Self::X86,
        Self::X32,
        Self::Aarch64,
        Self::Arm,
        Self::Riscv64,
        Self::S390x,
        Self::Ppc64le,
        Self::Loongarch64,
    ];

    /// Returns the architecture this program was built for.
    #[must_use]
    pub fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "x86" => Some(Self::X86),
            "aarch64" => Some(Self::Aarch64),
            "arm" => Some(Self::Arm),
            "riscv64" => Some(Self::Riscv64),
            "s390x" => Some(Self::S390x),
            "powerpc64" => Some(Self::Ppc64le),
            "loongarch64" => Some(Self::Loongarch64),
            _ => None,
        }
    }

    /// Returns the other architectures whose programs this one runs: Docker's `archMap`.
    #[must_use]
    pub fn companions(self) -> &'static [Self] {
        match self {
            Self::X86_64 => &[Self::X86, Self::X32],
            Self::Aarch64 => &[Self::Arm],
            _ => &[],
        }
    }

    /// Returns the number by which the kernel names it to a filter (`AUDIT_ARCH_*`).
    #[must_use]
    pub fn audit_number(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
            Self::S390x => 0x8000_0016,
            Self::Ppc64le => 0xc000_0015,
            Self::Loongarch64 => 0xc000_0102,
        }
    }

    /// Tells whether a call's arguments have 32 bits. The upper halves are the kernel's to fill, or nobody's.
    #[must_use]
    pub fn is_narrow(self) -> bool {
        matches!(self, Self::X86 | Self::X32 | Self::Arm)
    }

    /// Tells whether the upper half of an argument comes before its lower one.
    #[must_use]
    pub fn is_big_endian(self) -> bool {
        self == Self::S390x
    }

    /// Parses libseccomp's name, such as `SCMP_ARCH_X86_64`.
    #[must_use]
    pub fn from_scmp(name: &str) -> Option<Self> {
        Some(match name {
            "SCMP_ARCH_X86_64" => Self::X86_64,
            "SCMP_ARCH_X86" => Self::X86,
            "SCMP_ARCH_X32" => Self::X32,
            "SCMP_ARCH_AARCH64" => Self::Aarch64,
            "SCMP_ARCH_ARM" => Self::Arm,
            "SCMP_ARCH_RISCV64" => Self::Riscv64,
            "SCMP_ARCH_S390X" => Self::S390x,
            "SCMP_ARCH_PPC64LE" => Self::Ppc64le,
            "SCMP_ARCH_LOONGARCH64" => Self::Loongarch64,
            "SCMP_ARCH_NATIVE" => return Self::native(),
            _ => return None,
        })
    }

    /// Returns libseccomp's name.
    #[must_use]
    pub fn scmp(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::Riscv64 => "SCMP_ARCH_RISCV64",
            Self::S390x => "SCMP_ARCH_S390X",
            Self::Ppc64le => "SCMP_ARCH_PPC64LE",
            Self::Loongarch64 => "SCMP_ARCH_LOONGARCH64",
        }
    }

    /// Parses Go's name, such as `amd64`, which Docker's profiles use in conditions.
    #[must_use]
    pub fn from_go(name: &str) -> Option<Self> {
        Some(match name {
            "amd64" => Self::X86_64,
            "x86" | "386" => Self::X86,
            "x32" => Self::X32,
            "arm64" => Self::Aarch64,
            "arm" => Self::Arm,
            "riscv64" => Self::Riscv64,
            "s390x" => Self::S390x,
            "ppc64le" => Self::Ppc64le,
            "loong64" => Self::Loongarch64,
            _ => return None,
        })
    }

    /// Returns the number of a call as filters see it, bit 30 included for x32.
    #[must_use]
    pub fn number(self, name: &str) -> Option<u32> {
        self.number_in(numbers(name)?)
    }

    /// As [`number`](Self::number), for a call that was looked up before.
    pub(super) fn number_in(self, numbers: &Numbers) -> Option<u32> {
        let number = numbers[self as usize]?;
        Some(if self == Self::X32 { number | X32_BIT } else { number })
    }

    /// Tells whether a number belongs to the list that grows from 0: private ranges, as on 32-bit ARM, are apart.
    pub(super) fn is_ordinary(self, number: u32) -> bool {
        let number = if self == Self::X32 { number & !X32_BIT } else { number };
        number < 0x1_0000
    }
}

/// The call through which another one can be made as well, how it tells them apart by its first argument, and which bits
/// of that argument the kernel looks at. 32-bit x86, POWER and IBM Z have these two beside the direct calls.
pub(super) fn carrier(name: &str) -> Option<Carrier> {
    let position = |list: &[&str]| list.iter().position(|known| *known == name).map(|at| at as u64 + 1);
    if let Some(selector) = position(&SOCKET_CALLS) {
        return Some(Carrier { name: "socketcall", selector, mask: 0xffff_ffff });
    }
    let selector = IPC_CALLS.iter().find(|(known, _)| *known == name)?.1;
    // The upper half of the word is a version.
    Some(Carrier { name: "ipc", selector, mask: 0xffff })
}

/// See [`carrier`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Carrier {
    pub(super) name: &'static str,
    selector: u64,
    mask: u64,
}

impl Carrier {
    /// The condition under which the carrier makes the call.
    pub(super) fn condition(&self) -> Condition {
        Condition { argument: 0, comparison: Comparison::MaskedEqual(self.mask), value: self.selector }
    }
}

/// By `socketcall`'s numbers, from 1.
const SOCKET_CALLS: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

const IPC_CALLS: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// One call's number on each architecture.
pub(super) type Numbers = [Option<u32>; Architecture::ALL.len()];

/// Looks a name up.
pub(super) fn numbers(name: &str) -> Option<&'static Numbers> {
    let table = table();
    let position = table.binary_search_by_key(&name, |(known, _)| known).ok()?;
    Some(&table[position].1)
}

/// Every name that some architecture has.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    table().iter().map(|(name, _)| *name)
}

/// The name that a row of the table belongs to.
#[cfg(test)]
pub(super) fn name_of(numbers: &Numbers) -> &'static str {
    table().iter().find(|(_, row)| std::ptr::eq(row, numbers)).map_or("", |(name, _)| *name)
}

/// The data file, parsed once: 500 short lines, sorted by name.
fn table() -> &'static [(&'static str, Numbers)] {
    static TABLE: OnceLock<Vec<(&'static str, Numbers)>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = Vec::with_capacity(512);
        for line in SYSCALLS.lines().filter(|line| !line.starts_with('#')).skip(1) {
            let mut words = line.split(' ');
            let Some(name) = words.next() else { continue };
            let mut row = [None; Architecture::ALL.len()];
            for (entry, word) in row.iter_mut().zip(words) {
                *entry = word.parse().ok();
            }
            table.push((name, row));
        }
        table
    })
}

/// Marks x32 calls.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Name and number for each architecture, from the kernel's tables.
const SYSCALLS: &str = include_str!("syscalls.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers() {
        let numbers = |name: &str| Architecture::ALL.map(|architecture| architecture.number(name));
        assert_eq!(numbers("read")[..5], [Some(0), Some(3), Some(X32_BIT), Some(63), Some(3)]);
        assert_eq!(numbers("execve")[..4], [Some(59), Some(11), Some(520 | X32_BIT), Some(221)]);
        assert_eq!(Architecture::X86_64.number("socketcall"), None);
        assert_eq!(Architecture::X86.number("socketcall"), Some(102));
        assert_eq!(Architecture::Aarch64.number("open"), None);
        assert_eq!(Architecture::X86_64.number("nonsense"), None);
        // Everything since 2019 has one number everywhere.
        assert!(numbers("clone3").iter().enumerate().all(|(column, number)| {
            *number == Some(if column == Architecture::X32 as usize { 435 | X32_BIT } else { 435 })
        }));
    }

    #[test]
    fn the_table_agrees_with_libc_on_the_native_architecture() {
        let native = Architecture::native().unwrap();
        let pairs = [
            ("openat2", libc::SYS_openat2),
            ("mount", libc::SYS_mount),
            ("personality", libc::SYS_personality),
            ("setresuid", libc::SYS_setresuid),
            ("seccomp", libc::SYS_seccomp),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("process_vm_readv", libc::SYS_process_vm_readv),
        ];
        for (name, number) in pairs {
            assert_eq!(native.number(name).map(i64::from), Some(number), "{name}");
        }
    }

    #[test]
    fn the_file_is_sorted() {
        assert!(table().is_sorted_by(|one, other| one.0 < other.0));
    }

    #[test]
    fn no_number_is_given_twice_except_for_one_renamed_call() {
        for (column, architecture) in Architecture::ALL.into_iter().enumerate() {
            let mut numbers: Vec<u32> = table().iter().filter_map(|(_, row)| row[column]).collect();
            numbers.sort_unstable();
            let doubled: Vec<u32> = numbers.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
            let expected: &[u32] = if architecture == Architecture::Arm { &[341] } else { &[] };
            assert_eq!(doubled, expected, "{architecture:?}");
        }
    }
}
